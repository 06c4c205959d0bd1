"""Samples made from other samples, for evaluations: every second one, and corrupted ones."""

import numpy as np

from nt_dist.data.samples import Sample, Samples

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


class Corrupted(Samples):
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
        whole = self.samples[index]
        real = int(whole.weights.sum()) + 1
        tokens = np.concatenate([whole.tokens[:1], whole.targets])[:real]
        draw = np.random.default_rng((_SEED, index))
        chosen = draw.choice(real, round(self.share * real), replace=False)  # in random order: rolling it is a cycle
        tokens[chosen] = tokens[np.roll(chosen, 1)]
        return self._split(tokens)
