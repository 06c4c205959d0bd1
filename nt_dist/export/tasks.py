"""What an export asks about what a model does: what belongs to it beside its weights, and how it is tried out."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    GenerationConfig,
    PreTrainedModel,
)

from nt_dist.config.settings import Config
from nt_dist.export.tokenizer import write_tokenizer
from nt_dist.images.decoding import scaled_side
from nt_dist.inference import Ensemble


class TextGeneration:
    """Tokens in, logits of the next token out, at once or through a key-value cache."""

    name = "text-generation"
    auto = AutoModelForCausalLM
    """transformers' class that loads any model for it."""
    example = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("this folder"{remote})
tokenizer = AutoTokenizer.from_pretrained("this folder"{remote})
tokens = tokenizer("A text", return_tensors="pt")
print(tokenizer.decode(model.generate(**tokens, max_new_tokens=50)[0]))
"""
    """Code for the card; ``{remote}`` stands for what allows remote code."""

    def sizes(self, config: Config) -> str:
        """What the card says of inputs and outputs."""
        sizes = "hidden size {0.hidden_size}, vocabulary {0.vocab_size:,}, sequences of {0.max_seq_len} tokens"
        return sizes.format(config.model)

    def settle(self, model: PreTrainedModel, ensemble: Ensemble) -> None:
        """Tell a model what the run knows beside its weights."""
        bos, eos = ensemble.tokenizer.bos, ensemble.tokenizer.eos
        model.generation_config = GenerationConfig(bos_token_id=bos, eos_token_id=eos, pad_token_id=eos)
        model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id = bos, eos, eos

    def write(self, ensemble: Ensemble, folder: Path, is_plain: bool) -> None:
        """Write what makes the model's inputs, for transformers; a DataError if it cannot be written so.

        ``is_plain`` says that no code of ours may be needed to read it.
        """
        write_tokenizer(ensemble.tokenizer, folder, ensemble.max_length, is_plain)

    def inputs(self, ensemble: Ensemble, folder: Path) -> tuple[torch.Tensor, dict[str, Any]]:
        """Return inputs to compare on: for the ensemble, and the same as the exported ``folder`` makes them."""
        shape = (2, min(ensemble.max_length, 64))
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(ensemble.config.model.vocab_size, shape, generator=generator)
        return tokens, {"input_ids": tokens}

    def more_pairs(self, model: PreTrainedModel, inputs: dict[str, Any], answer: Any) -> list[tuple]:
        """Return pairs of logits that have to agree, too, given the model's ``answer`` to ``inputs``: those of the last
        token alone, through a cache."""
        tokens = inputs["input_ids"]
        cache = model(tokens[:, :-1], use_cache=True)["cache"]
        return [(model(tokens[:, -1:], cache=cache).logits, answer.logits[:, -1:])]


class ImageClassification:
    """Pictures in, logits of their classes out; members as TextGeneration's."""

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

    def sizes(self, config: Config) -> str:
        side = config.model.image_size
        return f"pictures of {side} × {side} pixels, {config.model.num_classes:,} classes"

    def settle(self, model: PreTrainedModel, ensemble: Ensemble) -> None:
        model.config.id2label = dict(enumerate(ensemble.classes))
        model.config.label2id = {name: number for number, name in enumerate(ensemble.classes)}

    def write(self, ensemble: Ensemble, folder: Path, is_plain: bool) -> None:
        """Write the image processor, of a kind that needs Pillow only.

        It takes a picture's middle square, and leaves the customary margin around it if training cut parts out of
        larger pictures; without such crops they came in the model's size.
        """
        side, data = ensemble.config.model.image_size, ensemble.config.data
        settings = {
            "image_processor_type": "BitImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": scaled_side(side) if data.crop == "resized" else side},
            "resample": 2,  # bilinear
            "do_center_crop": True,
            "crop_size": {"height": side, "width": side},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(data.mean),
            "image_std": list(data.std),
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    def inputs(self, ensemble: Ensemble, folder: Path) -> tuple[torch.Tensor, dict[str, Any]]:
        side, generator = ensemble.config.model.image_size, torch.Generator().manual_seed(0)
        pictures = torch.randint(256, (2, side, side, 3), dtype=torch.uint8, generator=generator)
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        made = processor(list(pictures.numpy()), return_tensors="pt", do_resize=False, do_center_crop=False)
        return pictures, dict(made)

    def more_pairs(self, model: PreTrainedModel, inputs: dict[str, Any], answer: Any) -> list[tuple]:
        return []


Task = TextGeneration | ImageClassification
TASKS: dict[str, Task] = {task.name: task for task in (TextGeneration(), ImageClassification())}
"""By :attr:`nt_dist.config.family.Family.task`."""
