"""Kernels for GPUs, written in Triton; imported only where it is installed. Knows torch; nothing of weights."""
