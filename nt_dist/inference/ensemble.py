"""A checkpoint as a model to compute with, on one device.

Shapes: T trails, B samples, S positions (tokens; 1 of a picture), V classes (pieces of the tokenizer; padding is cut
off).
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from nt_dist.checkpoint.folder import find_asked
from nt_dist.checkpoint.manifest import Manifest, read_manifest
from nt_dist.checkpoint.weights import load_values
from nt_dist.config import Config
from nt_dist.config.settings import AVERAGE
from nt_dist.errors import ConfigError
from nt_dist.evaluation.predictions import mean_of_probs
from nt_dist.families import make_config
from nt_dist.llama.layers import Cache, step
from nt_dist.model.trails import TrailsModel, build_model
from nt_dist.text.tokenizer import Tokenizer

PROB, LOGIT = "prob", "logit"


@dataclass(frozen=True)
class Ensemble:
    """The trails of a checkpoint and, if they read text, the tokenizer that they were trained with."""

    model: TrailsModel  # all of it, in evaluation mode, without gradients
    config: Config  # the settings that it was trained with, but on one device
    tokenizer: Tokenizer | None
    checkpoint: Path
    manifest: Manifest

    @property
    def num_trails(self) -> int:
        """T."""
        return self.config.trails.count

    @property
    def max_length(self) -> int:
        """Tokens of the sequences that it was trained on."""
        return self.config.model.max_seq_len

    @property
    def classes(self) -> list[str]:
        """Names of the classes that pictures have, V of them; a number where the data name none."""
        known = self.manifest.training_state.extra.get("classes", [])
        return [*known, *map(str, range(len(known), self.config.family.num_outputs(self.config)))]

    def check_task(self, task: str) -> None:
        """Raise a ConfigError unless the model does ``task``; see :attr:`nt_dist.config.family.Family.task`."""
        family = self.config.family
        if family.task != task:
            rule = f"model.family = {family.name!r} is for {family.task}; this is for {task}"
            raise ConfigError([f"{self.checkpoint}: {rule}"])

    @torch.no_grad()
    def logits(self, inputs: torch.Tensor, cache: Cache | None = None) -> torch.Tensor:
        """Return the trails' logits [T, B, S, V], in the model's own type, for tokens [B, S] or pictures [B, H, W, 3].

        ``cache`` has the tokens before these, in the same order of sequences; these join it. None: there are none.
        """
        inputs = inputs.to(next(self.model.parameters()).device)
        logits = self.model(inputs) if cache is None else step(self.model, inputs, cache)
        return logits[..., : self.config.family.num_outputs(self.config)]


def combine(logits: torch.Tensor, how: str | int = PROB) -> torch.Tensor:
    """Return log-probabilities, fp32 [..., V], of logits [T, ..., V].

    ``how`` is "prob" for the mean of the trails' probabilities (Lakshminarayanan et al., arXiv 1612.01474, §2.4),
    "logit" for the softmax of the mean of their logits (arXiv 2505.17909), or one trail's number, from 1.
    """
    if how == PROB:
        return mean_of_probs(logits.float().log_softmax(-1))
    assert how == LOGIT or how in range(1, len(logits) + 1), how
    return (logits.float().mean(0) if how == LOGIT else logits[how - 1].float()).log_softmax(-1)


def parse_combination(text: str, num_trails: int, key: str = "combine") -> str | int:
    """Read what :func:`combine` takes from a command line, where it is called ``key``."""
    if text in (PROB, LOGIT):
        return text
    if text.isdecimal() and 1 <= int(text) <= num_trails:
        return int(text)
    raise ConfigError([f"{key} = {text!r} must be 'prob', 'logit' or a trail's number from 1 to {num_trails}"])


def parse_device(text: str) -> torch.device:
    """Read the name of a device; ConfigError if there is none of that name."""
    try:
        place = torch.zeros(1, device=text)
        place.item()  # of "meta" there is none
        return place.device
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without CUDA
        raise ConfigError([f"--device {text!r} cannot be used: {str(error).splitlines()[0]}"]) from None


def load_ensemble(
    checkpoint: Path | str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    tokenizer: Path | None = None,
    prepared: Path | None = None,
) -> Ensemble:
    """Load a trained ensemble for computing with it; needs no DeepSpeed and no process group.

    ``checkpoint`` is one, a folder of them or a run's folder (then its newest whole one); ``tokenizer`` is a
    tokenizer's file and ``prepared`` a folder of prepared texts, where the run's own are no longer in their place.

    Raises:
        CheckpointError: There is none, it is damaged or of another format version.
        DataError: The tokenizer is not the run's, or is not there.
        ConfigError: The checkpoint's settings are no config, or there are no texts to have a tokenizer.
    """
    path = find_asked(Path(checkpoint))
    manifest = read_manifest(path)
    sections = {name: dict(values) for name, values in manifest.config.items()} | {"parallel": {}}
    # dense: to build a matrix from values and index costs a step of one token more than its product
    sections.setdefault("sparsity", {})["storage"] = "masked"
    sections.setdefault("train", {})["precision"] = "fp32"  # the values are; bf16 would ask for ZeRO
    config = make_config(sections)
    found = config.family.tokenizer(config, manifest.training_state, path.parent.parent, prepared, tokenizer)
    model = build_model(config, device="meta").to_empty(device=device).eval().requires_grad_(False)
    load_values(path, manifest, model, averaged=AVERAGE in config.train.moments)
    return Ensemble(model.to(dtype), config, found, path, manifest)
