"""The only place that names the model families."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from nt_dist.config.family import Family
from nt_dist.config.load import load_config as load
from nt_dist.config.settings import Config
from nt_dist.llama.family import Llama
from nt_dist.resnet.family import ResNet

DEFAULT = Llama()
FAMILIES: dict[str, Family] = {family.name: family for family in (DEFAULT, ResNet())}

load_config = partial(load, FAMILIES)


def make_config(sections: Mapping[str, Any], deepspeed: Mapping[str, Any] | None = None, world_size: int = 1) -> Config:
    """Build and check a config from plain values, as a checkpoint keeps them."""
    return load_config(sections, (), deepspeed, world_size, check_paths=False)
