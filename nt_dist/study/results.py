"""What a trained run costs and how well it predicts; the same for several runs taken together as one ensemble.

Evaluating takes a while, so that what was found is kept beside the comparison, and made anew only for another
checkpoint, other settings of the evaluation or another version.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nt_dist import __version__
from nt_dist.checkpoint.checkpoint import CONFIG
from nt_dist.checkpoint.folder import checkpoints, locate
from nt_dist.checkpoint.manifest import MANIFEST, read_manifest
from nt_dist.config.family import Headline
from nt_dist.errors import CheckpointError, RunError
from nt_dist.evaluation.evaluate_checkpoint import evaluate_checkpoint
from nt_dist.families import DEFAULT, FAMILIES, load_config
from nt_dist.files import write_whole
from nt_dist.model.flops import token_flops
from nt_dist.model.weights import count_parameters
from nt_dist.study.together import evaluate_together

RESULTS = "results"
"""The folder beside a comparison in which results are kept."""
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """A run, or several together.

    Attributes:
        name: What it is called.
        checkpoints: What was evaluated.
        num_trails: Members, over all runs.
        weights: Weights stored, over all runs; as inactive ones are not stored, these are the active ones.
        dense_weights: Entries of the dense shapes.
        training_flops: Operations of training on one token, sparse-effective (model/flops.py), over all runs.
        training_flops_dense: The same, dense-equivalent.
        inference_flops: Operations of predicting from one token, sparse-effective, over all runs.
        inference_flops_dense: The same, dense-equivalent.
        steps: Steps that each run was trained for.
        tokens: Tokens that each run saw in training.
        data_digest: Of what it was trained on.
        figures: See evaluation.full.
        family: Name of the model family whose figures they are.
    """

    name: str
    checkpoints: list[str]
    num_trails: int
    weights: int
    dense_weights: int
    training_flops: float
    training_flops_dense: int
    inference_flops: int
    inference_flops_dense: int
    steps: int
    tokens: int
    data_digest: str
    figures: dict[str, Any]
    family: str = DEFAULT.name

    @property
    def headline(self) -> Headline:
        """The figure by which runs are compared."""
        return FAMILIES[self.family].headline(self.figures)

    @property
    def family_figures(self) -> dict[str, Any]:
        """The figures that are numbers, or a list of the trails' numbers: the family's own, under its names."""
        plain = {name: each for name, each in self.figures.items() if isinstance(each, int | float | list)}
        return {name: each for name, each in plain.items() if name != "tokens"}


def result_of(name: str, folders: Sequence[Path], mesh, kept: Path, overrides: Sequence[str] = ()) -> Result:
    """Return the result of a run, or of several together; evaluate it unless that has been done.

    Args:
        name: What to call it, and its file in ``kept``.
        folders: Checkpoints, or folders of runs (then their newest checkpoints).
        mesh: From training.evaluate_checkpoint.join, of one rank.
        kept: The folder of results.
        overrides: ``section.key=value`` over the runs' settings, for the evaluation.

    Raises:
        NTDistError: A checkpoint, its data or the settings cannot be used.
    """
    paths = [newest_checkpoint(folder) for folder in folders]
    stamp = {
        "version": __version__,
        "manifests": [hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest() for path in paths],
        "overrides": list(overrides),
    }
    file = kept / f"{name}.json"
    content = _read(file)
    if content.get("stamp") != stamp:
        _LOGGER.info("evaluating %s", name)
        content = {"stamp": stamp, **asdict(_evaluate(name, paths, mesh, overrides))}
        write_whole(file, json.dumps(content, indent=2) + "\n")
    return _result(content)


def read_result(file: Path) -> Result:
    """Read a result that was kept.

    Raises:
        RunError: It is not there, or damaged.
    """
    try:
        return _result(_read(file))
    except TypeError:
        raise RunError(f"{file}: is not there, or no result of this version") from None


def _result(content: dict[str, Any]) -> Result:
    return Result(**{key: value for key, value in content.items() if key != "stamp"})


def newest_checkpoint(folder: Path) -> Path:
    """Return the newest checkpoint of a run that a quick look finds whole, or ``folder`` where it is one.

    Raises:
        CheckpointError: There is none.
    """
    is_one, place = locate(folder)
    if is_one and (place / MANIFEST).is_file():
        return place
    whole = [] if is_one else [found.path for found in checkpoints(place) if not found.problem]
    if not whole:
        raise CheckpointError(f"{folder}: there is no whole checkpoint in it")
    return whole[-1]


def _read(file: Path) -> dict[str, Any]:
    """What was kept; empty if that cannot be used."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _evaluate(name: str, paths: Sequence[Path], mesh, overrides: Sequence[str]) -> Result:
    configs = [load_config(path / CONFIG, check_paths=False) for path in paths]
    progress = [read_manifest(path).progress for path in paths]
    if len(paths) == 1:
        figures = evaluate_checkpoint(paths[0], mesh, overrides=overrides, full=True).figures
    else:
        figures = evaluate_together(paths, mesh, overrides)
    counts = [count_parameters(config) for config in configs]
    flops = [token_flops(config) for config in configs]
    return Result(
        name=name,
        checkpoints=[str(path) for path in paths],
        num_trails=sum(config.trails.count for config in configs),
        weights=sum(count["stored"] for count in counts),
        dense_weights=sum(count["dense"] for count in counts),
        training_flops=sum(each.training_sparse for each in flops),
        training_flops_dense=sum(each.training_dense for each in flops),
        inference_flops=sum(each.inference_sparse for each in flops),
        inference_flops_dense=sum(each.inference_dense for each in flops),
        steps=max(each.step for each in progress),
        tokens=max(each.extra.get("tokens", 0) for each in progress),
        data_digest=progress[0].data_digest,
        figures=figures,
        family=configs[0].family.name,
    )
