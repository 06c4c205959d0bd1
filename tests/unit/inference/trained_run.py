"""What tests of inference and export share: the folder of a tiny run, with data, tokenizer and a checkpoint, untrained.

The weights are as drawn, but larger, so that logits differ clearly, and no scale of a norm is 1.
"""

from pathlib import Path

import torch

from nt_dist.checkpoint.checkpoint import save
from nt_dist.checkpoint.manifest import TrainingState
from nt_dist.config import Config
from nt_dist.families import make_config
from nt_dist.model.trails import build_model, statistics_of, weights_of
from nt_dist.text.prepare import open_data
from tests.unit.checkpoint.checkpoint_case import PlainOptimizer, on_one_rank
from tests.unit.resnet.small import small
from tests.unit.text.data_case import sentences, write_jsonl

SECTIONS = {
    "model": {
        "hidden_size": 32,
        "ffn_size": 48,
        "num_layers": 3,
        "num_attention_heads": 4,
        "num_kv_heads": 2,
        "vocab_size": 331,  # padded to 332
        "max_seq_len": 16,
    },
    "trails": {"count": 3, "layers": 2},
    "sparsity": {"density": 0.5, "topology_shards": 4},
    "data": {"source": "jsonl", "num_workers": 0, "validation": 0.2},
    "train": {"recipe": "paper", "seed": 3},
}


def write_run(folder: Path, **sections: dict) -> Path:
    """Make a run's folder in ``folder`` and return it; ``sections`` change the config, as in trails={"count": 1}."""
    corpus = folder / "corpus.jsonl"
    if not corpus.exists():
        write_jsonl(corpus, [sentences(12, seed) for seed in range(10)])
    merged = {name: {**SECTIONS.get(name, {}), **sections.get(name, {})} for name in {**SECTIONS, **sections}}
    merged["data"]["path"] = str(corpus)
    merged["run"] = {"dir": str(folder / "run")}
    config = make_config(merged)
    data = open_data(config, is_writer=False)
    write_checkpoint(config, data.digest, {"tokens": 128, "tokenizer_sha256": data.tokenizer.sha256})
    return folder / "run"


def write_pictures_run(folder: Path, **sections: dict) -> Path:
    """As :func:`write_run`, of pictures of five classes, of which four have names; their data is nowhere."""
    config = small(**{**sections, "run": {"dir": str(folder / "run")}})
    write_checkpoint(config, "pictures", {"tokens": 32, "classes": ["oak", "elm", "fir", "ash"]})
    return folder / "run"


def write_checkpoint(config: Config, digest: str, extra: dict, step: int = 4) -> Path:
    """Save a model as drawn, enlarged if it reads text, as the checkpoint of a step; return its folder."""
    model = build_model(config)
    optimizer = PlainOptimizer(step=step, moments=config.train.moments)
    for name, weight in (weights_of(model) | statistics_of(model)).items():
        spread = torch.linspace(-0.5, 0.5, weight.values.numel()).roll(len(name)).view_as(weight.values)
        if weight.spec.role == "scale" or weight.spec.name.endswith(".variance"):
            weight.values.data.copy_(1 + spread)
        elif len(weight.spec.shape) == 1:
            weight.values.data.copy_(spread)
        elif config.family.task == "text-generation":
            weight.values.data.mul_(8.0)
    for name, weight in weights_of(model).items():
        values = weight.values.data
        moments = {moment: torch.zeros_like(values) for moment in optimizer.moments}
        moments |= {"average": 2 * values} if "average" in moments else {}
        optimizer.states[name] = {"value": values.clone(), **moments}
    progress = TrainingState(step, 8 * step, step, digest, extra)
    place = Path(config.run.dir) / "checkpoints"
    return on_one_rank(lambda mesh: save(place, config, mesh, model, optimizer, progress))
