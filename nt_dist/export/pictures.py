"""Exports of models that classify pictures."""

import json

import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification

from nt_dist.export.task import Task
from nt_dist.images.decoding import scaled_side


class ImageClassification(Task):
    """Pictures in, logits of their classes out."""

    name = "image-classification"
    auto = AutoModelForImageClassification
    example = """\
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained("this folder"{remote})
processor = AutoImageProcessor.from_pretrained("this folder")
logits = model(**processor(Image.open("a picture.png"), return_tensors="pt")).logits
print(model.config.id2label[int(logits.argmax())])
"""

    def sizes(self, config):
        side = config.model.image_size
        return f"pictures of {side} × {side} pixels, {config.model.num_classes:,} classes"

    def settle(self, model, ensemble):
        model.config.id2label = dict(enumerate(ensemble.classes))
        model.config.label2id = {name: number for number, name in enumerate(ensemble.classes)}

    def write(self, ensemble, folder):
        """Write the image processor, of a kind that needs Pillow only; see :meth:`Task.write`.

        It takes a picture's middle square, and leaves the customary margin around it if training cut parts out of
        larger pictures; without such crops they came in the model's size.
        """
        config = ensemble.config
        side = config.model.image_size
        settings = {
            "image_processor_type": "BitImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": scaled_side(side) if config.data.crop == "resized" else side},
            "resample": 2,  # bilinear
            "do_center_crop": True,
            "crop_size": {"height": side, "width": side},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(config.data.mean),
            "image_std": list(config.data.std),
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    def inputs(self, ensemble, folder):
        """Random pictures of the model's size; see :meth:`Task.inputs`."""
        side, generator = ensemble.config.model.image_size, torch.Generator().manual_seed(0)
        pictures = torch.randint(256, (2, side, side, 3), dtype=torch.uint8, generator=generator)
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        as_they_are = {"do_resize": False, "do_center_crop": False}
        return pictures, dict(processor(list(pictures.numpy()), return_tensors="pt", **as_they_are))
