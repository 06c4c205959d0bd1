"""nt_dist: distributed training of NeuroTrails (arXiv 2505.17909), sparse ensembles that grow out of one trunk."""

__version__ = "0.1.0"
