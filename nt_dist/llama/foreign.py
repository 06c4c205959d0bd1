"""LLaMAs of other programs: transformers' dense one, and that of the NeuroTrails paper's code (arXiv 2505.17909)."""

import re
from collections.abc import Iterator

from nt_dist.errors import DataError
from nt_dist.llama.names import LLAMA, PAPER, shared_settings
from nt_dist.model.foreign import Foreign

_HEAD = re.compile(r"head_model_(\d+)\.")


class Dense(Foreign):
    """transformers' LlamaForCausalLM; every trail of ours is taken from the same blocks."""

    title, sign = "a dense LLaMA", "a LLaMA (model.embed_tokens.weight)"

    @classmethod
    def fits(cls, shapes):
        return "model.embed_tokens.weight" in shapes

    def key(self, config, spec, trail):
        key = LLAMA.key(config, spec.name)
        tied = spec.name == "output" and key not in self.shapes and self.settings.get("tie_word_embeddings")
        return LLAMA.key(config, "embedding") if tied else key

    def sizes(self, config):
        return {f"model.{key}": size for key, size in shared_settings(config).items()}

    def defaults(self):
        rope = self.settings.get("rope_parameters") or {}
        heads = self.settings.get("num_attention_heads")
        return {"num_key_value_heads": heads, "rms_norm_eps": 1e-6, "rope_theta": rope.get("rope_theta", 10000.0)}

    def rules(self, config):
        settings, file = self.settings, self.settings_file
        rope = settings.get("rope_parameters") or {}
        scaling = settings.get("rope_scaling") or (rope if rope.get("rope_type", "default") != "default" else None)
        if scaling:
            yield f"{file}: rope_scaling = {scaling} is not supported"
        if settings.get("attention_bias") or settings.get("mlp_bias"):
            yield f"{file}: attention_bias and mlp_bias must be false: there are no biases"
        yield from self._rules_of_trails(config)

    def _rules_of_trails(self, config) -> Iterator[str]:
        if config.trails.final_norm_twice:
            yield "trails.final_norm_twice = true must be false: a LLaMA's final norm runs once"

    def check_data(self, config, data):
        """The tokenizer must be the one that lies beside the model, if one does."""
        theirs = self.path / "tokenizer.model"
        if theirs.is_file() and theirs.read_bytes() != data.tokenizer.data:
            raise DataError(
                f"data.tokenizer: {data.tokenizer.name} is not the imported model's; set data.tokenizer={theirs}"
            )


class Paper(Dense):
    """A checkpoint of the paper's code, whose trails stay what they are."""

    title = "a model in the paper's layout"
    sign = "in the layout of the paper's code (backbone_model.…, head_model_<number>.…)"
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
