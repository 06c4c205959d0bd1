"""In which settings a run differs from a checkpoint that it is to go on from."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import Field
from typing import Any

from nt_dist.config.keys import IDENTITY, SCHEDULE, plain
from nt_dist.config.settings import Config, by_key, settings_of


def differences(saved: Mapping[str, Mapping[str, Any]], now: Config) -> tuple[list[str], list[str]]:
    """Compare a run's settings with its checkpoint's, ``saved`` as ``Config.to_dict`` gave them.

    What a checkpoint does not name, being older than the setting, has its default. Settings that say the same in other
    words, as ``num_kv_heads`` 0 does, do not differ. Returns one message for each ``identity`` setting that differs,
    and one for each ``schedule`` setting.
    """
    settings = settings_of(now.family)
    then, today = (_unified(now.family, settings, sections) for sections in (saved, now.to_dict()))
    found: dict[str, list[str]] = defaultdict(list)
    for dotted, setting in settings.items():
        if today[dotted] != then[dotted]:
            message = f"{dotted} = {today[dotted]!r} differs from the checkpoint's {then[dotted]!r}"
            found[setting.metadata["mark"]].append(message)
    return found[IDENTITY], found[SCHEDULE]


def _unified(family: Any, settings: Mapping[str, Field], sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Values by section.key, with defaults filled in and one spelling for what means the same."""
    given = by_key(sections)
    full = {dotted: given.get(dotted, plain(setting.default)) for dotted, setting in settings.items()}
    if full["trails.fork"] == "embedding":
        full["trails.layers"] = 0  # it says nothing then
    full["sparsity.exempt"] = sorted(full["sparsity.exempt"])
    return family.unified(full)
