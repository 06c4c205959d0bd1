"""A model of another program, which a family can take its weights from."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from nt_dist.config.settings import Config
from nt_dist.model.weights import statistic_specs, weight_specs
from nt_dist.sparsity.spec import WeightSpec

_WITHOUT_EFFECT = """
model_type architectures transformers_version _name_or_path _commit_hash dtype torch_dtype initializer_range
output_attentions output_hidden_states output_scores return_dict return_dict_in_generate torchscript use_bfloat16
tf_legacy_loss use_cache id2label label2id num_labels problem_type finetuning_task task_specific_params
tokenizer_class prefix bos_token_id eos_token_id pad_token_id sep_token_id unk_token_id decoder_start_token_id
chunk_size_feed_forward is_decoder is_encoder_decoder tie_encoder_decoder tie_word_embeddings max_length
min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p
repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
num_return_sequences forced_bos_token_id forced_eos_token_id remove_invalid_values
exponential_decay_length_penalty suppress_tokens begin_suppress_tokens _attn_implementation_autoset
"""  # what any config.json of transformers may say without changing logits
EXPORT_ONLY = frozenset({"auto_map", "combine", "fork_at_embedding"})
"""What an ensemble that we exported says besides its sizes; :func:`exported_problems` has the last."""


@dataclass(frozen=True)
class Foreign(ABC):
    """A model in one of the layouts that a family knows; each layout is a class."""

    path: Path  # its folder
    settings: dict[str, Any]  # its config.json
    shapes: Mapping[str, tuple[int, ...]]  # of every tensor that is part of the model, by key
    read: Callable[[str], torch.Tensor]  # gives a tensor, by key

    title: ClassVar[str]  # what has this layout, as in "a dense LLaMA"
    sign: ClassVar[str]  # what tells it from others, for messages
    model_types: ClassVar[tuple[str | None, ...]]  # those in config.json that are known to compute the same
    without_effect: ClassVar[frozenset[str]] = frozenset()  # settings of its own that change no logits
    may_be_pickled: ClassVar[bool] = False  # whether it is also read from pytorch_model.bin

    @classmethod
    @abstractmethod
    def fits(cls, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Say whether tensors are in this layout."""

    @abstractmethod
    def key(self, config: Config, spec: WeightSpec, trail: int) -> str:
        """Return the key of what a weight's or statistic's trail is taken from."""

    @abstractmethod
    def sizes(self, config: Config) -> dict[str, tuple[str, Any]]:
        """Return what a config shares with :attr:`settings`: by our key, their name and our value."""

    @abstractmethod
    def defaults(self) -> dict[str, Any]:
        """Return what settings mean, by name, that say nothing."""

    @abstractmethod
    def same(self, config: Config) -> dict[str, Any]:
        """Return the only value, by name, of settings that change what is computed and that a config has no key for."""

    @abstractmethod
    def rules(self, config: Config) -> Iterator[str]:
        """Yield a message for each thing besides :meth:`sizes` and :meth:`same` in which model and config differ."""

    @abstractmethod
    def check_data(self, config: Config, data: Any) -> None:
        """DataError, with what to set instead, for opened data that its folder says it was not trained on."""

    @property
    def settings_file(self) -> Path:
        """Where the settings were read."""
        return self.path / "config.json"

    def problems(self, config: Config) -> list[str]:
        """Return everything in which it is not the model of ``config``, key, value and rule each."""
        kind = self.settings.get("model_type")
        if kind not in self.model_types:
            known = " or ".join(repr(each) for each in self.model_types if each)
            return [
                f"{self.settings_file}: model_type = {kind!r} must be {known}: no other is known to compute the same"
            ]
        found, defaults = [], self.defaults()
        for key, (name, value) in self.sizes(config).items():
            expected = defaults.get(name) if self.settings.get(name) is None else self.settings[name]
            if expected is None:
                found.append(f"{self.settings_file}: has no {name}")
            elif value != expected:
                found.append(f"{key} = {value} must be {expected}, the {name} of the imported model")
        try:
            found += self.rules(config)
        except (TypeError, ValueError, AttributeError) as error:  # settings may hold anything
            found.append(f"{self.settings_file}: a setting is of another type: {error}")
        found += self._strange_settings(config)
        return found or self._tensor_problems(config)

    def _strange_settings(self, config: Config) -> Iterator[str]:
        """Yield a message for each setting that says, or may say, that something else is computed."""
        same, known = self.same(config), {name for name, _ in self.sizes(config).values()}
        known |= {*_WITHOUT_EFFECT.split(), *self.without_effect}
        said = {name: value for name, value in self.settings.items() if value is not None}
        for name, value in same.items():
            if said.get(name, value) != value:
                yield f"{self.settings_file}: {name} = {said[name]!r} must be {value!r}: there is nothing else"
        for name in sorted(said.keys() - same.keys() - known):
            rule = "is not known here: remove it if the model computes the same without it"
            yield f"{self.settings_file}: {name} = {said[name]!r} {rule}"

    def _tensor_problems(self, config: Config) -> list[str]:
        there, path = self.shapes, self.path
        expected = {
            self.key(config, spec, trail): spec.real_shape
            for spec in (weight_specs(config) | statistic_specs(config)).values()
            for trail in range(spec.trails)
        }
        found = [f"{path}: has no tensor {name}" for name in expected if name not in there]
        found += [
            f"{path}: {name} has shape {list(there[name])}, must have {list(shape)}"
            for name, shape in expected.items()
            if there.get(name, shape) != shape
        ]
        if strangers := sorted(there.keys() - expected):
            more = f" and {len(strangers) - 3} more" if len(strangers) > 3 else ""
            found.append(f"{path}: has tensors of another model: {', '.join(strangers[:3])}{more}")
        return found


def exported_sizes(config: Config) -> dict[str, tuple[str, Any]]:
    """What every ensemble that we exported says of its trails, as :meth:`Foreign.sizes`."""
    behind = config.model.num_layers - config.trunk_layers
    return {"trails.count": ("num_trails", config.trails.count), "trails.layers": ("trail_layers", behind)}


def exported_problems(foreign: Foreign, config: Config) -> Iterator[str]:
    """Yield a message where an ensemble that we exported forks in another place than ``config``'s."""
    fork = "embedding" if foreign.settings.get("fork_at_embedding") else "blocks"
    if config.trails.fork != fork:
        yield f"trails.fork = {config.trails.fork!r} must be {fork!r}, as in the export"
