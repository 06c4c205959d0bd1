"""The folder of checkpoints: which are there and whole, which one is meant, how one comes in, and which old ones go.

    <run.dir>/checkpoints/step-00000100/        a checkpoint: committed by one rename
                          .step-00000200.writing    being written, or left by a save that was killed
                          .step-00000200.replaced   an older one of the same step, for the moment of its replacement
                          .step-00000200.removed    being deleted
                          latest                    the name of the newest, for people and scripts

A name without a dot in front is always a whole checkpoint, unless something outside damaged it.
"""

import contextlib
import datetime
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from nt_dist import files
from nt_dist.checkpoint.fragments import file_problems, write_file
from nt_dist.checkpoint.manifest import MANIFEST, Manifest, VersionError, read_manifest
from nt_dist.errors import CheckpointError, DiskError
from nt_dist.parallel.agree import agree
from nt_dist.parallel.mesh import Mesh

CHECKPOINTS = "checkpoints"  # in the folder of a run
LATEST = "latest"
_NAME = re.compile(r"step-(\d{8,18})")
_PASSING = re.compile(r"\.(step-\d{8,18})\.(writing|replaced|removed)")
_LOGGER = logging.getLogger(__name__)
T = TypeVar("T")


# -- what is there -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """A checkpoint as far as a quick look (manifest, names, sizes) tells."""

    path: Path
    step: int  # in its name
    manifest: Manifest | None  # if that is whole
    problem: str  # what is wrong with it, one line each; empty if nothing was seen
    foreign: bool = False  # it has another format version


def name_of(step: int) -> str:
    """Return the name of the checkpoint of ``step``."""
    return f"step-{step:08d}"


def look(path: Path) -> Found:
    """Take a quick look at the checkpoint in ``path``: no hashes."""
    match = _NAME.search(path.name)
    step = int(match[1]) if match else 0
    try:
        manifest = read_manifest(path)
    except CheckpointError as error:
        return Found(path, step, None, str(error), isinstance(error, VersionError))
    return Found(path, manifest.training_state.step, manifest, "\n".join(file_problems(path, manifest, hashes=False)))


def checkpoints(path: Path | str) -> list[Found]:
    """Return a quick look at every checkpoint of a run, or in a folder of checkpoints, from old to new.

    A CheckpointError if the folder cannot be read.
    """
    folder = _folder_in(Path(path))
    with files.reading(folder, CheckpointError):
        names = os.listdir(folder) if os.path.lexists(folder) else []  # a link to nothing is no start: a disk is away
    matches = [match for match in map(_PASSING.fullmatch, names) if match and match[2] == "replaced"]
    paths = {match[1]: folder / match[0] for match in matches}  # killed in mid-replacement: the old one is still good
    paths |= {name: folder / name for name in names if _NAME.fullmatch(name)}

    def age(found: Found) -> tuple[float, int]:  # one whose manifest is lost counts as new, so that it is spoken of
        return (found.manifest.serial if found.manifest else float("inf"), found.step)

    return sorted(map(look, paths.values()), key=age)


def _folder_in(path: Path) -> Path:
    return path / CHECKPOINTS if os.path.lexists(path / CHECKPOINTS) else path


# -- which one is meant ------------------------------------------------------------------------------------------------


def find(folder: Path | str, resume_from: str = "", mesh: Mesh | None = None) -> Path | None:
    """Return the checkpoint to start from, every hash in it checked; damaged ones are named in warnings.

    That is the newest whole one in ``folder``, or None if there is none at all; or the one that ``resume_from`` (a
    checkpoint, a folder of checkpoints or a run's folder) asks for. One outside ``folder`` is for the first start only:
    once ``folder`` has checkpoints of its own, the same command started again (a requeued job) goes on from those. One
    inside must be the newest: what is newer would be overwritten. The ranks of ``mesh`` divide the work and agree;
    without it, one looks alone.

    Raises:
        CheckpointError: ``resume_from`` is not there or damaged, or ``folder`` has newer ones; none of the checkpoints
            is whole, or one has another format version.
    """
    own = Path(folder)

    def goes_on() -> bool:
        if not resume_from:
            return True
        wanted, inside, found = Path(resume_from).resolve(), own.resolve(), checkpoints(own)
        if inside in wanted.parents:
            later = [each.path.name for each in _later(found, wanted) if each.foreign or not each.problem]
            if later:
                raise CheckpointError(
                    f"run.resume_from = {resume_from!r}: {own} has newer checkpoints, which would be overwritten: "
                    f"{', '.join(later)}; move them away, or start from it in another folder, run.dir=…"
                )
            return False
        if wanted in (inside, inside.parent) or not found:
            return False
        _LOGGER.warning("run.resume_from = %r is not used: %s has checkpoints of its own", resume_from, own)
        return True

    if on_main(mesh, goes_on):
        return _newest(own, mesh)
    return find_asked(Path(resume_from), mesh, f"run.resume_from = {resume_from!r}")


def _later(found: list[Found], path: Path) -> list[Found]:
    """Those that come after the one in ``path``, as :func:`checkpoints` orders them; all if it is none of them."""
    places = [each.path.resolve() for each in found]
    return found[places.index(path) + 1 :] if path in places else found


def find_asked(path: Path, mesh: Mesh | None = None, asked: str | None = None) -> Path:
    """Return the checkpoint that a user asks for, every hash in it checked; collective with a mesh.

    ``path`` is one, a folder of checkpoints or a run's folder (then its newest whole checkpoint); ``asked`` says for
    the message how the user asks, by default with ``--checkpoint``.

    Raises:
        CheckpointError: There is none, parts of it are missing or damaged, or it has another format version.
    """

    def look_there() -> tuple[Path, bool]:
        if (folder := _folder_in(path)) != path:
            return folder, False
        return path, not path.is_dir() or (path / MANIFEST).exists() or not checkpoints(path)

    place, is_one = on_main(mesh, look_there)
    if is_one:
        verify(place, mesh)
        return place
    found = _newest(place, mesh)
    if found is None:
        raise CheckpointError(f"{asked or f'--checkpoint {path}'}: there is no checkpoint in it")
    return found


def _newest(folder: Path, mesh: Mesh | None) -> Path | None:
    """The newest whole checkpoint in ``folder``; None if it has none at all."""

    def candidates() -> list[Found]:
        found = checkpoints(folder)[::-1]
        for each in found:
            if each.foreign:  # perhaps the newest, and whole: to go on from an older one would lose it unseen
                raise VersionError(each.problem)
        return [replace(each, manifest=None) for each in found]  # which travels to all ranks

    found = on_main(mesh, candidates)
    for each in found:
        try:
            if each.problem:
                raise CheckpointError(each.problem)
            verify(each.path, mesh)
            return each.path
        except CheckpointError as problem:
            if mesh is None or mesh.is_main:
                _LOGGER.warning("checkpoint %s is not used: %s", each.path.name, str(problem).replace("\n", "; "))
    if found:
        rule = f"none of the {len(found)} checkpoints is whole; move them away to start anew"
        raise CheckpointError(f"{folder}: {rule}")
    return None


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
        with mesh.working("reading") as beat:
            own = file_problems(path, manifest, mesh.rank, mesh.world_size, beat=beat)
        shares = mesh.gather_objects(own) if mesh.any(bool(own))[0] else []
    if any(shares):
        raise CheckpointError("\n".join(problem for share in shares for problem in share))
    return manifest


def on_main(mesh: Mesh | None, work: Callable[[], T]) -> T:
    """Do ``work`` on the main rank and give all ranks its result or error; without a mesh, do it."""
    return work() if mesh is None else agree(mesh, work, CheckpointError, only_main=True)


# -- how one comes in, and which go: on the main rank ------------------------------------------------------------------


def check_writable(folder: Path, mesh: Mesh) -> None:
    """Make the folder of checkpoints and try to write there from every rank, so that a run is refused at its start and
    not at its first save; a CheckpointError on all ranks. Collective."""

    def try_it() -> None:
        with files.writing(folder, CheckpointError), tempfile.TemporaryFile(dir=folder):
            pass

    def make() -> None:
        with files.writing(folder, CheckpointError):
            folder.mkdir(parents=True, exist_ok=True)

    on_main(mesh, make)
    agree(mesh, try_it, CheckpointError)


def begin(folder: Path, step: int) -> Path:
    """Make and return the temporary folder of the checkpoint of ``step``; clear away what killed saves left."""
    with files.writing(folder, DiskError):
        folder.mkdir(parents=True, exist_ok=True)
        for name in os.listdir(folder):
            match = _PASSING.fullmatch(name)
            with _warning(f"{folder / name}: left by a save that was killed, cannot be cleared away"):
                if match and match[2] == "replaced" and not os.path.lexists(folder / match[1]):
                    os.rename(folder / name, folder / match[1])
                elif match or name.startswith(f".{LATEST}."):
                    _remove(folder / name)
        writing = folder / f".{name_of(step)}.writing"
        writing.mkdir()
    return writing


def commit(writing: Path, manifest: Manifest) -> Path:
    """Turn a temporary folder whose files are all on the disk into a checkpoint, and return its path.

    The manifest is written with its serial and time filled in, then one rename makes the checkpoint be there. An older
    checkpoint of the same step is replaced. A DiskError where something cannot be written; the checkpoints that
    were there still are.
    """
    folder = writing.parent
    serial = max((found.manifest.serial for found in checkpoints(folder) if found.manifest), default=0) + 1
    saved_at = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    text = replace(manifest, serial=serial, saved_at=saved_at).to_json()
    write_file(writing / MANIFEST, [text.encode()])
    final = folder / name_of(manifest.training_state.step)
    replaced = folder / f".{final.name}.replaced"
    try:
        files.sync_folder(writing)
        if os.path.lexists(final):
            os.rename(final, replaced)
        os.rename(writing, final)
        files.sync_folder(folder)
    except OSError as error:
        if os.path.lexists(replaced) and not os.path.lexists(final):
            os.rename(replaced, final)
        raise DiskError(f"{final}: cannot be put in its place: {error.strerror}") from error
    with _warning(f"{replaced}: cannot be cleared away"):
        _remove(replaced)
    with _warning(f"{final} is saved"):
        files.write_whole(folder / LATEST, final.name + "\n", CheckpointError)
    return final


@contextlib.contextmanager
def _warning(what: str) -> Iterator[None]:
    """Turn what the disk refuses into a warning: for what no save depends on."""
    try:
        yield
    except (OSError, CheckpointError) as problem:
        _LOGGER.warning("%s: %s", what, getattr(problem, "strerror", None) or problem)


def _remove(path: Path) -> None:
    """Delete a folder, a file or a link, never what a link leads to; nothing if it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def to_prune(found: list[Found], keep: int, keep_every: int) -> list[Found]:
    """Return the checkpoints that are not to be kept.

    Kept are the ``keep`` newest that are whole, those whose step is a multiple of ``keep_every`` (0: none), and those
    that a quick look finds damaged, for a person to see; ``found`` is in the order of :func:`checkpoints`.
    """
    whole = [each for each in found if not each.problem]
    return [each for each in whole[: max(len(whole) - keep, 0)] if not keep_every or each.step % keep_every]


def delete(found: Found) -> None:
    """Delete a checkpoint, first its name, at once, then its files; a CheckpointError where that is not possible."""
    removed = found.path.with_name(f".{name_of(found.step)}.removed")
    try:
        _remove(removed)  # of a deletion that was killed
        os.rename(found.path, removed)
        _remove(removed)
    except OSError as error:
        raise CheckpointError(f"{found.path}: cannot be deleted: {error.strerror}") from error


def prune(folder: Path, keep: int, keep_every: int) -> None:
    """Delete the checkpoints that are not to be kept; what cannot be looked at or deleted is a warning."""
    with _warning("old checkpoints stay"):
        for found in to_prune(checkpoints(folder), keep, keep_every):
            with _warning("an old checkpoint stays"):
                delete(found)
