"""Sizes of a NeuroTrails ensemble for transformers: one network whose trunk forks into trails (arXiv 2505.17909)."""

from transformers import PretrainedConfig


class NeuroTrailsConfig(PretrainedConfig):
    """What a :class:`NeuroTrailsForCausalLM` is built from.

    Args:
        vocab_size: Pieces of the tokenizer.
        hidden_size, intermediate_size, num_attention_heads, num_key_value_heads: Of every block, as in a LLaMA.
        max_position_embeddings: Tokens of the sequences that it was trained on.
        rms_norm_eps: Added to the mean square in every norm.
        rope_theta: Base of the rotary embedding.
        num_trails: Members of the ensemble.
        trunk_layers: Blocks that all trails share.
        trail_layers: Blocks of each trail.
        fork_at_embedding: Whether each trail has an embedding of its own (a full ensemble).
        final_norm_twice: Whether each trail's final norm runs twice.
        combine: What ``logits`` are: "prob", the log of the mean of the trails' probabilities; "logit", the mean of
            their logits; or one trail's number, from 0.
    """

    model_type = "neurotrails"

    def __init__(
        self,
        vocab_size: int = 2048,
        hidden_size: int = 128,
        intermediate_size: int = 352,
        num_attention_heads: int = 4,
        num_key_value_heads: int = 4,
        max_position_embeddings: int = 128,
        rms_norm_eps: float = 1e-6,
        rope_theta: float = 10000.0,
        num_trails: int = 3,
        trunk_layers: int = 2,
        trail_layers: int = 4,
        fork_at_embedding: bool = False,
        final_norm_twice: bool = False,
        combine: str | int = "prob",
        initializer_range: float = 0.02,
        use_cache: bool = True,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = hidden_size // num_attention_heads
        self.max_position_embeddings = max_position_embeddings
        self.rms_norm_eps = rms_norm_eps
        self.rope_theta = rope_theta
        self.num_trails = num_trails
        self.trunk_layers = trunk_layers
        self.trail_layers = trail_layers
        self.fork_at_embedding = fork_at_embedding
        self.final_norm_twice = final_norm_twice
        self.combine = combine
        self.initializer_range = initializer_range
        self.use_cache = use_cache
        # a key-value cache has one layer for each of them, the trunk's once
        self.num_hidden_layers = trunk_layers + num_trails * trail_layers
        kwargs.pop("num_hidden_layers", None)
        kwargs.pop("head_dim", None)
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)
