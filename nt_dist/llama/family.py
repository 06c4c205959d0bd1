"""The LLaMA as the rest of the package sees it."""

import math
from functools import partial

from nt_dist.config.family import Family, Headline, gain
from nt_dist.data import settings as data
from nt_dist.llama import settings
from nt_dist.llama.names import trail_problems, twin
from nt_dist.llama.weights import activations, weights
from nt_dist.text import settings as text


class Llama(Family):
    """LLaMAs (Touvron et al., arXiv 2302.13971) on text; :class:`Family` says what each method is for."""

    name, task = "llama", "text-generation"
    sections = {"model": settings.Model, "data": text.Data}  # noqa: RUF012
    recipes = settings.RECIPES
    input_layer, output_layer = "embedding", "output"
    rules = settings.RULES
    alike = ("model.vocab_size", "model.max_seq_len", "data.layout")
    corruptions = text.CORRUPTIONS
    ignored, paths = staticmethod(text.ignored_settings), staticmethod(text.paths)
    weights, activations = staticmethod(weights), staticmethod(activations)
    twin, trail_problems = staticmethod(twin), staticmethod(trail_problems)

    def needed_paths(self, config):
        from nt_dist.text.origin import find, with_tokenizer

        if sources := with_tokenizer(config):
            missing = [name for name, one in sources.items() if not find(one)]
            return text.paths(config, missing) if missing else []
        return [] if find(config) else self.paths(config)

    def hidden_size(self, config):
        return config.model.hidden_size

    def divided_by_tensor(self, config):
        model = config.model
        return {
            "model.num_attention_heads": model.num_attention_heads,
            "model.num_kv_heads": model.key_value_heads,
            "model.ffn_size": model.ffn_size,
        }

    def unified(self, settings):
        """``num_kv_heads`` 0 is as many as attention heads; texts may lie in another folder."""
        heads = settings["model.num_kv_heads"] or settings["model.num_attention_heads"]
        same = {"model.num_kv_heads": heads, "data.sources": text.unified(settings["data.sources"])}
        return data.without_folders(settings) | same

    def positions(self, config):
        return config.model.max_seq_len

    def num_outputs(self, config):
        return config.model.vocab_size

    def extra_flops(self, config, layer):
        """A block's products with the keys and the values of a window, without the causal half (PaLM, appendix B)."""
        return 4 * config.model.max_seq_len * config.model.hidden_size if layer.startswith("blocks.") else 0

    def layers(self, config, make, place):
        from nt_dist.llama.layers import layers

        return layers(config, make, place)

    def figures(self, means):
        """Perplexities of the trails and their means; ``ensemble_gain`` is what averaging is worth over one of them, in
        nats a token."""
        nll = means["nll"]
        found = {
            "ppl_trails": [perplexity(each) for each in nll["trails"]],
            "ppl_ensemble_prob": perplexity(nll["prob"]),
            "ppl_ensemble_logit": perplexity(nll["logit"]),
            "disagreement": means["disagreement"],
        }
        return {**found, "ensemble_gain": self.headline(found).gain, "tokens": means["count"]}

    def headline(self, figures):
        ensembles = figures["ppl_ensemble_prob"], figures["ppl_ensemble_logit"]
        *trails, together = (math.log(each) if each else None for each in (*figures["ppl_trails"], ensembles[0]))
        return Headline("perplexity", figures["ppl_trails"], *ensembles, gain=gain(trails, together))

    def foreign(self):
        from nt_dist.llama.foreign import Dense, Exported, Paper

        return [Dense, Exported, Paper]

    def continued(self, config, state, run, resuming):
        from nt_dist.text.mixture import continued

        return continued(config, state.data_digest, state.extra, run, resuming)

    def open_data(self, config, is_writer, exchange):
        from nt_dist.text.mixture import open_data

        return open_data(config, is_writer, exchange)

    def open_other_data(self, config, path, exchange, state):
        from nt_dist.text.mixture import open_texts

        return open_texts(config, path, exchange)

    def tokenizer(self, config, state, run, prepared, given):
        from nt_dist.text.origin import prepared_folder
        from nt_dist.text.prepare import run_tokenizer

        folders = [prepared] if prepared else list(dict.fromkeys([prepared_folder(config), run / "data"]))
        return run_tokenizer(config, state.data_digest, state.extra, folders, given)

    def corrupted(self, data, kind, level):
        from nt_dist.data.mixture import each_part
        from nt_dist.text.samples import misspelt, shuffled

        corrupt = partial(shuffled, share=level)
        if kind == "misspell":
            corrupt = partial(misspelt, share=level, tokenizer=data.tokenizer)
        name = f"the same text, {self.corruptions.kinds[kind].format(level)}"
        return name, each_part(data.validation, corrupt)


def perplexity(nll: float) -> float:
    """exp of a mean negative log-likelihood in nats; inf where that is no double any more."""
    return math.exp(nll) if nll < 709 else math.inf if not math.isnan(nll) else math.nan
