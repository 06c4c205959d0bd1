"""Random numbers that depend on what they are for and on nothing else (docs/design.md §3).

A stream is keyed by words such as (seed, purpose, weight name, trail, shard, step); its n-th number is a hash of the
key and n. So any rank draws the same number for the same entry of the same weight, in any layout, in any order, on any
device, and nothing has to be saved to resume. The mixing function is splitmix64 (Steele, Lea and Flood, 2014).
"""

import hashlib
import math

import torch

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # signed, as torch's integers are
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def stream_key(*words: object) -> int:
    """Return a signed 64-bit key for a stream named by ``words``."""
    text = "\x1f".join(str(word) for word in words)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def stream_keys(words: list[tuple], device: torch.device | str = "cpu") -> torch.Tensor:
    """Return one key per tuple of words: int64 [len(words)]."""
    return torch.tensor([stream_key(*each) for each in words], dtype=torch.int64, device=device)


def _shift(value: torch.Tensor, bits: int) -> torch.Tensor:
    return (value >> bits).bitwise_and_((1 << (64 - bits)) - 1)  # a logical shift: torch's keeps the sign


def hash_positions(keys: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Return the 64-bit hash of every position (an integer) in its stream; int64 ``keys`` are broadcast to them."""
    value = (positions.to(torch.int64) + 1) * _GOLDEN + keys  # a new tensor, which the rest works in
    value.bitwise_xor_(_shift(value, 30)).mul_(_MIX_1)
    value.bitwise_xor_(_shift(value, 27)).mul_(_MIX_2)
    return value.bitwise_xor_(_shift(value, 31))


def uniform(keys: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Return float64 numbers in the open interval (0, 1), shaped like ``positions``."""
    return _shift(hash_positions(keys, positions), 11).to(torch.float64).add_(0.5).mul_(2.0**-53)


def normal(keys: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Return standard normal float64 numbers, shaped like ``positions`` (Box and Muller, 1958)."""
    radius = torch.sqrt(-2.0 * torch.log(uniform(keys, positions)))
    angle = uniform(hash_positions(keys, torch.zeros_like(keys)), positions)
    return radius * torch.cos(2.0 * math.pi * angle)


def gumbel(keys: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Return standard Gumbel float64 numbers, shaped like ``positions``."""
    return uniform(keys, positions).log_().neg_().log_().neg_()
