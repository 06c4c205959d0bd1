"""Which files a setting names, and reading them through any compression."""

import bz2
import gzip
import lzma
import sys

import pytest
import zstandard

from nt_dist.errors import DataError
from nt_dist.files import expand
from nt_dist.text import files
from nt_dist.text.files import read_blocks, read_lines, read_text
from tests.unit.text.data_case import sentences

TEXT = sentences(3000)  # far more than one block of any of the formats
COMPRESS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard.compress}


def text_of(path):
    return "".join(block for block, _ in read_text(path))


@pytest.mark.parametrize("suffix", COMPRESS)
def test_every_compression_is_read(tmp_path, suffix):
    path = tmp_path / f"a.TXT{suffix.upper() if suffix == '.gz' else suffix}"
    halves = TEXT[:70_000].encode(), TEXT[70_000:].encode()
    path.write_bytes(b"".join(map(COMPRESS[suffix], halves)))  # two frames, as tools that append make them
    assert text_of(path) == TEXT


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_truncated_file_is_named(tmp_path, suffix):
    path = tmp_path / f"a.txt{suffix}"
    data = COMPRESS[suffix](TEXT.encode())
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=rf"a.txt{suffix}: the compressed file is truncated"):
        text_of(path)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_wrong_bytes_are_named(tmp_path, suffix):
    path = tmp_path / f"a.txt{suffix}"
    path.write_text("this is no compressed file at all\n")
    with pytest.raises(DataError, match=rf"a.txt{suffix}: is no {suffix} file, or is damaged"):
        text_of(path)


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_flipped_bytes_are_named(tmp_path, suffix):
    path = tmp_path / f"a.txt{suffix}"
    data = bytearray(COMPRESS[suffix](TEXT.encode()))
    for place in range(len(data) // 2, len(data) // 2 + 40):
        data[place] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DataError, match=f"a.txt{suffix}"):
        text_of(path)


def test_zstandard_missing_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    (tmp_path / "a.txt.zst").write_bytes(zstandard.compress(b"text"))
    with pytest.raises(DataError, match="a.txt.zst: .*pip install zstandard"):
        text_of(tmp_path / "a.txt.zst")


def test_text_is_read_as_it_is(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffeins\r\nzwei – drei\n".encode() * 1)
    assert text_of(path) == "eins\r\nzwei – drei\n"


def test_a_character_across_blocks_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("x" + "é" * (1 << 20))
    assert text_of(path) == "x" + "é" * (1 << 20)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"some text\0more", "holds a NUL byte: it is binary"),
        (b"caf\xe9 au lait", "is not UTF-8 text"),
        (b"cut in a character \xc3", "is not UTF-8 text"),
    ],
)
def test_what_is_no_text_is_named(tmp_path, data, message):
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(DataError, match=f"a.txt: {message}"):
        text_of(tmp_path / "a.txt")


@pytest.mark.parametrize("name", ["a.txt", "a.gz"])
def test_lines_are_whole_and_the_position_ends_at_the_size(tmp_path, monkeypatch, name):
    monkeypatch.setattr("nt_dist.text.files._BLOCK", 1000)
    path, text = tmp_path / name, "x" * 5000 + "\n\n" + TEXT + "no line end"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    lines, positions = zip(*read_lines(path), strict=True)
    assert [line.decode() for line in lines] == text.splitlines(keepends=True)
    assert list(positions) == sorted(positions) and 0 < positions[0] < positions[-1] == path.stat().st_size


@pytest.mark.parametrize("suffix", COMPRESS)
def test_what_follows_a_whole_frame_is_read_or_named_and_zeros_are_padding(tmp_path, suffix):
    path = tmp_path / f"a.txt{suffix}"
    frame = COMPRESS[suffix](b"some text\n")
    path.write_bytes(frame + bytes(1024) + frame + bytes(8))
    assert text_of(path) == "some text\n" * 2
    path.write_bytes(frame + b"something else")
    with pytest.raises(DataError, match=rf"a.txt{suffix}: is no {suffix} file, or is damaged"):
        text_of(path)


def test_a_line_that_is_longer_than_any_text_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_LONGEST_LINE", 1 << 20)
    for length, is_read in ((1 << 20) - 1, True), (1 << 20, False):
        (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(b"x" * length + b"\n" + b"y" * length))
        if is_read:
            assert [len(line) for line, _ in read_lines(tmp_path / "a.jsonl.zst")] == [length + 1, length]
        else:
            with pytest.raises(DataError, match=r"a\.jsonl\.zst: a line is longer than 1 MiB"):
                next(read_lines(tmp_path / "a.jsonl.zst"))


def test_expand_takes_files_folders_and_patterns(tmp_path):
    for name in ("b/2.jsonl", "b/1.jsonl.gz", "b/c/3.json", "b/readme.txt", "b/.hidden/4.jsonl", "b/.5.jsonl", "6.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    def names(*patterns):
        found = expand("data.path", tuple(str(tmp_path / pattern) for pattern in patterns), (".jsonl", ".json"))
        return [str(path.relative_to(tmp_path)) for path in found]

    assert names("b") == ["b/1.jsonl.gz", "b/2.jsonl", "b/c/3.json"]
    assert names("6.txt", "b/*.jsonl", "6.txt") == ["6.txt", "b/2.jsonl"]
    assert names("b/**/*.json*") == ["b/1.jsonl.gz", "b/2.jsonl", "b/c/3.json"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("nowhere", "no such file or folder"),
        ("*.jsonl", "no file matches"),
        ("folder", "the folder holds no file ending in .jsonl"),
    ],
)
def test_expand_names_what_is_missing(tmp_path, pattern, message):
    with pytest.raises(DataError, match="data = '': must not be empty"):  # which would be the current folder
        expand("data", "", ())
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=rf"data.path = '.*{pattern.replace('*', '.')}': {message}"):
        expand("data.path", (str(tmp_path / pattern),), (".jsonl",))


def test_zst_with_a_long_window_is_read(tmp_path):
    settings = zstandard.ZstdCompressionParameters(window_log=28)
    with zstandard.open(tmp_path / "a.zst", "wb", cctx=zstandard.ZstdCompressor(compression_params=settings)) as file:
        file.write(b"far apart")
    assert b"".join(block for block, _ in read_blocks(tmp_path / "a.zst")) == b"far apart"


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_little_of_a_file_becomes_no_more_than_it_must(tmp_path, suffix):
    """A few kilobytes may stand for gigabytes, which must not be in memory all at once."""
    text = b"a line\n" * (1 << 23)
    (tmp_path / f"a{suffix}").write_bytes(COMPRESS[suffix](text))
    assert max(len(block) for block, _ in read_blocks(tmp_path / f"a{suffix}")) < 0.8 * len(text)
