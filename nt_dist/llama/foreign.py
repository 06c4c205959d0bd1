"""LLaMAs of other programs: transformers' dense one, the NeuroTrails paper's (arXiv 2505.17909), our own exports."""

import re
from collections.abc import Iterator
from typing import Any

from nt_dist.errors import DataError
from nt_dist.files import read_json, reading
from nt_dist.llama.names import ENSEMBLE, LLAMA, PAPER, shared_settings
from nt_dist.model.foreign import EXPORT_ONLY, Foreign, exported_problems, exported_sizes
from nt_dist.text.tokenizer import JsonTokenizer, pieces_of

_IN_RULES = ("rope_parameters", "rope_scaling", "sliding_window")
_HEAD = re.compile(r"head_model_(\d+)\.")


class Dense(Foreign):
    """transformers' LlamaForCausalLM; every trail of ours is taken from the same blocks."""

    title, sign = "a dense LLaMA", "a LLaMA (model.embed_tokens.weight)"
    model_types = ("llama", "mistral")
    without_effect = frozenset({"max_position_embeddings", "attention_dropout", "pretraining_tp", *_IN_RULES})

    @classmethod
    def fits(cls, shapes):
        return "model.embed_tokens.weight" in shapes

    def key(self, config, spec, trail):
        key = LLAMA.key(config, spec.name)
        tied = spec.name == "output" and key not in self.shapes and self.settings.get("tie_word_embeddings")
        return LLAMA.key(config, "embedding") if tied else key

    def sizes(self, config):
        return {f"model.{key}": size for key, size in shared_settings(config).items()}

    @property
    def _is_mistral(self) -> bool:
        return self.settings.get("model_type") == "mistral"

    @property
    def _rope(self) -> dict[str, Any]:
        """What is said of the rotary embedding, by either of its names."""
        said = self.settings.get("rope_scaling") or self.settings.get("rope_parameters") or {}
        return said if isinstance(said, dict) else {"rope_type": said}  # no type that there is

    def defaults(self):
        heads = 8 if self._is_mistral else self.settings.get("num_attention_heads")
        return {"num_key_value_heads": heads, "rms_norm_eps": 1e-6, "rope_theta": self._rope.get("rope_theta", 10000.0)}

    def same(self, config):
        same = {"hidden_act": "silu", "head_dim": config.model.head_size, "attention_bias": False, "mlp_bias": False}
        return same | {"partial_rotary_factor": 1.0, "use_sliding_window": False}

    def rules(self, config):
        settings, file, rope = self.settings, self.settings_file, self._rope
        plain = {"rope_type": "default", "type": "default", "partial_rotary_factor": 1.0}
        if any(plain.get(name) != value for name, value in rope.items() if name != "rope_theta"):
            yield f"{file}: rope_scaling = {rope} is not supported"
        theta = settings.get("rope_theta")
        if theta is not None and rope.get("rope_theta", theta) != theta:
            yield f"{file}: rope_theta = {theta:g} and {rope['rope_theta']:g} must be the same"
        window, longest = settings.get("sliding_window", 4096 if self._is_mistral else None), config.model.max_seq_len
        if window is not None and window < longest:
            yield f"{file}: sliding_window = {window} must be null or at least model.max_seq_len = {longest}"
        yield from self._rules_of_trails(config)

    def _rules_of_trails(self, config) -> Iterator[str]:
        if config.trails.final_norm_twice:
            yield "trails.final_norm_twice = true must be false: a LLaMA's final norm runs once"

    def check_data(self, config, data):
        """The tokenizer must be the one that lies beside the model, if one does."""
        model, written, ours = self.path / "tokenizer.model", self.path / "tokenizer.json", data.tokenizer
        theirs = model if model.is_file() and not isinstance(ours, JsonTokenizer) else written
        if not theirs.is_file():
            return
        if theirs == model:
            with reading(theirs, DataError):
                same = theirs.read_bytes() == ours.data
        else:
            same = pieces_of(read_json(theirs, DataError)) == ours.pieces
        if not same:
            raise DataError(f"data.tokenizer: {ours.name} is not the imported model's; set data.tokenizer={theirs}")


class Paper(Dense):
    """A checkpoint of the paper's code, whose trails stay what they are."""

    title = "a model in the paper's layout"
    sign = "in the layout of the paper's code (backbone_model.…, head_model_<number>.…)"
    model_types = (*Dense.model_types, None)
    may_be_pickled = True

    @classmethod
    def fits(cls, shapes):
        return any(map(_HEAD.match, shapes))

    @property
    def heads(self) -> list[int]:
        """The numbers of its trails, in order."""
        return sorted({int(found[1]) for name in self.shapes if (found := _HEAD.match(name))})

    def key(self, config, spec, trail):
        return PAPER.key(config, spec.name, self.heads[trail])

    def sizes(self, config):
        behind = config.model.num_layers - config.trunk_layers
        ours = {"trails.count": ("num_ensemble", config.trails.count), "trails.layers": ("blocks_in_head", behind)}
        return super().sizes(config) | ours

    def _rules_of_trails(self, config):
        if not config.trails.final_norm_twice:
            yield "trails.final_norm_twice = false must be true: in the paper's code each trail's final norm runs twice"
        if config.trails.fork != "blocks":
            yield f"trails.fork = {config.trails.fork!r} must be 'blocks' for a model in the paper's layout"

    def _tensor_problems(self, config):
        if len(self.heads) != config.trails.count:
            return [f"trails.count = {config.trails.count} must be {len(self.heads)}, the head_model_… there are"]
        return super()._tensor_problems(config)


class Exported(Dense):
    """An ensemble that tools/export_hf.py wrote, perhaps trained further elsewhere; its trails stay what they are."""

    title = "an exported ensemble"
    sign = "an exported ensemble (trails.0.lm_head.weight)"
    model_types = ("neurotrails",)
    without_effect = (
        Dense.without_effect | EXPORT_ONLY | {"num_hidden_layers", "trunk_layers", "final_norm_twice"}
    )  # in rules

    @classmethod
    def fits(cls, shapes):
        return "trails.0.lm_head.weight" in shapes

    def key(self, config, spec, trail):
        return ENSEMBLE.key(config, spec.name, trail)

    def sizes(self, config):
        sizes = super().sizes(config) | exported_sizes(config)
        del sizes["model.num_layers"]  # there it counts the blocks of all trails
        return sizes

    def _rules_of_trails(self, config):
        yield from exported_problems(self, config)
        says, ours = self.settings, config.trails.final_norm_twice
        if (layers := says.get("trunk_layers", 0) + says.get("trail_layers", 0)) != config.model.num_layers:
            rule = f"must be {layers}, trunk_layers and trail_layers together"
            yield f"model.num_layers = {config.model.num_layers} {rule}"
        if says.get("final_norm_twice", False) is not ours:
            yield f"trails.final_norm_twice = {str(ours).lower()} must be {str(not ours).lower()}, as in the export"
