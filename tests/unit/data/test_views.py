"""Every second sample, and corrupted ones."""

import numpy as np
import pytest

from nt_dist.data.views import Corrupted, EverySecond
from tests.unit.data.test_samples import samples

DOCUMENTS = [list(range(3, 3 + length)) for length in (9, 2, 1, 7, 20)]


def _tokens(sample):
    return np.append(sample.tokens[:1], sample.targets)[: int(sample.weights.sum()) + 1].tolist()


def test_the_two_halves_are_all_samples_asked_for(tmp_path):
    rows = samples(tmp_path, "rows", DOCUMENTS, 8)
    for asked, even, odd in ((0, [0, 2, 4], [1, 3]), (4, [0, 2], [1, 3]), (3, [0, 2], [1]), (99, [0, 2, 4], [1, 3])):
        for first, numbers in ((0, even), (1, odd)):
            half = EverySecond(rows, asked, first)
            assert [_tokens(half[number]) for number in range(len(half))] == [_tokens(rows[each]) for each in numbers]
    assert len(EverySecond(rows, 1, 1)) == 0
    with pytest.raises(IndexError):
        EverySecond(rows, 4, 1)[2]


def test_a_share_of_a_samples_tokens_changes_places(tmp_path):
    packed = samples(tmp_path, "packed", [list(range(3, 285))], 40)  # all tokens differ
    for share, moved in ((0.1, 4), (0.5, round(20.5)), (1.0, 41)):
        corrupted = Corrupted(packed, share)
        assert len(corrupted) == len(packed)
        for number in range(len(packed)):
            before, after = _tokens(packed[number]), _tokens(corrupted[number])
            assert sorted(after) == sorted(before)
            assert sum(a != b for a, b in zip(before, after, strict=True)) == moved
            assert corrupted[number].weights.tolist() == packed[number].weights.tolist()
            assert corrupted[number].targets[:-1].tolist() == corrupted[number].tokens[1:].tolist()


def test_it_follows_from_the_number_alone(tmp_path):
    rows = samples(tmp_path, "rows", [list(range(3, 43))] * 3, 40)
    first, again = Corrupted(rows, 0.3), Corrupted(rows, 0.3)
    assert _tokens(again[1]) == _tokens(first[1]) != _tokens(first[0])


def test_padding_stays_and_short_rows_stay_as_they_are(tmp_path):
    rows = samples(tmp_path, "rows", DOCUMENTS, 8)
    corrupted = Corrupted(rows, 1.0)
    for number in range(len(rows)):
        before, after = rows[number], corrupted[number]
        assert after.weights.tolist() == before.weights.tolist()
        real = int(before.weights.sum()) + 1
        assert not after.targets[real:].any() and not after.tokens[real:].any()
        assert sorted(_tokens(after)) == sorted(_tokens(before))
    assert _tokens(corrupted[2]) == _tokens(rows[2])  # one token
    assert _tokens(Corrupted(rows, 0.1)[0]) == _tokens(rows[0])  # round(0.1 * 9) = 1: nothing to change places with
