"""Overlap, churn and the share ever active, against sets of positions; and which checkpoints count."""

import dataclasses
import itertools
from dataclasses import replace

import pytest

from nt_dist.checkpoint.checkpoint import save
from nt_dist.errors import CheckpointError
from nt_dist.evaluation.topology import topology_figures
from nt_dist.model.weights import weight_specs
from tests.unit.checkpoint.checkpoint_case import CONFIG, PROGRESS, model_part, on_one_rank, on_ranks, with_run

SPECS = weight_specs(CONFIG)
SPARSE = [name for name, spec in SPECS.items() if spec.is_sparse]
STEPS = (7, 20, 30)


def _save(folder, step, seed, config=CONFIG):
    """A checkpoint whose topologies are drawn from ``seed``; it and {(weight, trail, shard): set of positions}."""

    def work(mesh):
        model, optimizer = model_part(mesh, "compact", config, seed)
        path = save(folder, config, mesh, model, optimizer, replace(PROGRESS, step=step))
        positions = {
            (weight.spec.name, trail, shard): set(weight.positions(trail, shard).tolist())
            for weight in model
            for trail in weight.trails
            for shard in weight.shards
        }
        return path, positions

    return on_one_rank(work)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three checkpoints of other topologies: the last one's path, and each one's positions."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    config = with_run(keep=9)
    saved = [_save(folder, step, seed, config) for seed, step in enumerate(STEPS)]
    return saved[-1][0], [positions for _, positions in saved]


def _figures(path, shape=(1, 1, 1, 1)):
    return on_ranks(shape, lambda mesh: topology_figures(path, mesh, SPECS))


def _jaccard(last, names, one, other):
    keys = [(name, shard) for name in names for shard in range(SPECS[name].shards)]
    pairs = [(last[name, one, shard], last[name, other, shard]) for name, shard in keys]
    return sum(len(a & b) for a, b in pairs) / sum(len(a | b) for a, b in pairs)


def test_the_figures_are_those_of_the_sets(run):
    path, history = run
    (found,) = _figures(path)
    assert found["checkpoints"] == list(STEPS)
    forked = [name for name in SPARSE if SPECS[name].trails > 1]
    overlap = _jaccard(history[-1], forked, 0, 1)
    assert found["overlap"] == pytest.approx(overlap)
    assert found["overlap_matrix"] == [pytest.approx([1, overlap]), pytest.approx([overlap, 1])]
    assert found["overlap"] == pytest.approx(found["overlap_chance"], rel=0.2)  # they are random

    for names, figures in [(SPARSE, found), *(([name], found["weights"][name]) for name in SPARSE)]:
        keys = [key for key in history[0] if key[0] in names]
        slots = sum(len(history[-1][key]) for key in keys)
        ever = sum(len(set.union(*(each[key] for each in history))) for key in keys)
        entries = sum(SPECS[name].trails * SPECS[name].slice_elements * SPECS[name].valid for name in names)
        assert figures["density"] == pytest.approx(slots / entries)
        assert figures["ever_active"] == pytest.approx(ever / entries)
        for churn, (before, after) in zip(figures["churn"], itertools.pairwise(history), strict=True):
            assert churn["share"] == pytest.approx(sum(len(before[key] - after[key]) for key in keys) / slots)
    assert [(each["from"], each["to"]) for each in found["churn"]] == list(itertools.pairwise(STEPS))
    assert set(found["weights"]) == set(SPARSE)
    for name in SPARSE:
        expected = pytest.approx(_jaccard(history[-1], [name], 0, 1)) if name in forked else None
        assert found["weights"][name]["overlap"] == expected


def test_a_trunk_alone_does_not_overlap(run):
    path, _ = run
    trunk = {name: spec for name, spec in SPECS.items() if spec.trails == 1}
    found = on_one_rank(lambda mesh: topology_figures(path, mesh, trunk))
    assert (found["overlap"], found["overlap_chance"], found["overlap_matrix"]) == (None, None, None)
    assert found["density"] > 0 and len(found["churn"]) == 2


def test_ranks_divide_the_work(run):
    path, _ = run
    (alone,) = _figures(path)
    assert _figures(path, (1, 3, 1, 1)) == [alone] * 3


def test_later_and_other_and_damaged_checkpoints_do_not_count(run, tmp_path, caplog):
    path, _ = run
    middle = path.with_name("step-00000020")
    (found,) = _figures(middle)
    assert found["checkpoints"] == [7, 20]

    folder = tmp_path / "checkpoints"
    bigger = replace(with_run(keep=9), model=replace(CONFIG.model, ffn_size=32))
    _save(folder, 1, 0, bigger)
    damaged, _ = _save(folder, 2, 0, with_run(keep=9))
    next(damaged.glob("*.safetensors")).write_bytes(b"")
    last, _ = _save(folder, 3, 0, with_run(keep=9))
    (found,) = _figures(last)
    assert found["checkpoints"] == [3] and found["churn"] == []
    assert found["ever_active"] == found["density"]
    assert "step-00000001" in caplog.text and "another model" in caplog.text
    assert "step-00000002" in caplog.text and "damaged" in caplog.text


def test_a_topology_that_is_not_the_manifests_is_refused_on_all_ranks(run, tmp_path, monkeypatch):
    from nt_dist.checkpoint import fragments as checkpoint_files

    path, _ = run
    monkeypatch.setattr(checkpoint_files, "topology_checksum", lambda positions: "0" * 16)
    for error in _figures(path, (1, 2, 1, 1)):
        assert isinstance(error, CheckpointError) and "topology checksum" in str(error)


def test_a_dense_model_has_none():
    dense = {name: dataclasses.replace(spec, density=1.0) for name, spec in SPECS.items()}
    assert on_one_rank(lambda mesh: topology_figures(None, mesh, dense)) is None
