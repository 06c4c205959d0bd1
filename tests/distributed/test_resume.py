"""2N steps against N steps, a kill, and the rest from the last checkpoint: the same run to the last bit, in fp32."""

import json
import shutil

import pytest
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nt_dist.config.load import build_config
from nt_dist.testing import run_distributed
from nt_dist.training.metrics_log import read_metrics

STEPS, SAVED, KILLED = 20, 10, 13  # topologies are updated every 4 steps: before and after each of these
MEASURED = ("tokens_per_second", "flops_per_second_dense_equivalent", "flops_per_second_sparse_effective", "memory")
WORDS = ["the", "sea", "wind", "stone", "light", "river", "carries", "under", "every", "small", "grey", "morning"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A text of 400 lines, a document each, with some order in it."""
    folder = tmp_path_factory.mktemp("corpus")
    lines = [" ".join(WORDS[(k * k + k * j) % len(WORDS)] for j in range(5 + k % 9)) for k in range(400)]
    path = folder / "text.jsonl"
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return path


def _sections(corpus, folder, **run):
    return {
        "model": {
            "hidden_size": 32,
            "ffn_size": 64,
            "num_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": 288,
            "max_seq_len": 16,
        },
        "trails": {"count": 2, "layers": 1},
        "sparsity": {"density": 0.5, "topology_shards": 4, "update_every": 4},
        "data": {
            "source": "jsonl",
            "path": str(corpus),
            "validation": 0.1,
            "prepared": str(corpus.parent / "prepared"),
        },
        "train": {
            "steps": STEPS,
            "batch_size": 8,
            "micro_batch_size": 2,
            "lr": 1e-2,
            "warmup_steps": 5,
            "weight_decay": 0.1,
            "grad_clip": 0.5,
        },
        "run": {"dir": str(folder), "log_every": 1, "eval_every": 5, "eval_batches": 2, "save_every": SAVED, **run},
    }


def _train(rank, world_size, sections, stage):
    from nt_dist.training.loop import train

    config = build_config(sections, {"zero_optimization": {"stage": stage}}, world_size)
    return train(config)


def _run(ranks, sections, stage):
    assert run_distributed(_train, ranks, sections, stage) == [0] * ranks


def _fragments(checkpoint):
    """Every tensor of a checkpoint by its key."""
    return {key: value for path in checkpoint.glob("*.safetensors") for key, value in load_file(path).items()}


def _same(records):
    return [{key: value for key, value in record.items() if key not in MEASURED} for record in records]


@pytest.mark.parametrize(("stage", "ranks"), [(0, 1), (1, 2), (3, 2)])
def test_a_killed_and_resumed_run_is_the_uninterrupted_one(tmp_path, corpus, stage, ranks):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    _run(ranks, _sections(corpus, whole), stage)
    _run(ranks, _sections(corpus, broken, stop_after=KILLED), stage)
    assert read_metrics(broken / "metrics.jsonl")[-1]["step"] == KILLED
    shutil.rmtree(broken / "checkpoints" / f"step-{KILLED:08d}")  # as if it had been killed after that step
    _run(ranks, _sections(corpus, broken), stage)

    expected, found = (read_metrics(folder / "metrics.jsonl") for folder in (whole, broken))
    assert _same(found) == _same(expected)
    logged = [record for record in expected if "loss" in record]
    assert [record["step"] for record in logged] == list(range(1, STEPS + 1))
    assert len({record["topology_checksum"] for record in logged}) == 5  # the first topology and four updates
    assert logged[-1]["loss"] < logged[0]["loss"] - 0.3  # it learns
    assert [record["step"] for record in expected if "eval" in record] == [5, 10, 15, 20]

    last = f"checkpoints/step-{STEPS:08d}"
    before, after = _fragments(whole / last), _fragments(broken / last)
    assert before.keys() == after.keys()
    assert {key.rsplit("/", 1)[1] for key in before} == {"positions", "value", "exp_avg", "exp_avg_sq"}
    different = [key for key in before if before[key].tobytes() != after[key].tobytes()]
    assert different == []
    manifests = [json.loads((folder / last / "manifest.json").read_text()) for folder in (whole, broken)]
    assert manifests[0]["progress"] == manifests[1]["progress"]
    assert manifests[0]["progress"]["consumed_samples"] == STEPS * 8

    events = EventAccumulator(str(broken / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("training/loss")] == list(range(1, STEPS + 1))
