"""The rule by which a difference counts, against tables and by hand."""

import pytest

from nt_dist.study.seeds import least_difference, pooled


def test_points_of_students_distribution():
    table = {1: 12.706, 2: 4.303, 5: 2.571, 30: 2.042, 1000: 1.962}
    assert {degrees: round(least_difference(1.0, degrees, (2, 2)), 3) for degrees in table} == table


def test_a_spread_is_pooled_over_models_by_their_degrees_of_freedom():
    assert pooled([[1.0, 3.0], [5.0, 5.0, 8.0], [4.0]]) == (pytest.approx(((2 + 6) / 3) ** 0.5), 3)
    assert pooled([[1.0], [2.0]]) == (0.0, 0)
    assert least_difference(2.0, 5, (2, 3)) == pytest.approx(2.5706 * 2 * (1 / 2 + 1 / 3) ** 0.5, rel=1e-4)
