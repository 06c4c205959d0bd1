"""A tokenizer rewritten for transformers gives the same tokens, whatever the text."""

import random
import string

import pytest
import sentencepiece.sentencepiece_model_pb2 as proto
from hypothesis import given, settings
from hypothesis import strategies as st

from nt_dist.errors import DataError
from nt_dist.export import tokenizer as module
from nt_dist.export.tokenizer import SAMPLES, fast_tokenizer, write_tokenizer
from nt_dist.text.sources import open_files
from nt_dist.text.tokenizer import Tokenizer, train_tokenizer
from tests.unit.text.data_case import sentences, write_jsonl

CODE = "".join(f"def f{n}(x):\n{' ' * 4 * (n % 5)}return xxx + '----' * {n}\n" for n in range(60))


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """As data.tokenizer = "auto" trains them, on text with runs of spaces and of equal characters."""
    folder = tmp_path_factory.mktemp("tokenizer")
    source = open_files("data.path", str(write_jsonl(folder / "texts.jsonl", [sentences(40), CODE])), "jsonl", "text")
    return Tokenizer(train_tokenizer(source, 420), "own.model")


def foreign(own, **changes):
    """The same with other settings, as tokenizers from elsewhere have them."""
    model = proto.ModelProto.FromString(own.data)
    for name, value in changes.items():
        spec = model.normalizer_spec if hasattr(model.normalizer_spec, name) else model.trainer_spec
        setattr(spec, name, value)
    return Tokenizer(model.SerializeToString(), "foreign.model")


@pytest.mark.parametrize("prefix", [False, True])
def test_tokens_are_the_same_on_odd_texts(own, prefix):
    tokenizer = foreign(own, add_dummy_prefix=True) if prefix else own
    fast = fast_tokenizer(tokenizer)

    @settings(max_examples=300, deadline=None, database=None)
    @given(st.one_of(st.text(max_size=40), st.text(alphabet="ax-  \n\t▁the<s>/0é🌲", max_size=60)))
    def same(text):
        tokens = fast.encode(text, add_special_tokens=True).ids
        tokens = tokens[1:]  # BOS
        assert tokens == tokenizer.encode(text)
        assert fast.decode(tokens) == tokenizer.decode(tokens)

    fast.encode_special_tokens = True  # as tokenizer_config.json says
    same()
    choose = random.Random(1)
    for _ in range(20):
        same.hypothesis.inner_test("".join(choose.choices(string.printable + CODE, k=400)))


def test_the_written_files_give_bos_and_special_tokens_as_training_had_them(own, tmp_path):
    from transformers import AutoTokenizer

    write_tokenizer(own, tmp_path, 16)
    theirs = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    text = "The old house <s> x</s>"
    assert theirs(text).input_ids == [own.bos, *own.encode(text)] == own.document(text)[:-1]
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (own.bos, own.eos, own.eos)
    batch = theirs(["The old", "The"], padding=True)
    assert batch.attention_mask[1][0] == 0 and batch.attention_mask[1][-1] == 1  # at the left, for generate()
    assert theirs.decode([own.bos, *own.encode(text), own.eos], skip_special_tokens=True) == text
    assert (tmp_path / "tokenizer.model").read_bytes() == own.data


def test_a_tokenizer_that_cannot_be_rewritten_is_refused_with_every_rule(own, tmp_path):
    with pytest.raises(DataError) as caught:
        write_tokenizer(foreign(own, model_type=1, remove_extra_whitespaces=True), tmp_path, 16)
    assert str(caught.value).startswith("foreign.model: cannot be written for transformers: its kind must be BPE; it ")
    assert "must not remove spaces" in str(caught.value)


def test_a_difference_is_found(own, tmp_path, monkeypatch):
    whole = module._merges
    monkeypatch.setattr(module, "_merges", lambda model: whole(model)[5:])
    with pytest.raises(DataError, match=r"own.model: rewritten for transformers, '.*' becomes \[.*\], not \["):
        write_tokenizer(own, tmp_path, 16)
    assert len(SAMPLES) == len(set(SAMPLES))
