"""A checkpoint as a folder that transformers loads: the ensemble with its own modeling file, or one trail without."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from nt_dist.config.family import Twin
from nt_dist.config.settings import Config
from nt_dist.data.settings import name_of
from nt_dist.errors import ConfigError, RunError
from nt_dist.evaluation.report import by_row
from nt_dist.export import hf
from nt_dist.export.hf.sparse_neurotrails import save_sparse
from nt_dist.export.tasks import TASKS, Task, TextGeneration
from nt_dist.files import new_folder
from nt_dist.inference import Ensemble
from nt_dist.inference.ensemble import LOGIT, PROB, combine
from nt_dist.model.trails import TrailsModel, statistics_of, weights_of
from nt_dist.model.weights import count_parameters
from nt_dist.training.metrics_log import METRICS, read_metrics

TOLERANCE = 1e-4  # of the largest logit: what another order of sums can do in fp32
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
`{data}`, by nt_dist {manifest.written_by}
- written and read back with transformers {transformers.__version__}; 4.57 is the oldest that it has been tried with

{figures}

```python
{example}```
"""
_OUTPUTS = """
`logits` are the log of the mean of the trails' probabilities; `model.config.combine` set to `"logit"` takes the mean \
of their logits, a number one trail (from 1). `model(…, output_trail_logits=True)` has each trail's own as \
`trail_logits`. `loss` is the cross-entropy of what the ensemble predicts.
"""
_TRAIL = """
llama.cpp reads `tokenizer.model`, if there is one: a tokenizer that was loaded with `trust_remote_code=True` saves it \
again, any other leaves it behind.
"""


class Exported(NamedTuple):
    """What an export wrote."""

    path: Path
    num_parameters: int  # zeros included
    num_bytes: int  # of all files
    difference: float  # the largest between a logit of the model read back and the checkpoint's


def export(
    ensemble: Ensemble, out: Path, trail: int | None = None, dtype: str = "float32", sparse: bool = False
) -> Exported:
    """Write a model, what makes its inputs and a card into a new folder, read it back and compare.

    Args:
        ensemble: In fp32; its values are rounded to ``dtype`` in place.
        out: The folder; must be empty or not there. It is whole, or as it was.
        trail: One trail's number, from 1, to write as the model of transformers that it is; None: the ensemble.
        dtype: Of the weights, "float32" or "bfloat16".
        sparse: Whether an ensemble that writes text is also written sparse, for NeuroTrailsForCausalLM.from_sparse.

    A ConfigError where the model cannot be written so, a DataError where its tokenizer cannot, a RunError where the
    folder cannot be used or what was read back has other logits.
    """
    config, task = ensemble.config, TASKS[ensemble.config.family.task]
    _check(config, trail, sparse)
    with _quiet(), _safetensors_write(out), new_folder(out) as folder:
        rows = weights_of(ensemble.model) | statistics_of(ensemble.model)
        for values in (each.values for each in rows.values()):
            values.copy_(values.to(getattr(torch, dtype)))
        model = to_transformers(ensemble.model, config, trail, dtype)
        task.settle(model, ensemble)
        model.save_pretrained(folder)
        _name_again(folder / "config.json", config.family.twin(config, trail is not None).settings)
        if trail is None:  # with the files of hf/ that end as the modeling file does
            modeling = type(model).__module__.rpartition(".")[2]
            for file in Path(hf.__path__[0]).glob(f"*{modeling.removeprefix('modeling')}.py"):
                shutil.copyfile(file, folder / file.name)
        if sparse:
            save_sparse(model, folder)
        task.write(ensemble, folder, is_plain=trail is not None)
        (folder / "README.md").write_text(card(ensemble, task, trail, dtype), encoding="utf-8")
        back = type(model).from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
        inputs = task.inputs(ensemble, folder)
        difference = _compare(back, ensemble, trail, task, *inputs)
        if sparse:
            back = type(model).from_sparse(folder, "dense").float()
            difference = max(difference, _compare(back, ensemble, None, task, *inputs))
        num_bytes = sum(file.stat().st_size for file in folder.iterdir())
    return Exported(out, model.num_parameters(), num_bytes, difference)


def _check(config: Config, trail: int | None, sparse: bool) -> None:
    count, family, broken = config.trails.count, config.family, []
    if trail is not None:
        if not 1 <= trail <= count:
            broken.append(f"--trail {trail} must be from 1 to trails.count = {count}")
        broken += family.trail_problems(config)
        if sparse:
            broken.append("--sparse is of the ensemble: one trail alone (--trail) is read from dense weights only")
    if sparse and family.task != TextGeneration.name:
        rule = f"sparse products are of matrices, and model.family = {family.name!r} has convolutions"
        broken.append(f"--sparse is of models that write text: {rule}")
    if broken:
        raise ConfigError(broken)


def to_transformers(
    model: TrailsModel, config: Config, trail: int | None = None, dtype: str = "float32"
) -> PreTrainedModel:
    """Return the ensemble, or its trunk and one trail as the dense model that they are, as transformers has it.

    A LLaMA of one trail is only for writing: it is made on the meta device, and there its rotary tables, which are no
    part of a state, still are.
    """
    twin, auto = config.family.twin(config, trail is not None), TASKS[config.family.task].auto
    settings = {**twin.settings, "dtype": dtype}
    with torch.device("meta"):
        if classes := settings.get("auto_map"):
            made = _class(classes[auto.__name__])(_class(classes["AutoConfig"])(**settings))
        else:
            made = auto.from_config(AutoConfig.for_model(**settings))
    return _filled(made, _state(model, config, twin, trail))


def _name_again(file: Path, settings: dict[str, Any]) -> None:
    """Put settings of a twin that this version of transformers keeps under other names (rope_theta) back under theirs,
    where older versions look for them and take a default."""
    said = settings | json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(said, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _class(reference: str) -> type:
    """A class of hf/, as config.json names it."""
    module, name = reference.split(".")
    return getattr(import_module(f"{hf.__name__}.{module}"), name)


def _state(model: TrailsModel, config: Config, twin: Twin, trail: int | None) -> dict[str, torch.Tensor]:
    """Weights, dense and without padding, and statistics by the twin's names; with ``trail`` of trunk and trail."""
    rows = {name: weight.dense().detach() for name, weight in weights_of(model).items()}
    rows |= {name: statistic.values for name, statistic in statistics_of(model).items()}
    state = {}
    for spec in config.family.weights(config):
        for number in range(spec.trails) if trail is None else [min(trail, spec.trails) - 1]:
            real = rows[spec.name][(number, *map(slice, spec.real_shape))]
            state[twin.key(config, spec.name, number)] = real.contiguous()
    return state


def _filled(model: PreTrainedModel, state: dict[str, torch.Tensor]) -> PreTrainedModel:
    """Give a model on the meta device its state, and no gradients."""
    model.load_state_dict({key: each.to("cpu", model.config.dtype) for key, each in state.items()}, assign=True)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def _compare(
    model: PreTrainedModel, ensemble: Ensemble, trail: int | None, task: Task, ours: torch.Tensor, theirs: dict
) -> float:
    """Return the largest difference of a logit of a model that was read back from the checkpoint's; RunError where it
    is larger than rounding can be."""
    logits = ensemble.logits(ours).cpu()
    answer = model(**theirs, **({"output_trail_logits": True} if trail is None else {}))
    pairs = task.more_pairs(model, theirs, answer)
    if trail is None:
        pairs += [(model(**theirs, combine=how).logits.log_softmax(-1), combine(logits, how)) for how in (PROB, LOGIT)]
        pairs.append((answer.trail_logits, logits))
    else:
        pairs.append((answer.logits, logits[trail - 1]))
    difference = max(float((found - expected.reshape(found.shape)).abs().max()) for found, expected in pairs)
    largest = float(logits.abs().max())
    if not difference <= TOLERANCE * max(largest, 1.0):
        raise RunError(
            f"read back, the model's logits differ by {difference:g} from the checkpoint's, of which the largest is "
            f"{largest:g}; nothing was exported"
        )
    return difference


@contextmanager
def _safetensors_write(out: Path) -> Iterator[None]:
    """Raise a RunError where a file of tensors cannot be written to the disk of ``out``, which is no OSError there."""
    try:
        yield
    except SafetensorError as problem:
        raise RunError(f"--out {out}: cannot be written: {problem}") from problem


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and advice of transformers within it."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def card(ensemble: Ensemble, task: Task, trail: int | None, dtype: str) -> str:
    """Return a README.md with the model's sizes, its run's figures at the exported step, and a first example.

    ``trail`` is the one that was exported, from 1, or None for all; ``dtype`` that of its weights.
    """
    config, manifest = ensemble.config, ensemble.manifest
    text = _CARD.format(
        title="NeuroTrails ensemble" if trail is None else f"Trail {trail} of a NeuroTrails ensemble",
        config=config,
        data=name_of(config),
        behind=config.model.num_layers - config.trunk_layers,
        which="" if trail is None else f"; this is trail {trail} with the trunk",
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
    if trail is None:
        return text + _OUTPUTS
    return text + _TRAIL if isinstance(task, TextGeneration) else text


def _figures(ensemble: Ensemble, trail: int | None) -> str:
    """The evaluation that the run made at the exported step, if it made one."""
    step = ensemble.manifest.training_state.step
    records = read_metrics(ensemble.checkpoint.parent.parent / METRICS)
    found = [record["eval"] for record in records if "eval" in record and record["step"] == step]
    if not found:
        return "The run has no evaluation at this step."
    headline = ensemble.config.family.headline(found[-1])
    rows = list(by_row([vars(headline)]).items())[slice(None) if trail is None else slice(trail - 1, trail)]
    lines = [f"| {name} | {headline.text(value)} |" for name, (value,) in rows if value is not None]
    count = f"{found[-1][headline.samples]:,} validation {headline.samples}"
    head = f"{headline.name.capitalize()} on {count} of the run, by `tools/evaluate.py`'s protocol:"
    return "\n".join([head, "", f"| | {headline.name} |", "|---|---|", *lines])
