"""Small configs for tests of the model."""

from nt_dist.config import Config
from nt_dist.families import make_config

SECTIONS = {
    "model": {
        "hidden_size": 32,
        "ffn_size": 48,
        "num_layers": 3,
        "num_attention_heads": 4,
        "num_kv_heads": 2,
        "vocab_size": 101,
        "max_seq_len": 16,
    },
    "trails": {"count": 3, "layers": 2},
    "sparsity": {"density": 0.5, "storage": "compact"},
    "train": {"recipe": "paper", "seed": 3},
}


def tiny(**sections: dict) -> Config:
    """Return the tiny config with keys changed, e.g. ``tiny(trails={"count": 1})``."""
    merged = {name: {**SECTIONS.get(name, {}), **sections.get(name, {})} for name in {**SECTIONS, **sections}}
    return make_config(merged)
