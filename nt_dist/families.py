"""The only place that names the model families."""

from functools import partial

from nt_dist.config import load
from nt_dist.config.family import Family
from nt_dist.llama.family import Llama

DEFAULT = Llama()
FAMILIES: dict[str, Family] = {family.name: family for family in (DEFAULT,)}

load_config = partial(load.load_config, FAMILIES)
make_config = partial(load.build_config, FAMILIES)
