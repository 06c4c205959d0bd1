"""Models trained apart, evaluated as one: a deep ensemble (Lakshminarayanan et al., arXiv 1612.01474)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nt_dist.checkpoint import checkpoint
from nt_dist.checkpoint.manifest import read_manifest
from nt_dist.config import Config
from nt_dist.errors import CheckpointError
from nt_dist.evaluation.evaluate_checkpoint import ONE_COPY, all_figures
from nt_dist.families import load_config
from nt_dist.model.trails import build_model
from nt_dist.parallel.mesh import Mesh


class Together(nn.ModuleList):
    """Models whose trails are one ensemble's."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the logits of all models' trails [sum of T, B, S, V]."""
        return torch.cat([model(inputs).float() for model in self])


def evaluate_together(paths: Sequence[Path], mesh: Mesh, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Evaluate checkpoints as one ensemble, every trail with the same weight, on the first one's validation data.

    Args:
        paths: Checkpoints.
        mesh: Of one rank.
        overrides: ``section.key=value`` over the first one's settings, for the evaluation.

    Returns:
        See evaluation.full; without the topology, as topologies trained apart have nothing in common.

    Raises:
        CheckpointError: They were trained on other data, or read other samples, and cannot predict together.
        NTDistError: One of them cannot be used.
    """
    assert mesh.world_size == 1
    config = saved_config(paths[0], overrides)
    data = config.family.open_data(config, True, lambda work: work())
    members, models = {path: saved_config(path) for path in paths}, Together()
    check_alike(members, [read_manifest(path).progress.data_digest for path in paths], data.digest)
    for path, own in members.items():
        model = build_model(own, mesh.place, mesh.device)
        checkpoint.load(path, own, mesh, model, None)
        models.append(model.bfloat16() if own.train.precision == "bf16" else model)
    config = replace(config, trails=replace(config.trails, count=sum(own.trails.count for own in members.values())))
    num_samples = config.run.eval_batches * config.train.batch_size
    return all_figures(models, data.validation, num_samples, mesh, config)


def saved_config(folder: Path, overrides: Sequence[str] = ()) -> Config:
    """Return the settings that a checkpoint was written with, for one rank that holds all of the model."""
    return load_config(folder / checkpoint.CONFIG, [*overrides, *ONE_COPY], check_paths=False)


def check_alike(configs: Mapping[Path, Config], digests: Sequence[str], digest: str) -> None:
    """Check that models read the same samples and give the same classes.

    Args:
        configs: Their settings, by checkpoint.
        digests: Of the data that each was trained on.
        digest: Of the data whose validation part they are evaluated on.

    Raises:
        CheckpointError: They do not.
    """
    problems, first = [], next(iter(configs.values()))
    for (path, config), own in zip(configs.items(), digests, strict=True):
        if own != digest:
            problems.append(f"{path}: was trained on other data than the validation data belong to")
        for key in ("model.family", *first.family.alike):
            section, entry = key.split(".")
            here, there = (getattr(getattr(each, section), entry, None) for each in (config, first))
            if here != there:
                problems.append(f"{path}: {key} = {here!r} differs from {there!r}")
    if problems:
        raise CheckpointError("\n".join(["these runs cannot predict together", *problems]))
