"""What a run draws in TensorBoard: curves, and one weight's topology as it changes. The main rank alone writes."""

import io
import os
import shutil
import socket
import textwrap
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import custom_scalars, image, scalar

from nt_dist.config.family import Headline
from nt_dist.engine.bad_steps import COUNTED
from nt_dist.evaluation.topology import Overlap
from nt_dist.files import Journal
from nt_dist.sparsity.weight import Weight

_EVENTS = "events.out.tfevents."  # how names of its files begin; the time at which each begins comes next
_PICTURES = "pictures"  # folder of the events that show those of finished runs
ENSEMBLE = "validation_of_ensemble/mean_of_probabilities"
_OF_TRAILS = "trails"  # charts with a line for each of them and for the ensemble
_SECTIONS_OF_TRAILS = {"loss_of_trail": "loss", "validation_of_trail": "validation"}
_OF_SOURCES = ("epochs_of_source", "share_of_source")  # keys of metrics.jsonl that have a number for each source
PICTURE_SIDE = 256  # pixels at most, a side; smaller pictures are enlarged by whole pixels
_LETTERS = 42  # in a line below a picture
_SECTIONS = {
    **dict.fromkeys(("loss", "objective", "joint_loss", "lr", "grad_norm", "epochs"), "training"),
    **dict.fromkeys(("density", "drop_fraction", "regrown"), "topology"),
    **dict.fromkeys(COUNTED, "warnings"),  # the last of all sections, as it mostly is flat
}  # of TensorBoard, in which keys of metrics.jsonl are drawn; "speed" has all others


class TensorBoard:
    """Writes the events of one run, without torch's SummaryWriter, whose thread dies for good of a disk that is full.

    TensorBoard has a colour for each folder of events, so each trail has one in the run's, and the ensemble: their
    lines in one chart have different colours.

    Curves of a run that was killed and continues from ``last_step`` (0: from the start) would go back in time;
    TensorBoard hides the old part when the new file says from which step on it holds (``purge_step``).
    """

    def __init__(self, folder: Path, last_step: int):
        self._folder, self._last_step = folder, last_step
        self._journals: dict[str, Journal] = {}
        for path in folder.glob("trail_*"):
            self._write(path.name)  # or what is left of a trail that is no more would stay
        charts = {name: ["Multiline", [f"{_OF_TRAILS}/{name}"]] for name in ("loss", "validation")}
        self._write("", Event(summary=custom_scalars({_OF_TRAILS: charts})))

    def training(self, record: Mapping[str, Any]) -> None:
        """Draws one logged step, given as its line of metrics.jsonl."""
        self.draw(record["step"], of_training(record))

    def topology(self, weight: Weight | None, step: int) -> None:
        """Draws which positions of a weight, if there is one, are active: a slider in TensorBoard, a picture a call."""
        if weight is not None:
            said = f"{weight.spec.name} at step {step}: where its active entries are. {_colours(len(weight.trails))}"
            shown = labelled(topology_picture(weight), said)
            picture = image(f"topology/{weight.spec.name}", shown, dataformats="HWC")
            self._write("", Event(step=step, summary=picture))

    def close(self) -> None:
        """Closes the files, with everything on disk."""
        for journal in self._journals.values():
            journal.close()

    def draw(self, step: int, numbers: Mapping[str, float]) -> None:
        """A point in the curve of each figure."""
        points: dict[str, list[Event]] = defaultdict(list)
        for name, value in numbers.items():
            line, tag = _line_of(name)
            points[line].append(Event(step=step, summary=scalar(tag, value)))
        for line, events in points.items():
            self._write(line, *events)

    def _write(self, line: str, *events: Event) -> None:
        if line not in self._journals:
            folder = self._folder / line
            name = f"{_EVENTS}{_begin(folder):017.6f}.{socket.gethostname()}.{os.getpid()}"
            self._journals[line] = Journal(folder / name, speaks=not line)
            # a picture is drawn at step 0, so a start hides that one too
            purged = self._last_step + 1 if self._last_step else 0
            start = Event(step=purged, session_log=SessionLog(status=SessionLog.START))
            events = Event(file_version="brain.Event:2"), start, *events
        record = io.BytesIO()
        for event in events:
            event.wall_time = time.time()
            RecordWriter(record).write(event.SerializeToString())
        self._journals[line].add(record.getvalue())


def _line_of(name: str) -> tuple[str, str]:
    """The folder in a run's, empty for the run's own, and the tag of a curve."""
    section, _, number = name.partition("/")
    if section in _SECTIONS_OF_TRAILS:
        return f"trail_{number}", f"{_OF_TRAILS}/{_SECTIONS_OF_TRAILS[section]}"
    kind = {"training/joint_loss": "loss", ENSEMBLE: "validation"}.get(name)
    return ("ensemble", f"{_OF_TRAILS}/{kind}") if kind else ("", name)


def of_training(record: Mapping[str, Any]) -> dict[str, float]:
    """The curves of a logged step by name, given as its line of metrics.jsonl."""
    figures = {f"{_SECTIONS.get(key, 'speed')}/{key}": value for key, value in record.items() if key != "step"}
    of_sources = {f"{key}/{name}": each for key in _OF_SOURCES for name, each in record.get(key, {}).items()}
    return _numbers(figures, "loss_of_trail", record["loss_per_trail"]) | of_sources


def of_evaluation(
    figures: Mapping[str, Any],
    headline: Headline,
    overlap: Overlap | None,
    sources: Mapping[str, Headline] | None = None,
) -> dict[str, float]:
    """The curves of an evaluation by name: the family's figures, how alike the topologies of the trails are, and what
    the mean of probabilities reaches on each source of a mixture."""
    curves = {f"validation/{key}": value for key, value in figures.items() if key != headline.samples}
    if overlap:
        curves |= {"topology/overlap": overlap.jaccard, "topology/overlap_by_chance": overlap.chance}
    of_sources = {f"validation_of_source/{name}": own.prob for name, own in (sources or {}).items()}
    return {**_numbers(curves, "validation_of_trail", headline.trails), ENSEMBLE: headline.prob, **of_sources}


def _numbers(figures: Mapping[str, Any], of_trail: str, trails: Sequence[float]) -> dict[str, float]:
    """The figures that are numbers, and those of each trail, which count from 1."""
    numbers = {key: value for key, value in figures.items() if isinstance(value, int | float)}
    return numbers | {f"{of_trail}/{trail}": value for trail, value in enumerate(trails, 1)}


def curves_folder(run: Path, top: Path) -> Path:
    """Return the folder of a run's curves in ``top``: one by its name, as TensorBoard calls a run by its folder, and
    ``top`` itself "."; or where the run has curves already."""
    begun = {file.parent for file in top.rglob(f"{_EVENTS}*") if file.parent.name != _PICTURES}
    return min(begun, key=lambda folder: (len(folder.parts), folder), default=top / run.resolve().name)


def _begin(folder: Path) -> float:
    """The time to call a new file by: now, but behind all files that are there.

    TensorBoard reads files in the order of their names: after a start in the same second, or on a host whose clock is
    behind, what was left would hide what is new.
    """
    seconds = [file.name.removeprefix(_EVENTS).partition(".")[0] for file in folder.glob(f"{_EVENTS}*")]
    return max([time.time(), *(int(each) + 1 for each in seconds if each.isdecimal())])


def draw_pictures(folder: Path, pictures: Mapping[str, bytes], step: int) -> None:
    """Show pictures (PNG files by name) of finished runs in TensorBoard, in place of those shown before."""
    own = folder / _PICTURES
    shutil.rmtree(own, ignore_errors=True)
    with SummaryWriter(str(own)) as writer:
        for name, png in pictures.items():
            with Image.open(io.BytesIO(png)) as image:
                writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")


def topology_picture(weight: Weight) -> np.ndarray:
    """Which positions of a matrix are active, as a picture; a kernel's rows are what makes up one output.

    Up to three trails share the picture, one colour channel each: what all have is white, what none has is black. One
    trail alone is drawn in grey, and of more than three the first three are drawn. Matrices larger than 256 a side are
    shrunk, brightness then being the share of active positions. Returns colours 0..255, uint8 [height, width, 3].
    """
    index = weight.slot_index().cpu()[:3]
    active = torch.zeros(len(index), *weight.local_shape).flatten(1).scatter_(1, index, 1.0)
    channels = shrunk(active.view(len(index), weight.local_shape[0], -1), PICTURE_SIDE)
    channels = channels.expand(3, -1, -1) if len(index) == 1 else F.pad(channels, (0, 0, 0, 0, 0, 3 - len(index)))
    return (255 * channels).round().to(torch.uint8).permute(1, 2, 0).numpy()


def _colours(trails: int) -> str:
    """What the colours of :func:`topology_picture` say."""
    if trails == 1:
        return "White: active; black: not."
    names = ", ".join(f"{colour}: trail {number}" for number, colour in enumerate(("red", "green", "blue")[:trails], 1))
    return f"{names.capitalize()}; {'white' if trails > 2 else 'yellow'}: active in all; black: in none."


def labelled(picture: np.ndarray, text: str) -> np.ndarray:
    """A picture [height, width, 3], enlarged where it is small, above what it shows, in words."""
    height, width = picture.shape[:2]
    scale = max(1, PICTURE_SIDE // max(height, width))
    large = Image.fromarray(picture).resize((scale * width, scale * height), Image.Resampling.NEAREST)
    lines = "\n".join(textwrap.wrap(text, _LETTERS))
    right, bottom = ImageDraw.Draw(large).multiline_textbbox((4, 4), lines)[2:]
    whole = Image.new("RGB", (max(large.width, int(right) + 5), large.height + int(bottom) + 5), "white")
    whole.paste(large)
    ImageDraw.Draw(whole).multiline_text((4, large.height + 4), lines, fill="black")
    return np.asarray(whole)


def shrunk(pictures: torch.Tensor, side: int) -> torch.Tensor:
    """Pictures [n, height, width] at most ``side`` a side, by means over their parts."""
    return F.adaptive_avg_pool2d(pictures, [min(each, side) for each in pictures.shape[1:]])


def pictured_weight(weights: Mapping[str, Weight]) -> Weight | None:
    """The weight to draw: the first sparse matrix of the trails, else of the trunk; None if nothing is sparse."""
    sparse = [weight for weight in weights.values() if weight.spec.is_sparse]
    of_trails = [weight for weight in sparse if weight.spec.in_trail and weight.spec.role == "linear"]
    return next(iter(of_trails + sparse), None)
