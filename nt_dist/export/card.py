"""The card of an exported model: what it is, how it did, how to use it."""

import transformers

from nt_dist.evaluation.report import by_row
from nt_dist.export.tasks import Task
from nt_dist.inference import Ensemble
from nt_dist.model.weights import count_parameters
from nt_dist.training.metrics_log import read_metrics

_CARD = """\
---
library_name: transformers
pipeline_tag: {task.name}
tags:
- neurotrails
---

# {title}

Trained with nt_dist as NeuroTrails ([arXiv 2505.17909](https://arxiv.org/abs/2505.17909)) describes.

- {config.trails.count} trails of {behind} blocks behind a trunk of {config.trunk_layers}{which}
- {parameters[stored]:,} weights that are not zero, of {parameters[dense]:,} in the whole ensemble \
(density {config.sparsity.density:g})
- {sizes}; weights in {dtype}
- trained for {state.step:,} of {config.train.steps:,} steps on {state.consumed_samples:,} samples of \
`data.source = {config.data.source!r}`, by nt_dist {manifest.written_by}
- written and read back with transformers {transformers.__version__}

{figures}

```python
{example}```
"""
_OUTPUTS = """
`logits` are the log of the mean of the trails' probabilities; `model.config.combine` set to `"logit"` takes the mean \
of their logits, a number one trail (from 0). `model(…, output_trail_logits=True)` has each trail's own as \
`trail_logits`. `loss` is the cross-entropy of what the ensemble predicts.
"""


def card(ensemble: Ensemble, task: Task, trail: int | None, dtype: str) -> str:
    """Return a README.md with the model's sizes, its run's figures at the exported step, and a first example.

    ``trail`` is the one that was exported, from 0, or None for all; ``dtype`` that of its weights.
    """
    config, manifest = ensemble.config, ensemble.manifest
    text = _CARD.format(
        title="NeuroTrails ensemble" if trail is None else f"Trail {trail + 1} of a NeuroTrails ensemble",
        config=config,
        behind=config.model.num_layers - config.trunk_layers,
        which="" if trail is None else f"; this is trail {trail + 1} with the trunk",
        parameters=count_parameters(config),
        dtype=dtype,
        manifest=manifest,
        state=manifest.training_state,
        transformers=transformers,
        figures=_figures(ensemble, trail),
        task=task,
        sizes=task.sizes(config),
        example=task.example.format(remote=", trust_remote_code=True" if trail is None else ""),
    )
    return text + _OUTPUTS if trail is None else text


def _figures(ensemble: Ensemble, trail: int | None) -> str:
    """The evaluation that the run made at the exported step, if it made one."""
    step = ensemble.manifest.training_state.step
    records = read_metrics(ensemble.checkpoint.parent.parent / "metrics.jsonl")
    found = [record["eval"] for record in records if "eval" in record and record["step"] == step]
    if not found:
        return "The run has no evaluation at this step."
    headline = ensemble.config.family.headline(found[-1])
    rows = list(by_row([vars(headline)]).items())[slice(None) if trail is None else slice(trail, trail + 1)]
    lines = [f"| {name} | {headline.text(value)} |" for name, (value,) in rows if value is not None]
    count = f"{found[-1][headline.samples]:,} validation {headline.samples}"
    head = f"{headline.name.capitalize()} on {count} of the run, by `tools/evaluate.py`'s protocol:"
    return "\n".join([head, "", f"| | {headline.name} |", "|---|---|", *lines])
