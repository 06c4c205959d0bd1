"""Packed windows and rows."""

import numpy as np
import pytest

from nt_dist.errors import DataError
from nt_dist.text.indexed import IndexedTokens, write_indexed
from nt_dist.text.samples import TextSamples


def samples(folder, layout, documents, length, vocab_size=300):
    lengths = np.array([len(document) for document in documents])
    write_indexed(folder / "train", 300, [(np.concatenate(documents), lengths)])
    return TextSamples(IndexedTokens(folder / "train"), layout, length, vocab_size)


def test_packed_windows_cover_the_stream_once(tmp_path):
    documents = [list(range(3, 13)), list(range(13, 16)), list(range(16, 24))]  # 21 tokens: 3..23
    packed = samples(tmp_path, "packed", documents, 4)
    assert len(packed) == 5
    for number in range(5):
        tokens, targets, weights = packed[number]
        assert tokens.tolist() == [3 + 4 * number + place for place in range(4)]
        assert targets.tolist() == (tokens + 1).tolist()
        assert weights.tolist() == [1, 1, 1, 1]
    assert (tokens.dtype, targets.dtype, weights.dtype) == (np.int64, np.int64, np.float32)


def test_a_last_window_needs_its_last_target(tmp_path):
    assert len(samples(tmp_path, "packed", [list(range(3, 23))], 4)) == 4  # 20 tokens: the fifth lacks one


def test_packed_refuses_less_than_one_window(tmp_path):
    with pytest.raises(DataError, match=r"train.bin: 4 tokens are less than one window of model.max_seq_len \+ 1 = 5"):
        samples(tmp_path, "packed", [[3, 4, 5, 6]], 4)


def test_rows_are_cut_and_padded(tmp_path):
    rows = samples(tmp_path, "rows", [[1, 9, 2], [1, 3, 4, 5, 6, 2], [1, 8, 7, 6, 2]], 4)
    assert len(rows) == 3
    short, long, exact = rows[0], rows[1], rows[2]
    assert (short.inputs.tolist(), short.targets.tolist(), short.weights.tolist()) == (
        [1, 9, 2, 0],
        [9, 2, 0, 0],
        [1, 1, 0, 0],
    )
    assert (long.inputs.tolist(), long.targets.tolist(), long.weights.sum()) == ([1, 3, 4, 5], [3, 4, 5, 6], 4)
    assert (exact.targets.tolist(), exact.weights.sum()) == ([8, 7, 6, 2], 4)


def test_past_the_end_is_an_index_error(tmp_path):
    rows = samples(tmp_path, "rows", [[1, 9, 2]], 4)
    for index in (-1, 1):
        with pytest.raises(IndexError):
            rows[index]


@pytest.mark.parametrize("layout", ["packed", "rows"])
def test_a_token_outside_the_vocabulary_is_named(tmp_path, layout):
    found = samples(tmp_path, layout, [[1, 9, 250, 4, 2]], 4, vocab_size=200)
    with pytest.raises(DataError, match=r"train.bin: holds token 250, model.vocab_size is 200"):
        found[0]
