"""A file is whole or not there."""

import pytest

from nt_dist.errors import RunError
from nt_dist.files import write_whole


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
