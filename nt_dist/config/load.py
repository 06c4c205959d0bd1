"""From a TOML file, ``section.key=value`` overrides and a DeepSpeed JSON to a checked Config, or all its problems."""

import glob
import json
import os
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from nt_dist.config import deepspeed_json, rules
from nt_dist.config.family import Family
from nt_dist.config.keys import (
    Tables,
    checked,
    hint,
    keys_of,
    nearest,
    nearest_key,
    parse_override,
    setting_at,
    shown,
    table_entry,
)
from nt_dist.config.settings import Config, sections_of, settings_of
from nt_dist.errors import ConfigError

_LONGEST = 1 << 20  # characters of a file of settings
_DEEP_KEY = re.compile(r"""(?<![\w-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){100}""")
DEFAULT_CONFIG = "configs/quickstart.toml"
RUN_CONFIG, RUN_LOCK = "config.toml", ".lock"  # in a run's folder
_FLAGS = ("--config", "--ds_config", "--local_rank")


def parse_command_line(argv: Sequence[str]) -> tuple[str, str | None, list[str]]:
    """Take a command line apart: ``[--config FILE] [--ds_config FILE] [section.key=value …]``.

    DeepSpeed's injected ``--local_rank`` is accepted and dropped: ranks come from the environment. Returns the config's
    path, the DeepSpeed JSON's or None, and the overrides as written; ConfigError names every word that is none of them.
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
    source: str | Path | Mapping[str, Any],
    overrides: Iterable[str] = (),
    ds_config: str | Path | Mapping[str, Any] | None = None,
    world_size: int = 1,
    check_paths: bool = True,
) -> Config:
    """Read, resolve and check a configuration for ``world_size`` ranks; ConfigError with every problem found.

    The default one of the ``families`` comes first. ``source`` is a TOML file or its contents; the ``overrides``,
    ``section.key=value`` each, win over it, the last one over the others. ``ds_config`` is a DeepSpeed JSON (a file, or
    its contents), or None for the built-in one. With ``check_paths`` the files that are named must be there.
    """
    problems: list[str] = []
    wrong: set[str] = set()  # keys whose values cannot be used: rules over them would only confuse
    sections = source if isinstance(source, Mapping) else _read(source, "TOML", parse_toml, problems) or {}
    words = dict(override.partition("=")[::2] for override in overrides)
    family = _family_of(families, _said(sections, words, "model.family"), problems)
    settings = settings_of(family)
    typed: dict[str, dict[str, Any]] = {name: {} for name in sections_of(family)}
    is_kept = isinstance(source, str | Path) and _is_kept(Path(source))
    for dotted, value in _entries(family, sections, words, problems, is_kept):
        setting = setting_at(settings, dotted)
        if setting is None:
            problems.append(_no_setting(families, family, dotted))
            continue
        try:
            value = checked(dotted, value, setting.type, setting.metadata["rule"])
            holder, name, _ = table_entry(settings, dotted)
            into = typed[dotted.partition(".")[0]]
            if holder:
                into = into.setdefault(holder.name, {}).setdefault(name, {})
            into[setting.name] = value
        except ValueError as problem:
            problems.append(str(problem))
            wrong |= {dotted, ".".join(dotted.split(".")[:2])}  # that of its table
    if isinstance(source, str | Path) and "run.dir" not in words and _is_of_run(Path(source)):
        typed["run"]["dir"] = str(Path(source).parent)  # wherever the run is now, and called from
    for key in ("dir", "resume_from"):
        if key in typed["run"]:
            said, typed["run"][key] = typed["run"][key], os.path.expanduser(typed["run"][key])
            if typed["run"][key].startswith("~"):
                problems.append(f"run.{key} = {said!r}: there is no such user")
    for values in typed.values():
        values |= {entry: Tables.of(each) for entry, each in values.items() if isinstance(each, dict)}
    given = {"data": typed["data"], **{f"data.sources.{name}": dict(e) for name, e in typed["data"].get("sources", ())}}
    for name, values in given.items():
        if os.path.expanduser(prepared := values.get("prepared", "")).startswith("~"):
            problems.append(f"{name}.prepared = {prepared!r}: there is no such user")
    made = {name: section(**typed[name]) for name, section in sections_of(family).items()}
    if isinstance(ds_config, str | Path):
        ds_config = _read(ds_config, "JSON", partial(json.loads, object_pairs_hook=_as_dict), problems)
    config = rules.with_tokens(Config(family, **made, deepspeed={}, world_size=world_size))
    resolved, found = deepspeed_json.resolve(ds_config, config, wrong)
    config = replace(config, deepspeed=resolved)
    problems += rules.check(config, wrong) + found
    if check_paths:
        problems += missing_paths(config, wrong)
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return config


def _is_of_run(path: Path) -> bool:
    """Whether a file is the config that a run has written into its folder."""
    return path.name == RUN_CONFIG and (path.parent / RUN_LOCK).is_file()


def _is_kept(path: Path) -> bool:
    """Whether a file is the config of a run or of a checkpoint: every setting that there was when it was written."""
    return _is_of_run(path) or (path.name == RUN_CONFIG and (path.parent / "manifest.json").is_file())


def with_absolute_paths(config: Config) -> Config:
    """The same with the paths of its data made absolute, so that a run's own config can be used from anywhere."""

    def absolute(key: str, value: Any) -> Any:
        if isinstance(value, Tables):
            tables = value.to_dict().items()
            return Tables.of({n: {k: absolute(f"{key}.{n}.{k}", v) for k, v in each.items()} for n, each in tables})
        if isinstance(value, tuple):
            return tuple(absolute(key, each) for each in value)
        places = [path for name, path in named if name == f"data.{key}" and isinstance(value, str)]
        is_path = any(path == value or path.startswith(f"{value}{os.sep}") for path in places)  # or a folder of splits
        is_path = is_path or (key.rpartition(".")[2] == "prepared" and value)
        return os.path.abspath(os.path.expanduser(value)) if is_path else value

    named = config.family.paths(config)
    data = {key: absolute(key, getattr(config.data, key)) for key in keys_of(config.data)}
    return replace(config, data=replace(config.data, **data))


def parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML; a ValueError where it is none, or, with a key of a hundred parts, would take tomllib long."""
    if _DEEP_KEY.search(text):
        raise ValueError("it has a key of a hundred parts or more")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _read(path: str | Path, form: str, parse: Callable[[str], Any], problems: list[str]) -> Any:
    """What a file holds, or None where it cannot be read."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_LONGEST + 1)
        if len(text) > _LONGEST:
            raise ValueError(f"it has more than {_LONGEST:,} characters")
        return parse(text)
    except UnicodeDecodeError:
        problems.append(f"{path}: is not a text file")
    except OSError as error:
        problems.append(f"{path}: {(error.strerror or str(error)).lower()}")
    except (ValueError, RecursionError) as error:
        problems.append(f"{path}: is not {form}: {error}")
    return None


def _as_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; a name that stands there twice is an error, as it is to DeepSpeed."""
    for name, count in Counter(name for name, _ in pairs).items():
        if count > 1:
            raise ValueError(f"{name} stands there twice")
    return dict(pairs)


def _said(sections: Mapping[str, Any], words: Mapping[str, str], dotted: str) -> str | None:
    """What is given for a key that holds a string; its type is checked with the other keys'."""
    section, _, entry = dotted.partition(".")
    entries = sections.get(section)
    said = entries.get(entry) if isinstance(entries, Mapping) else None
    if dotted in words:
        with suppress(TypeError):
            said = parse_override(words[dotted], str)
    return said if isinstance(said, str) else None


def _family_of(families: Mapping[str, Family], name: str | None, problems: list[str]) -> Family:
    """The family of this name, or the default one; the one most like it for a name that is none."""
    default, *_ = families
    if name is not None and name not in families:
        near = nearest(name, families)
        problems.append(f"model.family = {name!r} must be one of {', '.join(families)}{hint(near)}")
        name = near
    return families[name or default]


def _entries(
    family: Family, sections: Mapping[str, Any], words: Mapping[str, str], problems: list[str], is_kept: bool
) -> Iterator[tuple[str, Any]]:
    """What the recipe, the command line and the file give for each section.key; what is no section is a problem.

    What a file that was kept (``_is_kept``) lacks was no setting then: no recipe says it.
    """
    recipe = {} if is_kept else family.recipes.get(_said(sections, words, "train.recipe") or "default", {})
    yield from ((dotted, value) for dotted, value in recipe.items() if dotted not in words)
    settings, known = settings_of(family), sections_of(family)
    for dotted, word in words.items():
        try:
            yield dotted, parse_override(word, setting_at(settings, dotted).type)
        except (AttributeError, TypeError):
            yield dotted, word  # which is then said to be unknown, or of the wrong type
    for name, entries in sections.items():
        if name not in known and isinstance(entries, Mapping):
            problems.append(f"[{name}] is no section{hint(nearest(name, known))}; sections are {', '.join(known)}")
        elif name not in known:
            problems.append(f"{name} stands outside a section{hint(nearest_key(name, settings))}")
        elif not isinstance(entries, Mapping):
            problems.append(f"{name} = {shown(entries)} must be a section, [{name}], with keys under it")
        else:
            keys = {f"{name}.{entry}": value for entry, value in entries.items()}
            for dotted, value in list(keys.items()):
                if dotted in settings and settings[dotted].metadata["table"] and isinstance(value, Mapping):
                    del keys[dotted]
                    keys |= _of_tables(dotted, value, problems)
            yield from ((dotted, value) for dotted, value in keys.items() if dotted not in words)


def _of_tables(key: str, tables: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """The values of the tables of a key, by section.key.NAME.entry."""
    found = {}
    for name, table in tables.items():
        if isinstance(table, Mapping) and table:
            found |= {f"{key}.{name}.{entry}": value for entry, value in table.items()}
        else:
            problems.append(f"{key}.{name} = {shown(table)} must be a table, [{key}.{name}], with settings under it")
    return found


def _no_setting(families: Mapping[str, Family], family: Family, dotted: str) -> str:
    """That a key is none of this family: which family has it, and which of this one's is nearest."""
    section, _, entry = dotted.partition(".")
    own = sections_of(family)
    holder, name, last = table_entry(settings_of(family), dotted)
    if holder:
        near = nearest(last, keys_of(holder.metadata["table"]))
        near = near and f"{section}.{holder.name}.{name}.{near}"
    else:
        near = nearest(entry, keys_of(own[section])) if section in own else None
        near = f"{section}.{near}" if near else nearest_key(dotted, settings_of(family))
    owners = " and ".join(repr(name) for name, other in families.items() if dotted in settings_of(other))
    which = f" of model.family = {family.name!r} but of {owners}" if owners else ""
    return f"{dotted} is no setting{which}{hint(near)}"


def missing_paths(config: Config, wrong: Collection[str] = ()) -> list[str]:
    """One message for each path or pattern that a config needs and at which there is nothing; keys in ``wrong`` are
    left out."""
    named = [*config.family.needed_paths(config), ("run.resume_from", config.run.resume_from)]
    asked = [(key, path, os.path.expanduser(path)) for key, path in named if path and key not in wrong]
    return [
        f"{key} = {path!r}: no such file or folder"
        for key, path, place in asked
        if not os.path.exists(place) and not glob.glob(place, recursive=True)
    ]
