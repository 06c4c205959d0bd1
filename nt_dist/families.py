"""The only place that names the model families."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nt_dist.config import load
from nt_dist.config.family import Family
from nt_dist.config.settings import Config
from nt_dist.llama.family import Llama

DEFAULT = Llama()
FAMILIES: dict[str, Family] = {family.name: family for family in (DEFAULT,)}


def load_config(
    path: str | Path,
    overrides: Iterable[str] = (),
    ds_config: str | Path | Mapping[str, Any] | None = None,
    world_size: int = 1,
    check_paths: bool = True,
) -> Config:
    """Read, resolve and check a configuration; see :func:`nt_dist.config.load.load_config`."""
    return load.load_config(FAMILIES, path, overrides, ds_config, world_size, check_paths)


def make_config(sections: Mapping[str, Any], deepspeed: Mapping[str, Any] | None = None, world_size: int = 1) -> Config:
    """Build and check a config from plain values, as a checkpoint keeps them.

    Args:
        sections: Values by section and key; what is left out has its default.
        deepspeed: A DeepSpeed configuration; None for the built-in one.
        world_size: Ranks.

    Raises:
        ConfigError: With every problem found.
    """
    return load.build_config(FAMILIES, sections, deepspeed, world_size)
