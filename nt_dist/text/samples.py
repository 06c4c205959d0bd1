"""Prepared documents as samples of a fixed length: ``packed`` windows, or ``rows`` of one document each.

S = model.max_seq_len. A sample is S tokens, the S tokens that follow them, and S weights of the loss.
"""

from abc import ABC, abstractmethod

import numpy as np

from nt_dist.data.samples import Sample
from nt_dist.errors import DataError
from nt_dist.text.indexed import IndexedTokens


class TextSamples(ABC):
    """Samples of text by number (:class:`nt_dist.data.batch.Samples`); see the two layouts below.

    Args:
        indexed: The prepared documents.
        sequence_length: S.
        vocab_size: Every token must be below it.
    """

    def __init__(self, indexed: IndexedTokens, sequence_length: int, vocab_size: int):
        self.indexed = indexed
        self.sequence_length = sequence_length
        self.vocab_size = vocab_size

    @abstractmethod
    def __len__(self) -> int:
        """Samples there are."""

    @abstractmethod
    def sample(self, index: int) -> Sample:
        """Read one sample.

        Raises:
            DataError: If the file cannot be read or holds a token outside the vocabulary.
        """

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.sample(index)

    def blank(self) -> Sample:
        """A sample of padding alone."""
        return self._split(np.empty(0, dtype=np.int64))

    def _split(self, tokens: np.ndarray) -> Sample:
        """Shift up to S + 1 tokens against themselves, padding with tokens 0 of weight 0. [<= S + 1]"""
        if len(tokens) and not 0 <= tokens.min() <= tokens.max() < self.vocab_size:
            raise DataError(
                f"{self.indexed.bin_path}: holds token {tokens.max()}, model.vocab_size is {self.vocab_size}; "
                "the file is damaged: remove its folder and prepare again"
            )
        real = max(len(tokens) - 1, 0)
        padded = np.zeros(self.sequence_length + 1, dtype=np.int64)
        padded[: len(tokens)] = tokens
        weights = np.zeros(self.sequence_length, dtype=np.float32)
        weights[:real] = 1
        return Sample(padded[:-1], padded[1:], weights)


class PackedSamples(TextSamples):
    """Windows of the documents one after the other, each between BOS and EOS, in file order.

    Window i reads the tokens [i·S, i·S + S]: inputs do not overlap, and each token but the first is a target once.
    Attention crosses documents inside a window.
    """

    def __init__(self, indexed: IndexedTokens, sequence_length: int, vocab_size: int):
        super().__init__(indexed, sequence_length, vocab_size)
        if len(self) < 1:
            raise DataError(
                f"{indexed.bin_path}: {indexed.num_tokens} tokens are less than one window of model.max_seq_len + 1 = "
                f'{sequence_length + 1}; use more text, a shorter sequence, or data.layout = "rows"'
            )

    def __len__(self) -> int:
        return (self.indexed.num_tokens - 1) // self.sequence_length

    def sample(self, index: int) -> Sample:
        return self._split(self.indexed.tokens(index * self.sequence_length, self.sequence_length + 1))


class RowSamples(TextSamples):
    """One document a row, cut to S + 1 tokens or padded: the paper's protocol. Padding has weight 0."""

    def __len__(self) -> int:
        return self.indexed.num_documents

    def sample(self, index: int) -> Sample:
        return self._split(self.indexed.document(index, self.sequence_length + 1))


def make_samples(layout: str, indexed: IndexedTokens, sequence_length: int, vocab_size: int) -> TextSamples:
    """Samples in ``data.layout`` "packed" or "rows"."""
    kind = {"packed": PackedSamples, "rows": RowSamples}[layout]
    return kind(indexed, sequence_length, vocab_size)
