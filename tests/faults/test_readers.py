"""Whatever a config or prepared data may hold: it is read, or refused in words; nothing else comes out of a reader."""

import bz2
import gzip
import json
import lzma
import random
import resource
import shutil
import time
import tomllib

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from nt_dist.config.keys import keys_of
from nt_dist.config.settings import sections_of
from nt_dist.errors import ConfigError, DataError, NTDistError
from nt_dist.export.importing import open_foreign
from nt_dist.families import DEFAULT, load_config, make_config
from nt_dist.images.sources import Pictures
from nt_dist.text.prepare import open_data
from nt_dist.text.sources import open_files
from nt_dist.training.metrics_log import read_metrics

KEYS = [f"{name}.{key}" for name, section in sections_of(DEFAULT).items() for key in keys_of(section)]
SCALARS = st.one_of(
    st.integers(-(2**70), 2**70), st.floats(), st.booleans(), st.text(max_size=8), st.sampled_from(["auto", "rows", ""])
)
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=3), st.dictionaries(st.text(max_size=4), SCALARS, max_size=2))


def is_read_or_refused(load):
    """Load; a config that is read is read again as the same from what it writes."""
    try:
        config = load()
    except ConfigError as error:
        assert error.problems and all(error.problems)
        return
    assert make_config(tomllib.loads(config.to_toml()), None, 1) == config


@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_value_of_any_setting_is_read_or_refused(values):
    sections = {}
    for key, value in values.items():
        section, entry = key.split(".")
        sections.setdefault(section, {})[entry] = value
    is_read_or_refused(lambda: make_config(sections, None, 1))


@given(
    st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode)), st.lists(st.text(max_size=20), max_size=2)
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_file_and_any_override_is_read_or_refused(tmp_path_factory, content, overrides):
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(content)
    is_read_or_refused(lambda: load_config(path, overrides))


@given(
    st.recursive(SCALARS | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=6)
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_deepspeed_json_is_read_or_refused(value):
    content = value if isinstance(value, dict) else {"zero_optimization": value}
    try:
        make_config({}, content, 1)
    except ConfigError as error:
        assert error.problems


def damage(data, at, kind, chance):
    """Of the kinds of damage: 0 flips a bit, 1 cuts off, 2 overwrites; others are left to the caller."""
    if kind == 0:
        data[at] ^= 1 << chance.randrange(8)
    elif kind == 1:
        del data[at:]
    elif kind == 2:
        data[at : at + 8] = chance.randbytes(8)


def test_damaged_data_are_named_or_harmless(tiny, tmp_path, long_form, tally):
    """A fuzzer over the reader of prepared data: its index, tokens, record and tokenizer."""
    rounds = 1000 if long_form else 60
    (whole,) = (path.parent for path in tiny.parent.glob("prepared/*/train.bin"))
    for seed in range(rounds):
        chance = random.Random(seed)
        shutil.copytree(tiny.parent / "prepared", tmp_path / "data")
        files = sorted(path for path in (tmp_path / "data" / whole.name).iterdir() if path.is_file())
        file = chance.choice(files)
        data = bytearray(file.read_bytes())
        at, kind = chance.randrange(len(data)), chance.randrange(4)
        damage(data, at, kind, chance)
        file.unlink() if kind == 3 else file.write_bytes(data)
        try:
            opened = open_data(load_config(tiny, [f"data.prepared={tmp_path}/data"]))
            for samples in (opened.train, opened.validation):
                for index in range(0, len(samples), 7):
                    samples[index]
        except DataError as error:
            assert str(tmp_path) in str(error), (seed, file, kind)
        shutil.rmtree(tmp_path / "data")
    tally("prepared data truncated, changed, lost", rounds, lost="nothing: named, and prepared again on demand")


def texts_of(path):
    source = open_files("data.path", str(path), None, "text")
    return [document.text for unit in range(len(source.sizes)) for document in source.documents(unit)]


def model_in(path):
    foreign = open_foreign(path.parent, DEFAULT)
    foreign.problems(make_config({}, None, 1))
    for name in foreign.shapes:
        foreign.read(name)


def picture_in(path):
    Pictures("data.path", np.zeros(1, np.int64), ["a"], [str(path)]).read(0, 16)


def write_readable(folder):
    """One whole file of each kind, by what reads it."""
    lines = "".join(json.dumps({"text": f"line {number} ü", "n": number}) + "\n" for number in range(50)).encode()
    compress = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard.compress}
    readers = {folder / f"a.jsonl{suffix}": texts_of for suffix in compress}
    for suffix, how in compress.items():
        (folder / f"a.jsonl{suffix}").write_bytes(how(lines))
    (folder / "a.txt").write_bytes("Größe\n".encode() * 50)
    rows = pyarrow.table({"text": [f"row {number} ü" for number in range(50)]})
    pyarrow.parquet.write_table(rows, folder / "a.parquet")
    (folder / "metrics.jsonl").write_text("".join(f'{{"step": {step}, "loss": 1.5}}\n' for step in range(20)))
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text('{"model_type": "llama", "rope_parameters": {"rope_theta": 1e4}}')
    torch.save({"head_model_0.x": torch.zeros(2, 2)}, folder / "model" / "pytorch_model.bin")
    model = {folder / "model" / name: model_in for name in ("config.json", "pytorch_model.bin")}
    drawn = Image.fromarray(np.random.default_rng(0).integers(256, size=(20, 30, 3), dtype=np.uint8))
    pictures = {folder / f"a.{kind}": picture_in for kind in ("png", "jpg", "gif", "webp", "tif", "bmp", "ppm")}
    for file in pictures:
        drawn.save(file)
    others = {folder / "a.txt": texts_of, folder / "a.parquet": texts_of, folder / "metrics.jsonl": read_metrics}
    return readers | others | model | pictures


def test_damaged_texts_metrics_and_models_are_named_or_harmless(tmp_path, long_form, tally):
    """A fuzzer over what reads other programs' files: an answer or an error with a name, soon and in little memory."""
    readers = write_readable(tmp_path)
    whole = {path: path.read_bytes() for path in readers}
    rounds = 4000 if long_form else 160
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in range(rounds):
        chance = random.Random(seed)
        path = sorted(readers)[seed % len(readers)]
        data = bytearray(whole[path])
        at, kind = chance.randrange(len(data)), chance.randrange(5)
        damage(data, at, kind, chance)
        if kind == 3:
            data[at:at] = chance.choice([b"9" * 5000, b"[" * 5000, b"\xff", b"\0", b'"', b"1e999", b"\n", b"null"])
        elif data:
            data[at : at + chance.randrange(40)] = data[chance.randrange(len(data)) :][: chance.randrange(40)]
        path.write_bytes(data)
        began = time.monotonic()
        try:
            readers[path](path)
        except NTDistError as error:
            assert str(path.parent) in str(error) or path.name in str(error), (seed, path.name, kind, error)
        assert time.monotonic() - began < 10, (seed, path.name, kind)
        path.write_bytes(whole[path])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB
    tally("texts, metrics, pictures and models of others damaged", rounds, lost="nothing: named, or read")
