"""Texts to batches: sources, tokenizer, prepared files, samples and their order.

Without torch but for ``loader``: the processes that tokenize import this package.
"""

from nt_dist.data.opening import OpenData, open_data, open_texts, run_tokenizer
from nt_dist.data.samples import Samples
from nt_dist.data.tokenizer import Tokenizer

__all__ = ["OpenData", "Samples", "Tokenizer", "open_data", "open_texts", "run_tokenizer"]
