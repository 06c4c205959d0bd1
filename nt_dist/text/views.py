"""TextSamples corrupted for evaluations."""

import itertools
from collections.abc import Iterator

import numpy as np

from nt_dist.text.samples import TextSamples
from nt_dist.text.tokenizer import Tokenizer

_SEED = 0  # not a run's, so that all runs are measured on the same corrupted text


class Corrupted(TextSamples):
    """The samples with something wrong in a share of each, in (0, 1], which follows from the sample's number alone.

    Targets are corrupted with the inputs, so that a perplexity is that of the corrupted text.
    """

    def __init__(self, samples: TextSamples, share: float):
        assert 0 < share <= 1
        super().__init__(samples.indexed, samples.sequence_length, samples.vocab_size)
        self.samples, self.share = samples, share

    def __len__(self) -> int:
        return len(self.samples)

    def _read(self, index: int) -> np.ndarray:
        tokens = self.samples.tokens(index)
        return self._corrupt(tokens, np.random.default_rng((_SEED, index)))[: len(tokens)]

    def _corrupt(self, tokens: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        """The real tokens of a sample with something wrong; what are more than there were is cut off."""
        raise NotImplementedError


class Shuffled(Corrupted):
    """Some tokens of each sample are in each other's places: the words are the text's, their order is not.

    Of n tokens round(share · n), drawn without replacement, change places in a random cycle; BOS and EOS are tokens
    like others. Below two tokens a sample stays as it is.
    """

    def _corrupt(self, tokens: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        count = len(tokens)
        chosen = draw.choice(count, round(self.share * count), replace=False)  # in random order: rolling it is a cycle
        tokens[chosen] = tokens[np.roll(chosen, 1)]
        return tokens


class Misspelled(Corrupted):
    """The text of each sample is mistyped, and made tokens anew, of which there mostly are more.

    Each character is mistyped with probability ``share``: left out, doubled, exchanged with the one after it, or
    replaced by one drawn from the same text, each as likely (after the synthetic noise of Belinkov and Bisk, arXiv
    1711.02173). BOS and EOS stay, and so does a text without a mistake. In one with mistakes, where a window cuts a
    word or a character, the first and last tokens may become others too.
    """

    def __init__(self, samples: TextSamples, share: float, tokenizer: Tokenizer):
        super().__init__(samples, share)
        self.tokenizer = tokenizer

    def _corrupt(self, tokens: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        after: list[int] = []
        controls = {self.tokenizer.bos, self.tokenizer.eos}
        for is_control, group in itertools.groupby(tokens.tolist(), controls.__contains__):
            run = list(group)
            text = "" if is_control else self.tokenizer.decode(run)
            typed = "".join(_mistyped(text, self.share, draw))
            after += run if typed == text else self.tokenizer.encode(typed)
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
