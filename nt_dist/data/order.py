"""The order of samples: a pure function of (seed, global sample number).

Nothing is drawn and nothing is kept, so a resume, another data degree or another number of workers changes nothing.
Samples that a run leaves out (bad steps') are jumped over by their numbers, which are part of its checkpoints.
Each epoch is one permutation of all samples, another in each epoch: a Feistel network over the smallest power of four
that holds them, walked until it lands inside (cycle walking; Black and Rogaway, "Ciphers with Arbitrary Finite
Domains", CT-RSA 2002, section 4). Its round function is the finalizer of SplitMix64 (Steele et al., OOPSLA 2014).
"""

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
