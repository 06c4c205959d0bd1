"""What the main rank writes, where the disk takes no more."""

import errno

import pytest

from nt_dist.errors import RunError
from nt_dist.messages import BarHandler
from nt_dist.training.reporter import Reporter


@pytest.mark.parametrize(("method", "arguments"), [("logged", ({},)), ("noted", ({},)), ("evaluated", ({}, None))])
def test_a_full_disk_is_an_error_that_names_the_folder(tmp_path, monkeypatch, method, arguments):
    def full(record):
        raise OSError(errno.ENOSPC, "No space left on device")

    reporter = Reporter(tmp_path, 0, 10, {}, BarHandler())
    monkeypatch.setattr(reporter._metrics, "write", full)
    with pytest.raises(RunError, match=rf"run\.dir = '{tmp_path}': figures cannot be written: No space left on device"):
        getattr(reporter, method)(*arguments)
    reporter.close()
