"""The settings as text: for ``--help`` and for the README."""

import textwrap
from collections.abc import Iterable, Iterator

from nt_dist.config.family import Family
from nt_dist.config.keys import keys_of
from nt_dist.config.load import DEFAULT_CONFIG
from nt_dist.config.settings import ORDER, SECTIONS, sections_of
from nt_dist.config.values import plain, toml_value

_USAGE = f"""\
usage: {{program}} [--config FILE.toml] [--ds_config FILE.json] [section.key=value …]

  --config FILE.toml     settings; {DEFAULT_CONFIG} if not given
  --ds_config FILE.json  DeepSpeed's configuration; without it ZeRO 0 in fp32 and ZeRO 1 in bf16
  section.key=value      one setting, before the file's: train.lr=1e-3 run.dir=runs/mine

Settings, with their defaults. A run continues from its newest checkpoint; settings marked "identity" must then be the
checkpoint's, those marked "schedule" too unless run.allow_schedule_change=true, the others are free."""
_WIDTH = 120


def help_text(families: Iterable[Family], program: str = "train.py") -> str:
    """The text of ``--help``: usage, then every setting by section with its default, mark, sentence and rule."""
    parts = [_USAGE.format(program=program)]
    for name, section, owners in _sections(families):
        lines = [f"[{name}]{owners and f' of the family {owners}:'} {section.__doc__.splitlines()[0]}"]
        for entry, setting in keys_of(section).items():
            lines.append(f"  {entry} = {toml_value(plain(setting.default))}  ({setting.metadata['mark']})")
            lines += textwrap.wrap(_sentence(setting), _WIDTH, initial_indent="      ", subsequent_indent="      ")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def markdown_table(families: Iterable[Family]) -> str:
    """The settings as one Markdown table, for the README; those of a family's own name it."""
    rows = ["| Setting | Default | Mark | What it says |", "|---|---|---|---|"]
    for name, section, owners in _sections(families):
        for entry, setting in keys_of(section).items():
            default = toml_value(plain(setting.default))
            cells = (
                f"`{name}.{entry}`{owners and f' ({owners})'}",
                f"`{default}`",
                setting.metadata["mark"],
                _sentence(setting),
            )
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def _sentence(setting) -> str:
    """What the setting says, and its rule where the sentence does not already list the choices."""
    doc, rule = setting.metadata["doc"], setting.metadata["rule"]
    if rule is None or (rule.choices and all(choice in doc for choice in rule.choices)):
        return doc
    return f"{doc} {rule.text.capitalize()}."


def _sections(families: Iterable[Family]) -> Iterator[tuple[str, type, str]]:
    """Every section's name and class, and the names of the families that have it; empty for those of all."""
    for name in ORDER:
        owners: dict[type, list[str]] = {}
        for family in families:
            owners.setdefault(sections_of(family)[name], []).append(family.name)
        for section, found in owners.items():
            yield name, section, "" if name in SECTIONS else ", ".join(found)
