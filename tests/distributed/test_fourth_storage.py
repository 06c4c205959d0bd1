"""A storage that the package does not know trains the same model: in a file of its own, with no other change."""

import contextlib

import pytest
import torch

from nt_dist.testing import run_distributed
from tests.distributed.layout_case import Layout, Run
from tests.unit.sparsity.reversed_storage import ReversedWeight, in_place_of_compact


def _same(one, other):
    """Two runs, by rank, were the same."""
    for mine, theirs in zip(one, other, strict=True):
        assert len(mine.updates) == 3 and mine.updates == theirs.updates
        assert mine.checksums == theirs.checksums
        torch.testing.assert_close(torch.tensor(mine.losses), torch.tensor(theirs.losses), rtol=1e-5, atol=1e-6)
        assert mine.slots.keys() == theirs.slots.keys()
        for key, slots in mine.slots.items():
            torch.testing.assert_close(slots, theirs.slots[key], rtol=1e-4, atol=1e-6)


def _train(rank, world_size, layout, fourth):
    with in_place_of_compact() if fourth else contextlib.nullcontext():
        run = Run(layout)
        kinds = {type(weight) for weight in run.weights.values() if weight.spec.is_sparse}
        assert (kinds == {ReversedWeight}) == fourth, kinds
        return run.train(7).finish()


@pytest.mark.parametrize(
    "layout",
    [Layout(), Layout(data=2, stage=3), Layout(tensor=2, stage=1, precision="bf16")],
    ids=str,
)
def test_another_storage_trains_the_same_model(layout):
    one, other = ({**vars(layout), "storage": each} for each in ("masked", "compact"))
    expected = run_distributed(_train, layout.ranks, Layout(**one), False)
    found = run_distributed(_train, layout.ranks, Layout(**other), True)
    _same(found, expected)


def _train_groups(rank, world_size, layout):
    run = Run(layout)
    kinds = {type(weight).name for weight in run.weights.values() if weight.spec.is_sparse}
    assert ("grouped" in kinds) == (layout.storage == "auto"), kinds
    return run.train(7).finish()


@pytest.mark.parametrize(
    "layout",
    [
        Layout(structure="groups"),
        Layout(tensor=2, stage=1, structure="groups"),
        Layout(data=2, stage=3, structure="groups"),
        Layout(tensor=2, stage=1, structure="blocks"),
    ],
    ids=str,
)
def test_products_of_groups_train_the_same_model_as_dense_ones(layout):
    runs = [{**vars(layout), "storage": storage} for storage in ("masked", "auto")]
    _same(*(run_distributed(_train_groups, layout.ranks, Layout(**each)) for each in runs))
