"""The benchmark of decoding: products and models take turns, and ratios are of the same round."""

import json

import pytest

from benchmarks.decoding import TORCH, _products, measure_decoding
from benchmarks.inference import FULL, SINGLE
from tests.unit.benchmarks.test_inference import KnownClock
from tests.unit.model.tiny import tiny


class Seconds(KnownClock):
    """Twice the time for what torch multiplies, and for the single model, in each round more than in the one before."""

    calls = 0

    def seconds(self, work, times):
        work()
        self.calls += 1
        return self.calls * 6.0


def test_ratios_are_of_rounds_and_sizes_of_what_is_held():
    sizes = {"num_rounds": 2, "num_steps": 3, "shape": (24, 40), "stream": 9000}
    report = measure_decoding(tiny(), [0.3], Seconds(None, None), **sizes)
    contenders = _products(0.3, (24, 40), 9000)
    paths = [name for name in contenders if name != TORCH]
    assert list(report.products[0.3]) == paths and all(name.endswith((", bf16", ", fp32")) for name in paths)
    order, count = list(contenders), len(contenders)
    for name, found in report.products[0.3].items():
        expected = []
        for number in (1, 2):
            turn = [order[(number + place) % count] for place in range(count)]
            took = {each: (number * count + 1 + turn.index(each)) / contenders[each].times for each in (name, TORCH)}
            expected.append(took[name] / took[TORCH])
        assert found.rounds == pytest.approx(expected)
    sparse = "NeuroTrails, density 0.3"
    assert list(report.tokens) == [
        *(SINGLE, f"{SINGLE}, bf16", FULL, f"{FULL}, bf16"),
        *(f"{sparse}, dense matrices", f"{sparse}, fp32", f"{sparse}, bf16"),
    ]
    block, entry = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32, 4
    table = report.weight_bytes[SINGLE] // entry - 3 * block  # of output pieces, padded
    assert 101 * 32 <= table < 120 * 32 and report.held[SINGLE] == (0, 22)
    assert report.weight_bytes[f"{sparse}, dense matrices"] == entry * (7 * block + 3 * table)
    assert len(report.tokens[SINGLE].rounds) == 2
    assert json.loads(json.dumps(report.to_dict()))["held"][f"{sparse}, fp32"][1] == 22
    assert any(line.startswith("| | tokens/s | of single") for line in report.table().splitlines())
