"""The settings as text: for ``--help`` and for the README."""

import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import Field

from nt_dist.config.family import Family
from nt_dist.config.keys import entries_of, keys_of, plain, toml_value
from nt_dist.config.load import DEFAULT_CONFIG
from nt_dist.config.settings import sections_of

_USAGE = f"""\
usage: train.py [--config FILE.toml] [--ds_config FILE.json] [--single | --preview] [section.key=value …]

  --config FILE.toml     settings; {DEFAULT_CONFIG} if not given
  --ds_config FILE.json  DeepSpeed's configuration; without it ZeRO 0 in fp32 and ZeRO 1 in bf16
  --single               one rank, whatever a launcher has left in the environment (RANK, SLURM_PROCID and so on)
  --preview              only prints the first samples of the training, as the model will see them
  section.key=value      one setting, before the file's: train.lr=1e-3 run.dir=runs/mine

Settings, with their defaults. A run continues from its newest checkpoint; settings marked "identity" must then be the
checkpoint's, those marked "schedule" too unless run.allow_schedule_change=true, the others are free."""


def help_text(families: Iterable[Family]) -> str:
    """The text of ``--help``: usage, then every setting by section with its default, mark, sentence and rule."""
    text, families = _USAGE, list(families)
    for name, owners, section in _sections(families):
        text += f"\n\n[{name}]{owners and f' of the family {owners}:'} {section.__doc__.splitlines()[0]}"
        for entry, setting in entries_of(section).items():
            default = "; ".join([_default(name, section, entry), *_of_recipes(families, f"{name}.{entry}")])
            text += f"\n  {entry} = {default}  ({setting.metadata['mark']})\n"
            text += textwrap.fill(_sentence(setting), 120, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return text


def markdown_table(families: Iterable[Family]) -> str:
    """The settings as one Markdown table, for the README; those of a family's own name it."""
    families = list(families)
    rows = ["| Setting | Default | Mark | What it says |", "|---|---|---|---|"]
    for name, owners, section in _sections(families):
        for entry, setting in entries_of(section).items():
            key = f"`{name}.{entry}`{owners and f' ({owners})'}"
            default = f"`{_default(name, section, entry)}`"
            default = "; ".join([default, *_of_recipes(families, f"{name}.{entry}")])
            cells = (key, default, setting.metadata["mark"], _sentence(setting))
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def _default(name: str, section: type, entry: str) -> str:
    """A setting's default; of a table's entry which the section has as well, that of the section."""
    own, last = keys_of(section), entry.rpartition(".")[2]
    if entry != last and last in own:
        return f"{name}.{last}"
    return toml_value(plain(entries_of(section)[entry].default))


def _of_recipes(families: Iterable[Family], key: str) -> Iterator[str]:
    """What families' default recipes have for a setting instead of its default."""
    for family in families:
        recipe = family.recipes.get("default", {})
        if key in recipe:
            yield f"{family.name}: {toml_value(recipe[key])}"


def _sentence(setting: Field) -> str:
    rule = setting.metadata["rule"]
    return setting.metadata["doc"] + (f" {rule.text.capitalize()}." if rule else "")


def _sections(families: list[Family]) -> Iterator[tuple[str, str, type]]:
    """Every section's name, the names of the families that have it (empty for those of all), and its class."""
    for name in sections_of(families[0]):
        owners: dict[type, list[str]] = {}
        for family in families:
            owners.setdefault(sections_of(family)[name], []).append(family.name)
        for section, found in owners.items():
            yield name, ", ".join(found) if name in families[0].sections else "", section
