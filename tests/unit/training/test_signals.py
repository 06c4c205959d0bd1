"""Signals ask a run to leave: once politely, twice at once."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nt_dist.training.signals import SAME_SECONDS, SIGNALS, listening

ROOT = Path(__file__).resolve().parents[3]


class OneRank:
    device = torch.device("cpu")

    def all_reduce(self, tensor, op):
        assert op == "max"
        return tensor


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_remembered_and_the_handlers_are_put_back(number):
    before = signal.getsignal(number)
    with listening() as asked:
        assert not asked.by_any(OneRank())
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # the launcher's copy of the same
        assert asked.by_any(OneRank())
    assert signal.getsignal(number) is before


def test_a_second_signal_leaves_at_once():
    code = f"""
import os, signal, time
from nt_dist.training import signals
with signals.listening() as asked:
    os.kill(os.getpid(), signal.SIGUSR1)
    asked._at -= {SAME_SECONDS} + 1
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(30)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120, check=False)
    assert done.returncode == 128 + signal.SIGTERM
