"""Prepared documents as samples: S = model.max_seq_len tokens, the S that follow them, and S weights of the loss."""

import itertools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from nt_dist.data.samples import Sample
from nt_dist.errors import DataError
from nt_dist.text.indexed import IndexedTokens
from nt_dist.text.tokenizer import Tokenizer

_SEED = 0  # of corruptions; not a run's, so that all runs are measured on the same corrupted text

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextSamples:
    """Samples of text by number (:class:`nt_dist.data.samples.Samples`), in the layout that ``data.layout`` names.

    ``packed``: windows of the documents one after the other, each between BOS and EOS, in file order. Window i reads
    the tokens [i·S, i·S + S]: inputs do not overlap, and each token but the first is a target once. Attention crosses
    documents inside a window. ``rows``, the paper's protocol: a document each, cut to S + 1 tokens or padded.
    """

    indexed: IndexedTokens
    layout: str
    sequence_length: int  # S
    vocab_size: int

    def __post_init__(self) -> None:
        if self.layout == "packed" and not len(self):
            raise DataError(
                f"{self.indexed.bin_path}: {self.indexed.num_tokens} tokens are less than one window of "
                f"model.max_seq_len + 1 = {self.sequence_length + 1}; use more text, a shorter sequence, or "
                'data.layout = "rows"'
            )

    def __len__(self) -> int:
        if self.layout == "rows":
            return self.indexed.num_documents
        return (self.indexed.num_tokens - 1) // self.sequence_length

    def tokens(self, index: int) -> np.ndarray:
        """The real tokens of one sample, the caller's own, int64 [<= S + 1]; DataError for one past the vocabulary."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        tokens = self.indexed.tokens(*self._place(index))
        if len(tokens) and not 0 <= tokens.min() <= tokens.max() < self.vocab_size:
            raise DataError(
                f"{self.indexed.bin_path}: holds token {tokens.max()}, model.vocab_size is {self.vocab_size}; "
                "the file is damaged: remove its folder and prepare again"
            )
        return tokens

    def _place(self, index: int) -> tuple[int, int]:
        """Where a sample's tokens begin in all documents one after the other, and how many it has."""
        if self.layout == "rows":
            return self.indexed.place(index, self.sequence_length + 1)
        return index * self.sequence_length, self.sequence_length + 1

    def sample(self, tokens: np.ndarray) -> Sample:
        """Shift tokens [<= S + 1] against themselves, padded with tokens 0 of weight 0."""
        padded = np.zeros(self.sequence_length + 1, dtype=np.int64)
        padded[: len(tokens)] = tokens
        weights = (np.arange(self.sequence_length) < len(tokens) - 1).astype(np.float32)
        return Sample(padded[:-1], padded[1:], weights)

    def __getitem__(self, index: int) -> Sample:
        sample = self.sample(self.tokens(index))
        if self.indexed.is_masked:
            start, count = self._place(index)
            sample.weights[: count - 1] *= self.indexed.counts(start + 1, count - 1)
        return sample

    def drawn(self, index: int, number: int) -> Sample:
        """The sample itself: nothing about it is random."""
        return self[index]

    def blank(self) -> Sample:
        """A sample of padding alone."""
        return self.sample(np.empty(0, dtype=np.int64))


@dataclass(frozen=True)
class Corrupted:
    """The samples with something wrong in each, which follows from the sample's number alone.

    ``corrupt`` is given the real tokens and a generator, and may change them; more than there were are cut off. Targets
    are corrupted with the inputs, so that a perplexity is that of the corrupted text.
    """

    samples: TextSamples
    corrupt: Callable[[np.ndarray, np.random.Generator], np.ndarray]

    def __post_init__(self) -> None:
        if self.samples.indexed.is_masked:
            raise DataError("data.messages_key: corruptions are of whole texts, not of answers in conversations")

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        tokens = self.samples.tokens(index)
        return self.samples.sample(self.corrupt(tokens, np.random.default_rng((_SEED, index)))[: len(tokens)])

    def blank(self) -> Sample:
        """A sample of padding alone."""
        return self.samples.blank()


def shuffled(samples: TextSamples, share: float) -> Corrupted:
    """The samples, each with some tokens in each other's places (:func:`shuffle`); says so where that moves none."""
    longest = samples.sequence_length + 1
    if round(share * longest) < 2:
        _logger.info(
            "a share of %g of %d tokens is no two, which could change places: nothing is moved", share, longest
        )
    return Corrupted(samples, partial(shuffle, share=share))


def shuffle(tokens: np.ndarray, draw: np.random.Generator, share: float) -> np.ndarray:
    """Put some tokens in each other's places: the words are the text's, their order is not.

    Of n tokens round(share · n), drawn without replacement, change places in a random cycle; BOS and EOS are tokens
    like others. Below two tokens a sample stays as it is.
    """
    chosen = draw.choice(len(tokens), round(share * len(tokens)), replace=False)  # in random order: to roll is a cycle
    tokens[chosen] = tokens[np.roll(chosen, 1)]
    return tokens


def misspelt(samples: TextSamples, share: float, tokenizer: Tokenizer) -> Corrupted:
    """The samples, the text of each mistyped (:func:`misspell`)."""
    return Corrupted(samples, partial(misspell, share=share, tokenizer=tokenizer))


def misspell(tokens: np.ndarray, draw: np.random.Generator, share: float, tokenizer: Tokenizer) -> np.ndarray:
    """Mistype the text and make it tokens anew, of which there mostly are more.

    Each character is mistyped with probability ``share``: left out, doubled, exchanged with the one after it, or
    replaced by one drawn from the same text, each as likely (after the synthetic noise of Belinkov and Bisk, arXiv
    1711.02173). BOS and EOS stay, and so does a text without a mistake. In one with mistakes, where a window cuts a
    word or a character, the first and last tokens may become others too.
    """
    after: list[int] = []
    controls = {tokenizer.bos, tokenizer.eos}
    for is_control, group in itertools.groupby(tokens.tolist(), controls.__contains__):
        run = list(group)
        text = "" if is_control else tokenizer.decode(run)
        typed = "".join(_mistyped(text, share, draw))
        after += run if typed == text else tokenizer.encode(typed)
    return np.array(after, dtype=np.int64)


def _mistyped(text: str, share: float, draw: np.random.Generator) -> Iterator[str]:
    """Yield the characters of ``text``, some of them mistyped."""
    slips, others = draw.random(len(text)) < share, draw.integers(len(text), size=len(text))
    kinds = draw.integers(4, size=len(text))
    place = 0
    while place < len(text):
        typed, used = text[place], 1
        if slips[place]:
            mistakes = ("", 1), (typed * 2, 1), (text[place : place + 2][::-1], 2), (text[others[place]], 1)
            typed, used = mistakes[kinds[place]]
        yield typed
        place += used
