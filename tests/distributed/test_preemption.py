"""One rank is asked to leave: all save after the same step, leave with the documented code, and go on from there.
And ranks that were started with different settings do not start."""

import json
import os
import signal
import time
from unittest import mock

import pytest

from nt_dist.errors import RunError
from nt_dist.families import make_config
from nt_dist.testing import RankError, run_distributed
from nt_dist.training.metrics_log import read_metrics
from nt_dist.training.signals import LEFT_EARLY

STEPS, ASKED = 8, 3
WORDS = ["the", "sea", "wind", "stone", "light", "river", "carries", "under", "every", "small", "grey", "morning"]


@pytest.fixture
def sections(tmp_path):
    lines = [" ".join(WORDS[(k * k + k * j) % len(WORDS)] for j in range(5 + k % 9)) for k in range(300)]
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    model = {"hidden_size": 32, "ffn_size": 64, "num_layers": 2, "num_attention_heads": 4}
    return {
        "model": {**model, "vocab_size": 288, "max_seq_len": 16},
        "trails": {"count": 2, "layers": 1},
        "sparsity": {"density": 0.5, "topology_shards": 4, "update_every": 2},
        "data": {"source": "jsonl", "path": str(path), "prepared": str(tmp_path / "data")},
        "train": {"recipe": "paper", "steps": STEPS, "batch_size": 4, "micro_batch_size": 2, "warmup_steps": 2},
        "run": {"dir": str(tmp_path / "run"), "log_every": 1, "eval_batches": 1, "save_every": 0},
    }


def _train(rank, world_size, sections, number=None):
    from nt_dist.training import loop

    train_step = loop.train_step

    def train_step_and_ask(engine, config, mesh, micro_batches, step, collect):
        if rank == 1 and step == ASKED and number:
            os.kill(os.getpid(), number)
        return train_step(engine, config, mesh, micro_batches, step, collect)

    with mock.patch.object(loop, "train_step", train_step_and_ask):
        return loop.train(make_config(sections, None, world_size))


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_one_rank_is_asked_and_all_save_and_leave(sections, tmp_path, number):
    assert run_distributed(_train, 2, sections, number) == [LEFT_EARLY] * 2
    saved = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert saved == [f"step-{ASKED:08d}"]
    assert run_distributed(_train, 2, sections) == [0, 0]
    steps = [record["step"] for record in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in record]
    assert steps == list(range(1, STEPS + 1))


def _train_and_ask_while(rank, world_size, sections, where, number):
    """Train, and ask rank ``number`` to leave in the middle of something that is no step."""
    from nt_dist.text import prepare
    from nt_dist.training import loop

    def ask():
        if rank == number:
            os.kill(os.getpid(), signal.SIGTERM)

    def ask_and(work):
        def asking(*arguments, **named):
            ask()
            return work(*arguments, **named)

        return asking

    class Asking:
        def __init__(self, batches):
            self.batches = batches

        def __iter__(self):
            for count, batch in enumerate(self.batches):
                if count == 1:
                    ask()
                assert count < 2, "it went on"
                yield batch

    def prepare_for_long(config):
        ask()
        time.sleep(60)

    batches, engine = loop.EvaluationBatches, loop.build_engine
    patches = {
        "evaluating": mock.patch.object(loop, "EvaluationBatches", lambda *a, **n: Asking(batches(*a, **n))),
        "building": mock.patch.object(loop, "build_engine", ask_and(engine)),
        "preparing": mock.patch.object(prepare, "prepare_data", prepare_for_long),
    }
    with patches[where]:
        began = time.monotonic()
        code = loop.train(make_config(sections, None, world_size))
        assert time.monotonic() - began < 50
        return code


@pytest.mark.parametrize(
    ("where", "rank", "saved", "evaluated"),
    [
        ("evaluating", 1, [4], [STEPS]),  # what the signal stopped in mid-run is passed over, at the end made up for
        ("evaluating at the end", 1, [STEPS], [STEPS]),
        ("building", 1, [], [4, STEPS]),
        ("preparing", 0, [], [4, STEPS]),
    ],
)
def test_a_signal_is_noticed_where_no_step_is_done(sections, tmp_path, where, rank, saved, evaluated):
    sections["run"] |= {"eval_every": 0 if "end" in where else 4, "eval_batches": 5}
    asked = run_distributed(_train_and_ask_while, 2, sections, where.split()[0], rank)
    assert asked == [LEFT_EARLY] * 2
    names = sorted(path.name for path in (tmp_path / "run").glob("checkpoints/step-*"))
    assert names == [f"step-{step:08d}" for step in saved]
    assert run_distributed(_train, 2, sections) == [0, 0]
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [record["step"] for record in records if "eval" in record] == evaluated
    assert [record["step"] for record in records if "loss" in record] == list(range(1, STEPS + 1))


def _train_with_its_own_rate(rank, world_size, sections):
    return _train(rank, world_size, {**sections, "train": {**sections["train"], "lr": 1e-3 * (rank + 1)}})


def test_a_rank_with_another_config_is_named(sections, tmp_path):
    with pytest.raises(
        RankError, match=r"rank 1 on \S+ has another config: train\.lr = 0\.002 \(rank 0: 0\.001\)"
    ) as caught:
        run_distributed(_train_with_its_own_rate, 2, sections)
    assert isinstance(caught.value.error, RunError)
    assert not (tmp_path / "run").exists()


def _train_on_its_own_data(rank, world_size, sections):
    from nt_dist.text import prepare
    from nt_dist.training import loop

    open_data = prepare.open_data
    with mock.patch.object(prepare, "open_data", lambda *arguments: open_data(*arguments)._replace(digest="abc"[rank])):
        return loop.train(make_config(sections, None, world_size))


def test_a_rank_with_other_data_is_named(sections):
    with pytest.raises(RankError, match=r"rank 1 on \S+ has another data: its digest = 'b' \(rank 0: 'a'\)"):
        run_distributed(_train_on_its_own_data, 2, sections)
