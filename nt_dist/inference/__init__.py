"""A trained ensemble on one device: its logits and their combination, text written with it, what its products cost.

Reads the model and checkpoints; needs neither DeepSpeed nor a process group.
"""

from nt_dist.inference.ensemble import Ensemble, load_ensemble

__all__ = ["Ensemble", "load_ensemble"]
