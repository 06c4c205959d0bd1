"""Tokenizers: trained the same each time, lossless, and refused when they do not fit."""

import json
import logging
import pickle

import pytest
import sentencepiece

from nt_dist.errors import DataError
from nt_dist.text.prepare import open_data, run_tokenizer
from nt_dist.text.sources import open_files
from nt_dist.text.tokenizer import Tokenizer, _in_proportion, load_tokenizer, train_on_mixture, train_tokenizer
from tests.unit.text.data_case import byte_level, config_over, sentences, write_jsonl


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "a.jsonl"
    return open_files("data.path", str(write_jsonl(path, [sentences(40, seed) for seed in range(20)])), None, "text")


@pytest.fixture(scope="module")
def model(source):
    return train_tokenizer(source, 330)


def test_training_is_deterministic(source, model):
    assert train_tokenizer(source, 330) == model


@pytest.mark.parametrize(
    "text",
    ["The old house", "  two  spaces \n\n\tand a tab\r\n", " ", "\n", "été 漢字 🎉 \x00", "<s> </s> <unk>", "ﬁ Ⅳ Å"],
)
def test_decoding_gives_the_text_back(model, text):
    tokenizer = Tokenizer(model, "it")
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert not {0, 1, 2} & set(tokenizer.encode(text))
    assert tokenizer.document(text) == [1, *tokenizer.encode(text), 2]
    assert tokenizer.decode(tokenizer.document(text)) == text


def test_one_character_alone_is_not_kept(model):
    tokenizer = Tokenizer(model, "it")
    every = [chr(code) for code in (*range(0xD800), *range(0xE000, 0x30000), *range(0xE0000, 0xE0200))]
    lost = [each for each in every if tokenizer.decode(tokenizer.encode(f"a{each}b")) != f"a{each}b"]
    assert lost == ["\u2581"] and tokenizer.decode(tokenizer.encode("a\u2581b")) == "a b"


def test_it_has_learnt_the_words(model):
    tokenizer = Tokenizer(model, "it")
    assert len(tokenizer.encode(sentences(10, 99))) < len(sentences(10, 99)) * 2 / 3


def test_too_little_text_for_so_many_pieces(source):
    with pytest.raises(DataError, match=r"model.vocab_size = 5000: the corpus has text for \d+ pieces at most"):
        train_tokenizer(source, 5000)


def test_too_few_pieces_for_the_bytes(source):
    with pytest.raises(DataError, match=r"model.vocab_size = 100: must be at least 2\d\d"):
        train_tokenizer(source, 100)


def test_an_error_of_the_source_comes_through(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ["one"])
    path.write_text(path.read_text() + "{")
    with pytest.raises(DataError, match="a.jsonl, line 2: is not JSON"):
        train_tokenizer(open_files("data.path", str(path), None, "text"), 330)


def test_max_documents_bounds_what_is_read(source, tmp_path):
    first = write_jsonl(tmp_path / "first.jsonl", [sentences(40, seed) for seed in range(5)])
    alone = train_tokenizer(open_files("data.path", str(first), None, "text"), 320)
    assert train_tokenizer(source, 320, max_documents=5) == alone


def test_a_large_corpus_is_sampled_from_all_its_units(tmp_path, monkeypatch):
    """The second of two files is read although the first alone exceeds the limit."""
    write_jsonl(tmp_path / "a.jsonl", [sentences(200, seed) for seed in range(5)])
    write_jsonl(tmp_path / "b.jsonl", ["quixotic zebras quarrel\n" * 200])
    monkeypatch.setattr("nt_dist.text.tokenizer._CHARACTERS", 8000)
    tokenizer = Tokenizer(train_tokenizer(open_files("data.path", str(tmp_path), "jsonl", "text"), 320), "it")
    assert len(tokenizer.encode(" quixotic zebras")) <= 4


def test_a_wrong_size_names_both(model, tmp_path):
    path = tmp_path / "it.model"
    path.write_bytes(model)
    assert load_tokenizer(path, 330).vocab_size == 330
    with pytest.raises(DataError, match=r"data.tokenizer = '.*it.model' has 330 pieces, model.vocab_size = 2048"):
        load_tokenizer(path, 2048)


@pytest.mark.parametrize("content", [b"", b"no model at all\n" * 50])
def test_what_is_no_model_is_named(tmp_path, content):
    (tmp_path / "it.model").write_bytes(content)
    with pytest.raises(DataError, match="it.model: is not a sentencepiece model"):
        load_tokenizer(tmp_path / "it.model", 330)


def test_a_truncated_model_is_named(model, tmp_path):
    (tmp_path / "it.model").write_bytes(model[: len(model) // 2])
    with pytest.raises(DataError, match=r"it.model"):
        load_tokenizer(tmp_path / "it.model", 330)


def test_a_model_whose_pieces_are_no_text_is_named(model, tmp_path):
    (tmp_path / "it.model").write_bytes(model.replace(b"<0x85>", b"\xff" * 6))
    with pytest.raises(DataError, match="it.model: is not a sentencepiece model"):
        load_tokenizer(tmp_path / "it.model", 330)


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(DataError, match=r"data.tokenizer = '.*it.model': cannot be read: No such file"):
        load_tokenizer(tmp_path / "it.model", 330)


def train_with(prefix, **ids):
    lines = iter(sentences(300).split("\n"))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_prefix=str(prefix), vocab_size=60, model_type="bpe", minloglevel=2, **ids
    )
    return prefix.with_suffix(".model")


def test_a_model_without_bos_ends_documents_only(tmp_path):
    tokenizer = load_tokenizer(train_with(tmp_path / "t5", pad_id=0, eos_id=1, unk_id=2, bos_id=-1), 60)
    assert tokenizer.bos is None
    assert tokenizer.document("the sea") == [*tokenizer.encode("the sea"), 1]


def test_a_model_without_eos_is_refused(tmp_path):
    with pytest.raises(DataError, match="no_eos.model: has no end-of-sentence piece"):
        load_tokenizer(train_with(tmp_path / "no_eos", eos_id=-1), 60)


def test_a_tokenizer_json_is_as_good_as_a_model(tmp_path):
    tokenizer = load_tokenizer(byte_level(tmp_path), 300)
    assert (tokenizer.vocab_size, tokenizer.bos, tokenizer.eos) == (300, None, 0)
    text = "The old house, naïve 🌲 <|endoftext|> and more than eight tokens"
    assert tokenizer.decode(tokenizer.document(text)) == text and tokenizer.eos not in tokenizer.encode(text)
    sent = pickle.loads(pickle.dumps(tokenizer))  # as to the processes that prepare
    assert sent.document(text) == tokenizer.document(text) and sent.pieces == tokenizer.pieces


def test_a_tokenizer_json_is_kept_with_the_texts(tmp_path):
    file = byte_level(tmp_path)
    corpus = write_jsonl(tmp_path / "a.jsonl", [sentences(12, seed) for seed in range(8)])
    config = config_over(tmp_path, 300, path=str(corpus), tokenizer=str(file), validation=0.2)
    data = open_data(config)
    assert data.tokenizer.sha256 == load_tokenizer(file, 300).sha256
    assert open_data(config).digest == data.digest and len(list((tmp_path / "run" / "data").glob("*/"))) == 1
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "a", "bos_token": {"content": "b"}}))
    other = load_tokenizer(file, 300)
    assert (other.bos, other.eos) == (other.pieces["b"], other.pieces["a"]) and other.sha256 != data.tokenizer.sha256
    file.unlink()
    found = run_tokenizer(config, data.digest, data.identity, [tmp_path / "run" / "data"])
    assert found.document("The old") == data.tokenizer.document("The old")


def test_a_tokenizer_json_that_cannot_be_used_is_refused(tmp_path):
    file = byte_level(tmp_path)
    content = json.loads(file.read_text().replace("<|endoftext|>", "<|odd|>"))
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"which piece ends a document; tokenizer_config.json beside it must name one"):
        load_tokenizer(file, 300)
    (tmp_path / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(DataError, match=r"tokenizer_config.json: cannot be read: it must hold an object"):
        load_tokenizer(file, 300)
    (tmp_path / "tokenizer_config.json").unlink()
    for text, rule in (
        ("{", "is no JSON"),
        ('{"model": 1}', "is no file of the tokenizers library"),
        ('{"ends": 1}', "no file"),
    ):
        file.write_text(text)
        with pytest.raises(DataError, match=f"tokenizer.json: .*{rule}"):
            load_tokenizer(file, 300)


def test_what_an_export_cannot_keep_is_said_before_training(tmp_path, caplog):
    corpus = write_jsonl(tmp_path / "a.jsonl", [sentences(12, seed) for seed in range(8)])
    foreign = train_with(tmp_path / "foreign")
    with caplog.at_level(logging.WARNING):
        open_data(config_over(tmp_path, 60, path=str(corpus), tokenizer=str(foreign), validation=0.2))
    assert "exports will need sentencepiece to read it, and --trail will be refused: it must have byte" in caplog.text
    assert "it must not normalize characters; it must not remove spaces" in caplog.text
    caplog.clear()
    open_data(config_over(tmp_path / "own", path=str(corpus), validation=0.2))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_mixture_is_learnt_in_proportion_and_one_source_as_it_is(source, tmp_path):
    path = write_jsonl(tmp_path / "code.jsonl", ["zzqq xxyy\n" * 30])
    other = open_files("data.path", str(path), None, "text")
    assert train_on_mixture([(source, 1.0, 0)], 320) == train_tokenizer(source, 320)
    lines = ["abcd", "", "ef"], ["0123456789" * 3]
    given = list(_in_proportion(lines, [0.75, 0.25]))  # of 36 characters
    assert given == ["abcd", "", "ef"] * 4 + ["abcd"] * (given.count("abcd") - 4) + ["0123456789" * 3]
    assert sum(map(len, given[:-1])) in range(27, 31)
    small, large = (
        Tokenizer(train_on_mixture([(source, 1 - share, 0), (other, share, 0)], 320), "") for share in (0.01, 0.9)
    )
    assert len(large.encode("zzqq xxyy")) < len(small.encode("zzqq xxyy"))
