"""The folder of checkpoints: which are there and whole, how a new one comes in, and which old ones go.

    <run.dir>/checkpoints/step-00000100/        a checkpoint: committed by one rename
                          .step-00000200.writing    being written, or left by a save that was killed
                          .step-00000200.replaced   an older one of the same step, for the moment of its replacement
                          .step-00000200.removed    being deleted
                          latest                    the name of the newest, for people and scripts

A name without a dot in front is always a whole checkpoint, unless something outside damaged it. This module knows no
ranks: checkpoint.py says who calls what.
"""

import datetime
import logging
import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from nt_dist.checkpoint.fragments import file_problems, replace_file, sync_folder, write_file
from nt_dist.checkpoint.manifest import MANIFEST, Manifest, VersionError, read_manifest
from nt_dist.errors import CheckpointError

LATEST = "latest"
_NAME = re.compile(r"step-(\d{8,18})")
_PASSING = re.compile(r"\.(step-\d{8,18})\.(writing|replaced|removed)")
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """A checkpoint as far as a quick look (manifest, names, sizes) tells.

    Attributes:
        path: Its folder.
        step: The step in its name.
        manifest: Its manifest, if that is whole.
        problem: What is wrong with it, one line each; empty if nothing was seen.
        foreign: It has another format version.
    """

    path: Path
    step: int
    manifest: Manifest | None
    problem: str
    foreign: bool = False

    @property
    def age(self) -> tuple[float, int]:
        """A key that sorts from old to new; one whose manifest is lost counts as new, so that it is spoken of."""
        return (self.manifest.serial if self.manifest else float("inf"), self.step)


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
    problems = file_problems(path, manifest, hashes=False)
    return Found(path, manifest.progress.step, manifest, "\n".join(problems))


def checkpoints(folder: Path | str) -> list[Found]:
    """Return a quick look at every checkpoint in ``folder``, from old to new; none if there is no such folder.

    Raises:
        CheckpointError: The folder cannot be read.
    """
    folder = Path(folder)
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read: {error.strerror}") from None
    paths = {name: folder / name for name in names if _NAME.fullmatch(name)}
    for name in names:  # killed between the two renames of a replacement: the old one is still good
        match = _PASSING.fullmatch(name)
        if match and match[2] == "replaced":
            paths.setdefault(match[1], folder / name)
    return sorted((look(path) for path in paths.values()), key=lambda found: found.age)


def locate(path: Path) -> tuple[bool, Path]:
    """Return whether ``path`` is meant as one checkpoint, and the checkpoint or the folder of checkpoints meant."""
    if (path / "checkpoints").is_dir():  # a run's folder
        return False, path / "checkpoints"
    return not (path.is_dir() and not (path / MANIFEST).exists() and checkpoints(path)), path


def is_inside(path: Path, folder: Path) -> bool:
    """Return whether ``path`` is ``folder``, lies in it, or is the run that it belongs to."""
    path, folder = path.resolve(), folder.resolve()
    return path in (folder, folder.parent) or folder in path.parents


def begin(folder: Path, step: int) -> Path:
    """Make and return the temporary folder of the checkpoint of ``step``; clear away what killed saves left.

    Raises:
        CheckpointError: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in os.listdir(folder):
            match = _PASSING.fullmatch(name)
            if match and match[2] == "replaced" and not (folder / match[1]).exists():
                os.rename(folder / name, folder / match[1])
            elif match:
                shutil.rmtree(folder / name)
        writing = folder / f".{name_of(step)}.writing"
        writing.mkdir()
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written: {error.strerror}") from error
    return writing


def give_up(writing: Path) -> None:
    """Delete the temporary folder of a save that failed; what cannot be deleted, the next save clears away."""
    shutil.rmtree(writing, ignore_errors=True)


def commit(folder: Path, writing: Path, manifest: Manifest) -> Path:
    """Turn a temporary folder whose files are all on the disk into a checkpoint, and return its path.

    The manifest is written with its serial and time filled in, then one rename makes the checkpoint be there. An older
    checkpoint of the same step is replaced.

    Raises:
        CheckpointError: Something cannot be written; the checkpoints that were there still are.
    """
    serial = max((found.manifest.serial for found in checkpoints(folder) if found.manifest), default=0) + 1
    saved_at = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    text = replace(manifest, serial=serial, saved_at=saved_at).to_json()
    write_file(writing / MANIFEST, [text.encode()])
    sync_folder(writing)
    final = folder / name_of(manifest.progress.step)
    replaced = folder / f".{final.name}.replaced"
    try:
        if final.exists():
            os.rename(final, replaced)
        os.rename(writing, final)
    except OSError as error:
        if replaced.exists() and not final.exists():
            os.rename(replaced, final)
        raise CheckpointError(f"{final}: cannot be put in its place: {error.strerror}") from error
    sync_folder(folder)
    shutil.rmtree(replaced, ignore_errors=True)
    replace_file(folder / LATEST, final.name + "\n")
    return final


def to_prune(found: list[Found], keep: int, keep_every: int) -> list[Found]:
    """Return the checkpoints that are not to be kept.

    Kept are the ``keep`` newest that are whole, those whose step is a multiple of ``keep_every`` (0: none), and those
    that a quick look finds damaged, for a person to see; ``found`` is in the order of :func:`checkpoints`.
    """
    whole = [each for each in found if not each.problem]
    return [each for each in whole[: max(len(whole) - keep, 0)] if not keep_every or each.step % keep_every]


def delete(found: Found) -> None:
    """Delete a checkpoint: first its name, at once, then its files.

    Raises:
        CheckpointError: It cannot be deleted.
    """
    removed = found.path.with_name(f".{name_of(found.step)}.removed")
    try:
        if removed.exists():
            shutil.rmtree(removed)
        os.rename(found.path, removed)
        shutil.rmtree(removed)
    except OSError as error:
        raise CheckpointError(f"{found.path}: cannot be deleted: {error.strerror}") from error


def prune(folder: Path, keep: int, keep_every: int) -> None:
    """Delete the checkpoints that are not to be kept; one that cannot be deleted is a warning."""
    for found in to_prune(checkpoints(folder), keep, keep_every):
        try:
            delete(found)
        except CheckpointError as error:
            _LOGGER.warning("%s", error)
