"""The benchmark of inference: contenders take turns, and sizes are those of what they hold."""

import json

import pytest

from benchmarks import inference
from benchmarks.inference import DENSE, FULL, SINGLE, measure_inference
from tests.unit.model.tiny import tiny

SPARSE = "NeuroTrails, density 0.2"


class KnownClock:
    """Does the work, and says that it took what each kind of work takes in this test."""

    def __init__(self, synchronize, now):
        pass

    def seconds(self, work, times):
        for _ in range(times):
            work()
        return {"read": 0.5, "write": 2.0}[work.__name__]


@pytest.fixture(scope="module")
def report():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "Clock", KnownClock)
        return measure_inference(tiny(), [0.2], num_rounds=2, prompt=6, num_steps=4)


def test_tokens_per_second_are_of_prompts_and_of_steps(report):
    assert list(report.by_name) == [SINGLE, FULL, DENSE, SPARSE]
    for each in report.by_name.values():
        assert each.prompt.rounds == [12.0, 12.0] and each.steps.rounds == [2.0, 2.0]
    assert report.table().splitlines()[2].startswith(f"| {SINGLE} | 12 | 1.000 (1.000-1.000) | 2.0 | 1.000")
    assert json.loads(json.dumps(report.to_dict()))[SPARSE]["steps"] == [2.0, 2.0]


def test_memory_is_what_each_contender_holds(report):
    block, table = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32 + 2 * 32, 101 * 32
    trail = 2 * block + 32 + table
    weights = {SINGLE: table + block + trail, FULL: 3 * (table + block + trail), DENSE: table + block + 3 * trail}
    token = 2 * 2 * 8 * 4  # keys and values of 2 heads of 8
    blocks = {SINGLE: 3, FULL: 9, DENSE: 7, SPARSE: 7}
    for name, each in report.by_name.items():
        assert each.cache_bytes == 10 * token * blocks[name]
        if name in weights:
            assert each.weight_bytes == each.file_bytes == 4 * weights[name]
    sparse = report.by_name[SPARSE]
    assert sparse.file_bytes < 0.5 * report.by_name[DENSE].file_bytes
    assert 0 <= sparse.sparse_matrices[0] <= sparse.sparse_matrices[1] == 7 * 7 + 3
