"""An ordinary step waits once for its device, with the next step's batches on their way by then."""

import json
from itertools import pairwise
from unittest import mock

import torch

from nt_dist.data.loader import StepLoader
from nt_dist.families import make_config
from nt_dist.testing import run_distributed
from tests.distributed.host_waits import HostWaits
from tests.distributed.tiny import TINY_MODEL

STEPS, UPDATE_EVERY = 14, 5


def test_what_reads_a_device_or_copies_to_it_is_seen():
    there = torch.ones(2)
    with HostWaits() as waits:
        for read in (float, bool, int, torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.cpu, torch.Tensor.nonzero):
            read(there[0] * 1)
        torch.tensor([1.0], device="cpu")
        assert len(waits.events) == 8
        here = torch.tensor([3.0, 4.0])
        assert bool((here.norm() > 4) & here.isfinite().all()) and here.tolist() == [3.0, 4.0]
        there.mul_(here)
    assert len(waits.events) == 8


def _events_of_steps(rank, world_size, folder):
    from nt_dist.training import loop

    waits, starts = HostWaits(), []
    train_one, read = loop.Trainer.train_one, StepLoader.step

    def noted(trainer, step):
        starts.append(len(waits.events))
        return train_one(trainer, step)

    def read_and_note(loader, first):
        waits.events.append("read")
        return read(loader, first)

    sections = {
        "model": TINY_MODEL | {"vocab_size": 300},
        "trails": {"count": 2, "layers": 1, "joint": 0.5},
        "sparsity": {"density": 0.5, "topology_shards": 2, "update_every": UPDATE_EVERY},
        "data": {"source": "jsonl", "path": f"{folder}/text.jsonl", "validation": 0.2, "num_workers": 0},
        "train": {
            "recipe": "paper",
            "steps": STEPS,
            "batch_size": 4,
            "micro_batch_size": 2,
            "warmup_steps": 0,
            "grad_clip": 0.5,
            "spike_window": 8,
            "average_decay": 0.9,
            "average_from": 0.3,
        },
        "run": {"dir": f"{folder}/run", "log_every": 100, "eval_every": 0, "eval_batches": 1, "check_every": 0},
    }
    with (
        waits,
        mock.patch.object(loop.Trainer, "train_one", noted),
        mock.patch.object(StepLoader, "step", read_and_note),
    ):
        assert loop.train(make_config(sections, {"zero_optimization": {"stage": 1}}, world_size)) == 0
    return [waits.events[start:end] for start, end in pairwise(starts)]


def test_an_ordinary_step_of_the_trainer_waits_once_and_reads_ahead(tmp_path):
    lines = (json.dumps({"text": f"line {number} of many that are as long as this"}) for number in range(100))
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    ((first, *steps),) = run_distributed(_events_of_steps, 1, str(tmp_path))
    assert first[0] == "read"  # nobody could read ahead
    ordinary = [events for number, events in enumerate(steps, 2) if number % UPDATE_EVERY]
    assert len(ordinary) == STEPS - 2 - 2 and all(events == ["read", "wait: tolist"] for events in ordinary), ordinary
