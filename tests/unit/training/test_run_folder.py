"""A run's folder: one run at a time, and its config beside the results."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from nt_dist.errors import RunError
from nt_dist.families import DEFAULT, load_config, make_config
from nt_dist.messages import LOGGER, start_logging
from nt_dist.text.prepare import prepare_data
from nt_dist.training.reporter import Reporter
from nt_dist.training.run_folder import claim, console_log, write_config
from tests.unit.text.data_case import config_over, sentences, write_jsonl


def test_a_second_run_is_refused_and_told_of_the_first(tmp_path):
    folder = claim(tmp_path / "run")
    with pytest.raises(RunError, match=r"run\.dir = .*run': another run is working in it \(process \d+ on "):
        claim(tmp_path / "run")
    folder.close()
    claim(tmp_path / "run").close()


def test_a_disk_without_room_is_named(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(RunError, match=r"run\.dir = .*run': cannot be made or written: File too large"):
            claim(tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_lock_goes_with_the_process_however_that_ends(tmp_path):
    code = f"""
import os
from pathlib import Path
from nt_dist.training.run_folder import claim
from tests.unit.text.data_case import config_over, sentences, write_jsonl
folder = claim(Path({str(tmp_path)!r}))
os.kill(os.getpid(), 9)
"""
    killed = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[3])
    assert killed.returncode == -9
    assert (tmp_path / ".lock").read_text()  # it did take the lock
    claim(tmp_path).close()


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog, error):
    """As Lustre without -o flock and some NFS are; data are prepared there as well."""
    monkeypatch.setattr("fcntl.flock", lambda *_: (_ for _ in ()).throw(OSError(error, os.strerror(error))))
    claim(tmp_path / "run").close()
    prepare_data(config_over(tmp_path, path=str(write_jsonl(tmp_path / "a.jsonl", [sentences(99), sentences(98)]))))
    warned = [record.message for record in caplog.records if "cannot be locked" in record.message]
    folders = {line.partition(":")[0] for line in warned}
    assert folders == {str(tmp_path / "run"), str(tmp_path / "run" / "data")}
    assert all(os.strerror(error) in line and "start no second run here" in line for line in warned)


def test_what_a_run_says_is_kept_beside_it(tmp_path, capsys):
    start_logging(0)
    with pytest.raises(RunError), console_log(tmp_path, 2):
        LOGGER.warning("a shard is empty")
        reporter = Reporter(tmp_path, DEFAULT, 0, 2, {}, LOGGER.handlers)
        for step in (1, 2):
            reporter.stepped(step, 4.0, 100.0, 0.1)
        LOGGER.info("saved")
        reporter.close()
        raise RunError("the disk is gone")
    head, *lines = (tmp_path / "train.log").read_text().splitlines()
    assert head.startswith("== 20") and head.endswith("2 ranks ==")
    assert lines[0] == "warning: a shard is empty" and lines[-2:] == ["saved", "error: the disk is gone"]
    assert lines[1:-2] == ["step 1/2 (50%)  loss 4.0000  100 tokens/s  0:00 left", lines[2]]
    assert capsys.readouterr().err.splitlines() == lines[:-1]  # the error is the command's to say
    with console_log(tmp_path, 1):
        LOGGER.info("once more")
    assert (tmp_path / "train.log").read_text().splitlines()[-1] == "once more"


def test_a_file_in_the_way_is_named_with_its_key(tmp_path):
    (tmp_path / "run").write_text("not a folder")
    with pytest.raises(RunError, match=r"run\.dir = '.*/run': cannot be made or written: File exists"):
        claim(tmp_path / "run")


def test_the_written_config_reads_back_as_the_same(tmp_path):
    with claim(tmp_path):
        write_config(tmp_path, make_config({}))
    expected = make_config({"run": {"dir": str(tmp_path)}})  # where it lies, whatever it was called when it was written
    assert load_config(tmp_path / "config.toml").to_dict() == expected.to_dict()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "config.toml"]
