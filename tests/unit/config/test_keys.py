"""Numbers near a mistyped one."""

from nt_dist.config.keys import SEARCHED, nearest_numbers


def test_the_nearest_below_and_above_are_named():
    assert nearest_numbers(30, lambda number: number % 8 == 0) == "24 or 32"
    assert nearest_numbers(3, lambda number: number > 12) == "none"


def test_a_search_from_a_number_of_any_size_ends():
    asked = []

    def holds(number):
        asked.append(number)
        assert len(asked) <= 2 * SEARCHED
        return False

    assert nearest_numbers(2**62, holds) == "none"
    assert min(asked) == 2**62 - SEARCHED and max(asked) == 2**62 + SEARCHED
