"""From a TOML file, ``section.key=value`` overrides and a DeepSpeed JSON to a checked Config.

Every problem found on the way is kept, and all are raised together.
"""

import glob
import json
import os
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from nt_dist.config import deepspeed_json, rules
from nt_dist.config.family import Family
from nt_dist.config.keys import keys_of
from nt_dist.config.names import hint, nearest, nearest_key
from nt_dist.config.settings import Config, sections_of
from nt_dist.config.values import checked, parse_override
from nt_dist.errors import ConfigError

DEFAULT_CONFIG = "configs/quickstart.toml"
_FLAGS = ("--config", "--ds_config", "--local_rank")


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
    overrides, problems = [], []
    words = list(argv)
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        option = f"--{flag[2:].replace('-', '_')}" if flag.startswith("--") else ""
        if option in _FLAGS:
            if not equals and (not words or words[0].startswith("--")):
                problems.append(f"{flag} needs a value")
            else:
                options[option] = value if equals else words.pop(0)
        elif word.startswith("-"):
            problems.append(f"{flag} is no option{hint(nearest(flag, [*_FLAGS, '--help']))}")
        elif not equals:
            problems.append(f"{word!r} is neither an option nor section.key=value")
        else:
            overrides.append(word)
    if problems:
        raise ConfigError(problems)
    return options.get("--config", DEFAULT_CONFIG), options.get("--ds_config"), overrides


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

    def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]  # DeepSpeed refuses a key that stands twice as well
        twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        problems.extend(f"{ds_config}: {name} stands there twice" for name in twice)
        return dict(pairs)

    sections = _read(path, "TOML", tomllib.loads, problems) or {}
    _apply_overrides(families, sections, overrides, problems)
    if isinstance(ds_config, str | Path):
        parse = partial(json.loads, object_pairs_hook=without_repeats)
        ds_config = _read(ds_config, "JSON", parse, problems)
    return build_config(families, sections, ds_config, world_size, problems, check_paths)


def build_config(
    families: Mapping[str, Family],
    sections: Mapping[str, Any],
    deepspeed: Mapping[str, Any] | None = None,
    world_size: int = 1,
    problems: Iterable[str] = (),
    check_paths: bool = False,
) -> Config:
    """Build and check a config from plain values, as a checkpoint keeps them.

    Args:
        families: All families by name, the default one first.
        sections: Values by section and key; what is left out has its default.
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
    values = _typed_sections(families, family, sections, problems, wrong)
    typed = {name: section(**values[name]) for name, section in sections_of(family).items()}
    config = Config(family, **typed, deepspeed={}, world_size=world_size)
    resolved, found = deepspeed_json.resolve(deepspeed, config, wrong)
    config = replace(config, deepspeed=resolved)
    problems += rules.check(config, wrong) + found
    if check_paths:
        problems += missing_paths(config, wrong)
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return config


def _read(path: str | Path, form: str, parse: Callable[[str], Any], problems: list[str]) -> Any:
    """What a file holds, or None where it cannot be read."""
    try:
        return parse(Path(path).read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        problems.append(f"{path}: is not a text file")
    except OSError as error:
        problems.append(f"{path}: {(error.strerror or str(error)).lower()}")
    except (ValueError, RecursionError) as error:
        problems.append(f"{path}: is not {form}: {error}")
    return None


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


def _apply_overrides(
    families: Mapping[str, Family], sections: dict[str, Any], overrides: Iterable[str], problems: list[str]
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
                    typed[name][entry] = checked(dotted, value, setting.type, setting.metadata["rule"])
                except ValueError as problem:
                    problems.append(str(problem))
                    wrong.add(dotted)
    return typed


def missing_paths(config: Config, wrong: set[str] = frozenset()) -> list[str]:
    """One message for each path or pattern of a config at which there is nothing; keys in ``wrong`` are left out."""
    named = [*config.family.paths(config), ("run.resume_from", config.run.resume_from)]
    return [
        f"{key} = {path!r}: no such file or folder"
        for key, path in named
        if path and key not in wrong and not _is_there(os.path.expanduser(path))
    ]


def _is_there(path: str) -> bool:
    return os.path.exists(path) or bool(glob.glob(path, recursive=True))
