"""The order of samples: a pure function of (seed, global sample number).

Nothing is drawn and nothing is kept, so a resume, another data degree or another number of workers changes nothing.
Samples that a run leaves out (bad steps') are jumped over by their numbers, which are part of its checkpoints.
Of several sets each has its turns by shares and goes through its own epochs (docs/decisions/0048-mixtures.md).
Each epoch is one permutation of all samples, another in each epoch: a Feistel network over the smallest power of four
that holds them, walked until it lands inside (cycle walking; Black and Rogaway, "Ciphers with Arbitrary Finite
Domains", CT-RSA 2002, section 4). Its round function is the finalizer of SplitMix64 (Steele et al., OOPSLA 2014).
"""

import math
from collections.abc import Sequence

import numpy as np

_ROUNDS = 8
_STEP = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def samples_at(seed: int, num_samples: int, numbers: np.ndarray) -> np.ndarray:
    """The samples, int64 below ``num_samples`` [N], that have these global numbers, counted from the start [N]."""
    assert num_samples > 0
    numbers = np.asarray(numbers, dtype=np.uint64)
    epochs, places = np.divmod(numbers, np.uint64(num_samples))
    half = max(1, ((num_samples - 1).bit_length() + 1) // 2)  # bits of each half of the network
    keys = _mix(_mix(np.full_like(epochs, seed % 2**64)) + epochs)  # [N]
    inside = np.zeros(places.shape, dtype=bool)
    while not inside.all():
        places = np.where(inside, places, _feistel(places, keys, half))
        inside = places < num_samples
    return places.astype(np.int64)


def parts_of(shares: Sequence[float]) -> list[int]:
    """How many of the samples that earlier sets leave each of several sets has, in parts of 2^32."""
    left = [math.fsum(shares[place:]) for place in range(len(shares))]
    return [round((1 << 32) * share / rest) for share, rest in zip(shares, left, strict=True)]


def turns_at(shares: Sequence[float], numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of several sets take their turn at these global numbers [N], and how many of the same set come before [N].

    ``shares`` sum to 1. The first set has its share of all numbers, as evenly as integers allow; the second its share
    of those that the first leaves, and so on. So of n numbers in a row each has its share to within a few.
    """
    places = np.asarray(numbers, dtype=np.uint64).copy()
    sets, is_open = np.full(places.shape, len(shares) - 1), np.ones(places.shape, dtype=bool)
    for number, part in enumerate(parts_of(shares)):
        before, after = _dealt(places, part), _dealt(places + np.uint64(1), part)
        is_own = is_open & (after > before)
        sets[is_own] = number
        places = np.where(is_own, before, np.where(is_open, places - before, places))
        is_open &= ~is_own
    return sets, places.astype(np.int64)


def turns_before(shares: Sequence[float], number: int) -> list[int]:
    """How many of the global numbers below this one each set has."""
    counts, left = [], number
    for part in parts_of(shares):
        counts.append(int(_dealt(np.uint64(left), part)))
        left -= counts[-1]
    return counts


def _dealt(numbers: np.ndarray, part: int) -> np.ndarray:
    """floor(n · part / 2^32 + 1/2), exact for n below 2^63 or so: of a number and the next it differs by 0 or 1. [N]"""
    half, bits, low = np.uint64(1 << 31), np.uint64(32), np.uint64((1 << 32) - 1)
    part = np.uint64(part)
    return (numbers >> bits) * part + (((numbers & low) * part + half) >> bits)


def first_of_step(start: int, size: int, left_out: Sequence[tuple[int, int]]) -> int:
    """The first number from ``start`` on whose ``size`` samples are in none of the sorted ranges that are left out."""
    for first, end in left_out:
        if first < start + size and start < end:
            start = end
    return start


def _feistel(values: np.ndarray, keys: np.ndarray, half: int) -> np.ndarray:
    """One permutation of [0, 4^half) for each key. [N], [N] -> [N]"""
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = values >> shift, values & mask
    for number in range(_ROUNDS):
        left, right = right, left ^ (_mix(_mix(keys + np.uint64(number)) ^ right) & mask)
    return (left << shift) | right


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64: well-mixed 64 bits for each 64 bits; uint64 wraps around on purpose."""
    values = values + _STEP
    values = (values ^ (values >> np.uint64(30))) * _MULTIPLIERS[0]
    values = (values ^ (values >> np.uint64(27))) * _MULTIPLIERS[1]
    return values ^ (values >> np.uint64(31))
