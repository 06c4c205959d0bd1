"""From a TOML file, ``section.key=value`` overrides and a DeepSpeed JSON to a checked Config.

Every problem found on the way is kept, and all are raised together.
"""

import glob
import json
import os
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import Field, replace
from pathlib import Path
from typing import Any

from nt_dist.config import deepspeed_json, rules
from nt_dist.config.family import Family
from nt_dist.config.keys import keys_of
from nt_dist.config.names import hint, nearest, nearest_key
from nt_dist.config.settings import Config, sections_of
from nt_dist.config.values import convert, parse_override
from nt_dist.errors import ConfigError

DEFAULT_CONFIG = "configs/quickstart.toml"


def parse_command_line(argv: Sequence[str]) -> tuple[str, str | None, list[str]]:
    """Take a command line apart: ``[--config FILE] [--ds_config FILE] [section.key=value …]``.

    DeepSpeed's injected ``--local_rank`` is accepted and dropped: ranks come from the environment.

    Args:
        argv: The arguments, without the program's name.

    Returns:
        The config's path, the DeepSpeed JSON's path or None, and the overrides as written.

    Raises:
        ConfigError: For an unknown flag, a flag without its value, a word that is no override.
    """
    options: dict[str, str] = {}
    flags = {"--config": "config", "--ds_config": "ds_config", "--ds-config": "ds_config"}
    flags |= {"--local_rank": "local_rank", "--local-rank": "local_rank"}
    overrides, problems = [], []
    words = list(argv)
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        if flag in flags:
            if not equals:
                if not words or words[0].startswith("--"):
                    problems.append(f"{flag} needs a value")
                    continue
                value = words.pop(0)
            options[flags[flag]] = value
        elif word.startswith("-"):
            problems.append(f"{flag} is no option{hint(nearest(flag, [*flags, '--help']))}")
        elif not equals:
            problems.append(f"{word!r} is neither an option nor section.key=value")
        else:
            overrides.append(word)
    if problems:
        raise ConfigError(problems)
    return options.get("config", DEFAULT_CONFIG), options.get("ds_config"), overrides


def load_config(
    families: Mapping[str, Family],
    path: str | Path,
    overrides: Iterable[str] = (),
    ds_config: str | Path | Mapping[str, Any] | None = None,
    world_size: int = 1,
    check_paths: bool = True,
) -> Config:
    """Read, resolve and check a configuration.

    Args:
        families: All families by name, the default one first.
        path: The TOML file.
        overrides: ``section.key=value`` each; they win over the file, the last one over the others.
        ds_config: A DeepSpeed JSON (a file, or its contents), or None for the built-in one.
        world_size: Ranks of the run.
        check_paths: Also check that the files it names are there.

    Raises:
        ConfigError: With every problem found.
    """
    problems: list[str] = []
    sections = _read_toml(Path(path), problems)
    _apply_overrides(families, sections, list(overrides), problems)
    deepspeed = _read_json(Path(ds_config), problems) if isinstance(ds_config, str | Path) else ds_config
    return build_config(families, sections, deepspeed, world_size, problems, check_paths)


def build_config(
    families: Mapping[str, Family],
    sections: Mapping[str, Any],
    deepspeed: Mapping[str, Any] | None,
    world_size: int,
    problems: Iterable[str] = (),
    check_paths: bool = False,
) -> Config:
    """Build and check a Config from plain values.

    Args:
        families: All families by name, the default one first.
        sections: Values by section and key.
        deepspeed: A DeepSpeed configuration, or None for the built-in one.
        world_size: Ranks of the run.
        problems: What was found wrong before, to be reported together with what is found here.
        check_paths: Also check that the files it names are there.

    Raises:
        ConfigError: With every problem.
    """
    problems = list(problems)
    wrong: set[str] = set()  # keys whose values cannot be used: rules over them would only confuse
    family = _family_of(families, sections, problems)
    known = sections_of(family)
    values = _typed_sections(families, family, sections, problems, wrong)
    config = Config(family, **{name: known[name](**entries) for name, entries in values.items()}, world_size=world_size)
    resolved, found = deepspeed_json.resolve(deepspeed, config, wrong)
    config = replace(config, deepspeed=resolved)
    problems += rules.check(config, wrong) + found
    if check_paths:
        problems += missing_paths(config, wrong)
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return config


def _family_of(families: Mapping[str, Family], sections: Mapping[str, Any], problems: list[str]) -> Family:
    """The family that ``model.family`` names, or the default one; the one most like it for a name that is none."""
    default, *_ = families
    model = sections.get("model")
    name = model.get("family", default) if isinstance(model, Mapping) else default
    if not isinstance(name, str):
        return families[default]  # its type is checked with the other keys'
    if name not in families:
        near = nearest(name, families)
        problems.append(f"model.family = {name!r} must be one of {', '.join(families)}{hint(near)}")
        name = near or default
    return families[name]


def _keys_in(family: Family) -> list[str]:
    return [f"{name}.{entry}" for name, section in sections_of(family).items() for entry in keys_of(section)]


def _no_setting(families: Mapping[str, Family], family: Family, dotted: str) -> str:
    """That a key is none of this family: which family has it, and which of this one's is nearest."""
    section, _, entry = dotted.partition(".")
    own = sections_of(family)
    near = nearest(entry, keys_of(own[section])) if section in own else None
    near = f"{section}.{near}" if near else nearest_key(dotted, _keys_in(family))
    owners = [name for name, other in families.items() if dotted in _keys_in(other)]
    which = f" of model.family = {family.name!r} but of {' and '.join(map(repr, owners))}" if owners else ""
    return f"{dotted} is no setting{which}{hint(near)}"


def _read_text(path: Path, problems: list[str]) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        problems.append(f"{path}: is not a text file")
    except FileNotFoundError:
        problems.append(f"{path}: no such file")
    except (OSError, ValueError) as error:
        problems.append(f"{path}: {getattr(error, 'strerror', None) or error}")
    return None


def _read_toml(path: Path, problems: list[str]) -> dict[str, Any]:
    text = _read_text(path, problems)
    try:
        return tomllib.loads(text or "")
    except (ValueError, RecursionError) as error:
        problems.append(f"{path}: is not TOML: {error}")
        return {}


def _read_json(path: Path, problems: list[str]) -> Any:
    text = _read_text(path, problems)
    if text is None:
        return None
    try:
        return json.loads(text, object_pairs_hook=lambda pairs: _without_repeats(pairs, path, problems))
    except (ValueError, RecursionError) as error:
        problems.append(f"{path}: is not JSON: {error}")
        return None


def _without_repeats(pairs: list[tuple[str, Any]], path: Path, problems: list[str]) -> dict[str, Any]:
    """An object of a JSON file, in which a key that stands twice is a problem: DeepSpeed refuses it as well."""
    names = [name for name, _ in pairs]
    problems += [f"{path}: {name} stands there twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    return dict(pairs)


def _apply_overrides(
    families: Mapping[str, Family], sections: dict[str, Any], overrides: Sequence[str], problems: list[str]
) -> None:
    """Write overrides into the sections; their types are checked with the file's."""
    pairs = [override.partition("=")[::2] for override in overrides]
    for dotted, text in sorted(pairs, key=lambda pair: pair[0] != "model.family"):  # decides which keys there are
        family = _family_of(families, sections, problems)
        name, _, entry = dotted.partition(".")
        setting = keys_of(sections_of(family)[name]).get(entry) if name in sections_of(family) else None
        if setting is None:
            problems.append(_no_setting(families, family, dotted))
            continue
        try:
            value = parse_override(text, setting.type)
        except TypeError:
            value = text  # of the wrong type: reported with the key when the section is read
        if isinstance(sections.setdefault(name, {}), dict):
            sections[name][entry] = value


def _typed_sections(
    families: Mapping[str, Family], family: Family, sections: Mapping[str, Any], problems: list[str], wrong: set[str]
) -> dict[str, dict[str, Any]]:
    """The sections with every value in its key's type and keeping its key's rule; the others are left out."""
    known = sections_of(family)
    typed: dict[str, dict[str, Any]] = {name: {} for name in known}
    for name, entries in sections.items():
        if name not in known and isinstance(entries, Mapping):
            near = hint(nearest(name, known))
            problems.append(f"[{name}] is no section{near}; sections are {', '.join(known)}")
        elif name not in known:
            problems.append(f"{name} stands outside a section{hint(nearest_key(name, _keys_in(family)))}")
        elif not isinstance(entries, Mapping):
            problems.append(f"{name} = {entries!r} must be a section, [{name}], with keys under it")
        else:
            for entry, value in entries.items():
                dotted, setting = f"{name}.{entry}", keys_of(known[name]).get(entry)
                if setting is None:
                    problems.append(_no_setting(families, family, dotted))
                    continue
                try:
                    typed[name][entry] = _checked(setting, dotted, value)
                except ValueError as problem:
                    problems.append(str(problem))
                    wrong.add(dotted)
    return typed


def _checked(setting: Field, dotted: str, value: Any) -> Any:
    """The value in its key's type; raises ValueError with the message if it has another or breaks the key's rule."""
    try:
        converted = convert(value, setting.type)
    except TypeError as error:
        raise ValueError(f"{dotted} = {value!r} must be {error}") from error
    rule = setting.metadata["rule"]
    if rule and not rule.holds(converted):
        asked = hint(nearest(converted, rule.choices)) if rule.choices else ""
        raise ValueError(f"{dotted} = {value!r} {rule.text}{asked}")
    return converted


def missing_paths(config: Config, wrong: Collection[str] = ()) -> list[str]:
    """One message for each path or pattern of a config at which there is nothing; keys in ``wrong`` are left out."""
    named = [*config.family.paths(config), ("run.resume_from", config.run.resume_from)]
    return [
        f"{key} = {path!r}: no such file or folder"
        for key, path in named
        if path and key not in wrong and not _is_there(os.path.expanduser(path))
    ]


def _is_there(path: str) -> bool:
    return os.path.exists(path) or bool(glob.glob(path, recursive=True))
