"""Sparse weights and how their topology evolves. Knows torch; nothing of LLaMA, of ranks or of optimizers."""
