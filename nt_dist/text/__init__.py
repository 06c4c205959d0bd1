"""Texts to samples: sources, tokenizer, prepared files. Without torch: the processes that tokenize import this."""
