"""Prepared texts without their corpus, or with another than they were made from: used, refused or warned of."""

import contextlib
import json
import logging
import os
import shutil
from pathlib import Path

import pytest

from nt_dist.config.load import with_absolute_paths
from nt_dist.errors import DataError
from nt_dist.families import load_config, make_config
from nt_dist.text import prepare
from nt_dist.text.origin import described
from nt_dist.text.prepare import continued, open_data, open_texts, prepare_data
from nt_dist.training.run_folder import claim, write_config
from tests.unit.text.data_case import config_over, sentences, write_jsonl

TEXTS = [sentences(8, seed) for seed in range(40)]


@pytest.fixture
def config(tmp_path):
    """Its corpus is prepared."""
    (tmp_path / "corpus").mkdir()
    path = write_jsonl(tmp_path / "corpus" / "a.jsonl", TEXTS)
    config = config_over(tmp_path, path=str(path), validation=0.1)
    prepare_data(config)
    return config


@pytest.fixture
def prepares_nothing(monkeypatch):
    return lambda: [monkeypatch.setattr(prepare, name, None) for name in ("tokenize", "train_tokenizer")]


def test_prepared_texts_are_enough_without_their_corpus(config, tmp_path, prepares_nothing, caplog):
    caplog.set_level(logging.INFO)
    before = open_data(config)
    other = str(write_jsonl(tmp_path / "other.jsonl", TEXTS[:2]))
    shutil.rmtree(tmp_path / "corpus")
    open_texts(config, other)  # which needs the tokenizer alone
    prepares_nothing()
    checked = load_config(config.to_dict())  # its paths are not asked for
    assert open_data(checked).digest == before.digest
    assert "what was prepared from it is used" in caplog.text
    with pytest.raises(DataError, match="no such file"):
        open_data(config_over(tmp_path, path=config.data.path, validation=0.2))


@pytest.mark.parametrize("prepared", ["", "runs/one/texts"])
def test_a_run_is_moved_and_called_from_anywhere(tmp_path, monkeypatch, prepares_nothing, prepared):
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("a.jsonl"), TEXTS)
    data = {"source": "jsonl", "path": "a.jsonl", "prepared": prepared}
    sections = {"model": {"vocab_size": 330, "max_seq_len": 16}, "data": data}
    config = with_absolute_paths(make_config(sections | {"run": {"dir": "runs/one"}}))
    with claim(Path("runs/one")):
        write_config(Path("runs/one"), config)
    digest = open_data(config).digest
    Path("runs/one").rename("two")
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    prepares_nothing()
    moved = load_config("../two/config.toml")
    assert open_data(moved).digest == digest and moved.run.dir == "../two"
    assert load_config("../two/config.toml", ["run.dir=three"]).run.dir == "three"
    assert not list(Path().iterdir())


def test_what_changed_is_named_and_what_was_prepared_is_used(config, tmp_path, prepares_nothing, caplog):
    folder, corpus = prepare_data(config), tmp_path / "corpus"
    assert not caplog.text
    write_jsonl(corpus / "a.jsonl", TEXTS[:30])
    prepares_nothing()
    assert prepare_data(config) == folder
    (warning,) = (record.message for record in caplog.records if record.levelname == "WARNING")
    rule = f"changed since the train texts were prepared from it; they are used as they are; remove {folder} to prepare"
    assert warning.startswith(f"{corpus}/a.jsonl: {rule}")


def test_files_that_come_and_go_are_named_too(tmp_path, caplog):
    (tmp_path / "corpus").mkdir()
    for name in "abcd":
        write_jsonl(tmp_path / "corpus" / f"{name}.jsonl", [name.join(TEXTS[:3]), *TEXTS[3:9]])
    config = config_over(tmp_path, path=str(tmp_path / "corpus"), validation=0.1)
    folder = prepare_data(config)
    for name in "bcd":
        (tmp_path / "corpus" / f"{name}.jsonl").rename(tmp_path / "corpus" / f"{name}2.jsonl")
    assert prepare_data(config) == folder
    assert "b.jsonl, " in caplog.text and "b2.jsonl, " in caplog.text and "c.jsonl and 3 more: changed" in caplog.text


def test_a_folder_of_prepared_texts_may_be_named_itself(config, tmp_path, prepares_nothing, caplog):
    digest, folder = open_data(config).digest, prepare_data(config)
    copy = tmp_path / "copied" / folder.name
    shutil.copytree(folder, copy)
    shutil.rmtree(folder.parent)
    prepares_nothing()
    assert (
        open_data(config_over(tmp_path, path="elsewhere/b.jsonl", prepared=str(copy), validation=0.1)).digest == digest
    )
    assert f"{copy}: texts were prepared with path" in caplog.text and not list(copy.glob("*/"))


def test_a_corpus_that_was_moved_is_known_again_and_another_is_not(config, tmp_path):
    data, folder, run = open_data(config), prepare_data(config), Path(config.run.dir)

    def goes_on(path, allowed=False):
        sections = config_over(tmp_path, path=str(path), validation=0.1).to_dict()
        sections["run"]["allow_schedule_change"] = allowed
        return continued(make_config(sections), data.digest, data.identity, run, True)

    (tmp_path / "corpus").rename(tmp_path / "moved")
    assert goes_on(tmp_path / "moved" / "a.jsonl").data.prepared == str(folder)
    (tmp_path / "corpus").mkdir()
    other = write_jsonl(tmp_path / "corpus" / "b.jsonl", TEXTS[::-1])
    with pytest.raises(DataError, match=r"names other texts than .* so far .*run.allow_schedule_change=true goes on"):
        goes_on(other)
    (tmp_path / "more").mkdir()
    with pytest.raises(DataError, match="names other texts"):  # of the same name
        goes_on(write_jsonl(tmp_path / "more" / "a.jsonl", TEXTS[:30]))
    assert continued(config_over(tmp_path, path=str(other)), data.digest, data.identity, run, False).data.prepared == ""
    allowed = goes_on(other, allowed=True)
    found = open_data(allowed)  # with the run's own tokenizer
    assert found.digest != data.digest and found.identity == data.identity
    shutil.rmtree(tmp_path / "moved")
    assert goes_on(tmp_path / "moved" / "a.jsonl").data.prepared == str(folder)


def test_a_damaged_origin_is_as_none(config, tmp_path):
    data, folder = open_data(config), prepare_data(config)
    other = config_over(tmp_path, path=str(write_jsonl(tmp_path / "b.jsonl", TEXTS[:5])), validation=0.1)
    files = json.dumps({"config": described(config), "files": {"train": None}})
    for content in ("", "[]", json.dumps({"config": 3}), json.dumps({"config": {}, "files": {}}), files, "[" * 10_000):
        (folder / "origin.json").write_text(content)
        assert prepare_data(config) == folder
        with contextlib.suppress(DataError):  # other data, where it says so
            assert continued(other, data.digest, data.identity, tmp_path / "run", True) == other


def test_texts_of_an_older_version_are_compared_once_they_are_prepared(config, tmp_path):
    data, folder, run = open_data(config), prepare_data(config), Path(config.run.dir)
    (folder / "origin.json").unlink()
    os.utime(tmp_path / "corpus" / "a.jsonl", (1, 1))  # checked out again, for instance
    assert continued(config, data.digest, data.identity, run, True) == config
    sections = config.to_dict()
    sections["run"]["allow_schedule_change"] = True  # with other data, perhaps, but the run's own tokenizer
    allowed = continued(make_config(sections), data.digest, data.identity, run, True)
    assert open_data(allowed).identity == data.identity and allowed.data.tokenizer.endswith(".model")
