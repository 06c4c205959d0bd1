"""What several of these tests train, and by which of DeepSpeed's optimizers."""

SEQUENCE, VOCABULARY = 8, 30
TINY_MODEL = {
    "hidden_size": 16,
    "ffn_size": 24,
    "num_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": VOCABULARY,
    "max_seq_len": SEQUENCE,
}
OPTIMIZERS = {  # by precision and ZeRO stage
    ("fp32", 0): "ClippedAdamW",
    ("fp32", 1): "DeepSpeedZeroOptimizer",
    ("fp32", 2): "DeepSpeedZeroOptimizer",
    ("fp32", 3): "DeepSpeedZeroOptimizer_Stage3",
    ("bf16", 1): "BF16_Optimizer",
    ("bf16", 2): "DeepSpeedZeroOptimizer",
    ("bf16", 3): "DeepSpeedZeroOptimizer_Stage3",
}
