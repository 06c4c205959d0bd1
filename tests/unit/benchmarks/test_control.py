"""What the benchmark of the control plane makes of counts: fits, and a table of them."""

from collections import defaultdict

import numpy as np
import pytest

from benchmarks.control import PHASES, at, control_table, fit

SIZES = [2, 4, 8, 16, 32]


@pytest.mark.parametrize(
    "coefficients", [{"": 28.0}, {"n": 2.0}, {"": 3.0, "n": 0.25}, {"log2 n": 2.0}, {"": 5.0, "log2 n": 1.0, "n": 4.0}]
)
def test_a_fit_finds_what_counts_are_made_of(coefficients):
    counts = [at(coefficients, size) for size in SIZES]
    assert fit(SIZES, counts) == pytest.approx(coefficients)


def test_noise_makes_no_term():
    noise = 1 + 0.02 * np.random.default_rng(0).standard_normal(len(SIZES))
    found = fit(SIZES, list(10 * noise))
    assert found.keys() == {""} and found[""] == pytest.approx(10, rel=0.05)
    assert fit(SIZES, [0.0] * len(SIZES)) == {}


def test_the_table_says_what_the_fits_say_of_more_ranks():
    figures = {phase: defaultdict(lambda: [0.0] * len(SIZES)) for phase in PHASES}
    figures["meeting"]["requests"] = [3.0 * size for size in SIZES]
    figures["watch"]["seconds"] = [1e-3] * len(SIZES)
    head, _, meeting, watch = control_table(SIZES, figures).splitlines()
    assert head.endswith("| n = 32 | fit | 512 | 4,096 |")
    assert meeting.endswith("| requests to the store | 6 | 12 | 24 | 48 | 96 | 3 n | 1,536 | 12,288 |")
    assert watch.endswith("| ms of its watcher | 1.0 | 1.0 | 1.0 | 1.0 | 1.0 | 1 | 1.0 | 1.0 |")
