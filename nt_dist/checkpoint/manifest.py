"""The manifest of a checkpoint: what it holds, in which files, and how to tell that it is whole.

``manifest.json`` is written last and names every other file with its size and SHA-256, every weight with its global
shape, and for every (trail, shard) of it the file that holds that fragment. It says nothing about who computed what: no
storage, ZeRO stage, precision or mesh is needed to read it. Reading trusts nothing: the file is data from outside.
"""

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, InstanceOf, StrictBool, StrictStr, TypeAdapter, ValidationError

from nt_dist.config.load import RUN_CONFIG
from nt_dist.config.settings import ADAMW_MOMENTS, AVERAGE
from nt_dist.errors import CheckpointError
from nt_dist.files import FileEntry, check_plain, reading

FORMAT = "nt_dist checkpoint"
VERSION = 1
MANIFEST = "manifest.json"
CONFIG = RUN_CONFIG  # beside it
_MOST_POSITIONS = 1 << 31
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class VersionError(CheckpointError):
    """A checkpoint of another format version: whole, perhaps, but not for this program to judge."""


def _plain_file(name: str) -> str:
    if not _FILE_NAME.fullmatch(name) or name == MANIFEST:  # never a path that leads out of the checkpoint
        raise ValueError("must be a plain file name")
    return name


def _different_names(names: tuple[str, ...]) -> tuple[str, ...]:
    if not all(name.isidentifier() for name in names):
        raise ValueError("must be a list of names")
    if len({"value", "positions", *names}) != len(names) + 2:
        raise ValueError("must be different names, none of them value or positions")
    return names


# What a manifest is checked for when it is read; nothing is taken for what it is not (1 for true, "1" for 1).
Count = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Counts = Annotated[tuple[Count, ...], Field(min_length=1)]
Degree = Annotated[int, Field(strict=True, ge=1, lt=2**31)]
FileName = Annotated[StrictStr, AfterValidator(_plain_file)]
Moments = Annotated[tuple[StrictStr, ...], AfterValidator(_different_names)]


@dataclass(frozen=True)
class TrainingState:
    """Where a run stands, apart from its weights."""

    step: Count  # optimizer steps taken
    consumed_samples: Count  # taken from the order of samples; the next one has this number
    adam_step: Count  # Adam's own count of steps, which lags behind when steps are skipped
    data_digest: StrictStr  # of the prepared training data
    extra: dict[str, Any] = field(default_factory=dict)  # what else has to survive, as JSON: skipped samples, for one


@dataclass(frozen=True)
class FragmentEntry:
    """The file of one (trail, shard) of a weight, and the checksum of its positions (None if the weight is dense)."""

    file: StrictStr
    checksum: StrictStr | None


@dataclass(frozen=True)
class WeightEntry:
    """One weight as all layouts know it: the fields of its ``WeightSpec`` that give a fragment its meaning."""

    shape: Counts
    cut_axis: Count
    trails: Degree
    shards: Degree
    valid: Count
    density: InstanceOf[float]  # 1 is dense, without positions
    slots: Counts  # of every shard
    fragments: dict[str, FragmentEntry] = field(default_factory=dict)  # by "trail/shard"
    is_statistic: StrictBool = False  # no weight: it has values, perhaps averages, and no moments

    @property
    def is_sparse(self) -> bool:
        """Whether fragments have positions."""
        return self.density < 1.0

    @property
    def shard_elements(self) -> int:
        """Entries of one shard's block, padding included."""
        return math.prod(self.shape) // self.shards

    def expected_fragments(self) -> list[str]:
        """Return the names of all fragments, trail by trail."""
        return [f"{trail}/{shard}" for trail in range(self.trails) for shard in range(self.shards)]

    def description(self) -> dict[str, Any]:
        """Return what must be the same to load it; of the density, whose last digits need not be, what it led to."""
        values = {key: value for key, value in vars(self).items() if key not in ("fragments", "density")}
        return {**values, "sparse": self.is_sparse}


def _consistent(entry: WeightEntry) -> WeightEntry:
    if entry.cut_axis >= len(entry.shape):
        raise ValueError("cut_axis must be an axis of its shape")
    if len(entry.slots) != entry.shards:
        raise ValueError("slots must be one number for each shard")
    if entry.shape[entry.cut_axis] % entry.shards or max(entry.slots) > entry.shard_elements:
        raise ValueError("slots must be within a shard of its shape")
    if entry.is_sparse and entry.shard_elements > _MOST_POSITIONS:
        raise ValueError(f"shape must be of at most {_MOST_POSITIONS} entries a shard, for positions are int32")
    count = entry.trails * entry.shards  # which may be too large to list what is expected
    if len(entry.fragments) != count or sorted(entry.fragments) != sorted(entry.expected_fragments()):
        raise ValueError("fragments must be one for each trail and shard")
    for key, fragment in entry.fragments.items():
        if (fragment.checksum is None) == entry.is_sparse:
            raise ValueError(f"checksum of {key} must be {'text' if entry.is_sparse else 'null in a dense weight'}")
    return entry


@dataclass(frozen=True)
class Manifest:
    """All that a checkpoint says about itself.

    ``serial`` is one more than that of every checkpoint that was in the folder: it orders checkpoints by when they were
    made, even if the clock jumped or the run went back to an earlier step.
    """

    serial: Count
    saved_at: StrictStr  # local time, for people
    written_by: StrictStr  # version of nt_dist
    training_state: TrainingState  # in the file its keys stand beside the others
    moments: Moments  # what is kept beside each value: config.train.moments
    layout: dict[str, Any]  # degrees of the mesh, ZeRO stage and precision that wrote it, for people
    config: dict[str, dict[str, Any]]  # resolved, section by section
    files: dict[FileName, FileEntry]  # all but the manifest
    weights: dict[str, Annotated[WeightEntry, AfterValidator(_consistent)]]  # statistics too

    def states_of(self, name: str) -> tuple[str, ...]:
        """Return what a fragment of a weight has for each of its positions; a statistic has its average alone."""
        is_statistic = self.weights[name].is_statistic
        return ("value", *(state for state in self.moments if state == AVERAGE or not is_statistic))

    def to_json(self) -> str:
        """Return the text of ``manifest.json``, its own digest included; a CheckpointError if JSON cannot hold it."""
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        content |= content.pop("training_state")
        try:
            content["digest"] = _digest(content)
            return json.dumps(content, indent=1, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"the state of the run cannot be written as JSON: {error}") from error


def _with_its_files(manifest: Manifest) -> Manifest:
    for name, entry in manifest.weights.items():
        for key, fragment in entry.fragments.items():
            if fragment.file not in manifest.files:
                raise ValueError(f"file of {name}/{key} must be one of the checkpoint's files")
    return manifest


_MANIFEST = TypeAdapter(Annotated[Manifest, AfterValidator(_with_its_files)])


def _digest(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_manifest(checkpoint: Path | str) -> Manifest:
    """Read the manifest in a checkpoint's folder and check that it is whole and means something.

    Raises:
        VersionError: It has another format version.
        CheckpointError: It is missing, unreadable, damaged or malformed; the message names the file.
    """
    path = Path(checkpoint) / MANIFEST
    with reading(path, CheckpointError):
        try:
            check_plain(path)
            return parse_manifest(path.read_bytes(), str(path))
        except (FileNotFoundError, NotADirectoryError):
            raise CheckpointError(f"{path}: missing: not a checkpoint, or an unfinished one") from None


def parse_manifest(text: bytes, path: str) -> Manifest:
    """Parse the text of a manifest; ``path`` is for messages. Raises as :func:`read_manifest`."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path}: damaged: not JSON") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f'{path}: damaged, or not a checkpoint of nt_dist: "format" is not "{FORMAT}"')
    if content.get("version") != VERSION:
        found = repr(content.get("version"))[:40]
        raise VersionError(f"{path}: format version {found}; this program reads version {VERSION}")
    written = content.pop("digest", None)
    try:
        computed = _digest(content)
    except (ValueError, RecursionError):
        computed = None
    if computed is None or written != computed:
        raise CheckpointError(f"{path}: damaged: its content does not match its digest")
    content.setdefault("moments", ADAMW_MOMENTS)  # before there was SGD, none were named
    try:
        return _MANIFEST.validate_python({**content, "training_state": content})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(key) for key in first["loc"] if key != "training_state")
        raise CheckpointError(f"{path}: malformed: {where}: {first['msg']}") from None
