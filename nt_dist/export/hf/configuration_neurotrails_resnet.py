"""Sizes of a NeuroTrails ensemble of ResNets for transformers (arXiv 2505.17909)."""

from transformers import PretrainedConfig

_DEFAULTS = {
    "block": "bottleneck",  # or "basic", or "preactivation" as in a Wide ResNet
    "depths": [3, 4, 6, 3],  # blocks of each stage; each halves the picture's side but the first
    "width": 64,  # channels inside the first stage's blocks; each stage doubles them
    "stem": "large",  # 7×7, stride 2, and pooling; or "small", 3×3
    "stem_width": 64,
    "image_size": 224,
    "norm_eps": 1e-5,
    "num_trails": 3,
    "trail_layers": 10,
    "fork_at_embedding": False,  # whether each trail has a stem of its own (a full ensemble)
    "combine": "prob",
    "initializer_range": 0.02,
}


class NeuroTrailsResNetConfig(PretrainedConfig):
    """What a NeuroTrailsForImageClassification is built from.

    ``combine`` says what ``logits`` are: "prob", the log of the mean of the trails' probabilities; "logit", the mean of
    their logits; or one trail's number, from 0.
    """

    model_type = "neurotrails_resnet"

    def __init__(self, **settings):
        for name, default in _DEFAULTS.items():
            setattr(self, name, settings.pop(name, default))
        super().__init__(**settings)
