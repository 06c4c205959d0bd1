"""What a trained run costs and how well it predicts; the same for several runs taken together as one ensemble.

Evaluating takes a while, so that what was found is kept beside the comparison, and made anew only for another
checkpoint, other settings of the evaluation or another version.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nt_dist import __version__
from nt_dist.checkpoint import checkpoint
from nt_dist.checkpoint.folder import Found, checkpoints
from nt_dist.checkpoint.manifest import MANIFEST, read_manifest
from nt_dist.config import Config
from nt_dist.config.family import Headline
from nt_dist.errors import CheckpointError, RunError
from nt_dist.evaluation.evaluate import SOURCES
from nt_dist.evaluation.evaluate_checkpoint import all_figures, evaluate_checkpoint, saved_config
from nt_dist.families import DEFAULT, FAMILIES
from nt_dist.files import write_whole
from nt_dist.model.flops import token_flops, training_flops
from nt_dist.model.trails import build_model
from nt_dist.model.weights import count_parameters
from nt_dist.parallel.mesh import Mesh
from nt_dist.training.metrics_log import METRICS, read_metrics, training_seconds

RESULTS = "results"
"""The folder beside a comparison in which results are kept."""
_MEMBERS = "nll_of_members"  # key of figures: those of the means of probabilities of runs that are taken together
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """A run, or several together: costs are summed over all of them, steps and tokens are of each."""

    name: str
    trails: int
    weights_stored: int  # as inactive ones are not stored, the active ones
    weights_dense: int
    training_flops_sparse: float  # operations for one sample position; see model/flops.py
    training_flops_dense: int
    inference_flops_sparse: int
    inference_flops_dense: int
    steps: int
    tokens_seen: int
    training_seconds: float  # of steps, by the clock; 0 where there are no metrics
    checkpoints: list[str]
    data_digest: str
    figures: dict[str, Any]  # see evaluation/full.py
    family: str = DEFAULT.name
    published: Sequence[str] = ()  # what others reached on the same data
    stamp: Any = None  # what it was made of, where it is kept

    @property
    def headline(self) -> Headline:
        """The figure by which runs are compared."""
        return FAMILIES[self.family].headline(self.figures)

    @property
    def by_source(self) -> dict[str, Headline]:
        """The same on each source of a mixture."""
        return {name: FAMILIES[self.family].headline(each) for name, each in self.figures.get(SOURCES, {}).items()}

    @property
    def training_flops(self) -> float:
        """Operations of the whole training, sparse-effective."""
        return self.training_flops_sparse * self.tokens_seen

    @property
    def gain_over_best(self) -> float:
        """Nats by which the mean of probabilities is better than the best trail."""
        return min(self.figures["nll"]["trails"]) - self.figures["nll"]["prob"]

    @property
    def best_member(self) -> tuple[str, float] | None:
        """Of several runs taken together the best one's name, and the nats by which they are better than the mean of
        its own trails' probabilities."""
        if not (members := self.figures.get(_MEMBERS)):
            return None
        best = min(range(len(members)), key=members.__getitem__)
        return Path(self.checkpoints[best]).parents[1].name, members[best] - self.figures["nll"]["prob"]

    @property
    def num_samples(self) -> int:
        """What it was evaluated on, in the headline's samples."""
        return self.figures[self.headline.samples]

    def row(self) -> dict[str, Any]:
        """Costs and figures with every digit, by column: the family's own figures under its names."""
        own = {key: each for key, each in vars(self).items() if key == "name" or isinstance(each, int | float)}
        samples, calibration, diversity = self.headline.samples, self.figures["calibration"], self.figures["diversity"]
        plain = {key: each for key, each in self.figures.items() if isinstance(each, int | float | list)}
        trails, topology = self.figures["nll"]["trails"], self.figures["topology"] or {}  # None where all is dense
        return {
            **own,
            f"{samples}_evaluated": plain.pop(samples),
            **plain,
            **{f"{self.headline.name} on {name}": own.prob for name, own in self.by_source.items()},
            "gain": sum(trails) / len(trails) - self.figures["nll"]["prob"],
            "gain_over_best_trail": self.gain_over_best,
            **dict(zip(("best_member", "gain_over_best_member"), self.best_member or ("", None), strict=True)),
            **{key: calibration[key]["prob"] for key in ("ece", "adaptive_ece", "brier")},
            "temperature": calibration["temperature"]["value"]["prob"],
            "ece_after_temperature": calibration["temperature"]["after"]["ece"]["prob"],
            **{key: diversity[key] for key in ("kl_mean", "js_mean", "entropy_mean", "mutual_information")},
            "overlap": topology.get("overlap"),
            "overlap_chance": topology.get("overlap_chance"),
            "checkpoints": self.checkpoints,
        }


def result_of(name: str, folders: Sequence[Path], mesh: Mesh, kept: Path, overrides: Sequence[str] = ()) -> Result:
    """Return the result of a run, or of several together; evaluate it unless that has been done.

    Args:
        name: What to call it, and its file in ``kept``, the folder of results.
        folders: Checkpoints, or folders of runs (then their newest checkpoints).
        mesh: Of one rank.
        overrides: ``section.key=value`` over the runs' settings, for the evaluation.
    """
    paths = [newest_checkpoint(folder) for folder in folders]
    stamp = {
        "version": __version__,
        "manifests": [hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest() for path in paths],
        "overrides": list(overrides),
        "samples": "spread over all",  # those kept before were of the first ones
        **({"members": "alone too"} if len(paths) > 1 else {}),
    }
    file = kept / f"{name}.json"
    found = _read(file)
    if found and found.stamp == stamp:
        return found
    _LOGGER.info("evaluating %s", name)
    result = replace(_evaluate(name, paths, mesh, overrides), stamp=stamp)
    write_whole(file, json.dumps(asdict(result), indent=2) + "\n")
    return result


def read_result(file: Path) -> Result:
    """Read a result that was kept; a RunError if it is not there, or damaged."""
    if found := _read(file):
        return found
    raise RunError(f"{file}: is not there, or no result of this version")


def _read(file: Path) -> Result | None:
    """What was kept; None if that cannot be used."""
    try:
        return Result(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def newest_whole(folder: Path) -> Found | None:
    """Return the newest checkpoint of a run that a quick look finds whole."""
    return next((found for found in reversed(checkpoints(folder)) if not found.problem), None)


def newest_checkpoint(folder: Path) -> Path:
    """Return a checkpoint itself, or the newest whole one of a run; a CheckpointError where there is none."""
    if (folder / MANIFEST).is_file():
        return folder
    if found := newest_whole(folder):
        return found.path
    raise CheckpointError(f"{folder}: there is no whole checkpoint in it")


def _evaluate(name: str, paths: Sequence[Path], mesh: Mesh, overrides: Sequence[str]) -> Result:
    configs = {path: saved_config(path) for path in paths}
    progress = [read_manifest(path).training_state for path in paths]
    if len(paths) == 1:
        figures = evaluate_checkpoint(paths[0], mesh, overrides=overrides, full=True).figures
    else:
        figures = _evaluate_together(configs, [each.data_digest for each in progress], mesh, overrides)
    counts = [count_parameters(config) for config in configs.values()]
    flops = [token_flops(config) for config in configs.values()]
    return Result(
        name=name,
        trails=sum(config.trails.count for config in configs.values()),
        weights_stored=sum(count["stored"] for count in counts),
        weights_dense=sum(count["dense"] for count in counts),
        training_flops_sparse=sum(map(training_flops, configs.values())),
        training_flops_dense=sum(each.training_dense for each in flops),
        inference_flops_sparse=sum(each.inference_sparse for each in flops),
        inference_flops_dense=sum(each.inference_dense for each in flops),
        steps=max(each.step for each in progress),
        tokens_seen=max(each.extra.get("tokens", 0) for each in progress),
        training_seconds=sum(
            training_seconds(read_metrics(path.parents[1] / METRICS), each.step)
            for path, each in zip(paths, progress, strict=True)
        ),
        checkpoints=[str(path) for path in paths],
        data_digest=progress[0].data_digest,
        figures=figures,
        family=configs[paths[0]].family.name,
        published=list(configs[paths[0]].family.published(saved_config(paths[0], overrides))),
    )


class Together(nn.ModuleList):
    """Models whose trails are one ensemble's."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:  # [sum of T, B, S, V]
        return torch.cat([model(inputs).float() for model in self])


def _evaluate_together(
    members: Mapping[Path, Config], digests: Sequence[str], mesh: Mesh, overrides: Sequence[str]
) -> dict[str, Any]:
    """Evaluate a deep ensemble (Lakshminarayanan et al., arXiv 1612.01474) on its first member's validation data.

    Every trail has the same weight. There is no topology, as those trained apart have nothing in common.
    """
    config, models = saved_config(next(iter(members)), overrides), Together()
    data = config.family.open_data(config, True, lambda work: work())
    check_alike(members, digests, data.digest)
    for path, own in members.items():
        model = build_model(own, mesh.place, mesh.device)
        checkpoint.load(path, own, mesh, model, None)
        models.append(model.bfloat16() if own.train.precision == "bf16" else model)
    config = replace(config, trails=replace(config.trails, count=sum(own.trails.count for own in members.values())))
    count = config.run.eval_batches * config.train.batch_size
    figures = all_figures(models, data.validation, count, mesh, config)
    alone = figures["nll"]["trails"]
    if len(alone) > len(models):
        of_members = zip(models, members.values(), strict=True)
        each = (all_figures(model, data.validation, count, mesh, own) for model, own in of_members)
        alone = [found["nll"]["prob"] for found in each]
    return {**figures, "topology": None, _MEMBERS: alone}


def check_alike(configs: Mapping[Path, Config], digests: Sequence[str], digest: str) -> None:
    """Raise a CheckpointError unless models, by checkpoint, read the same samples and give the same classes.

    ``digests`` are of the data that each was trained on, ``digest`` of that whose validation part they are to read.
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
