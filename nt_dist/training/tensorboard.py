"""What a run draws in TensorBoard: curves, and one weight's topology as it changes. The main rank alone writes.

Curves of a run that was killed and continues would go back in time; TensorBoard hides the old part when the new file
says from which step on it holds (``purge_step``).
"""

import io
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from nt_dist.engine.bad_steps import COUNTED
from nt_dist.sparsity.storage import Weight

PICTURE_SIDE = 256  # pixels at most, a side


class TensorBoard:
    """Writes the events of one run.

    Args:
        folder: ``<run.dir>/tensorboard``.
        last_step: The step that the run continues from (0: from the start); what older files say of later steps is
            hidden.
    """

    def __init__(self, folder: Path, last_step: int):
        # a picture is drawn at step 0, so a start hides that one too
        self._writer = SummaryWriter(str(folder), purge_step=last_step + 1 if last_step else 0)
        # the losses of all trails in one chart, a line each (Custom Scalars)
        charts = {
            "training": ["Multiline", ["loss_of_trail/.*"]],
            "validation": ["Multiline", ["validation_of_trail/.*"]],
        }
        self._writer.add_custom_scalars({"trails": charts})

    def training(self, record: dict[str, Any]) -> None:
        """Draws one logged step, given as its line of metrics.jsonl."""
        step = record["step"]
        for trail, loss in enumerate(record["loss_per_trail"]):
            self._scalar(f"loss_of_trail/{trail}", loss, step)
        for key, value in record.items():
            if isinstance(value, (int, float)) and key != "step":
                self._scalar(f"{_group(key)}/{key}", value, step)

    def evaluation(self, record: dict[str, Any], overlap: dict[str, float]) -> None:
        """Draws one evaluation.

        Args:
            record: Its line of metrics.jsonl.
            overlap: How alike the topologies of the trails are, by name of the figure.
        """
        step = record["step"]
        for trail, perplexity in enumerate(record["eval"]["ppl_trails"]):
            self._scalar(f"validation_of_trail/{trail}", perplexity, step)
        for key, value in record["eval"].items():
            if isinstance(value, (int, float)) and key != "tokens":
                self._scalar(f"validation/{key}", value, step)
        for key, value in overlap.items():
            self._scalar(f"topology/{key}", value, step)
        self._writer.flush()

    def topology(self, weight: Weight, step: int) -> None:
        """Draws which positions of a weight are active: one picture a call, a slider in TensorBoard."""
        self._writer.add_image(f"topology/{weight.spec.name}", topology_picture(weight), step, dataformats="HWC")

    def close(self) -> None:
        """Writes what is still in memory and ends the writer's thread."""
        self._writer.close()

    def _scalar(self, name: str, value: float, step: int) -> None:
        self._writer.add_scalar(name, value, step)


def draw_pictures(folder: Path, pictures: Mapping[str, bytes], step: int) -> None:
    """Show pictures of a finished run, or of several, in TensorBoard, in place of those shown before.

    Args:
        folder: A run's folder of events, or one for the pictures alone; they go into a folder of their own in it.
        pictures: The contents of PNG files by name.
        step: The step that they are of.
    """
    own = folder / "pictures"
    shutil.rmtree(own, ignore_errors=True)
    with SummaryWriter(str(own)) as writer:
        for name, png in pictures.items():
            with Image.open(io.BytesIO(png)) as image:
                writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")


def topology_picture(weight: Weight) -> np.ndarray:
    """Which positions of a matrix are active, as a picture.

    Up to three trails share the picture, one colour channel each: what all have is white, what none has is black. One
    trail alone is drawn in grey, and of more than three the first three are drawn. Matrices larger than 256 a side are
    shrunk, brightness then being the share of active positions.

    Args:
        weight: A weight whose local shape is two-dimensional.

    Returns:
        Colours 0..255, uint8 [height, width, 3].
    """
    index = weight.slot_index().cpu()[:3]
    active = torch.zeros(len(index), math.prod(weight.local_shape)).scatter_(1, index, 1.0)
    pictures = _shrink(active.view(-1, *weight.local_shape))
    if len(pictures) == 1:
        pictures = pictures.expand(3, -1, -1)
    channels = F.pad(pictures, (0, 0, 0, 0, 0, 3 - len(pictures)))
    return (255 * channels).round().to(torch.uint8).permute(1, 2, 0).numpy()


def pictured_weight(weights: dict[str, Weight]) -> Weight | None:
    """The weight to draw: the first sparse matrix of the trails, else of the trunk; None if nothing is sparse."""
    sparse = [weight for weight in weights.values() if weight.storage != "dense" and len(weight.local_shape) == 2]
    of_trails = [weight for weight in sparse if weight.spec.in_trail and weight.spec.role == "linear"]
    return next(iter(of_trails + sparse), None)


def _shrink(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures [trails, height, width] at most ``PICTURE_SIDE`` a side, by means over their parts."""
    return F.adaptive_avg_pool2d(pictures, [min(side, PICTURE_SIDE) for side in pictures.shape[1:]])


def _group(key: str) -> str:
    """The TensorBoard section in which a key of metrics.jsonl is drawn."""
    if key in ("loss", "objective", "lr", "grad_norm"):
        return "training"
    if key in COUNTED:
        return "guard"
    return "topology" if key in ("density", "drop_fraction", "regrown") else "speed"
