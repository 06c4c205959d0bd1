"""A tokenizer rewritten for transformers gives the same tokens, whatever the text."""

import io
import json
import random
import string

import pytest
import sentencepiece
import sentencepiece.sentencepiece_model_pb2 as proto
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from nt_dist.errors import DataError
from nt_dist.export import tokenizer as module
from nt_dist.export.tokenizer import SAMPLES, fast_tokenizer, write_tokenizer
from nt_dist.text.sources import open_files
from nt_dist.text.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from tests.unit.text.data_case import byte_level, sentences, write_jsonl

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
        assert fast.decode(tokens) == (" " if prefix and tokens else "") + tokenizer.decode(tokens)

    fast.encode_special_tokens = True  # as tokenizer_config.json says
    same()
    choose = random.Random(1)
    for _ in range(20):
        same.hypothesis.inner_test("".join(choose.choices(string.printable + CODE, k=400)))


def test_the_written_files_give_bos_and_special_tokens_as_training_had_them(own, tmp_path):
    write_tokenizer(own, tmp_path, 16)
    theirs = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    text = "The old house <s> x</s>"
    assert list(theirs(text)) == ["input_ids", "attention_mask"]
    named = json.loads((tmp_path / "tokenizer_config.json").read_text())["model_input_names"]
    assert named == ["input_ids", "attention_mask"]  # transformers 4 asks for token_type_ids where nothing is said
    assert theirs(text).input_ids == [own.bos, *own.encode(text)] == own.document(text)[:-1]
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (own.bos, own.eos, own.eos)
    batch = theirs(["The old", "The"], padding=True)
    assert batch.attention_mask[1][0] == 0 and batch.attention_mask[1][-1] == 1  # at the left, for generate()
    assert theirs.decode([own.bos, *own.encode(text), own.eos], skip_special_tokens=True) == text
    assert (tmp_path / "tokenizer.model").read_bytes() == own.data


def test_a_tokenizer_that_cannot_be_rewritten_is_refused_with_every_rule_where_ours_may_not_run(own, tmp_path):
    with pytest.raises(DataError) as caught:
        write_tokenizer(foreign(own, model_type=1, remove_extra_whitespaces=True), tmp_path, 16, is_plain=True)
    assert str(caught.value).startswith(
        "foreign.model: cannot be written as a tokenizer.json: its kind must be BPE; it "
    )
    assert "must not remove spaces" in str(caught.value)


@pytest.mark.parametrize("trusted", [True, False], ids=["with our class", "without"])
def test_what_follows_a_prompt_keeps_its_space(own, tmp_path, trusted):
    tokenizer = foreign(own, add_dummy_prefix=True)
    write_tokenizer(tokenizer, tmp_path, 64, is_plain=not trusted)
    theirs = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True, trust_remote_code=trusted)
    prompt, whole = theirs("The old").input_ids, theirs("The old house").input_ids
    assert whole[: len(prompt)] == prompt
    assert "The old" + theirs.decode(whole[len(prompt) :], skip_special_tokens=True) == "The old house"  # as pipeline()
    assert theirs.decode(whole, skip_special_tokens=True) == ("" if trusted else " ") + "The old house"


def unigram(**settings):
    """As T5's is: no BPE, normalized characters, no bytes."""
    written, texts = io.BytesIO(), iter(sentences(300).split("\n"))
    settings = {"model_type": "unigram", "hard_vocab_limit": False, "minloglevel": 2, **settings}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=texts, model_writer=written, vocab_size=90, **settings)
    return Tokenizer(written.getvalue(), "t5.model")


@pytest.mark.parametrize("kind", ["rewritten", "not"])
def test_tokenizer_model_stays_where_a_tokenizer_is_saved_again(own, tmp_path, kind):
    tokenizer = own if kind == "rewritten" else unigram(pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    (tmp_path / "a").mkdir()
    write_tokenizer(tokenizer, tmp_path / "a", 64)
    for before, after in (("a", "b"), ("b", "c")):
        theirs = AutoTokenizer.from_pretrained(tmp_path / before, local_files_only=True, trust_remote_code=True)
        theirs.save_pretrained(tmp_path / after)
        assert (tmp_path / after / "tokenizer.model").read_bytes() == tokenizer.data
        bos = [] if tokenizer.bos is None else [tokenizer.bos]
        assert all(theirs(text).input_ids == bos + tokenizer.encode(text) for text in SAMPLES)
    if kind == "rewritten":  # and where our class may not run
        theirs = AutoTokenizer.from_pretrained(tmp_path / "c", local_files_only=True)
        assert theirs("The old").input_ids == [own.bos, *own.encode("The old")]


def test_special_tokens_that_a_user_adds_are_found_in_texts(own, tmp_path):
    (tmp_path / "a").mkdir()
    write_tokenizer(own, tmp_path / "a", 64)
    text, load = "The</s> old<|user|> house", {"local_files_only": True, "trust_remote_code": True}
    theirs = AutoTokenizer.from_pretrained(tmp_path / "a", **load)
    assert theirs.add_special_tokens({"additional_special_tokens": ["<|user|>"]}) == 1
    theirs.save_pretrained(tmp_path / "b")
    for each in (theirs, AutoTokenizer.from_pretrained(tmp_path / "b", **load)):
        tokens = each(text).input_ids
        assert tokens.count(own.vocab_size) == 1 and own.eos not in tokens  # the model's own stay text
        assert each.decode(tokens, skip_special_tokens=True) == text.replace("<|user|>", "")


def test_sentencepiece_reads_what_no_tokenizer_json_can_say(tmp_path):
    tokenizer = unigram()
    write_tokenizer(tokenizer, tmp_path, 64)
    assert not (tmp_path / "tokenizer.json").exists()
    theirs = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True, trust_remote_code=True)
    for text in (*SAMPLES, "ﬁve  old\thouses", "</s>"):
        tokens = theirs(text).input_ids
        assert tokens == [tokenizer.bos, *tokenizer.encode(text)]
        assert theirs.decode(tokens, skip_special_tokens=True) == tokenizer.decode(tokens)
    assert theirs.decode([1, *tokenizer.encode("the old"), 2]) == "<s> the old</s>"
    follows = tokenizer.encode("the old house")[len(tokenizer.encode("the old")) :]
    assert theirs.decode(follows) == " house"
    assert len(theirs) == tokenizer.vocab_size and theirs.get_vocab() == tokenizer.pieces
    theirs.add_tokens(["qqq"])
    theirs.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    tokens = theirs("a qqq</s><|user|>").input_ids
    assert tokens[-1] == tokenizer.vocab_size + 1 and tokenizer.vocab_size in tokens and tokenizer.eos not in tokens
    assert theirs("</s>", split_special_tokens=False).input_ids == [tokenizer.bos, tokenizer.eos]


def test_a_tokenizer_json_is_written_as_it_is(tmp_path):
    tokenizer = load_tokenizer(byte_level(tmp_path), 300)
    (tmp_path / "out").mkdir()
    write_tokenizer(tokenizer, tmp_path / "out", 64, is_plain=True)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    for text in SAMPLES:
        assert theirs(text).input_ids == tokenizer.encode(text) and theirs.decode(tokenizer.encode(text)) == text
    assert theirs.eos_token_id == tokenizer.eos


def test_pieces_that_say_nothing_of_spaces_are_joined_as_their_library_joins_them(tmp_path):
    """A WordPiece without a decoder: what it decodes is no text of its own, and unknown pieces are left out of it."""
    trained = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    trained.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = ["[UNK]", "[CLS]", "[SEP]"]
    trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=90, special_tokens=special, show_progress=False)
    trained.train_from_iterator([sentences(60)], trainer)
    trained.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "[SEP]", "bos_token": "[CLS]"}')
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json", trained.get_vocab_size())
    (tmp_path / "out").mkdir()
    write_tokenizer(tokenizer, tmp_path / "out", 64)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    assert theirs("the é house").input_ids == [tokenizer.bos, *tokenizer.encode("the é house")]
    assert tokenizer.encode("é") == [tokenizer.piece("[UNK]")]


def test_a_difference_is_found(own, tmp_path, monkeypatch):
    whole = module._merges
    monkeypatch.setattr(module, "_merges", lambda model: whole(model)[5:])
    with pytest.raises(DataError, match=r"own.model: rewritten for transformers, '.*' becomes \[.*\], not \["):
        write_tokenizer(own, tmp_path, 16)
    assert len(SAMPLES) == len(set(SAMPLES))
