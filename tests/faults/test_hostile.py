"""What others may write into a file on purpose: every reader answers in words, soon and in little memory.

Damage of bytes (test_readers.py) rarely gets past a parser or a digest; here the content is well-formed and wrong.
"""

import bz2
import copy
import gzip
import json
import lzma
import random
import resource
import shutil
import struct
import time
import traceback
import zlib
from contextlib import contextmanager

import pyarrow
import pyarrow.parquet
import pytest
import tokenizers
import zstandard

from nt_dist.checkpoint import checkpoint, manifest
from nt_dist.checkpoint.folder import checkpoints, verify
from nt_dist.checkpoint.inspect import describe, examine
from nt_dist.checkpoint.manifest import TrainingState
from nt_dist.errors import NTDistError
from nt_dist.families import load_config, make_config
from nt_dist.inference.generate import check_prompt
from nt_dist.study.plan import read_plan
from nt_dist.text.prepare import open_data
from nt_dist.text.sources import HubSource
from nt_dist.text.tokenizer import load_tokenizer
from nt_dist.training.metrics_log import check_continued, last_evaluation, read_metrics, training_seconds
from tests.faults.test_readers import model_in, picture_in, texts_of, write_readable
from tests.faults.test_saves import load_anyway
from tests.unit.checkpoint.checkpoint_case import CONFIG, model_part, on_one_rank

SECONDS, KIB = 10.0, 1 << 20  # of a processor that an answer takes, and of memory
DEEP = 3000


def deep(depth=DEEP):
    value = []
    for _ in range(depth):
        value = [value]
    return value


VALUES = (
    None,
    True,
    0,
    -1,
    1 << 31,
    1 << 63,
    1 << 80,
    -(1 << 80),
    1e308,
    1e-320,
    0.5,
    "",
    "x" * 100_000,
    "\ud800",
    "\0",
)
VALUES += ("\0", "../../../etc/passwd", "/dev/zero", "\x1b[2J", "1e999", "nan", [], {}, [None], {"": None}, [[]] * 1000)
VALUES += (float("nan"), float("inf"), 10**4000, "step-00000001", {"step": 1}, deep(100))


def places_in(content, path=()):
    """The paths of all values in what JSON holds."""
    yield path
    if isinstance(content, dict | list):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from places_in(value, (*path, key))


def changed(content, chance):
    """A copy with one or two of its values replaced, lost, renamed or repeated, and what was done."""
    content, done = json.loads(json.dumps(content)), []
    for _ in range(chance.randrange(1, 3)):
        path = chance.choice(list(places_in(content))[1:] or [()])
        if not path:
            return copy.deepcopy(chance.choice(VALUES)), [*done, "all"]
        inside = content
        for key in path[:-1]:
            inside = inside[key]
        kind, value = chance.randrange(5), copy.deepcopy(chance.choice(VALUES))
        if kind == 0:
            del inside[path[-1]]
        elif kind == 1 and isinstance(inside, dict):
            inside[chance.choice(["", "x", "\ud800", "a/b", "../x", "0" * 5000])] = inside.pop(path[-1])
        elif kind == 2 and isinstance(inside, list):
            inside.extend(inside[:1000])
        else:
            inside[path[-1]] = value
        done.append((path, kind, repr(value)[:60]))
    return content, done


@pytest.fixture
def wrong():
    """What was not answered as it should be: all of it fails the test."""
    found = []
    yield found
    assert not found, "\n".join(found[:20])


@contextmanager
def answering(what, wrong):
    """Note in ``wrong`` what is anything else than an answer, or an error with a name, in time and in little memory."""
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        yield
    except NTDistError as error:
        if not str(error):
            wrong.append(f"{what}: an error without a word")
    except BaseException as error:  # a panic of a library in Rust is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        last = traceback.extract_tb(error.__traceback__)[-1]
        wrong.append(f"{what}: {error!r:.200} at {last.filename}:{last.lineno}")
    seconds, grown = time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    if seconds > SECONDS or grown > KIB:
        wrong.append(f"{what}: {seconds:.1f} s, {grown >> 10} MiB")


def written(content):
    """JSON, with whatever stands for no number too."""
    return json.dumps(content)


def read_tables(path):
    """What the commands read of metrics."""
    records = read_metrics(path)
    training_seconds(records, 10)
    last_evaluation(path)
    check_continued(path, 1, 1)


def hostile_manifests(folder, chance, whole, wrong):
    """A checkpoint whose manifest is of its digest and means something else."""
    (path,) = whole.glob("step-*")
    content = json.loads((path / manifest.MANIFEST).read_bytes())
    content.pop("digest")
    content, done = changed(content, chance)
    copy = folder / path.name
    shutil.copytree(path, copy)
    if isinstance(content, dict):
        try:
            content["digest"] = manifest._digest(content)
        except (ValueError, RecursionError):
            content["digest"] = "none can be"
    (copy / manifest.MANIFEST).write_text(written(content))
    for read in verify, load_anyway, examine, lambda path: [describe(found) for found in checkpoints(path.parent)]:
        with answering((read.__name__, done), wrong):
            read(copy)
    shutil.rmtree(copy)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A checkpoint."""
    folder = tmp_path_factory.mktemp("whole")

    def save(mesh):
        model, optimizer = model_part(mesh, "compact", CONFIG, 1)
        checkpoint.save(folder, CONFIG, mesh, model, optimizer, TrainingState(7, 7, 7, "abc"))

    on_one_rank(save)
    return folder


@pytest.fixture(scope="module")
def readers(tmp_path_factory, tiny):
    """By the kind of content: a whole one, where it is written to, how, and what reads it."""
    folder = tmp_path_factory.mktemp("readers")
    write_readable(folder)
    model = tokenizers.Tokenizer(tokenizers.models.BPE({"<s>": 0, "</s>": 1, "a": 2, "b": 3, "ab": 4}, [("a", "b")]))
    (folder / "tokenizer.json").write_text(model.to_str())
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>", "bos_token": {"content": "<s>"}}')
    (prepared,) = (path.parent for path in tiny.parent.glob("prepared/*/train.bin"))
    shutil.copytree(prepared.parent, folder / "data")
    sections = load_config(tiny).to_dict()
    records = [{"step": step, "loss": 1.5, "tokens": 9, "tokens_per_second": 3.0, "eval": {}} for step in (1, 2)]
    plan = {"base": str(tiny), "dir": str(folder), "settings": {"train": {"steps": 3}}, "seeds": [0, 1]}
    plan["runs"] = {"a": {"train": {"lr": 0.1}, "tune": {"train": {"lr": [0.1, 0.2]}}}}
    ds_config = {"zero_optimization": {"stage": 1}, "fp16": {"enabled": False}}

    def tokenize(path):
        load_tokenizer(folder / "tokenizer.json", 5).document("abab")

    def open_prepared(path):
        open_data(load_config(tiny, [f"data.prepared={folder}/data"]))

    pieces = open_data(load_config(tiny)).tokenizer
    hub, headed = folder / "hub", folder / "headed"
    hub.mkdir()
    shutil.copytree(folder / "model", headed)
    (headed / "pytorch_model.bin").unlink()
    header = {"model.norm.weight": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]}, "__metadata__": {}}

    def as_json(path):
        return json.loads(path.read_bytes()), path, written

    table = {
        "config": (sections, None, None, lambda content: make_config(content, None, 1)),
        "DeepSpeed's JSON": (ds_config, None, None, lambda content: make_config({}, content, 1)),
        "plan": (plan, folder / "plan.toml", toml, read_plan),
        "metrics": (records, folder / "metrics.jsonl", lines_of, read_tables),
        "texts": ([{"text": "a", "n": 1}] * 3, folder / "a.jsonl", lines_of, texts_of),
        "foreign model": (*as_json(folder / "model" / "config.json"), model_in),
        "header of tensors": (header, headed / "model.safetensors", with_header, model_in),
        "data set": ([{"text": "a", "n": 1}] * 3, hub / "train.jsonl", objects_of, hub_texts_of),
        "prompt": ("The old", None, None, lambda content: spoken(content, pieces)),
        "tokenizer": (*as_json(folder / "tokenizer.json"), tokenize),
        "tokenizer's ends": (*as_json(folder / "tokenizer_config.json"), tokenize),
    }
    for file in sorted((folder / "data" / prepared.name).glob("*.json")):
        table[f"prepared {file.name}"] = (*as_json(file), open_prepared)
    assert len(table) >= 9
    return table


def as_bytes(data):
    return data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass")


def with_header(content):
    """A safetensors file of such a header."""
    header = as_bytes(written(content))
    return len(header).to_bytes(8, "little") + header + bytes(32)


def lines_of(content):
    return "".join(written(each) + "\n" for each in (content if isinstance(content, list) else [content]))


def hub_texts_of(path):
    source = HubSource(str(path.parent), "", "train", "text")
    return [document.text for unit in range(len(source.sizes)) for document in source.documents(unit)]


def spoken(content, pieces):
    """A prompt, and what a tokenizer makes of it."""
    text = content if isinstance(content, str) else written(content)
    check_prompt(text)
    pieces.decode(pieces.encode(text))


def objects_of(content):
    """Lines that are objects: of a null before an object pyarrow, which ``datasets`` reads with, dies."""
    rows = content if isinstance(content, list) else [content]
    return lines_of([row for row in rows if isinstance(row, dict)])


def toml(content):
    """A file of TOML whose values are JSON's, which is nearly the same."""
    content = content if isinstance(content, dict) else {"": content}
    lines = [f"{written(key)} = {inline(value)}" for key, value in content.items()]
    return "\n".join(lines)


def inline(value):
    if isinstance(value, dict):
        return "{" + ", ".join(f"{written(key)} = {inline(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(inline, value)) + "]"
    return written(value).replace("NaN", "nan").replace("Infinity", "inf")


def test_what_is_well_formed_and_wrong_is_named_or_harmless(readers, tmp_path, whole, wrong, long_form, tally):
    rounds = 4000 if long_form else 60
    for seed in range(rounds):
        chance = random.Random(seed)
        names = [*readers, "manifest"]
        name = names[seed % len(names)]
        if name == "manifest":
            hostile_manifests(tmp_path, chance, whole, wrong)
            continue
        content, path, write, read = readers[name]
        content, done = changed(content, chance)
        if path is None:
            with answering((name, done), wrong):
                read(content)
            continue
        before = path.read_bytes() if path.exists() else None
        path.write_bytes(as_bytes(write(content)))
        with answering((name, done), wrong):
            read(path)
        if before is not None:
            path.write_bytes(before)
    tally(
        "manifests, configs, plans, metrics, texts, tokenizers and models that are well-formed and wrong: answered "
        "within 10 s and 1 GiB",
        rounds,
        lost="nothing: named, or read",
    )


def bombs():
    """Small files that stand for gigabytes, or for hours."""
    compress = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard.compress}
    line = json.dumps({"text": "x" * 1000}).encode() + b"\n"
    streams = {"one line": b"x" * (1 << 22), "many lines": line * 4000}
    for suffix, how in compress.items():
        for what, data in streams.items():  # frames behind each other are one file
            yield f"{what}{suffix}", f"a.jsonl{suffix}", lambda how=how, data=data: how(data) * 700
    yield "one frame", "a.jsonl.zst", lambda: zstandard.compress(line * 700_000)
    yield "many rows", "a.parquet", None
    yield "a large picture", "a.png", lambda: picture_of(13_000)
    yield "a very large picture", "a.png", lambda: picture_of(60_000)
    yield "deep", "a.jsonl", lambda: b'{"text": ' + b"[" * 1_000_000 + b"\n"
    yield "a key of many parts", "a.toml", lambda: b".".join([b"a"] * 100_000) + b" = 1\n"
    yield "a table of many parts", "a.toml", lambda: b"[" + b".".join([b'"a b"'] * 100_000) + b"]\n"
    yield "without an end", "a.toml", lambda: b"# " + b"x" * (1 << 22)
    yield "deep tables", "a.toml", lambda: b"x = " + b"[" * 100_000
    yield "many tables", "a.toml", lambda: b"".join(b"[t%d]\nx = 1\n" % number for number in range(200_000))
    yield "a long integer", "a.toml", lambda: b"x = " + b"9" * 1_000_000
    yield "many keys", "config.json", lambda: json.dumps({str(number): {} for number in range(1_000_000)}).encode()
    yield "a long line", "metrics.jsonl", lambda: b'{"step": 1, "x": "' + b"x" * (1 << 28) + b'"}\n'
    yield "many lines", "metrics.jsonl", lambda: b'{"step": 1}\n' * 1_000_000


@pytest.mark.parametrize(("what", "name", "content"), list(bombs()), ids=str)
def test_small_files_that_stand_for_much_are_answered_too(what, name, content, tmp_path, wrong, long_form, tally):
    if not long_form and "many" in what + name:
        return
    path = tmp_path / name
    if content is None:
        rows = pyarrow.table({"text": pyarrow.DictionaryArray.from_arrays([0] * 20_000_000, ["x" * 500])})
        pyarrow.parquet.write_table(rows, path)
    else:
        path.write_bytes(content())
    readers = {".toml": load_config, ".json": lambda path: model_in(path), ".png": picture_in}
    read = read_metrics if name.startswith("metrics") else readers.get(path.suffix, first_texts_of)
    with answering(what, wrong):
        read(path)
    tally("small files that stand for gigabytes or hours", 1, lost="nothing: named, or read")


def picture_of(side):
    """A picture of one colour, of so many pixels a side, in a few kilobytes."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))]
    chunks += [(b"IDAT", zlib.compress(bytes(3 * side + 1) * side)), (b"IEND", b"")] if side < 20_000 else []
    parts = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def first_texts_of(path):
    from itertools import islice

    from nt_dist.text.sources import open_files

    source = open_files("data.path", str(path), None, "text")
    return [document.text[:10] for document in islice(source.documents(0), 2000)]
