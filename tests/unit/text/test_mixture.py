"""Mixtures of texts: what the config says of them, one tokenizer, and what a run finds when it goes on."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nt_dist.config.differences import differences
from nt_dist.config.load import with_absolute_paths
from nt_dist.config.rules import warnings
from nt_dist.errors import ConfigError, DataError
from nt_dist.families import load_config
from nt_dist.text import mixture
from nt_dist.text.mixture import continued, open_data, open_texts, prepare_data
from nt_dist.text.origin import mixture_tokenizer
from nt_dist.text.prepare import open_data as open_single
from tests.unit.text.data_case import config_over, files_under, sentences, write_jsonl

CODE = [f"def f{number}(x):\n    return x + {number}\n" * 6 for number in range(40)]
PROSE = [sentences(8, seed) for seed in range(30)]


@pytest.fixture
def sources(tmp_path):
    """Two corpora as tables of ``data.sources``."""
    code, prose = write_jsonl(tmp_path / "code.jsonl", CODE), tmp_path / "prose"
    prose.mkdir()
    for number, text in enumerate(PROSE):
        (prose / f"{number:02}.txt").write_text(text)
    return {
        "prose": {"source": "text", "path": str(prose), "validation": 0.1},
        "code": {"path": str(code), "weight": 3},
    }


def mixed(tmp_path, sources, **data):
    return config_over(tmp_path, validation=0.2, sources=sources, **data)


def problems_of(sections, overrides=()):
    with pytest.raises(ConfigError) as caught:
        load_config(sections, overrides)
    return caught.value.problems


def test_a_mixture_reads_back_as_it_was_written(tmp_path, sources, monkeypatch):
    (tmp_path / "a.toml").write_text(
        f'[data]\nsource = "jsonl"\n[data.sources.prose]\nsource = "text"\npath = "{tmp_path}/prose"\n'
        f'[data.sources.code]\npath = "{tmp_path}/code.jsonl"\nweight = 1'
    )
    config = load_config(tmp_path / "a.toml", ["data.sources.code.weight=3", "data.sources.prose.validation=0.1"])
    assert config.data.sources.to_dict() == {"code": sources["code"], "prose": sources["prose"]}
    (tmp_path / "b.toml").write_text(config.to_toml())
    assert load_config(tmp_path / "b.toml") == config == load_config(config.to_dict())
    assert differences(config.to_dict(), config) == ([], [])
    monkeypatch.chdir(tmp_path)
    told = load_config({"data": {"sources": {"code": {"source": "jsonl", "path": "code.jsonl", "prepared": "x"}}}})
    assert dict(dict(with_absolute_paths(told).data.sources)["code"]) == {
        "source": "jsonl",
        "path": str(tmp_path / "code.jsonl"),
        "prepared": str(tmp_path / "x"),
    }


def test_what_is_wrong_with_a_mixture_is_said_by_source(tmp_path):
    tables = {
        "code": {"source": "jsonl", "weight": 0, "pth": "x"},
        "prose": {"weight": float("nan")},
        "a b": {"weight": 1},
        "empty": {},
        "web": {"source": "text", "path": "no/such"},
    }
    found = problems_of({"data": {"sources": tables}}, ["data.sources.code.weigth=2", "data.sources.web.layout=rows"])
    assert set(found) == {
        "data.sources.code.weigth is no setting; did you mean data.sources.code.weight?",
        "data.sources.web.layout is no setting",
        "data.sources.code.weight = 0 must be above 0",
        "data.sources.code.pth is no setting; did you mean data.sources.code.path?",
        "data.sources.prose.weight = nan must be a number",
        "data.sources.a b.weight is no setting; did you mean data.sources?",
        "data.sources.empty = {} must be a table, [data.sources.empty], with settings under it",
        "data.sources.web.path = 'no/such': no such file or folder",
    }
    (found,) = problems_of({"data": {"sources": {"code": {"source": "jsonl"}}}})
    assert found.startswith("[data.sources.code] data.path = '' must name files")
    (found,) = problems_of({"data": {"sources": [{"name": "code"}]}})
    assert found.startswith("data.sources = [{'name': 'code'}] must be tables of names")
    (found,) = problems_of({"data": {"sources": {"a": {"weight": 1}, "b": {"weight": 1e9}}}})
    assert found == "data.sources.a.weight = 1.0 must be at least 1e-06 of the sum of the weights"
    (found,) = problems_of({"data": {"sources": {"a": {"prepared": "~nosuchuser/x"}}}})
    assert found == "data.sources.a.prepared = '~nosuchuser/x': there is no such user"
    ignored = load_config({"data": {"text_key": "body", "sources": {"a": {"subset": "x"}, "b": {"weight": 2}}}})
    assert [each for each in warnings(ignored) if "data." in each] == [
        "[data.sources.a] data.subset = 'x' is ignored: data.source = 'stdlib'"
    ]


def test_other_weights_are_other_data_and_moved_ones_are_not(tmp_path, sources):
    config = mixed(tmp_path, sources)
    saved = config.to_dict()
    for weight, alike in ((3.0, True), (6.0, False)):
        now = mixed(tmp_path, {**sources, "code": sources["code"] | {"weight": weight}})
        assert (differences(saved, now) == ([], [])) == alike
    doubled = {"prose": sources["prose"] | {"weight": 2}, "code": sources["code"] | {"weight": 6, "prepared": "x"}}
    assert differences(saved, mixed(tmp_path, doubled)) == ([], [])
    elsewhere = {**sources, "code": sources["code"] | {"path": f"elsewhere/{Path(sources['code']['path']).name}"}}
    assert differences(saved, mixed(tmp_path, elsewhere)) == ([], [])
    identity, schedule = differences(saved, config_over(tmp_path, path=sources["code"]["path"]))
    assert not identity and any("data.sources" in each for each in schedule)


def test_each_source_is_prepared_alone_with_the_tokenizer_of_all(tmp_path, sources):
    config = mixed(tmp_path, sources, vocab_size=400)
    data = open_data(config)
    assert list(data.train.parts) == ["code", "prose"] and data.train.shares == {"code": 0.75, "prose": 0.25}
    folders = prepare_data(config)
    tokenizer = str(mixture_tokenizer(config))
    alone = config_over(tmp_path, 400, **sources["prose"], tokenizer=tokenizer)
    assert open_single(alone).digest in data.digest  # as if it were the only one: prepared once
    assert files_under(tmp_path / "run" / "data").count(f"{folders['prose'].name}/train.bin") == 1
    assert data.digest.startswith("code 0.75 ") and ", prose 0.25 " in data.digest
    assert len(data.validation.parts["code"]) and len(data.validation.parts["prose"])
    for word in ("return", " house"):  # it has learnt from both
        assert len(data.tokenizer.encode(word)) <= 3
    other = open_texts(config, str(write_jsonl(tmp_path / "o.jsonl", PROSE[:2])))
    assert other.tokenizer.sha256 == data.tokenizer.sha256


def test_samples_come_from_the_sources_by_number(tmp_path, sources):
    data = open_data(mixed(tmp_path, sources))
    indices = data.train.at(3, np.arange(400))
    code, prose = (
        [data.tokenizer.decode(list(data.train[int(i)].inputs)) for i in indices if (i < s) == w]
        for s, w in ((data.train.firsts[1], True), (data.train.firsts[1], False))
    )
    assert (len(code), len(prose)) == (300, 100)
    assert all("return" in text or "def" in text for text in code) and not any("return" in text for text in prose)


def test_a_run_goes_on_without_its_corpora_and_with_other_weights(tmp_path, sources, monkeypatch):
    config = mixed(tmp_path, sources)
    data, run = open_data(config), tmp_path / "run"
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "code.jsonl", tmp_path / "elsewhere" / "code.jsonl")
    moved = mixed(tmp_path, {**sources, "code": sources["code"] | {"path": str(tmp_path / "elsewhere" / "code.jsonl")}})
    monkeypatch.setattr(mixture, "train_on_mixture", None)
    found = continued(moved, data.digest, data.identity, run, True)
    assert open_data(found).digest == data.digest
    shutil.rmtree(tmp_path / "prose")
    shutil.rmtree(tmp_path / "elsewhere")
    assert open_data(continued(config, data.digest, data.identity, run, False)).digest == data.digest
    assert load_config(config.to_dict()) == config  # what is prepared need not be there
    weighed = mixed(tmp_path, {"code": sources["code"] | {"weight": 1}, "prose": sources["prose"]})
    weighed = replace(weighed, run=replace(weighed.run, allow_schedule_change=True))
    other = open_data(continued(weighed, data.digest, data.identity, run, True))
    assert other.digest != data.digest and other.identity == data.identity
    with pytest.raises(ConfigError, match=r"data\.sources\.web\.path = .*no such file"):
        load_config(mixed(tmp_path, {**sources, "web": {"path": "no/such"}}).to_dict())


def test_a_run_on_one_source_goes_on_with_two_and_back_by_its_own_tokenizer(tmp_path, sources):
    alone = config_over(tmp_path, path=sources["code"]["path"], validation=0.2)
    data, run = open_data(alone), tmp_path / "run"
    config = mixed(tmp_path, sources)
    config = replace(config, run=replace(config.run, allow_schedule_change=True))
    two = open_data(continued(config, data.digest, data.identity, run, True))
    assert two.identity == data.identity
    other = config_over(tmp_path, path=sources["code"]["path"], validation=0.3)
    other = replace(other, run=replace(other.run, allow_schedule_change=True))
    assert open_data(continued(other, two.digest, two.identity, run, True)).identity == data.identity


def test_sources_with_several_tokenizers_are_refused(tmp_path, sources):
    own = open_single(config_over(tmp_path, **sources["prose"]))
    folder = next((tmp_path / "run" / "data").glob("*/prepared.json")).parent
    both = {**sources, "prose": sources["prose"] | {"prepared": str(folder)}}
    with pytest.raises(DataError, match=r"data\.sources\.prose was prepared with another tokenizer"):
        open_data(mixed(tmp_path, both))
    given = mixed(
        tmp_path, {"prose": {"path": "gone", "prepared": str(folder)}}, tokenizer=str(folder / "tokenizer.model")
    )
    assert own.digest in open_data(given).digest
    whole = mixed(tmp_path, sources, prepared=str(folder), tokenizer=str(folder / "tokenizer.model"))
    assert len({each.split()[-1] for each in open_data(whole).digest.split(", ")}) == 2  # not one folder for both
