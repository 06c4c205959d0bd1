"""What of a config differs from the one that a checkpoint was written with."""

from collections.abc import Mapping
from typing import Any

from nt_dist.config.keys import IDENTITY, SCHEDULE, keys_of
from nt_dist.config.settings import Config, sections_of
from nt_dist.config.values import plain


def differences(saved: Mapping[str, Mapping[str, Any]], now: Config) -> tuple[list[str], list[str]]:
    """Compare the settings that a resume may not change, or only when asked to.

    What a checkpoint does not name, being older than the setting, has its default. Settings that say the same in other
    words, as ``num_kv_heads`` 0 does, do not differ.

    Args:
        saved: The checkpoint's sections, as ``Config.to_dict`` gave them.
        now: The run's config.

    Returns:
        One message for each ``identity`` setting that differs, and one for each ``schedule`` setting.
    """
    defaults = {name: section() for name, section in sections_of(now.family).items()}
    then, today = _unified(now, saved, defaults), _unified(now, now.to_dict(), defaults)
    found: dict[str, list[str]] = {IDENTITY: [], SCHEDULE: []}
    for name, section in sections_of(now.family).items():
        for entry, setting in keys_of(section).items():
            old, new = then[name][entry], today[name][entry]
            if setting.metadata["mark"] in found and old != new:
                message = f"{name}.{entry} = {new!r} differs from the checkpoint's {old!r}"
                found[setting.metadata["mark"]].append(message)
    return found[IDENTITY], found[SCHEDULE]


def _unified(
    config: Config, sections: Mapping[str, Mapping[str, Any]], defaults: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """The sections with defaults filled in and one spelling for what means the same."""
    full = {
        name: {entry: plain(getattr(section, entry)) for entry in keys_of(type(section))}
        for name, section in defaults.items()
    }
    for name, values in full.items():
        values.update({entry: value for entry, value in sections.get(name, {}).items() if entry in values})
    if full["trails"]["fork"] == "embedding":
        full["trails"]["layers"] = full["model"]["num_layers"]
    full["sparsity"]["exempt"] = sorted(full["sparsity"]["exempt"])
    config.family.unify(full)
    return full
