"""The card of an exported model: what it is, how it did, how to use it."""

import transformers

from nt_dist.inference import Ensemble
from nt_dist.model.weights import count_parameters
from nt_dist.training.metrics_log import read_metrics

_METRICS = "metrics.jsonl"


def card(ensemble: Ensemble, trail: int | None, dtype: str) -> str:
    """Return a README.md with the model's sizes, its run's figures at the exported step, and a first example.

    Args:
        ensemble: What was exported.
        trail: The one trail that was, from 0; None for all.
        dtype: Of the exported weights.
    """
    config, progress = ensemble.config, ensemble.manifest.progress
    trails, parameters = config.trails, count_parameters(config)
    title = "NeuroTrails ensemble" if trail is None else f"Trail {trail + 1} of a NeuroTrails ensemble"
    behind = config.model.num_layers - config.trunk_layers
    facts = [
        f"{trails.count} trails of {behind} blocks behind a trunk of {config.trunk_layers}"
        + (f"; this is trail {trail + 1} with the trunk" if trail is not None else ""),
        f"{parameters['stored']:,} weights that are not zero, of {parameters['dense']:,} in the whole ensemble "
        f"(density {config.sparsity.density:g})",
        f"hidden size {config.model.hidden_size}, vocabulary {config.model.vocab_size:,}, sequences of "
        f"{config.model.max_seq_len} tokens; weights in {dtype}",
        f"trained for {progress.step:,} of {config.train.steps:,} steps on {progress.consumed_samples:,} samples of "
        f"`data.source = {config.data.source!r}`, by nt_dist {ensemble.manifest.written_by}",
        f"written and read back with transformers {transformers.__version__}",
    ]
    parts = [
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- neurotrails\n---",
        f"# {title}",
        "Trained with nt_dist as NeuroTrails ([arXiv 2505.17909](https://arxiv.org/abs/2505.17909)) describes.",
        "\n".join(f"- {fact}" for fact in facts),
        _figures(ensemble, trail),
        _usage(trail),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _figures(ensemble: Ensemble, trail: int | None) -> str:
    """The evaluation that the run made at the exported step, if it made one."""
    step = ensemble.manifest.progress.step
    records = read_metrics(ensemble.checkpoint.parent.parent / _METRICS)
    found = [record["eval"] for record in records if "eval" in record and record["step"] == step]
    if not found:
        return "The run has no evaluation at this step."
    headline = ensemble.config.family.headline(found[-1])
    rows = [(f"trail {number}", value) for number, value in enumerate(headline.trails, start=1)]
    rows += [("mean of probabilities", headline.prob), ("mean of logits", headline.logit)]
    if trail is not None:
        rows = rows[trail : trail + 1]
    lines = [f"| {name} | {headline.text(value)} |" for name, value in rows if value is not None]
    count = f"{found[-1][headline.samples]:,} validation {headline.samples}"
    head = f"{headline.name.capitalize()} on {count} of the run, by `tools/evaluate.py`'s protocol:"
    return "\n".join([head, "", f"| | {headline.name} |", "|---|---|", *lines])


def _usage(trail: int | None) -> str:
    remote = ", trust_remote_code=True" if trail is None else ""
    lines = [
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'model = AutoModelForCausalLM.from_pretrained("this folder"{remote})',
        f'tokenizer = AutoTokenizer.from_pretrained("this folder"{remote})',
        'tokens = tokenizer("A text", return_tensors="pt")',
        "print(tokenizer.decode(model.generate(**tokens, max_new_tokens=50)[0]))",
        "```",
    ]
    if trail is None:
        lines += [
            "",
            "`logits` are the log of the mean of the trails' probabilities; `model.config.combine` "
            'set to `"logit"` takes the mean of their logits, a number one trail (from 0). '
            "`model(**tokens, output_trail_logits=True)` has each trail's own as `trail_logits`. `loss` is the "
            "cross-entropy of what the ensemble predicts.",
        ]
    return "\n".join(lines)
