"""Statistics are saved and loaded as weights are: once, exactly, in any layout."""

from dataclasses import replace

import pytest
import torch

from nt_dist.checkpoint.checkpoint import Snapshot, collect, load, save
from nt_dist.checkpoint.inspect import compare, examine
from nt_dist.checkpoint.manifest import read_manifest
from nt_dist.checkpoint.weights import load_values
from nt_dist.errors import CheckpointError
from nt_dist.model.trails import statistics_of, weights_of
from nt_dist.model.weights import statistic_specs
from nt_dist.sparsity.statistic import Statistic
from tests.unit.checkpoint.checkpoint_case import CONFIG, PROGRESS, model_part, on_one_rank, on_ranks
from tests.unit.checkpoint.test_checkpoint import save_on
from tests.unit.model.with_statistics import contents, fill, with_statistics

WITH = with_statistics(CONFIG)
LAYOUTS = [(1, 1, 1, 1), (1, 3, 1, 1), (1, 1, 2, 4), (1, 2, 2, 2)]


def part_with_statistics(mesh, filled):
    """The weights and statistics that a rank holds, and its optimizer's state; ``model_part`` with statistics."""
    model, optimizer = model_part(mesh, "compact", WITH, 5)
    for spec in statistic_specs(WITH).values():
        model.append(Statistic(spec, mesh.place.trails(spec), mesh.place.shards(spec)))
    for statistic in statistics_of(model).values() if filled else ():
        fill(statistic)
    return model, optimizer


def save_statistics_on(folder, shape, change=lambda statistics: None):
    """Save a model whose statistics are filled and then changed; return the checkpoint, or the first error."""

    def work(mesh):
        model, optimizer = part_with_statistics(mesh, filled=True)
        change(statistics_of(model))
        return save(folder, WITH, mesh, model, optimizer, PROGRESS)

    return on_ranks(shape, work)[0]


def load_statistics_on(path, shape):
    """The statistics of every rank after a load."""

    def work(mesh):
        model, optimizer = part_with_statistics(mesh, filled=False)
        load(path, WITH, mesh, model, optimizer)
        assert len(optimizer.states) == len(weights_of(model))
        return contents(statistics_of(model))

    return on_ranks(shape, work)


@pytest.fixture(scope="module")
def expected():
    return on_one_rank(lambda mesh: contents(statistics_of(part_with_statistics(mesh, filled=True)[0])))


@pytest.mark.parametrize("shape", LAYOUTS)
def test_what_any_layout_saves_any_other_loads(tmp_path, expected, shape):
    path = save_statistics_on(tmp_path, shape)
    assert examine(path) == []
    entry = read_manifest(path).weights["spread"]
    assert entry.is_statistic and sorted(entry.fragments) == ["0/0", "0/1", "0/2", "0/3"] and not entry.is_sparse
    for other in LAYOUTS:
        seen = set()
        for found in load_statistics_on(path, other):
            assert all(torch.equal(tensor, expected[key]) for key, tensor in found.items())
            seen |= found.keys()
        assert seen == expected.keys() and len(seen) == 2 + 4


def test_they_are_written_once_and_without_moments(tmp_path):
    def work(mesh):
        model, optimizer = part_with_statistics(mesh, filled=True)
        return [key for key in collect(WITH, mesh, model, optimizer, PROGRESS).tensors if key.startswith("mean")]

    keys = sorted(key for found in on_ranks((1, 2, 2, 2), work) for key in found)
    assert keys == ["mean/0/0/value", "mean/1/0/value"]


AVERAGED = replace(WITH, train=replace(WITH.train, average_decay=0.9))


def test_their_averages_are_saved_and_taken_by_an_evaluation(tmp_path, expected):
    def half(mesh):
        model, optimizer = part_with_statistics(mesh, filled=True)
        optimizer.moments = AVERAGED.train.moments
        for state in optimizer.states.values():
            state["average"] = state["value"]
        for statistic in statistics_of(model).values():
            statistic.average = statistic.values / 2
        return save(tmp_path, AVERAGED, mesh, model, optimizer, PROGRESS)

    path = on_ranks((1, 2, 2, 2), half)[0]

    def read(mesh):
        model, optimizer = part_with_statistics(mesh, filled=False)
        optimizer.moments = AVERAGED.train.moments
        load(path, AVERAGED, mesh, model, optimizer)
        both = [contents(statistics_of(model))]
        load(path, AVERAGED, mesh, model, None)
        return [*both, contents(statistics_of(model))]

    trained, evaluated = on_one_rank(read)
    assert all(
        torch.equal(trained[key], each) and torch.equal(evaluated[key], each / 2) for key, each in expected.items()
    )


def test_a_snapshot_no_longer_changes_with_them():
    def work(mesh):
        model, optimizer = part_with_statistics(mesh, filled=True)
        snapshot: Snapshot = collect(WITH, mesh, model, optimizer, PROGRESS)
        before = snapshot.tensors["mean/0/0/value"].copy()
        statistics_of(model)["mean"].values.zero_()
        return (snapshot.tensors["mean/0/0/value"] == before).all() and before.any()

    assert on_one_rank(work)


def test_a_model_to_compute_with_has_them_in_fp32_whatever_it_is_cast_to(tmp_path, expected):
    path = save_statistics_on(tmp_path, (1, 1, 2, 1))

    def work(mesh):
        model, _ = part_with_statistics(mesh, filled=False)
        model.bfloat16()
        load_values(path, read_manifest(path), model)
        return contents(statistics_of(model))

    found = on_one_rank(work)
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


def test_one_that_is_no_number_is_not_saved(tmp_path):
    error = save_statistics_on(tmp_path, (1, 1, 1, 1), lambda found: found["mean"].values[1, :2].fill_(float("nan")))
    assert isinstance(error, CheckpointError) and "mean/1/0/value: 2 of 6 values are not finite" in str(error)


def test_two_checkpoints_are_compared_in_them(tmp_path):
    first, second = save_statistics_on(tmp_path / "a", (1, 1, 1, 1)), save_statistics_on(tmp_path / "b", (1, 2, 2, 1))
    assert compare(first, second).is_same_state
    third = save_statistics_on(tmp_path / "c", (1, 1, 1, 1), lambda found: found["spread"].values[0, 2, 7].add_(0.5))
    found = compare(first, third)
    assert not found.is_same_state and not found.state
    assert {name: each.largest for name, each in found.weights.items() if not each.is_none} == {
        "spread": {"value": 0.5}
    }


def test_a_checkpoint_without_them_is_refused_by_a_model_that_has_some(tmp_path):
    path = save_on(tmp_path, seed=5)
    for error in load_statistics_on(path, (1, 1, 1, 1)):
        assert isinstance(error, CheckpointError)
        assert str(error).splitlines() == [f"{path}: has no statistic mean", f"{path}: has no statistic spread"]
