"""Prepared documents as samples of a fixed length: ``packed`` windows, or ``rows`` of one document each.

S = model.max_seq_len. A sample is S tokens, the S tokens that follow them, and S weights of the loss.
"""

from abc import ABC, abstractmethod

import numpy as np

from nt_dist.data.samples import Sample
from nt_dist.errors import DataError
from nt_dist.text.indexed import IndexedTokens


class TextSamples(ABC):
    """Samples of text by number (:class:`nt_dist.data.samples.Samples`), of S tokens below ``vocab_size`` each."""

    def __init__(self, indexed: IndexedTokens, sequence_length: int, vocab_size: int):
        self.indexed, self.sequence_length, self.vocab_size = indexed, sequence_length, vocab_size

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def _read(self, index: int) -> np.ndarray:
        """Up to S + 1 tokens, the caller's own, int64."""

    def tokens(self, index: int) -> np.ndarray:
        """The real tokens of one sample, int64. [<= S + 1]

        Raises:
            DataError: If the file cannot be read or holds a token outside the vocabulary.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        tokens = self._read(index)
        if not 0 <= tokens.min() <= tokens.max() < self.vocab_size:
            raise DataError(
                f"{self.indexed.bin_path}: holds token {tokens.max()}, model.vocab_size is {self.vocab_size}; "
                "the file is damaged: remove its folder and prepare again"
            )
        return tokens

    def __getitem__(self, index: int) -> Sample:
        return self._sample(self.tokens(index))

    def blank(self) -> Sample:
        """A sample of padding alone."""
        return self._sample(np.empty(0, dtype=np.int64))

    def _sample(self, tokens: np.ndarray) -> Sample:
        """Shift tokens against themselves, padded with tokens 0 of weight 0. [<= S + 1]"""
        padded = np.zeros(self.sequence_length + 1, dtype=np.int64)
        padded[: len(tokens)] = tokens
        weights = np.zeros(self.sequence_length, dtype=np.float32)
        weights[: max(len(tokens) - 1, 0)] = 1
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

    def _read(self, index: int) -> np.ndarray:
        return self.indexed.tokens(index * self.sequence_length, self.sequence_length + 1)


class RowSamples(TextSamples):
    """One document a row, cut to S + 1 tokens or padded: the paper's protocol. Padding has weight 0."""

    def __len__(self) -> int:
        return self.indexed.num_documents

    def _read(self, index: int) -> np.ndarray:
        return self.indexed.document(index, self.sequence_length + 1)


LAYOUTS = {"packed": PackedSamples, "rows": RowSamples}
"""By ``data.layout``."""
