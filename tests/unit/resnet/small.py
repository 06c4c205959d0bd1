"""Small configs of ResNets, for tests."""

from nt_dist.config import Config
from nt_dist.families import make_config

SECTIONS = {
    "model": {
        "family": "resnet",
        "block": "preactivation",
        "stem": "small",
        "stem_width": 8,
        "width": 8,
        "depths": [1, 2],
        "num_classes": 5,
        "image_size": 8,
        "norm_batch": 2,
    },
    "trails": {"count": 3, "layers": 2},
    "sparsity": {"density": 0.5, "storage": "compact", "topology_shards": 4},
    "train": {"seed": 3, "batch_size": 4, "micro_batch_size": 4},
}


def small(**sections: dict) -> Config:
    """Return the small config with keys changed, e.g. ``small(trails={"count": 1})``."""
    merged = {name: {**SECTIONS.get(name, {}), **sections.get(name, {})} for name in {**SECTIONS, **sections}}
    return make_config(merged)
