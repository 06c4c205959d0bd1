"""Whole runs under faults: asked to leave again and again, clocks that jump, data that vanish, and a long soak."""

import json
import os
import random
import resource
import signal
import threading
import time
from pathlib import Path
from unittest import mock

import pytest

from nt_dist.checkpoint.folder import find
from nt_dist.errors import DataError
from nt_dist.families import load_config
from nt_dist.testing import RankError, run_distributed
from nt_dist.training.metrics_log import read_metrics
from nt_dist.training.signals import LEFT_EARLY

MEASURED = ("tokens_per_second", "memory", "time")


def train(rank, world_size, config, folder, *overrides):
    from nt_dist.training import loop

    settings = [f"run.dir={folder}", "run.log_every=1", *overrides]
    return loop.train(load_config(config, settings, world_size=world_size))


def trained(folder):
    """What a run has logged, but for how long it took."""
    records = read_metrics(folder / "metrics.jsonl")
    return [
        {key: value for key, value in record.items() if not key.startswith(MEASURED) and "flops" not in key}
        for record in records
    ]


def train_and_ask(rank, world_size, config, folder, seed, *overrides):
    """Train; at a random moment, after up to four steps, one of the ranks is asked to leave."""
    from nt_dist.training import loop

    chance = random.Random(seed)
    after, asked, number = chance.uniform(0, 0.1), chance.randrange(world_size), chance.choice((10, 15))
    left = chance.randrange(5)
    open_readers, train_step = loop.Trainer.open_readers_and_writers, loop.train_step

    def ask():
        time.sleep(after)
        os.kill(os.getpid(), number)

    def count_down():
        nonlocal left
        if left == 0 and rank == asked:
            threading.Thread(target=ask, daemon=True).start()
        left -= 1

    def read_and_start(trainer):
        count_down()
        return open_readers(trainer)

    def step_and_start(*arguments):
        count_down()
        return train_step(*arguments)

    with (
        mock.patch.object(loop.Trainer, "open_readers_and_writers", read_and_start),
        mock.patch.object(loop, "train_step", step_and_start),
    ):
        code = train(rank, world_size, config, folder, *overrides)
    if rank == asked and code == 0:  # a signal that came too late must not end the rank of the next round
        before = [signal.signal(each, signal.SIG_IGN) for each in (10, 15)]
        time.sleep(after)
        for each, handler in zip((10, 15), before, strict=True):
            signal.signal(each, handler)
    return code


def test_asked_to_leave_at_many_points_it_comes_to_the_same_end(tiny, tmp_path, long_form, tally):
    steps = f"train.steps={120 if long_form else 30}"
    settings = (steps, "run.save_every=7", "run.eval_every=0")
    run_distributed(train, 2, tiny, tmp_path / "whole", *settings)
    for seed in range(400):
        codes = run_distributed(train_and_ask, 2, tiny, tmp_path / "asked", seed, *settings)
        assert codes in ([0, 0], [LEFT_EARLY] * 2)
        tally("SIGTERM or SIGUSR1 at one of two ranks", 1, lost="nothing")
        if codes == [0, 0]:
            break
    else:
        pytest.fail("it never came to its end")
    assert seed > (15 if long_form else 2)
    assert trained(tmp_path / "asked") == trained(tmp_path / "whole")


def train_with_jumping_clock(rank, world_size, config, folder, *overrides):
    chance, real = random.Random(rank), time.time
    with mock.patch.object(time, "time", lambda: real() + chance.uniform(-1e6, 1e6)):
        return train(rank, world_size, config, folder, *overrides)


def test_the_time_of_day_may_jump(tiny, tmp_path, tally):
    settings = ("train.steps=6", "run.save_every=2")
    run_distributed(train, 1, tiny, tmp_path / "whole", *settings)
    assert run_distributed(train_with_jumping_clock, 1, tiny, tmp_path / "jumping", *settings) == [0]
    assert trained(tmp_path / "jumping") == trained(tmp_path / "whole")
    paces = [record["tokens_per_second"] for record in read_metrics(tmp_path / "jumping" / "metrics.jsonl")[:-1]]
    assert all(0 < pace < 1e7 for pace in paces)
    tally("the time of day jumps by days, both ways", 1, lost="nothing")


def train_on_vanishing_data(rank, world_size, config, folder, *overrides):
    """Train on a copy of the data whose tokens are cut off while they are in use."""
    from nt_dist.training import loop

    train_step = loop.train_step

    def cut_and_step(engine, config, mesh, micro_batches, step, collect):
        if step == 5:
            (tokens,) = folder.glob("data/*/train.bin")
            os.truncate(tokens, 64)
        return train_step(engine, config, mesh, micro_batches, step, collect)

    with mock.patch.object(loop, "train_step", cut_and_step):
        return train(rank, world_size, config, folder, f"data.prepared={folder}/data", *overrides)


def test_data_that_cannot_be_read_in_mid_run_are_named(tiny, tmp_path, tally):
    with pytest.raises(RankError, match=r"train\.bin: ends before byte \d+: it was cut short while in use") as caught:
        run_distributed(train_on_vanishing_data, 1, tiny, tmp_path, "train.steps=40", "run.save_every=2")
    assert isinstance(caught.value.error, DataError)
    saved = sorted(path.name for path in tmp_path.glob("checkpoints/step-*"))
    assert saved and saved[-1] >= "step-00000004"
    tally("a data file is cut short in mid-run", 1, lost="the steps since the last checkpoint")


def train_until_an_error(rank, world_size, config, folder, failing, *overrides):
    """Train; at step 5, while the save of step 4 is being written, some ranks have an error."""
    from nt_dist.checkpoint import checkpoint
    from nt_dist.training import loop

    train_step, write = loop.train_step, checkpoint.write_part

    def step_or_fail(engine, config, mesh, micro_batches, step, collect):
        if step == 5 and rank in failing:
            raise DataError("a disk has gone")
        return train_step(engine, config, mesh, micro_batches, step, collect)

    def write_slowly(writing, snapshot):
        if snapshot.manifest.training_state.step == 4:
            time.sleep(0.5)
        return write(writing, snapshot)

    with mock.patch.object(loop, "train_step", step_or_fail), mock.patch.object(checkpoint, "write_part", write_slowly):
        return train(rank, world_size, config, folder, *overrides)


@pytest.mark.parametrize("failing", [{0}, {1}, {0, 1}], ids=["main", "other", "both"])
def test_a_save_under_way_is_finished_when_an_error_ends_the_run_on_two_ranks(tiny, tmp_path, tally, failing):
    with pytest.raises(RankError, match="a disk has gone|lost another rank"):  # whichever rank speaks first
        run_distributed(train_until_an_error, 2, tiny, tmp_path, failing, "train.steps=8", "run.save_every=2")
    found = find(tmp_path / "checkpoints")
    assert found.name == "step-00000004" and not list(found.parent.glob(".*"))
    tally("an error on one or both of two ranks while a save is written", 1, lost="the steps since that save")


def soak(rank, world_size, config, folder, steps):
    """Train for long; what this process holds at a fifth of the steps and at the end."""
    from nt_dist.training import loop

    train_step, held = loop.train_step, {}

    def step_and_look(engine, config, mesh, micro_batches, step, collect):
        if step in (steps // 5, steps):
            status = Path("/proc/self/statm").read_text().split()
            held[step] = {
                "bytes": int(status[1]) * resource.getpagesize(),
                "files": len(os.listdir("/proc/self/fd")),
                "threads": threading.active_count(),
            }
        return train_step(engine, config, mesh, micro_batches, step, collect)

    with mock.patch.object(loop, "train_step", step_and_look):
        often = "run.save_every=20", "run.eval_every=25", "run.stall_timeout=600"  # hours on a busy machine
        code = train(rank, world_size, config, folder, f"train.steps={steps}", *often)
    assert code == 0
    return held[steps // 5], held[steps]


def test_a_long_run_holds_no_more_at_its_end(tiny, tmp_path, long_form, tally):
    steps = 5000 if long_form else 200
    for before, after in run_distributed(soak, 2, tiny, tmp_path, steps, timeout=7200.0):
        assert after["files"] <= before["files"] and after["threads"] <= before["threads"], (before, after)
        assert after["bytes"] < 1.1 * before["bytes"] + 2**20, (before, after)
    tally(
        "steps with topology updates, evaluations and saves (memory, files and threads stay flat)",
        steps,
        lost="nothing",
    )
    if long_form:
        print(json.dumps({"held at a fifth and at the end": [before, after]}))
