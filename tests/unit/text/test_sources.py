"""Sources: documents in order, and bad input named with its file and line."""

import json
import sysconfig
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from nt_dist.errors import ConfigError, DataError
from nt_dist.families import load_config
from nt_dist.text.settings import Data
from nt_dist.text.sources import BadDocuments, HubSource, open_files, open_source
from tests.unit.text.data_case import sentences, write_jsonl


def texts(source):
    return [document.text for unit in range(len(source.sizes)) for document in source.documents(unit)]


def source_of(path, kind=None, text_key="text"):
    return open_files("data.path", str(path), kind, text_key)


def write_parquet(path, rows, column="text"):
    pyarrow.parquet.write_table(pyarrow.table({column: rows, "n": list(range(len(rows)))}), path)
    return path


def test_text_files_are_a_document_each(tmp_path):
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.md").write_text("first\n")
    assert texts(source_of(tmp_path, "text")) == ["first\n", "second"]


def test_a_lone_text_file_is_cut_at_line_ends(tmp_path):
    whole = sentences(6000)
    (tmp_path / "a.txt").write_text(whole)
    pieces = texts(source_of(tmp_path / "a.txt"))
    assert "".join(pieces) == whole
    assert len(pieces) == -(-len(whole) // 65536)
    assert all(piece.endswith("\n") and len(piece) <= 65536 for piece in pieces)


def test_one_endless_line_is_cut_too(tmp_path):
    (tmp_path / "a.txt").write_text("x" * 150_000)
    assert [len(piece) for piece in texts(source_of(tmp_path / "a.txt"))] == [65536, 65536, 150_000 - 2 * 65536]


def test_jsonl_gives_its_texts_in_order(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl.gz", ["first", "  ", "zweite\n", "\ud83d alone"])
    source = source_of(path)
    assert texts(source) == ["first", "zweite\n", "? alone"]  # blank ones left out, half a surrogate pair made text
    assert [document.read for document in source.documents(0)][-1] == path.stat().st_size


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "parquet"])
def test_a_file_of_another_format_among_texts_is_refused(tmp_path, suffix):
    """It was read as prose."""
    (tmp_path / "a.txt").write_text("prose")
    (tmp_path / f"b.{suffix}").write_bytes(b'{"text": "one"}\n')
    named = f"b.{suffix} is of data.source = '{suffix.partition('.')[0]}', not 'text'; leave it out"
    for path in (str(tmp_path), (str(tmp_path / "a.txt"), str(tmp_path / f"b.{suffix}"))):
        for source in ("text", None):
            with pytest.raises(DataError, match=named):
                open_files("data.path", path, source, "text")
    (tmp_path / f"b.{suffix}").rename(tmp_path / "b.json")  # as text, if that is wanted
    assert len(open_files("data.path", str(tmp_path), "text", "text").files) == 2


def test_jsonl_passes_over_blank_lines_and_a_byte_order_mark(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "one"}\n\n \n{"text": "two"}')
    assert texts(source_of(tmp_path / "a.jsonl")) == ["one", "two"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "cut', "line 3: is not JSON: Invalid control character at column 14"),
        ('["text"]', "line 3: must be an object with the field data.text_key = 'text'"),
        ('{"body": "x", "n": 1}', "line 3: has no field data.text_key = 'text', only 'body', 'n'"),
        ('{"text": 7}', "line 3: the field data.text_key = 'text' must be text, not int"),
        ('{"text": null}', "line 3: the field data.text_key = 'text' must be text, not NoneType"),
        ("[" * 200_000, "line 3: is not JSON that can be read: nested too deeply"),
        ('{"text": "\udce9"}', "line 3: is not UTF-8 text"),
        ('{"text": "a\0"}', "holds a NUL byte"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, message):
    path = write_jsonl(tmp_path / "a.jsonl", ["one", "two"])
    with open(path, "a", encoding="utf-8", errors="surrogateescape") as stream:
        stream.write(line + "\n")
    with pytest.raises(DataError, match=f"a.jsonl(, |: ){message}"):
        texts(source_of(path))


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "text", "hf"])
def test_what_is_no_text_is_passed_over_up_to_a_share(tmp_path, monkeypatch, caplog, kind):
    """Two of 100, one of them the first in its file; once read in part before, as a tokenizer's training does."""
    rows = [None, *(f"row {number}" for number in range(97)), "x", None]
    if kind == "jsonl":
        write_jsonl(tmp_path / "a.jsonl", rows[:50])
        write_jsonl(tmp_path / "b.jsonl", rows[50:-1])
        (tmp_path / "b.jsonl").write_text((tmp_path / "b.jsonl").read_text() + '{"text": "cut\n')
    elif kind == "text":
        for number, row in enumerate(rows):
            (tmp_path / f"{number:02}.txt").write_bytes(row.encode() if row else b"\xff")
    else:
        monkeypatch.setenv("HF_HOME", str(tmp_path / ".cache"))
        table = pyarrow.table({"text": [b"\xff" if row is None else row.encode() for row in rows]})
        pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    for share in (0.02, 0.019):
        source = open_source(Data(source=kind, path=str(tmp_path), max_bad_share=share))
        next(source.documents(0), None)
        if share == 0.02:
            assert texts(source) == rows[1:-1] == texts(source)
            assert (source.bad.count, source.bad.read) == (2, 100)
            assert caplog.text.count("passed over, if no more than data.max_bad_share = 0.02 are") == 1
        else:
            with pytest.raises(DataError, match=r"; 2 of 100 documents are no text; data.max_bad_share = 0.019 may be"):
                texts(source)


def test_a_wrong_field_is_found_out_soon(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ["text"] * 1000)
    with pytest.raises(DataError, match="line 1: has no field .*; 11 of 11 documents are no text"):
        source_of(path, text_key="body").check()


def test_what_marks_files_and_what_is_empty_beside_others_is_no_error(tmp_path, caplog):
    write_parquet(tmp_path / "part-0.parquet", ["one"])
    write_parquet(tmp_path / "part-1.parquet", [])
    for name in ("_SUCCESS", "_metadata", ".part-0.parquet.crc"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "_temporary").mkdir()
    (tmp_path / "_temporary" / "part-2.parquet").write_bytes(b"unfinished")
    for path, kind in ((tmp_path, "parquet"), (tmp_path / "part-*", "parquet"), (f"{tmp_path}/*", None)):
        source = source_of(path, kind)
        source.check()
        assert texts(source) == ["one"] and len(source.files) == 2
    assert "part-1.parquet: is empty: it holds no text; passed over" in caplog.text


def test_numbers_of_any_length_are_read(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one", "n": %s}\n' % ("9" * 5000))
    assert texts(source_of(tmp_path / "a.jsonl")) == ["one"]


@pytest.mark.parametrize(("name", "content"), [("a.txt", ""), ("a.txt", " \n\n"), ("a.jsonl", ""), ("a.jsonl", "\n")])
def test_an_empty_file_is_named_at_once_and_later(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    source = source_of(tmp_path / name)
    for look in (source.check, lambda: texts(source)):
        with pytest.raises(DataError, match=f"{name}: is empty: it holds no text"):
            look()


def test_a_file_that_vanishes_is_named(tmp_path):
    source = source_of(write_jsonl(tmp_path / "a.jsonl", ["one"]))
    (tmp_path / "a.jsonl").unlink()
    for look in (source.check, lambda: source.seen):
        with pytest.raises(DataError, match="a.jsonl: cannot be read: No such file"):
            look()


def test_parquet_gives_its_texts(tmp_path):
    rows = [f"row {number}" for number in range(2500)]
    source = source_of(write_parquet(tmp_path / "a.parquet", [*rows, None, " "]))
    assert texts(source) == rows
    assert [document.read for document in source.documents(0)][-1] == (tmp_path / "a.parquet").stat().st_size


KINDS = {
    "dictionary": lambda rows: pyarrow.array(rows).dictionary_encode(),  # pandas' categories
    "large": lambda rows: pyarrow.array(rows, pyarrow.large_string()),
    "view": lambda rows: pyarrow.array(rows, pyarrow.string_view()),
    "binary view": lambda rows: pyarrow.array([row and row.encode() for row in rows], pyarrow.binary_view()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_parquet_holds_text_in_several_ways(tmp_path, kind):
    table = pyarrow.table({"text": KINDS[kind](["one", "two", None, "one"])})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert texts(source_of(tmp_path / "a.parquet")) == ["one", "two", "one"]
    pyarrow.parquet.write_table(table[:2], tmp_path / "a.parquet")
    assert texts(source_of(tmp_path / "a.parquet", text_key="a {text}.")) == ["a one.", "a two."]


def test_bad_parquet_is_named(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", ["one", "two"])
    with pytest.raises(DataError, match="a.parquet: has no column data.text_key = 'body', only 'text', 'n'"):
        texts(source_of(path, text_key="body"))
    with pytest.raises(DataError, match="a.parquet: the column data.text_key = 'n' must be text"):
        texts(source_of(path, text_key="n"))
    twice = pyarrow.Table.from_arrays([pyarrow.array(["one"]), pyarrow.array(["two"])], names=["text", "text"])
    pyarrow.parquet.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(DataError, match="twice.parquet: has 2 columns data.text_key = 'text'"):
        texts(source_of(tmp_path / "twice.parquet"))
    damaged = path.read_bytes()[:-20]
    path.write_bytes(damaged)
    with pytest.raises(DataError, match="a.parquet: is no Parquet file, or is damaged"):
        texts(source_of(path))
    bytes_as_text = pyarrow.StringArray.from_buffers(1, *pyarrow.array([b"\xff"]).buffers()[1:])
    pyarrow.parquet.write_table(pyarrow.table({"text": bytes_as_text}), path)
    with pytest.raises(DataError, match="a.parquet: is no Parquet file, or is damaged: 'utf-8' codec"):
        texts(source_of(path))


def test_the_standard_library_is_megabytes_of_text():
    source = open_source(Data())
    assert sum(source.sizes) > 4e6
    names = source.files
    assert not any({"test", "site-packages"} & set(name.parts) for name in names)
    assert names == sorted(names)
    argparse = names.index(Path(sysconfig.get_paths()["stdlib"]) / "argparse.py")
    assert "class ArgumentParser" in next(source.documents(argparse)).text


def test_the_standard_library_passes_over_what_is_no_text(tmp_path, monkeypatch):
    files = {"a.py": b"import b", "b.py": b"", "c.py": b"x = '\xe9'", "d.py": b"\0", "test/e.py": b"e"}
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    assert texts(open_source(Data())) == ["import b"]


def test_a_standard_library_without_source_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(DataError, match="data.source = 'stdlib': .* holds no .py file"):
        open_source(Data())


def test_validation_files_beside_the_standard_library_are_read_by_suffix(tmp_path):
    path = write_jsonl(tmp_path / "v.jsonl.gz", ["one"])
    assert texts(open_source(Data(validation=str(path)), "validation")) == ["one"]


def test_what_was_seen_follows_the_files(tmp_path, monkeypatch):
    path = write_jsonl(tmp_path / "a.jsonl", ["one"])
    first = source_of(path).seen
    assert first == {str(path): [path.stat().st_size, path.stat().st_mtime_ns]}
    monkeypatch.chdir(tmp_path)
    assert source_of("a.jsonl").seen == first
    write_jsonl(path, ["two"])  # of the same size
    assert source_of(path).seen != first


@pytest.fixture
def hub_folder(tmp_path, monkeypatch):
    """A data set of two training shards and a validation split, in the hub's folder layout."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "set" / "data"
    folder.mkdir(parents=True)
    write_parquet(folder / "train-00000-of-00002.parquet", ["one", "two"])
    write_parquet(folder / "train-00001-of-00002.parquet", ["three", "", "four"])
    write_parquet(folder / "validation-00000-of-00001.parquet", ["five"])
    return str(tmp_path / "set")


def test_hf_streams_a_data_set_by_shards(hub_folder):
    train = open_source(Data(source="hf", path=hub_folder))
    assert train.sizes == [0, 0]  # unknown
    assert texts(train) == ["one", "two", "three", "four"]
    assert [document.text for document in train.documents(1)] == ["three", "four"]
    validation = open_source(Data(source="hf", path=hub_folder, validation="validation"), "validation")
    assert texts(validation) == ["five"]
    train.check()


def test_hf_errors_name_the_data_set(hub_folder):
    with pytest.raises(DataError, match="data.path = .*split 'test': datasets.load_dataset says: .*test"):
        texts(HubSource(hub_folder, "", "test", "text"))
    with pytest.raises(
        DataError, match=r"split 'train', shard 0, row 0: has no field data.text_key = 'body', only 'text'"
    ):
        HubSource(hub_folder, "", "train", "body").check()
    with pytest.raises(DataError, match="data.path = '/nowhere/at/all'.*datasets.load_dataset says"):
        HubSource("/nowhere/at/all", "", "train", "text").check()


def test_hf_is_known_without_a_network(hub_folder):
    assert HubSource("allenai/c4", "en", "train", "text").seen == {}
    assert len(HubSource(hub_folder, "", "train", "text").seen) == 3


def test_a_template_makes_a_text_of_several_fields(tmp_path):
    rows = [{"q": "one?", "a": 1}, {"q": "two?"}, {"q": None, "a": "x"}, {"q": "{a}", "a": 2.5, "c": []}]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    key = "{{Q}}: {q}\nA: {a}."
    source = source_of(path, text_key=key)
    source.bad = BadDocuments(0.5)
    assert texts(source) == ["{Q}: one?\nA: 1.", "{Q}: {a}\nA: 2.5."]
    assert (source.bad.count, source.bad.read) == (2, 4)
    with pytest.raises(DataError, match=r"line 2: has no field 'a' of data.text_key = '{{Q}}.*, only 'q'"):
        texts(source_of(path, text_key=key))
    table = pyarrow.table({"q": ["one?", None, "two?"], "a": [1, 2, 3], "c": [[1], [2], [3]]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    source = source_of(tmp_path / "a.parquet", text_key=key)
    source.bad = BadDocuments(0.5)
    assert texts(source) == ["{Q}: one?\nA: 1.", "{Q}: two?\nA: 3."] and source.bad.count == 1
    with pytest.raises(DataError, match="the column 'c' of data.text_key = '{c}' must be text, not list"):
        texts(source_of(tmp_path / "a.parquet", text_key="{c}"))


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("{q}\\n{a}", "{q}\n{a}"),
        ('"{q}\\n\\t{a}"', "{q}\n\t{a}"),
        ("a b", "a b"),
        ("{q", None),
        ("q}", None),
        ("{}", None),
        ("{q:3}", None),
        ("{q!r}", None),
        ("{{q}}", None),
        ("", None),
    ],
)
def test_a_template_is_checked_and_written_as_it_was_read(word, key, tmp_path):
    overrides = ["data.source=jsonl", f"data.path={tmp_path}", f"data.text_key={word}"]
    if key is None:
        with pytest.raises(ConfigError, match=r"data\.text_key = .* must be"):
            load_config({}, overrides)
        return
    config = load_config({}, overrides)
    assert config.data.text_key == key
    (tmp_path / "a.toml").write_text(config.to_toml())
    assert load_config(tmp_path / "a.toml").data.text_key == key
    with pytest.raises(ConfigError, match=r"data\.text_key = 'a\\x07' must be a string"):
        load_config({"data": {"text_key": "a\x07"}}, overrides[:2])
