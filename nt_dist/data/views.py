"""Samples made from other samples, for evaluations: every second one, and corrupted ones."""

import itertools
from collections.abc import Iterator

import numpy as np

from nt_dist.data.samples import Sample, Samples
from nt_dist.data.tokenizer import Tokenizer

_SEED = 0
"""Of the corruption; not a run's, so that all runs are measured on the same corrupted text."""


class EverySecond(Samples):
    """Every second one of the first samples.

    Args:
        samples: The samples.
        num_samples: How many of the first are looked at; 0, or more than there are: all.
        first: 0 for the samples 0, 2, 4, …, 1 for 1, 3, 5, …
    """

    def __init__(self, samples: Samples, num_samples: int, first: int):
        super().__init__(samples.indexed, samples.sequence_length, samples.vocab_size)
        self.samples = samples
        self.numbers = range(first, min(num_samples or len(samples), len(samples)), 2)

    def __len__(self) -> int:
        return len(self.numbers)

    def sample(self, index: int) -> Sample:
        return self.samples[self.numbers[index]]


class Shuffled(Samples):
    """The samples with some tokens of each in each other's places: the words are the text's, their order is not.

    Of a sample's n ≤ S + 1 real tokens round(share · n), drawn without replacement, change places in a random cycle;
    BOS and EOS are tokens like others. Which ones follows from the sample's number alone. Targets are corrupted with
    the inputs, so that a perplexity is that of the corrupted text.

    Args:
        samples: The samples.
        share: Of the tokens, in (0, 1]. Below two tokens a sample stays as it is.
    """

    def __init__(self, samples: Samples, share: float):
        assert 0 < share <= 1
        super().__init__(samples.indexed, samples.sequence_length, samples.vocab_size)
        self.samples, self.share = samples, share

    def __len__(self) -> int:
        return len(self.samples)

    def sample(self, index: int) -> Sample:
        tokens = _real_tokens(self.samples[index])
        draw, real = np.random.default_rng((_SEED, index)), len(tokens)
        chosen = draw.choice(real, round(self.share * real), replace=False)  # in random order: rolling it is a cycle
        tokens[chosen] = tokens[np.roll(chosen, 1)]
        return self._split(tokens)


class Misspelled(Samples):
    """The samples with their texts mistyped, and made tokens anew.

    Each character is mistyped with probability ``share``: left out, doubled, exchanged with the one after it, or
    replaced by one drawn from the same text, each as likely (after the synthetic noise of Belinkov and Bisk, arXiv
    1711.02173). Which ones follows from the sample's number alone. BOS and EOS stay; a mistyped text mostly has more
    tokens, of which a sample keeps as many as it had. Where a window cuts a word or a character, its first and last
    tokens may become others with no mistake in them.

    Args:
        samples: The samples.
        share: Of the characters, in (0, 1].
        tokenizer: What made the samples.
    """

    def __init__(self, samples: Samples, share: float, tokenizer: Tokenizer):
        assert 0 < share <= 1
        super().__init__(samples.indexed, samples.sequence_length, samples.vocab_size)
        self.samples, self.share, self.tokenizer = samples, share, tokenizer

    def __len__(self) -> int:
        return len(self.samples)

    def sample(self, index: int) -> Sample:
        before, draw = _real_tokens(self.samples[index]), np.random.default_rng((_SEED, index))
        after: list[int] = []
        for is_control, run in itertools.groupby(
            before.tolist(), {self.tokenizer.bos, self.tokenizer.eos}.__contains__
        ):
            tokens = list(run)
            text = "" if is_control else self.tokenizer.decode(tokens)
            typed = "".join(_mistyped(text, self.share, draw))
            after += tokens if typed == text else self.tokenizer.encode(typed)
        return self._split(np.array(after[: len(before)], dtype=np.int64))


def _mistyped(text: str, share: float, draw: np.random.Generator) -> Iterator[str]:
    """Yield the characters of ``text``, some of them mistyped."""
    slips, others = draw.random(len(text)) < share, draw.integers(len(text), size=len(text))
    kinds = draw.integers(4, size=len(text))
    place = 0
    while place < len(text):
        kind = kinds[place] if slips[place] else None
        if kind == 1:
            yield text[place] * 2
        elif kind == 2:
            yield text[place : place + 2][::-1]
            place += 1
        elif kind == 3:
            yield text[others[place]]
        elif kind is None:
            yield text[place]
        place += 1


def _real_tokens(sample: Sample) -> np.ndarray:
    """Return the tokens and targets of a sample as one sequence, without padding. [<= S + 1]"""
    return np.concatenate([sample.tokens[:1], sample.targets])[: int(sample.weights.sum()) + 1]
