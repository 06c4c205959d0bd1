"""A checkpoint as a folder that transformers loads: the ensemble with its own modeling file, or one trail as a LLaMA.

T trails, B sequences, S tokens, V pieces.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from nt_dist.config import Config
from nt_dist.errors import ConfigError, RunError
from nt_dist.export import hf
from nt_dist.export.card import card
from nt_dist.export.folder import check_free, new_folder
from nt_dist.export.hf.configuration_neurotrails import NeuroTrailsConfig
from nt_dist.export.hf.modeling_neurotrails import NeuroTrailsForCausalLM
from nt_dist.export.hf.sparse_neurotrails import save_sparse
from nt_dist.export.names import ensemble_name, llama_name
from nt_dist.export.tokenizer import write_tokenizer
from nt_dist.inference import Ensemble
from nt_dist.inference.ensemble import LOGIT, PROB
from nt_dist.model.trails import TrailsModel, weights_of
from nt_dist.model.weights import real_shape
from nt_dist.text.tokenizer import Tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TOLERANCE = 1e-4  # of the largest logit: what another order of sums can do in fp32
_CODE = ("configuration_neurotrails.py", "modeling_neurotrails.py", "sparse_neurotrails.py")


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        path: The folder.
        parameters: Of the model that was written, zeros included.
        num_bytes: Of all files.
        difference: Largest difference between a logit of the model read back and the checkpoint's.
    """

    path: Path
    parameters: int
    num_bytes: int
    difference: float


def check(config: Config, trail: int | None, sparse: bool = False) -> None:
    """Refuse what cannot be exported.

    Args:
        config: The checkpoint's settings.
        trail, sparse: See :func:`export`.

    Raises:
        ConfigError: With every problem.
    """
    problems = []
    if trail is not None and not 0 <= trail < config.trails.count:
        problems.append(f"--trail {trail + 1} must be from 1 to trails.count = {config.trails.count}")
    if trail is not None and config.trails.final_norm_twice:
        problems.append(
            "trails.final_norm_twice = true: a LlamaForCausalLM has one final norm, so --trail cannot be exported; the "
            "ensemble can"
        )
    if trail is not None and sparse:
        problems.append("--sparse is of the ensemble: a LlamaForCausalLM (--trail) reads dense weights only")
    if problems:
        raise ConfigError(problems)


def export(
    ensemble: Ensemble, out: Path, trail: int | None = None, dtype: str = "float32", sparse: bool = False
) -> Exported:
    """Write a model, its tokenizer and a card into a new folder, read it back and compare.

    Args:
        ensemble: In fp32; its values are rounded to ``dtype`` in place.
        out: The folder; must be empty or not there. It is whole, or as it was.
        trail: One trail's number, from 0, to write as a plain LlamaForCausalLM; None: the ensemble.
        dtype: Of the weights, a key of DTYPES.
        sparse: Whether the ensemble is also written sparse, for NeuroTrailsForCausalLM.from_sparse.

    Raises:
        ConfigError: The model cannot be written so.
        DataError: The tokenizer cannot be.
        RunError: The folder cannot be used, or what was read back has other logits.
    """
    check_free(out)
    check(ensemble.config, trail, sparse)
    for parameter in ensemble.model.parameters():
        parameter.copy_(parameter.to(DTYPES[dtype]))
    source = (ensemble.model, ensemble.config)
    model = as_ensemble(*source, dtype) if trail is None else as_llama(*source, trail, dtype)
    _name_ends(model, ensemble.tokenizer)
    with _quiet(), new_folder(out) as folder:
        model.save_pretrained(folder)
        if trail is None:
            for name in _CODE:
                shutil.copyfile(Path(hf.__path__[0]) / name, folder / name)
        if sparse:
            save_sparse(model, folder)
        write_tokenizer(ensemble.tokenizer, folder, ensemble.max_length)
        (folder / "README.md").write_text(card(ensemble, trail, dtype), encoding="utf-8")
        back = type(model).from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
        difference = compare(back, ensemble, trail)
        if sparse:
            difference = max(difference, compare(type(model).from_sparse(folder, "dense").float(), ensemble, None))
        num_bytes = sum(file.stat().st_size for file in folder.iterdir())
    return Exported(out, sum(each.numel() for each in model.parameters()), num_bytes, difference)


def dense_weights(model: TrailsModel) -> dict[tuple[str, int], torch.Tensor]:
    """Return every weight, dense and without padding, by our name and the trail's number (0 for the trunk's)."""
    found = {}
    for name, weight in weights_of(model).items():
        rows = real_shape(weight.spec)[0]
        for trail, values in enumerate(weight.build(weight.values)):
            found[name, trail] = values[:rows].contiguous()
    return found


def as_ensemble(model: TrailsModel, config: Config, dtype: str = "float32") -> NeuroTrailsForCausalLM:
    """Return the same ensemble as transformers has it."""
    trails = config.trails
    settings = NeuroTrailsConfig(
        **_sizes(config),
        rope_theta=config.model.rope_theta,
        num_trails=trails.count,
        trunk_layers=config.trunk_layers,
        trail_layers=config.model.num_layers - config.trunk_layers,
        fork_at_embedding=trails.fork == "embedding",
        final_norm_twice=trails.final_norm_twice,
        dtype=dtype,
        auto_map={
            "AutoConfig": "configuration_neurotrails.NeuroTrailsConfig",
            "AutoModelForCausalLM": "modeling_neurotrails.NeuroTrailsForCausalLM",
        },
    )
    weights = dense_weights(model)
    state = {ensemble_name(config, name, trail): values for (name, trail), values in weights.items()}
    return _filled(NeuroTrailsForCausalLM, settings, state, dtype)


def as_llama(model: TrailsModel, config: Config, trail: int, dtype: str = "float32") -> LlamaForCausalLM:
    """Return the trunk and one trail as the dense LLaMA that they are together; only for writing.

    It is made on the meta device, and there its rotary tables, which are no part of a state, still are.
    """
    settings = LlamaConfig(
        **_sizes(config),
        num_hidden_layers=config.model.num_layers,
        rope_parameters={"rope_type": "default", "rope_theta": config.model.rope_theta},
        tie_word_embeddings=False,
        dtype=dtype,
    )
    in_trail = {name: weight.spec.trails > 1 for name, weight in weights_of(model).items()}
    state = {
        llama_name(name): values
        for (name, number), values in dense_weights(model).items()
        if number == (trail if in_trail[name] else 0)
    }
    return _filled(LlamaForCausalLM, settings, state, dtype)


def _sizes(config: Config) -> dict[str, int | float]:
    model = config.model
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_size,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": config.model.key_value_heads,
        "max_position_embeddings": model.max_seq_len,
        "rms_norm_eps": model.norm_eps,
    }


def _filled(kind: type[PreTrainedModel], settings, state: dict[str, torch.Tensor], dtype: str) -> PreTrainedModel:
    with torch.device("meta"):
        model = kind(settings)
    values = {key: nn.Parameter(each.to("cpu", DTYPES[dtype]), requires_grad=False) for key, each in state.items()}
    model.load_state_dict(values, assign=True)
    return model.eval()


def _name_ends(model: PreTrainedModel, tokenizer: Tokenizer) -> None:
    ends = {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos, "pad_token_id": tokenizer.eos}
    for key, number in ends.items():
        setattr(model.config, key, number)
    model.generation_config = GenerationConfig(**ends)


def compare(model: PreTrainedModel, ensemble: Ensemble, trail: int | None) -> float:
    """Compare the logits of a model that was read back with the checkpoint's, at once and through a key-value cache.

    Returns:
        The largest difference.

    Raises:
        RunError: It is larger than rounding can be.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (2, min(ensemble.max_length, 64))
    tokens = torch.randint(ensemble.config.model.vocab_size, shape, generator=generator)
    logits = ensemble.logits(tokens).cpu()
    with torch.no_grad():
        if trail is None:
            answer = model(tokens, output_trail_logits=True)
            pairs = [(answer.trail_logits, logits)]
            for how in (PROB, LOGIT):
                pairs.append((model(tokens, combine=how).logits.log_softmax(-1), ensemble.combine(logits, how)))
        else:
            answer = model(tokens)
            pairs = [(answer.logits, logits[trail])]
        cache = model(tokens[:, :-1], use_cache=True)["cache"]
        last = model(tokens[:, -1:], cache=cache).logits
        pairs.append((last, answer.logits[:, -1:]))
    difference = max(float((found - expected).abs().max()) for found, expected in pairs)
    largest = float(logits.abs().max())
    if not difference <= TOLERANCE * max(largest, 1.0):
        raise RunError(
            f"read back, the model's logits differ by {difference:g} from the checkpoint's, of which the largest is "
            f"{largest:g}; nothing was exported"
        )
    return difference


class _quiet:
    """No progress bars and advice of transformers within it."""

    def __enter__(self):
        self.verbosity, self.bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()

    def __exit__(self, *exception: object):
        transformers_logging.set_verbosity(self.verbosity)
        if self.bars:
            transformers_logging.enable_progress_bar()
