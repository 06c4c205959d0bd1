"""What is said of numbers that are wrong; what is found is tests/distributed/test_integrity.py's."""

from types import SimpleNamespace

import pytest
import torch

from nt_dist.errors import CorruptionError
from nt_dist.training.integrity import UNLIKE, Integrity

ONE_RANK = SimpleNamespace(any=lambda *flags: flags, gather_objects=lambda thing: [thing])


def said(rule, numbers):
    integrity = Integrity.__new__(Integrity)
    integrity.mesh = ONE_RANK
    integrity._copies, integrity._differing = list, lambda copies: []
    integrity._checks = lambda: [("output", rule, ~torch.isfinite(numbers), numbers)]
    with pytest.raises(CorruptionError) as caught:
        integrity.check("step 2")
    return str(caught.value).splitlines()


def test_numbers_that_a_learning_rate_makes_are_not_blamed_on_memory():
    head, line = said("exp_avg_sq is no plausible number", torch.tensor([1.0, float("inf")]))
    assert head.startswith("numbers that no training survives at step 2: a learning rate that is too high (train.lr)")
    assert "corrupted" not in head and "goes on from it" in head
    assert line == "rank 0: output: exp_avg_sq is no plausible number (entry 1 of its partition: inf)"


def test_a_copy_that_is_not_its_master_is():
    head, _ = said(UNLIKE, torch.tensor([float("nan")]))
    assert head.startswith("memory is corrupted at step 2; what is saved is from before")
