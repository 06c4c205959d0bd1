"""Zero-shot evaluation: the ensemble, or one trail, as a model of EleutherAI's lm-evaluation-harness.

    python -m nt_dist.harness --model_args checkpoint=runs/quickstart,combine=prob --tasks FILE.yaml …

takes the harness's own flags and commands; ``--model_args`` are EnsembleLM's. The model is the harness's own class for
Hugging Face models on an export in memory: a context begins with BOS, what is too long for the model loses its left
end, and a rolling likelihood is a sum over windows that do not overlap.
"""

import hashlib
import inspect
import json
import logging
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval import simple_evaluate
from lm_eval._cli import HarnessCLI
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import Collator, handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval.utils import make_table, setup_logging
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from nt_dist.command_line import run_main
from nt_dist.config.keys import hint, nearest
from nt_dist.errors import ConfigError, RunError
from nt_dist.export.hf.sparse_neurotrails import hold_sparse
from nt_dist.export.huggingface import to_transformers
from nt_dist.inference import Ensemble, load_ensemble
from nt_dist.inference.ensemble import parse_combination
from nt_dist.text.tokenizer import Tokenizer

MODEL = "nt_dist"
LOGIT_ENTRIES = 1 << 26  # of [T, B, S, V] at once, with batch_size "auto"
_DTYPES = ("float32", "bfloat16", "float16")
_logger = logging.getLogger(__name__)
_SAMPLING = ("until", "max_gen_toks", "do_sample", "temperature", "top_p")  # of generation_kwargs


@register_model(MODEL)
class EnsembleLM(HFLM):
    """A trained ensemble in the harness; an NTDistError for arguments that cannot be used."""

    def __init__(
        self,
        checkpoint: str | Path | Ensemble | None = None,  # one, a folder of them, a run's, or an ensemble in memory
        combine: str | int = "prob",  # or "logit", or a trail's number from 1
        batch_size: int | str = 1,  # sequences in one pass; "auto" for as many as hold LOGIT_ENTRIES logits
        max_batch_size: int | None = None,  # the harness's; not needed: "auto" does not try
        device: str | None = None,  # None for a GPU, or the CPU where there is none
        dtype: str = "float32",
        max_length: int | None = None,  # tokens that the model sees at once; None for as many as it was trained on
        add_bos_token: bool | None = None,  # whether a text begins with BOS; None for whether the tokenizer has one
        tokenizer: str | None = None,  # the run's tokenizer file,
        prepared: str | None = None,  # and its prepared texts, where they are no longer in their place
        model: str | None = None,  # the name that --output_path files results under; the command has one
        **unknown: Any,
    ):
        *known, _ = inspect.signature(EnsembleLM).parameters  # the last one is ``unknown``
        rules = {f"--model_args {name} is none{hint(nearest(name, known))}": False for name in unknown} | {
            "--model_args checkpoint=DIR is missing": checkpoint is not None,
            f"--model_args dtype={dtype} must be one of {', '.join(_DTYPES)}": dtype in _DTYPES,
            f"--batch_size {batch_size} must be a number or auto": batch_size == "auto" or str(batch_size).isdecimal(),
        }
        if problems := [rule for rule, holds in rules.items() if not holds]:
            raise ConfigError(problems)
        ensemble = checkpoint
        if not isinstance(ensemble, Ensemble):
            places = (Path(place) if place else None for place in (tokenizer, prepared))
            ensemble = load_ensemble(checkpoint, "cpu", torch.float32, *places)
        ensemble.check_task("text-generation")
        how = parse_combination(str(combine), ensemble.num_trails, "--model_args combine")
        has_bos = ensemble.tokenizer.bos is not None
        if add_bos_token and not has_bos:
            raise ConfigError(["--model_args add_bos_token=True: the run's tokenizer has no BOS"])
        if not torch.cuda.is_available():  # the harness asks for a GPU where nothing else was said
            device = "cpu"
        entries = ensemble.num_trails * ensemble.tokenizer.vocab_size * (max_length or ensemble.max_length)
        batch_size = max(1, LOGIT_ENTRIES // entries) if batch_size == "auto" else int(batch_size)
        exported = to_transformers(ensemble.model, ensemble.config).to(device or "cuda", getattr(torch, dtype))
        exported.config.combine = how
        self.tokenizer = _Tokens(ensemble.tokenizer)
        self._source = {"checkpoint": str(ensemble.checkpoint), "combine": str(combine)}
        add_bos_token = has_bos if add_bos_token is None else add_bos_token
        super().__init__(exported, batch_size=batch_size, max_length=max_length, add_bos_token=add_bos_token)
        self._is_held_sparse = False  # which only writing gains from
        decides = [ensemble.manifest.to_json(), how, dtype, self.max_length, add_bos_token]
        self._identity = hashlib.sha256(json.dumps(decides).encode()).hexdigest()

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Take a table of its own in the file of --use_cache, where the harness tells requests apart and not models."""
        super().set_cache_hook(cache_hook)
        if (answers := cache_hook.dbdict) is not None:
            answers.tablename = self._identity
            answers.conn.execute(f'CREATE TABLE IF NOT EXISTS "{self._identity}" (key TEXT PRIMARY KEY, value BLOB)')

    def _create_tokenizer(self, *arguments: Any, **settings: Any) -> None:
        """Not one of transformers: the run's own may be of a kind that an export cannot keep."""

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **settings: Any) -> list[int]:
        """The tokens of a text, after BOS unless ``add_special_tokens`` or ``add_bos_token`` says otherwise."""
        return self.tokenizer.encode(string, self.add_bos_token if add_special_tokens is None else add_special_tokens)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """As the base class, but where the tokenizer makes the end of the context and all of the continuation one
        piece, so that none would be left to score, each is encoded by itself."""
        before, scored = super()._encode_pair(context, continuation)
        return before, scored or self.tok_encode(continuation, add_special_tokens=False)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """None: a run's own tokenizer has no template."""
        if chat_template:
            raise ConfigError(["--apply_chat_template: the run's tokenizer has no chat template"])
        return ""

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside results: run and combination."""
        return {"model_num_parameters": self.model.num_parameters(), "model_dtype": self.model.dtype, **self._source}

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **settings: Any
    ) -> list[tuple[float, bool]]:
        """As the base class, but a continuation longer than the model's sequences is scored in parts."""
        length = self.max_length
        parts = [
            (number, [*context, *continuation[:start]], continuation[start : start + length])
            for number, (_, context, continuation) in enumerate(requests)
            for start in range(0, len(continuation), length)
        ]
        scores = super()._loglikelihood_tokens([(None, *part) for _, *part in parts], disable_tqdm, **settings)
        answers = [(0.0, True)] * len(requests)
        for (number, *_), (score, is_greedy) in zip(parts, scores, strict=True):
            total, are_greedy = answers[number]
            answers[number] = total + score, are_greedy and is_greedy
        for (text, _, _), answer in zip(requests, answers, strict=True):
            if text is not None:  # windows of a rolling likelihood have none
                self.cache_hook.add_partial("loglikelihood", text, answer)
        return answers

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The text that follows each context, up to the first of its stop texts or the end of a document.

        Unlike the base class's it may outgrow the model's sequences, and draws are the same each time.
        """
        torch.manual_seed(0)
        if not self._is_held_sparse:
            hold_sparse(self.model, self.batch_size)
            self._is_held_sparse = True
        ordered = Collator(
            [request.args for request in requests],
            sort_fn=lambda request: (-len(self.tok_encode(request[0])), request[0]),
            group_by="gen_kwargs",
            group_fn=lambda request: request[1],
        )
        texts = []
        with tqdm(total=len(requests), disable=disable_tqdm, desc="Running generate_until requests") as bar:
            for batch in ordered.get_batched(n=self.batch_size):
                texts += self._generate([self.tok_encode(context) for context, _ in batch], batch[0][1])
                for request, text in zip(batch, texts[-len(batch) :], strict=True):
                    self.cache_hook.add_partial("generate_until", request, text)
                bar.update(len(batch))
        return ordered.get_original(texts)

    def _generate(self, contexts: list[list[int]], settings: dict[str, Any]) -> list[str]:
        """Continues contexts side by side; ConfigError if a setting of the generation is not known here."""
        settings = normalize_gen_kwargs(settings, default_max_gen_toks=256)
        if strange := [name for name in settings if name not in _SAMPLING]:
            rule = f"is not known; known are {', '.join(_SAMPLING)}"
            raise ConfigError([f"generation_kwargs: {name} {rule}" for name in strange])
        until = handle_stop_sequences(settings.pop("until", None), eos=None)
        count, eos = int(settings.pop("max_gen_toks")), self.tokenizer.eos_token_id
        room = self.max_length - count if count < self.max_length else max(self.max_length // 2, 1)
        if cut := sum(len(context) > room for context in contexts):
            _logger.warning(
                "%d of %d contexts are longer than %d tokens: their left end is cut", cut, len(contexts), room
            )
        written = [[] for _ in contexts]
        while count > 0:  # once a window; more where what was written has filled the model's sequence
            rows = [torch.tensor([*each, *new][-room:]) for each, new in zip(contexts, written, strict=True)]
            tokens = pad_sequence(rows, True, eos, "left").to(self.device)
            mask = pad_sequence([torch.ones_like(row) for row in rows], True, 0, "left").to(self.device)
            start = tokens.shape[1]
            end, extra = min(start + count, self.max_length), {"attention_mask": mask, "eos_token_id": eos, **settings}
            with torch.no_grad():
                grown = self._model_generate(tokens, end, until, **extra)[:, start:].tolist()
            written = [[*each, *new] for each, new in zip(written, grown, strict=True)]
            if all(eos in row or any(each in self.tok_decode(row) for each in until) for row in written):
                break
            count -= len(grown[0])
        ended = [row[: row.index(eos)] if eos in row else row for row in written]
        return [postprocess_generated_text(self.tok_decode(row), until, None) for row in ended]


class _Tokens:
    """What the harness's class asks a tokenizer for, of a run's own."""

    pad_token = True  # there is one: EOS, which counts for nothing under a mask

    def __init__(self, tokenizer: Tokenizer):
        self.own, self.vocab_size = tokenizer, tokenizer.vocab_size
        self.bos_token_id, self.eos_token_id = tokenizer.bos, tokenizer.eos
        self.pad_token_id, self.name_or_path = tokenizer.eos, f"{MODEL}-{tokenizer.sha256}"

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [*([self.bos_token_id] if add_special_tokens else []), *self.own.encode(text)]

    def decode(self, tokens: Sequence[int], **settings: Any) -> str:
        return self.own.decode(list(tokens))

    def batch_decode(self, rows: torch.Tensor) -> list[str]:
        return [self.own.decode(row) for row in rows.tolist()]


def load_tasks(tasks: Sequence[str], include_path: Path | None = None) -> list[Any]:
    """Load tasks, by name or as files (*.yaml), and build a first request of each, before a model is loaded.

    ``include_path`` is a folder of task files, whose names are known like the harness's own.

    ConfigError with each task that the harness cannot use, in its own words.
    """
    files = {task for task in tasks if task.endswith((".yaml", ".yml"))}
    if include_path is not None and not include_path.is_dir():
        raise ConfigError([f"--include_path {include_path}: no such folder"])
    folder = None if include_path is None else str(include_path)
    manager = TaskManager(include_path=folder, include_defaults=False)
    if not all(task in files or manager.match_tasks([task]) for task in tasks):
        manager = TaskManager(include_path=folder)  # the harness's own, which take seconds
    found, problems = [], []
    for task in tasks:
        if task in files and not Path(task).is_file():
            problems.append(f"--tasks {task}: no such file")
        elif task not in files and not manager.match_tasks([task]):
            problems.append(f"--tasks {task}: is no task of the harness")
        else:
            try:
                loaded = manager.load([load_yaml(task) if task in files else task])
                for each in loaded["tasks"].values():
                    each.build_all_requests(limit=1, rank=0, world_size=1)
                found += list(loaded["groups"].values())[:1] or loaded["tasks"].values()
            except Exception as error:  # of YAML, jinja, datasets, the harness's own assertions
                words = " ".join(str(error).split())
                problems.append(f"--tasks {task}: cannot be used: {type(error).__name__}: {words}")
    if problems:
        raise ConfigError(problems)
    return found


def evaluate_tasks(
    checkpoint: Path, tasks: Sequence[str], combine: str = "prob", include_path: Path | None = None
) -> tuple[str, dict[str, Any]]:
    """Evaluate a checkpoint on tasks (see :func:`load_tasks`); return the harness's table, and its results by task."""
    loaded = load_tasks(tasks, include_path)
    results = simple_evaluate(EnsembleLM(checkpoint, combine, batch_size="auto"), tasks=loaded, log_samples=False)
    return make_table(results), {"results": results["results"], "versions": results["versions"]}


def main() -> None:
    """Run the harness's own command line with this model."""
    setup_logging()
    cli = HarnessCLI()
    arguments = cli.parse_args()
    if arguments.command == "run":
        arguments.model, given = arguments.model or MODEL, arguments.model_args
        if arguments.model == MODEL and given and "checkpoint" in given:  # else the harness draws a name by chance
            names = [*Path(given["checkpoint"]).resolve().parts[-3:], str(given.get("combine", "prob"))]
            arguments.model_args = {"model": "-".join(names)} | given
    try:
        cli.execute(arguments)
    except (OSError, sqlite3.Error) as problem:  # a data set out of reach, a folder or --use_cache that is not writable
        raise RunError(f"the harness says: {type(problem).__name__}: {' '.join(str(problem).split())}") from problem
    except ValueError as problem:
        if str(problem).startswith(("Tasks not found", "Need to specify")):
            raise ConfigError([f"--tasks: {problem}"]) from None
        raise


if __name__ == "__main__":
    run_main(main)
