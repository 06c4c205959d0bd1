"""Models trained apart, evaluated as one: a deep ensemble (Lakshminarayanan et al., arXiv 1612.01474)."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from nt_dist.checkpoint.checkpoint import CONFIG
from nt_dist.errors import CheckpointError
from nt_dist.evaluation.evaluate_checkpoint import all_figures
from nt_dist.families import load_config
from nt_dist.inference import Ensemble, load_ensemble

_ALIKE = ("model.vocab_size", "model.max_seq_len", "data.layout")
_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Together(nn.ModuleList):
    """Models whose trails are one ensemble's."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the logits of all models' trails [sum of T, B, S, V]."""
        return torch.cat([model(inputs).float() for model in self])


def evaluate_together(paths: Sequence[Path], mesh, overrides: Sequence[str] = ()) -> dict:
    """Evaluate checkpoints as one ensemble, every trail with the same weight, on the first one's validation texts.

    Args:
        paths: Checkpoints.
        mesh: Of one rank.
        overrides: ``section.key=value`` over the first one's settings, for the evaluation.

    Returns:
        See evaluation.full; without the topology, as topologies trained apart have nothing in common.

    Raises:
        CheckpointError: They were trained on other data, or read other sequences, and cannot predict together.
        NTDistError: One of them cannot be used.
    """
    assert mesh.world_size == 1
    config = load_config(paths[0] / CONFIG, overrides, check_paths=False)
    data = config.family.open_data(config, True, lambda work: work())
    types = [load_config(path / CONFIG, check_paths=False).train.precision for path in paths]
    members = [load_ensemble(path, mesh.device, _TYPES[kind]) for path, kind in zip(paths, types, strict=True)]
    _check(members, data.digest)
    config = replace(config, trails=replace(config.trails, count=sum(each.num_trails for each in members)))
    num_samples = config.run.eval_batches * config.train.batch_size
    model = Together([member.model for member in members])
    return all_figures(model, data.validation, num_samples, mesh, config)


def _check(members: Sequence[Ensemble], digest: str) -> None:
    """Raises unless all members read the same sequences of the same pieces."""
    problems = []
    for member in members:
        if member.manifest.progress.data_digest != digest:
            problems.append(f"{member.checkpoint}: was trained on other data than the validation texts belong to")
        for key in _ALIKE:
            section, entry = key.split(".")
            here, first = (getattr(getattr(each.config, section), entry) for each in (member, members[0]))
            if here != first:
                problems.append(f"{member.checkpoint}: {key} = {here!r} differs from {first!r}")
    if problems:
        raise CheckpointError("\n".join(["these runs cannot predict together", *problems]))
