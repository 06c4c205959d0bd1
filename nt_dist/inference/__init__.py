"""A trained ensemble on one device, and text written with it; needs neither DeepSpeed nor a process group."""

from nt_dist.inference.ensemble import Ensemble, load_ensemble

__all__ = ["Ensemble", "load_ensemble"]
