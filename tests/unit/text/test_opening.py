"""Opening prepared data: by one rank for all, checked, with a digest that follows what training reads."""

import json
import logging
import shutil

import pytest

from nt_dist.errors import DataError
from nt_dist.text.prepare import open_data, open_texts
from tests.unit.text.data_case import config_over, sentences, write_jsonl

TEXTS = [sentences(8, seed) for seed in range(30)]


@pytest.fixture
def config(tmp_path):
    return config_over(tmp_path, path=str(write_jsonl(tmp_path / "a.jsonl", TEXTS)), validation=0.1)


def test_packed_samples_are_the_documents_one_after_the_other(config):
    data = open_data(config)
    held_out = [data.validation.indexed.document(number).tolist() for number in range(3)]
    documents = [data.tokenizer.document(text) for text in TEXTS]
    stream = [token for document in documents if document not in held_out for token in document]
    first, second = data.train[0], data.train[1]
    assert [*first.inputs, *second.inputs, second.targets[-1]] == stream[:33]
    assert len(data.train) == (len(stream) - 1) // 16
    assert data.identity == {"tokenizer_sha256": data.tokenizer.sha256}


def test_rows_are_one_document_each(tmp_path, config):
    rows = open_data(config_over(tmp_path, path=config.data.path, validation=0.1, layout="rows"))
    assert (len(rows.train), len(rows.validation)) == (27, 3)
    assert rows.train[0].inputs[0] == rows.tokenizer.bos


def test_only_the_writer_prepares(config):
    """The other ranks take the folder they are given."""
    given = []
    open_data(config, exchange=lambda work: given.append(work()) or given[0])
    other = open_data(config, is_writer=False, exchange=lambda work: given[0])
    assert len(other.train) > 10


def test_the_writers_error_reaches_all(config):
    def exchange(work):
        raise DataError("a.jsonl, line 3: is not JSON")

    with pytest.raises(DataError, match="line 3"):
        open_data(config, is_writer=False, exchange=exchange)


def test_the_writer_says_what_there_is(config, caplog):
    caplog.set_level(logging.INFO)
    open_data(config, is_writer=False)
    assert "documents" not in caplog.text
    data = open_data(config)
    assert f"training: {len(data.train):,} samples of 27 documents" in caplog.text


def test_the_digest_follows_the_content_only(tmp_path, config):
    first = open_data(config).digest
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copyfile(config.data.path, elsewhere / "b.jsonl")
    copy = config_over(elsewhere, path=str(elsewhere / "b.jsonl"), validation=0.1, layout="rows")
    assert open_data(copy).digest == first
    assert open_data(config_over(tmp_path, path=config.data.path, validation=0.2)).digest != first
    assert open_data(config_over(tmp_path, vocab_size=331, path=config.data.path, validation=0.1)).digest != first


def test_other_validation_texts_leave_the_digest(tmp_path):
    train = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    digests = set()
    for name in ("v", "w"):
        validation = write_jsonl(tmp_path / f"{name}.jsonl", [sentences(20, name)])
        digests.add(open_data(config_over(tmp_path, path=str(train), validation=str(validation))).digest)
    assert len(digests) == 1


def prepared(config):
    return open_data(config).train.indexed.bin_path.parent


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("train.bin", lambda data: data[:-2], r"train.bin: has \d+ bytes, must have \d+ by prepared.json"),
        ("train.bin", lambda data: data[:-9] + bytes(9), "train.bin: is not what was prepared: block 0 of 1 "),
        ("validation.idx", None, "validation.idx: is missing, must have"),
        ("tokenizer.model", lambda data: data + b"\xa0\x06\x00", "tokenizer.model: is not the one"),
        ("prepared.json", lambda data: data[:-5], "prepared.json: is damaged"),
        ("prepared.json", lambda data: b"[]", "prepared.json: is damaged"),
        ("prepared.json", lambda data: b'{"format": 1}', "prepared.json: is damaged"),
        (
            "prepared.json",
            lambda data: data.replace(b'"format": 1', b'"format": 9'),
            "has format 9, this version",
        ),
        (
            "prepared.json",
            lambda data: data.replace(b"validation.idx", b"x" * 300),
            "x: cannot be read: File name too long",
        ),
        ("prepared.json", None, "prepared.json: cannot be read: No such file"),
    ],
)
def test_damage_is_named_and_nothing_is_overwritten(config, name, change, message):
    path = prepared(config) / name
    data = path.read_bytes()
    path.unlink()
    if change:
        path.write_bytes(change(data))
    with pytest.raises(DataError, match=message):
        open_data(config)
    assert path.exists() == bool(change)


def test_a_record_without_training_files_is_damage(config):
    path = prepared(config) / "prepared.json"
    record = json.loads(path.read_text())
    del record["files"]["train.bin"]
    path.write_text(json.dumps(record))
    with pytest.raises(DataError, match="prepared.json: lists no train.bin"):
        open_data(config)


def test_other_texts_open_with_the_runs_tokenizer(config, tmp_path):
    run = open_data(config)
    path = write_jsonl(tmp_path / "other.jsonl", TEXTS[:2])
    samples = open_texts(config, str(path)).validation
    assert samples.indexed.num_documents == 2
    assert samples.indexed.document(0).tolist() == run.tokenizer.document(TEXTS[0])
    assert len(list((tmp_path / "run/data").glob("tokenizer-*.model"))) == 1


def test_other_texts_that_are_missing_are_named(config):
    with pytest.raises(DataError, match="data = 'nowhere.txt': no such file or folder"):
        open_texts(config, "nowhere.txt")
