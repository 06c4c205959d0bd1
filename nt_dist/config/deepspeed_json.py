"""Joins the TOML with a DeepSpeed JSON: fills in "auto", names contradictions, refuses what is unknown or untested."""

from collections.abc import Collection, Mapping
from typing import Any

from nt_dist.config.deepspeed_keys import ALLOWED, AT_LEAST_ONE, CHOICES, ONLY, REFUSED
from nt_dist.config.names import hint, nearest
from nt_dist.config.settings import Config
from nt_dist.config.values import convert, describe, plain

AUTO = "auto"
_IN = " (DeepSpeed JSON)"
BUILT_IN: dict[str, Any] = {"zero_optimization": {"stage": AUTO}}
"""What is used without a JSON."""

_LEAST_BUCKET = 1 << 22  # elements: a small model's gradients travel in one message
_BATCH_KEYS = {"train.batch_size", "train.micro_batch_size", "parallel.tensor", "parallel.pipe", "parallel.trail"}
_KNOWN = [
    *REFUSED,
    *(
        dotted
        for name, kind in ALLOWED.items()
        for dotted in ([name, *(f"{name}.{inner}" for inner in kind)] if isinstance(kind, dict) else [name])
    ),
]


def resolve(
    given: Mapping[str, Any] | None, config: Config, wrong: Collection[str] = ()
) -> tuple[dict[str, Any], list[str]]:
    """Make the configuration that DeepSpeed is started with.

    Args:
        given: What the JSON holds, or None for the built-in one.
        config: The TOML's settings.
        wrong: Keys of the TOML whose values cannot be used; the JSON is not compared with them.

    Returns:
        The JSON with every "auto" filled in and what the TOML decides added, and one message for each problem. Where
        there are problems it is usable by other rules, not for training.
    """
    if given is None:
        given = BUILT_IN
    if not isinstance(given, Mapping):
        return resolve(None, config, wrong)[0], ["the DeepSpeed JSON must be an object, { … }"]
    problems: list[str] = []
    resolved = _known_and_typed(given, "", ALLOWED, problems)
    for dotted, (value, key) in _decided_by_toml(config, wrong).items():
        _decide(resolved, dotted, value, None if key in wrong else key, problems)
    _choose_stage(resolved.setdefault("zero_optimization", {}), config, wrong, problems)
    for dotted, value in _fillings(config).items():
        section, name = _place(resolved, dotted)
        if section.get(name, AUTO if name == "reduce_bucket_size" else None) == AUTO:
            section[name] = value
    _check_only(resolved, problems)
    problems += [f"{dotted} = 'auto': the TOML has no setting for it{_IN}" for dotted in _autos(resolved, "")]
    return resolved, problems


def _known_and_typed(
    given: Mapping[str, Any], prefix: str, allowed: Mapping[str, Any], problems: list[str]
) -> dict[str, Any]:
    """The entries that are known and of the right type; what is switched off and not ours is left out."""
    kept: dict[str, Any] = {}
    for name, value in given.items():
        dotted = f"{prefix}{name}"
        kind = allowed.get(name)
        if dotted in REFUSED:
            if not _is_off(value):
                problems.append(f"{dotted} is refused: {REFUSED[dotted]}{_IN}")
        elif kind is None:
            problems.append(f"{dotted} is no setting of DeepSpeed's{hint(nearest(dotted, _KNOWN))}{_IN}")
        elif isinstance(kind, Mapping):
            if isinstance(value, Mapping):
                kept[name] = _known_and_typed(value, f"{dotted}.", kind, problems)
            else:
                problems.append(f"{dotted} = {value!r} must be an object, {{ … }}{_IN}")
        elif value == AUTO:
            kept[name] = value
        else:
            _keep_typed(kept, name, dotted, value, kind, problems)
    return kept


def _keep_typed(kept: dict[str, Any], name: str, dotted: str, value: Any, kind: type, problems: list[str]) -> None:
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)  # DeepSpeed's own documents write 5e8
    try:
        converted = convert(value, kind)
    except TypeError:
        problems.append(f"{dotted} = {value!r} must be {describe(kind)}{_IN}")
        return
    low = 1 if dotted in AT_LEAST_ONE else 0
    if kind in (int, float) and converted < low:
        problems.append(f"{dotted} = {value!r} must be at least {low}{_IN}")
    elif dotted in CHOICES and converted not in CHOICES[dotted]:
        problems.append(f"{dotted} = {value!r} must be one of {', '.join(CHOICES[dotted])}{_IN}")
    else:
        kept[name] = plain(converted)


def _is_off(value: Any) -> bool:
    """Whether a refused feature is only mentioned: Hugging Face's examples name many that they switch off."""
    if isinstance(value, Mapping):
        off = value.get("enabled", value.get("device", True))
        return off in (False, "none", AUTO)
    return value is None or value is False or (type(value) is int and value <= 1)  # a degree of 1


def _decided_by_toml(config: Config, wrong: Collection[str]) -> dict[str, tuple[Any, str]]:
    """What the TOML decides, by its place in the JSON: the value (None if it cannot), and the key that decides it."""
    decided: dict[str, tuple[Any, str]] = {
        "train_batch_size": (config.train.batch_size, "train.batch_size"),
        "train_micro_batch_size_per_gpu": (config.train.micro_batch_size, "train.micro_batch_size"),
        "gradient_clipping": (config.train.grad_clip, "train.grad_clip"),
        "bf16.enabled": (config.train.precision == "bf16", "train.precision"),
        "data_types.grad_accum_dtype": ("fp32", ""),
    }
    unit = config.train.micro_batch_size * config.data_degree
    divides = unit and config.train.batch_size % unit == 0  # else a rule of its own says what does not divide
    known = not _BATCH_KEYS & set(wrong)
    decided["gradient_accumulation_steps"] = (
        config.accumulation_steps if divides and known else None,
        "train.batch_size / (train.micro_batch_size × data degree)",
    )
    return decided


def _decide(resolved: dict[str, Any], dotted: str, value: Any, key: str | None, problems: list[str]) -> None:
    """Write what the TOML decides; the JSON may leave it out, say "auto" or say the same."""
    section, name = _place(resolved, dotted)
    said = section.get(name, AUTO)
    if said != AUTO and said != value and key and value is not None:
        shown = f"train.precision = {'bf16' if value else 'fp32'!r}" if dotted == "bf16.enabled" else f"{key} = {value}"
        problems.append(f'{dotted} = {said} of the DeepSpeed JSON contradicts {shown} of the TOML; write "auto" there')
    if said == AUTO:
        section[name] = value


def _choose_stage(zero: dict[str, Any], config: Config, wrong: Collection[str], problems: list[str]) -> None:
    """ZeRO 0 for fp32; for bf16 ZeRO 1, the lowest at which DeepSpeed accumulates its gradients in fp32."""
    bf16 = config.train.precision == "bf16"
    lowest = 1 if bf16 else 0
    stage = zero.get("stage", AUTO)
    if stage == AUTO:
        stage = lowest
    elif stage not in (0, 1, 2, 3):
        problems.append(f"zero_optimization.stage = {stage} must be 0, 1, 2 or 3{_IN}")
        stage = lowest
    elif stage < lowest and "train.precision" not in wrong:
        problems.append(
            "zero_optimization.stage = 0 of the DeepSpeed JSON contradicts train.precision = 'bf16' of the TOML: at "
            'stage 0 DeepSpeed accumulates the gradients in bf16; use stage 1, 2 or 3, or write "auto" there'
        )
    zero["stage"] = stage


def _fillings(config: Config) -> dict[str, int]:
    """Sizes that Hugging Face's integration fills in, by its rules, in elements."""
    hidden_size = config.family.hidden_size(config)
    square = hidden_size**2
    return {
        "zero_optimization.reduce_bucket_size": max(square, _LEAST_BUCKET),
        "zero_optimization.stage3_prefetch_bucket_size": square * 9 // 10,
        "zero_optimization.stage3_param_persistence_threshold": 10 * hidden_size,
    }


def _check_only(resolved: dict[str, Any], problems: list[str]) -> None:
    for dotted, (value, reason) in ONLY.items():
        section, name = _place(resolved, dotted)
        if section.get(name, AUTO) == AUTO:
            section.pop(name, None)
        elif section[name] != value:
            problems.append(f"{dotted} = {section[name]!r} must be {value!r}: {reason}{_IN}")


def _place(resolved: dict[str, Any], dotted: str) -> tuple[dict[str, Any], str]:
    """The section of the JSON in which a dotted key stands, and its name there."""
    section, _, name = dotted.rpartition(".")
    return (resolved.setdefault(section, {}) if section else resolved), name


def _autos(resolved: Mapping[str, Any], prefix: str) -> list[str]:
    """Every key that still says "auto"."""
    found = []
    for name, value in resolved.items():
        if isinstance(value, Mapping):
            found += _autos(value, f"{prefix}{name}.")
        elif value == AUTO:
            found.append(f"{prefix}{name}")
    return found
