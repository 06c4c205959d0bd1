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
from nt_dist.checkpoint.folder import Found, checkpoints, locate
from nt_dist.checkpoint.manifest import MANIFEST, read_manifest
from nt_dist.config.family import Headline
from nt_dist.errors import CheckpointError, RunError
from nt_dist.evaluation.evaluate_checkpoint import evaluate_checkpoint
from nt_dist.families import DEFAULT, FAMILIES
from nt_dist.files import write_whole
from nt_dist.model.flops import token_flops
from nt_dist.model.weights import count_parameters
from nt_dist.parallel.mesh import Mesh
from nt_dist.study.together import evaluate_together, saved_config

RESULTS = "results"
"""The folder beside a comparison in which results are kept."""
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """A run, or several together; costs are summed over all of them.

    Attributes:
        name: What it is called.
        trails: Members.
        weights_stored: As inactive ones are not stored, these are the active ones.
        weights_dense: Entries of the dense shapes.
        training_flops_sparse, training_flops_dense: Operations of training on one token; see model/flops.py.
        inference_flops_sparse, inference_flops_dense: Those of predicting from one token.
        steps: Steps that each run was trained for.
        tokens_seen: Tokens that each run saw in training.
        checkpoints: What was evaluated.
        data_digest: Of what it was trained on.
        figures: See evaluation.full.
        family: Name of the model family whose figures they are.
    """

    name: str
    trails: int
    weights_stored: int
    weights_dense: int
    training_flops_sparse: float
    training_flops_dense: int
    inference_flops_sparse: int
    inference_flops_dense: int
    steps: int
    tokens_seen: int
    checkpoints: list[str]
    data_digest: str
    figures: dict[str, Any]
    family: str = DEFAULT.name

    @property
    def costs(self) -> dict[str, Any]:
        """Its name and all that is a number."""
        return {key: value for key, value in vars(self).items() if key == "name" or isinstance(value, int | float)}

    @property
    def headline(self) -> Headline:
        """The figure by which runs are compared."""
        return FAMILIES[self.family].headline(self.figures)

    @property
    def num_samples(self) -> int:
        """What it was evaluated on, in the headline's samples."""
        return self.figures[self.headline.samples]

    @property
    def family_figures(self) -> dict[str, Any]:
        """The figures that are numbers, or a list of the trails' numbers: the family's own, under its names."""
        plain = {name: each for name, each in self.figures.items() if isinstance(each, int | float | list)}
        return {name: each for name, each in plain.items() if name != self.headline.samples}


def result_of(name: str, folders: Sequence[Path], mesh: Mesh, kept: Path, overrides: Sequence[str] = ()) -> Result:
    """Return the result of a run, or of several together; evaluate it unless that has been done.

    Args:
        name: What to call it, and its file in ``kept``.
        folders: Checkpoints, or folders of runs (then their newest checkpoints).
        mesh: From evaluation.evaluate_checkpoint.join, of one rank.
        kept: The folder of results.
        overrides: ``section.key=value`` over the runs' settings, for the evaluation.

    Raises:
        NTDistError: A checkpoint, its data or the settings cannot be used.
    """
    paths = [_newest_checkpoint(folder) for folder in folders]
    stamp = {
        "version": __version__,
        "manifests": [hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest() for path in paths],
        "overrides": list(overrides),
    }
    file = kept / f"{name}.json"
    found, of = _read(file)
    if found and of == stamp:
        return found
    _LOGGER.info("evaluating %s", name)
    result = _evaluate(name, paths, mesh, overrides)
    write_whole(file, json.dumps({"stamp": stamp, **asdict(result)}, indent=2) + "\n")
    return result


def read_result(file: Path) -> Result:
    """Read a result that was kept.

    Raises:
        RunError: It is not there, or damaged.
    """
    found, _ = _read(file)
    if not found:
        raise RunError(f"{file}: is not there, or no result of this version")
    return found


def _read(file: Path) -> tuple[Result | None, Any]:
    """What was kept and what it is of; None if that cannot be used."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        stamp = content.pop("stamp")
        return Result(**content), stamp
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None, None


def newest_whole(folder: Path) -> Found | None:
    """Return the newest checkpoint of a run that a quick look finds whole."""
    whole = [found for found in checkpoints(locate(folder)[1]) if not found.problem]
    return whole[-1] if whole else None


def _newest_checkpoint(folder: Path) -> Path:
    is_one, place = locate(folder)
    if is_one and (place / MANIFEST).is_file():
        return place
    found = None if is_one else newest_whole(folder)
    if not found:
        raise CheckpointError(f"{folder}: there is no whole checkpoint in it")
    return found.path


def _evaluate(name: str, paths: Sequence[Path], mesh: Mesh, overrides: Sequence[str]) -> Result:
    configs = [saved_config(path) for path in paths]
    progress = [read_manifest(path).progress for path in paths]
    if len(paths) == 1:
        figures = evaluate_checkpoint(paths[0], mesh, overrides=overrides, full=True).figures
    else:
        figures = evaluate_together(paths, mesh, overrides)
    counts = [count_parameters(config) for config in configs]
    flops = [token_flops(config) for config in configs]
    return Result(
        name=name,
        trails=sum(config.trails.count for config in configs),
        weights_stored=sum(count["stored"] for count in counts),
        weights_dense=sum(count["dense"] for count in counts),
        training_flops_sparse=sum(each.training_sparse for each in flops),
        training_flops_dense=sum(each.training_dense for each in flops),
        inference_flops_sparse=sum(each.inference_sparse for each in flops),
        inference_flops_dense=sum(each.inference_dense for each in flops),
        steps=max(each.step for each in progress),
        tokens_seen=max(each.extra.get("tokens", 0) for each in progress),
        checkpoints=[str(path) for path in paths],
        data_digest=progress[0].data_digest,
        figures=figures,
        family=configs[0].family.name,
    )
