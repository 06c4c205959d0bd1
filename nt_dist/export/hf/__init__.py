"""The files that go into an exported folder as they are: they import torch and transformers, and nothing of nt_dist."""
