"""Which checkpoint a run starts from, and whether one is whole."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from nt_dist.checkpoint import folder as checkpoint_folder
from nt_dist.checkpoint.fragments import file_problems
from nt_dist.checkpoint.manifest import Manifest, VersionError, read_manifest
from nt_dist.errors import CheckpointError
from nt_dist.parallel.agree import agree
from nt_dist.parallel.mesh import Mesh

_LOGGER = logging.getLogger(__name__)
T = TypeVar("T")


def find(folder: Path | str, resume_from: str = "", mesh: Mesh | None = None) -> Path | None:
    """Return the checkpoint to start from, every hash in it checked; damaged ones are named in warnings.

    Args:
        folder: The folder of checkpoints, ``<run.dir>/checkpoints``.
        resume_from: A checkpoint, a folder of checkpoints or a run's folder to start from; empty for ``folder``. One
            outside ``folder`` is for the first start only: once ``folder`` has checkpoints of its own, the same command
            started again (a requeued job) goes on from those. One inside goes back to it each time.
        mesh: The ranks, who divide the work and agree; None to look alone.

    Returns:
        The newest whole checkpoint, or ``resume_from``; None if there is none at all and none was asked for.

    Raises:
        CheckpointError: ``resume_from`` is not there or damaged, none of the checkpoints is whole, or one has another
            format version.
    """
    speaks = mesh is None or mesh.is_main
    path, is_one = on_main(mesh, lambda: _start(Path(folder), resume_from))
    if is_one:
        verify(path, mesh)
        return path
    found = on_main(mesh, lambda: _candidates(path))
    for path, problem in found:
        problem = problem or _damage(path, mesh)
        if not problem:
            return path
        if speaks:
            _LOGGER.warning("checkpoint %s is not used: %s", path.name, problem.replace("\n", "; "))
    if found:
        rule = f"none of the {len(found)} checkpoints is whole; move them away to start anew"
        raise CheckpointError(f"{found[0][0].parent}: {rule}")
    return None


def find_asked(path: Path, mesh: Mesh | None = None) -> Path:
    """Return the checkpoint that a command's ``--checkpoint`` means, every hash in it checked; collective with a mesh.

    Args:
        path: A checkpoint, a folder of checkpoints or a run's folder (then its newest whole checkpoint).
        mesh: As for :func:`find`.

    Raises:
        CheckpointError: There is none, parts of it are missing or damaged, or it has another format version.
    """
    is_one, place = on_main(mesh, lambda: checkpoint_folder.locate(path))
    if is_one:
        verify(place, mesh)
        return place
    found = find(place, mesh=mesh)
    if found is None:
        raise CheckpointError(f"--checkpoint {path}: there is no checkpoint in it")
    return found


def _start(own: Path, resume_from: str) -> tuple[Path, bool]:
    """Return the checkpoint (and True) or the folder of checkpoints (and False) to look at."""
    if not resume_from:
        return own, False
    wanted = Path(resume_from)
    if not checkpoint_folder.is_inside(wanted, own) and checkpoint_folder.checkpoints(own):
        _LOGGER.warning("run.resume_from = %r is not used: %s has checkpoints of its own", resume_from, own)
        return own, False
    is_one, path = checkpoint_folder.locate(wanted)
    if not is_one and not checkpoint_folder.checkpoints(path):
        raise CheckpointError(f"run.resume_from = {resume_from!r}: there is no checkpoint in {path}")
    return path, is_one


def _candidates(folder: Path) -> list[tuple[Path, str]]:
    """Return (path, what a quick look finds wrong) of the checkpoints in ``folder``, the newest first."""
    found = checkpoint_folder.checkpoints(folder)[::-1]
    for each in found:
        if each.foreign:  # perhaps the newest, and whole: to go on from an older one would lose it unseen
            raise VersionError(each.problem)
    return [(each.path, each.problem) for each in found]


def _damage(path: Path, mesh: Mesh | None) -> str:
    try:
        verify(path, mesh)
    except CheckpointError as error:
        return str(error)
    return ""


def verify(path: Path | str, mesh: Mesh | None = None) -> Manifest:
    """Read a checkpoint's manifest and check size and SHA-256 of every file; ranks divide the files. Collective.

    Raises:
        CheckpointError: With everything that is wrong, file by file.
    """
    path = Path(path)
    manifest = on_main(mesh, lambda: read_manifest(path))
    if mesh is None:
        shares = [file_problems(path, manifest)]
    else:
        shares = mesh.gather_objects(file_problems(path, manifest, mesh.rank, mesh.world_size))
    problems = [problem for share in shares for problem in share]
    if problems:
        raise CheckpointError("\n".join(problems))
    return manifest


def on_main(mesh: Mesh | None, work: Callable[[], T]) -> T:
    """Do ``work`` on the main rank and give all ranks its result or error; without a mesh, do it."""
    return work() if mesh is None else agree(mesh, work, CheckpointError, only_main=True)
