"""A file is whole or not there."""

import contextlib
import errno
import os
import runpy
import stat
import sys
from pathlib import Path

import pytest

from nt_dist import files
from nt_dist.errors import DataError, RunError
from nt_dist.files import Journal, check_file, expand, new_folder, read_json, replacing, write_whole


def test_a_file_is_written_into_a_new_folder_and_replaced(tmp_path):
    path = tmp_path / "new" / "table.md"
    write_whole(path, "één")
    write_whole(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert [file.name for file in path.parent.iterdir()] == ["table.md"]


def test_what_cannot_be_written_leaves_what_was_there(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="table.md: cannot be written: "):
        write_whole(tmp_path / "file" / "table.md", "text")
    (tmp_path / "folder").mkdir()
    with pytest.raises(RunError, match="folder: cannot be written"):
        write_whole(tmp_path / "folder", "text")
    assert {each.name for each in tmp_path.iterdir()} == {"file", "folder"}


def test_a_block_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "part"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as file:
        file.write(b"half of the new")
        raise ZeroDivisionError
    with pytest.raises(DataError, match="part: cannot be written: No space"), replacing(path, DataError):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_file_is_on_the_disk_before_its_name_is_and_the_name_before_the_end(tmp_path, monkeypatch):
    """A power cut after the rename must find the content, and one after the end the name."""
    done = []
    kind = {True: "folder", False: "file"}
    monkeypatch.setattr(os, "fsync", lambda handle: done.append(kind[stat.S_ISDIR(os.fstat(handle).st_mode)]))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append("rename"), replace(*paths)))
    write_whole(tmp_path / "table.md", "text")
    assert done == ["file", "rename", "folder"]


@pytest.mark.parametrize("error", [errno.EINVAL, errno.EIO])
def test_a_file_system_that_cannot_sync_folders_is_written_to(tmp_path, monkeypatch, error):
    """Some network file systems refuse it; a disk that fails is another matter."""
    fsync = os.fsync

    def refused(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(error, os.strerror(error))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", refused)
    with pytest.raises(RunError, match="Input/output") if error == errno.EIO else contextlib.nullcontext():
        write_whole(tmp_path / "table.md", "text")
    assert (tmp_path / "table.md").read_text() == "text"


def test_a_file_system_without_permissions_takes_a_folder(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refused)
    with new_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("text")
    assert (tmp_path / "out" / "file").read_text() == "text"


def test_a_file_that_cannot_be_written_is_refused_before_any_work(tmp_path):
    check_file("--json", tmp_path / "new" / "eval.json")
    (tmp_path / "file").touch()
    for path in (tmp_path, Path("/dev/null")):  # which root would replace by a file
        with pytest.raises(RunError, match="--json .*: must be a plain file, or nothing yet"):
            check_file("--json", path)
    with pytest.raises(RunError, match="--out .*: .*/file must be a folder that can be written to"):
        check_file("--out", tmp_path / "file" / "report.html")


@pytest.mark.parametrize(
    "command",
    [
        "evaluate.py --checkpoint x --json",
        "evaluate.py --checkpoint x --tasks y --json",
        "report.py {folder} --out",
        "benchmark.py counts --json",
        "check_gpu.py --json",
        "train_tokenizer.py --out",
        "compare.py {folder} --out",
        "diversity.py --out",
    ],
)
def test_every_command_looks_first_whether_its_output_can_be_written(command, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", [*command.format(folder=tmp_path).split(), str(tmp_path / "file" / "figures")])
    with pytest.raises(RunError, match="file must be a folder that can be written to"):
        runpy.run_path(str(Path("tools", sys.argv[0])))["main"]()


def test_links_are_followed_and_everything_is_taken_once(tmp_path):
    """Half a corpus may lie behind a link; loops, and ways that meet, must not read it twice."""
    corpus, disk = tmp_path / "corpus", tmp_path / "disk"
    for file in (corpus / "z" / "1.txt", disk / "2.txt", disk / ".hidden" / "3.txt"):
        file.parent.mkdir(parents=True)
        file.write_text(file.name)
    for name, target in {
        "b": disk,
        "c": disk,
        "loop": corpus,
        "a": corpus / "z",
        "0.txt": corpus / "z" / "1.txt",
    }.items():
        (corpus / name).symlink_to(target)
    expected = [corpus / "b" / "2.txt", corpus / "z" / "1.txt"]
    assert expand("data.path", str(corpus), (".txt",)) == expected
    assert expand("data.path", str(corpus), ()) == expected
    assert len(expand("data.path", f"{corpus}/**/*.txt", ())) == 2
    assert expand("data.path", [f"{corpus}/b/2.txt", f"{disk}/2.txt"], ()) == expected[:1]


def test_what_others_leave_in_folders_is_no_data(tmp_path):
    others = ("._A.TXT.GZ", "lost+found/b.txt", ".ipynb_checkpoints/c.txt", "__MACOSX/d.txt", "_SUCCESS")
    for name in ("A.TXT.GZ", *others):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert expand("data.path", str(tmp_path), (".txt",)) == [tmp_path / "A.TXT.GZ"]
    assert expand("data.path", str(tmp_path), ()) == [tmp_path / "A.TXT.GZ"]


@pytest.mark.parametrize("place", ["", "inner", "linked"])
@pytest.mark.parametrize("pattern", ["", "/**/*"])
def test_a_link_that_leads_nowhere_is_an_error(tmp_path, place, pattern):
    corpus = tmp_path / "corpus"
    (corpus / "inner").mkdir(parents=True)
    (tmp_path / "disk").mkdir()
    (corpus / "linked").symlink_to(tmp_path / "disk")
    (corpus / "a.txt").write_text("a")
    assert len(expand("data.path", f"{corpus}{pattern}", ())) == 1
    (corpus / place / "b").symlink_to(tmp_path / "unmounted")
    with pytest.raises(DataError, match="b: is a link to .*/unmounted, where there is nothing"):
        expand("data.path", f"{corpus}{pattern}", ())
    (corpus / place / "b").unlink()
    (corpus / place / "b").symlink_to("b")
    with pytest.raises(DataError, match="b: is a link to b, where there is nothing"):
        expand("data.path", f"{corpus}{pattern}", ())


def test_a_record_that_is_cut_off_is_written_again_as_a_whole(tmp_path, monkeypatch):
    """A disk that fills up in mid-record."""
    journal, path = Journal(tmp_path / "deep" / "a"), tmp_path / "deep" / "a"
    journal.add(b"first\n")
    file = journal._file

    class Disk:
        def write(self, record):
            if len(record) < 6:
                raise OSError(errno.ENOSPC, "No space left on device")
            return file.write(record[:3])

        def __getattr__(self, name):
            return getattr(file, name)

    journal._file = Disk()
    journal.add(b"second\n")
    assert path.read_bytes() == b"first\nsec" and journal.settle() == 1
    journal._file = file
    journal.add(b"third\n")
    assert path.read_bytes() == b"first\nsecond\nthird\n" and journal.settle() == 3


def test_what_waits_for_a_disk_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "WAITING_BYTES", 10)
    (tmp_path / "a").mkdir()
    journal = Journal(tmp_path / "a")
    for number in range(100):
        journal.add(b"%04d\n" % number)
    (tmp_path / "a").rmdir()
    journal.add(b"last\n")
    journal.close()
    assert (tmp_path / "a").read_bytes() == b"0099\nlast\n"


@pytest.mark.parametrize(
    ("data", "reason"), [("{", "Expecting"), ("[" * 100_000, "recursion"), ("1" * 5_000, "Exceeds"), (None, "No such")]
)
def test_json_of_others_is_read_or_named(tmp_path, data, reason):
    file = tmp_path / "a.json"
    if data:
        file.write_text(data)
    with pytest.raises(DataError, match=rf"a\.json: cannot be read: .*{reason}"):
        read_json(file, DataError)
    file.write_text("[1]")
    assert read_json(file) == [1]
