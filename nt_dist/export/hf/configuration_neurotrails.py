"""Sizes of a NeuroTrails ensemble for transformers: one network whose trunk forks into trails (arXiv 2505.17909)."""

from transformers import PretrainedConfig

_DEFAULTS = {
    "vocab_size": 2048,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,  # tokens of the sequences that it was trained on
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "num_trails": 3,
    "trunk_layers": 2,
    "trail_layers": 4,
    "fork_at_embedding": False,  # whether each trail has an embedding of its own (a full ensemble)
    "final_norm_twice": False,  # whether each trail's final norm runs twice
    "combine": "prob",
    "initializer_range": 0.02,
    "use_cache": True,
}


class NeuroTrailsConfig(PretrainedConfig):
    """What a NeuroTrailsForCausalLM is built from: the settings above, which mean what they mean for a LLaMA.

    ``combine`` says what ``logits`` are: "prob", the log of the mean of the trails' probabilities; "logit", the mean of
    their logits; or one trail's number, from 0.
    """

    model_type = "neurotrails"

    def __init__(self, **settings):
        for name, default in _DEFAULTS.items():
            setattr(self, name, settings.pop(name, default))
        # a key-value cache has one layer for each of them, the trunk's once
        computed = {"num_hidden_layers": self.trunk_layers + self.num_trails * self.trail_layers}
        computed["head_dim"] = self.hidden_size // self.num_attention_heads
        super().__init__(**{"tie_word_embeddings": False, **settings, **computed})
