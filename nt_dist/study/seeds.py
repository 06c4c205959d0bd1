"""What several seeds say: how far equal models differ, and from where on a difference of two models counts.

All models are taken to spread alike over seeds, as none has seeds enough for a spread of its own. By chance two means
over n and m seeds then differ once in twenty times by more than

    least = t · s · √(1/n + 1/m)

where s is the standard deviation over seeds, pooled over all models, and t the 97.5 % point of Student's distribution
with as many degrees of freedom as s has (Fisher's least significant difference). It is for one pair at a time: of many
pairs, one in twenty is beyond it by chance.
"""

from collections.abc import Sequence
from statistics import variance

from scipy.stats import t


def pooled(samples: Sequence[Sequence[float]]) -> tuple[float, int]:
    """Return the standard deviation within samples of figures, and its degrees of freedom: 0 where none has two."""
    degrees = sum(len(sample) - 1 for sample in samples)
    squares = sum((len(sample) - 1) * variance(sample) for sample in samples if len(sample) > 1)
    return (squares / degrees) ** 0.5 if degrees else 0.0, degrees


def least_difference(spread: float, degrees: int, sizes: tuple[int, int]) -> float:
    """Return the smallest difference that counts of two means over so many seeds."""
    return float(t.ppf(0.975, degrees)) * spread * sum(1 / size for size in sizes) ** 0.5
