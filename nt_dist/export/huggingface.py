"""A checkpoint as a folder that transformers loads: the ensemble with its own modeling file, or a trail as a LLaMA."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from nt_dist.config import Config
from nt_dist.errors import ConfigError, RunError
from nt_dist.export import hf
from nt_dist.export.card import card
from nt_dist.export.hf.configuration_neurotrails import NeuroTrailsConfig
from nt_dist.export.hf.modeling_neurotrails import NeuroTrailsForCausalLM
from nt_dist.export.hf.sparse_neurotrails import save_sparse
from nt_dist.export.names import ENSEMBLE, LLAMA, Layout, shared_settings
from nt_dist.export.tokenizer import write_tokenizer
from nt_dist.files import new_folder
from nt_dist.inference import Ensemble
from nt_dist.inference.ensemble import LOGIT, PROB, combine
from nt_dist.model.trails import TrailsModel, weights_of
from nt_dist.model.weights import real_shape

TOLERANCE = 1e-4  # of the largest logit: what another order of sums can do in fp32


class Exported(NamedTuple):
    """What an export wrote."""

    path: Path
    num_parameters: int  # zeros included
    num_bytes: int  # of all files
    difference: float  # the largest between a logit of the model read back and the checkpoint's


def export(
    ensemble: Ensemble, out: Path, trail: int | None = None, dtype: str = "float32", sparse: bool = False
) -> Exported:
    """Write a model, its tokenizer and a card into a new folder, read it back and compare.

    Args:
        ensemble: In fp32; its values are rounded to ``dtype`` in place.
        out: The folder; must be empty or not there. It is whole, or as it was.
        trail: One trail's number, from 0, to write as a plain LlamaForCausalLM; None: the ensemble.
        dtype: Of the weights, "float32" or "bfloat16".
        sparse: Whether the ensemble is also written sparse, for NeuroTrailsForCausalLM.from_sparse.

    Raises:
        ConfigError: The model cannot be written so.
        DataError: The tokenizer cannot be.
        RunError: The folder cannot be used, or what was read back has other logits.
    """
    config = ensemble.config
    if trail is not None:
        _check_trail(config, trail, sparse)
    with _quiet(), new_folder(out) as folder:
        for parameter in ensemble.model.parameters():
            parameter.copy_(parameter.to(getattr(torch, dtype)))
        model = to_transformers(ensemble.model, config, trail, dtype)
        bos, eos = ensemble.tokenizer.bos, ensemble.tokenizer.eos
        model.generation_config = GenerationConfig(bos_token_id=bos, eos_token_id=eos, pad_token_id=eos)
        model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id = bos, eos, eos
        model.save_pretrained(folder)
        if trail is None:
            for file in Path(hf.__path__[0]).glob("*_neurotrails.py"):
                shutil.copyfile(file, folder / file.name)
        if sparse:
            save_sparse(model, folder)
        write_tokenizer(ensemble.tokenizer, folder, ensemble.max_length)
        (folder / "README.md").write_text(card(ensemble, trail, dtype), encoding="utf-8")
        back = type(model).from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
        difference = _compare(back, ensemble, trail)
        if sparse:
            difference = max(difference, _compare(type(model).from_sparse(folder, "dense").float(), ensemble, None))
        num_bytes = sum(file.stat().st_size for file in folder.iterdir())
    return Exported(out, model.num_parameters(), num_bytes, difference)


def _check_trail(config: Config, trail: int, sparse: bool) -> None:
    rules = {
        f"--trail {trail + 1} must be from 1 to trails.count = {config.trails.count}": 0 <= trail < config.trails.count,
        "trails.final_norm_twice = true: a LlamaForCausalLM has one final norm, so --trail cannot be exported; the "
        "ensemble can": not config.trails.final_norm_twice,
        "--sparse is of the ensemble: a LlamaForCausalLM (--trail) reads dense weights only": not sparse,
    }
    if broken := [rule for rule, holds in rules.items() if not holds]:
        raise ConfigError(broken)


def to_transformers(
    model: TrailsModel, config: Config, trail: int | None = None, dtype: str = "float32"
) -> PreTrainedModel:
    """Return the ensemble, or its trunk and one trail as the dense LLaMA that they are, as transformers has it.

    The LLaMA is only for writing: it is made on the meta device, and there its rotary tables, which are no part of a
    state, still are.
    """
    sizes = dict(shared_settings(config).values())
    sizes |= {"max_position_embeddings": config.model.max_seq_len, "tie_word_embeddings": False, "dtype": dtype}
    if trail is not None:
        return _filled(LlamaForCausalLM, LlamaConfig(**sizes), _state(model, config, LLAMA, trail))
    settings = NeuroTrailsConfig(
        **sizes,
        num_trails=config.trails.count,
        trunk_layers=config.trunk_layers,
        trail_layers=config.model.num_layers - config.trunk_layers,
        fork_at_embedding=config.trails.fork == "embedding",
        final_norm_twice=config.trails.final_norm_twice,
        auto_map={
            "AutoConfig": "configuration_neurotrails.NeuroTrailsConfig",
            "AutoModelForCausalLM": "modeling_neurotrails.NeuroTrailsForCausalLM",
        },
    )
    return _filled(NeuroTrailsForCausalLM, settings, _state(model, config, ENSEMBLE))


def _state(model: TrailsModel, config: Config, layout: Layout, trail: int | None = None) -> dict[str, torch.Tensor]:
    """The weights, dense and without padding, by a layout's names; with ``trail`` those of trunk and trail."""
    state = {}
    for name, weight in weights_of(model).items():
        spec, dense = weight.spec, weight.dense().detach()
        for number in range(spec.trails) if trail is None else [min(trail, spec.trails - 1)]:
            real = dense[(number, *map(slice, real_shape(spec)))]
            state[layout.key(config, name, number)] = real.contiguous()
    return state


def _filled(kind: type[PreTrainedModel], settings, state: dict[str, torch.Tensor]) -> PreTrainedModel:
    with torch.device("meta"):
        model = kind(settings)
    values = {key: nn.Parameter(each.to("cpu", settings.dtype), requires_grad=False) for key, each in state.items()}
    model.load_state_dict(values, assign=True)
    return model.eval()


@torch.no_grad()
def _compare(model: PreTrainedModel, ensemble: Ensemble, trail: int | None) -> float:
    """Compare logits of a model that was read back, at once and through a key-value cache, with the checkpoint's.

    Returns the largest difference; raises RunError where it is larger than rounding can be.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (2, min(ensemble.max_length, 64))
    tokens = torch.randint(ensemble.config.model.vocab_size, shape, generator=generator)
    logits = ensemble.logits(tokens).cpu()
    if trail is None:
        answer = model(tokens, output_trail_logits=True)
        pairs = [(answer.trail_logits, logits)]
        for how in (PROB, LOGIT):
            pairs.append((model(tokens, combine=how).logits.log_softmax(-1), combine(logits, how)))
    else:
        answer = model(tokens)
        pairs = [(answer.logits, logits[trail])]
    cache = model(tokens[:, :-1], use_cache=True)["cache"]
    pairs.append((model(tokens[:, -1:], cache=cache).logits, answer.logits[:, -1:]))
    difference = max(float((found - expected).abs().max()) for found, expected in pairs)
    largest = float(logits.abs().max())
    if not difference <= TOLERANCE * max(largest, 1.0):
        raise RunError(
            f"read back, the model's logits differ by {difference:g} from the checkpoint's, of which the largest is "
            f"{largest:g}; nothing was exported"
        )
    return difference


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
