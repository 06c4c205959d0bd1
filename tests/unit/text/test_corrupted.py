"""Corrupted samples."""

import itertools
import logging

import numpy as np
import pytest

from nt_dist.text.samples import Corrupted, _mistyped, misspelt, shuffled
from nt_dist.text.sources import open_files
from nt_dist.text.tokenizer import Tokenizer, train_tokenizer
from tests.unit.text.test_samples import samples

DOCUMENTS = [list(range(3, 3 + length)) for length in (9, 2, 1, 7, 20)]


def _tokens(sample):
    return np.append(sample.inputs[:1], sample.targets)[: int(sample.weights.sum()) + 1].tolist()


def test_a_share_of_a_samples_tokens_changes_places(tmp_path):
    packed = samples(tmp_path, "packed", [list(range(3, 285))], 40)  # all tokens differ
    for share, moved in ((0.1, 4), (0.5, round(20.5)), (1.0, 41)):
        corrupted = shuffled(packed, share)
        assert len(corrupted) == len(packed)
        for number in range(len(packed)):
            before, after = _tokens(packed[number]), _tokens(corrupted[number])
            assert sorted(after) == sorted(before)
            assert sum(a != b for a, b in zip(before, after, strict=True)) == moved
            assert corrupted[number].weights.tolist() == packed[number].weights.tolist()
            assert corrupted[number].targets[:-1].tolist() == corrupted[number].inputs[1:].tolist()


def test_a_share_of_no_two_tokens_is_said(tmp_path, caplog):
    packed = samples(tmp_path, "packed", [list(range(3, 285))], 40)
    with caplog.at_level(logging.INFO):
        assert _tokens(shuffled(packed, 0.05)[0]) != _tokens(packed[0]) and not caplog.text
        assert _tokens(shuffled(packed, 0.03)[0]) == _tokens(packed[0])
    assert "a share of 0.03 of 41 tokens is no two" in caplog.text


def test_it_follows_from_the_number_alone(tmp_path):
    rows = samples(tmp_path, "rows", [list(range(3, 43))] * 3, 40)
    first, again = shuffled(rows, 0.3), shuffled(rows, 0.3)
    assert _tokens(again[1]) == _tokens(first[1]) != _tokens(first[0])


def test_padding_stays_and_short_rows_stay_as_they_are(tmp_path):
    rows = samples(tmp_path, "rows", DOCUMENTS, 8)
    corrupted = shuffled(rows, 1.0)
    for number in range(len(rows)):
        before, after = rows[number], corrupted[number]
        assert after.weights.tolist() == before.weights.tolist()
        real = int(before.weights.sum()) + 1
        assert not after.targets[real:].any() and not after.inputs[real:].any()
        assert sorted(_tokens(after)) == sorted(_tokens(before))
    assert _tokens(corrupted[2]) == _tokens(rows[2])  # one token
    assert _tokens(shuffled(rows, 0.1)[0]) == _tokens(rows[0])  # round(0.1 * 9) = 1: nothing to change places with


def test_a_sample_of_which_nothing_is_left_is_padding(tmp_path):
    rows = samples(tmp_path, "rows", DOCUMENTS, 8)
    inputs, targets, weights = Corrupted(rows, lambda tokens, draw: tokens[:0])[0]
    assert not inputs.any() and not targets.any() and not weights.any()


ALPHABET = [chr(0x4E00 + number) for number in range(20_000)]  # each character once: what became of it can be seen


def test_characters_are_mistyped_in_four_ways_at_the_share_asked_for():
    typed = "".join(_mistyped("".join(ALPHABET), 0.2, np.random.default_rng(0)))
    numbers = [ord(each) - 0x4E00 for each in typed]
    pairs = list(itertools.pairwise(numbers))
    doubled, exchanged = (sum(second - first == step for first, second in pairs) for step in (0, -1))
    left_out = len(ALPHABET) + doubled - len(typed)
    assert [doubled, exchanged, left_out] == pytest.approx([950] * 3, rel=0.1)  # 1,000 less those just exchanged
    gone = len(ALPHABET) - len(set(numbers))  # left out, or replaced; a tenth of those came back for another
    assert gone - left_out == pytest.approx(860, rel=0.1)
    assert set(typed) <= set(ALPHABET)
    assert "".join(_mistyped("".join(ALPHABET), 1e-9, np.random.default_rng(0))) == "".join(ALPHABET)
    assert "".join(_mistyped("", 0.5, np.random.default_rng(0))) == ""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "it.txt"
    path.write_text("\n".join(f"the {number} quick brown foxes jump over lazy dogs" for number in range(200)))
    return Tokenizer(train_tokenizer(open_files("data.path", str(path), None, "text"), 320), "it")


def test_a_misspelt_sample_is_the_tokens_of_the_misspelt_text(tmp_path, tokenizer):
    texts = ["the quick brown foxes jump over lazy dogs " * 8, "lazy dogs", "quick"]
    documents = [tokenizer.document(text) for text in texts]
    rows = samples(tmp_path, "rows", documents, 60, tokenizer.vocab_size)
    mistyped = misspelt(rows, 0.2, tokenizer)
    assert len(mistyped) == len(rows)
    for number, text in enumerate(texts):
        before, after = _tokens(rows[number]), _tokens(mistyped[number])
        assert after == _tokens(misspelt(rows, 0.2, tokenizer)[number])  # follows from the number alone
        assert len(after) <= len(before) and after[0] == tokenizer.bos
        assert set(tokenizer.decode(after)) <= set(text)
    long = _tokens(mistyped[0])
    assert len(long) == 61 and long != _tokens(rows[0])  # more tokens than there were: cut
    assert _tokens(misspelt(rows, 1e-9, tokenizer)[0]) == _tokens(rows[0])


def test_documents_of_a_misspelt_window_stay_apart(tmp_path, tokenizer):
    documents = [tokenizer.document("lazy dogs jump") for _ in range(8)]
    packed = samples(tmp_path, "packed", documents, 40, tokenizer.vocab_size)
    before, after = _tokens(packed[0]), _tokens(misspelt(packed, 0.1, tokenizer)[0])
    controls = [each for each in before if each in (tokenizer.bos, tokenizer.eos)]
    kept = [each for each in after if each in (tokenizer.bos, tokenizer.eos)]
    assert 4 < len(kept) <= len(controls) and kept == controls[: len(kept)]


def test_windows_without_a_mistake_keep_their_tokens(tmp_path, tokenizer):
    """Also where a window cuts a character of several bytes, which decoding cannot give back."""
    documents = [tokenizer.document("lazy 漢字 dogs 🎉 ") for _ in range(8)]
    packed = samples(tmp_path, "packed", documents, 7, tokenizer.vocab_size)
    mistyped = misspelt(packed, 1e-9, tokenizer)
    assert any("\ufffd" in tokenizer.decode(_tokens(packed[number])) for number in range(len(packed)))
    for number in range(len(packed)):
        assert _tokens(mistyped[number]) == _tokens(packed[number])
