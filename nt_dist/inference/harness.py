"""Zero-shot evaluation: the ensemble, or one trail, as a model of EleutherAI's lm-evaluation-harness.

    python -m nt_dist.inference.harness --model_args checkpoint=runs/quickstart,combine=prob --tasks FILE.yaml …

takes the harness's own flags and commands (the harness itself loads no models of others). Scores are those of its class
for Hugging Face models, which conditions and cuts in the same way: a context begins with BOS, what is too long for the
model loses its left end, and a rolling likelihood is a sum over windows that do not overlap.

``--model_args`` are those of EnsembleLM: checkpoint; combine (prob, logit or a trail's number from 1); dtype;
max_length; add_bos_token; tokenizer and prepared, where the run's own are no longer in their place.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import model_registry
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from nt_dist.command_line import run_main
from nt_dist.config.names import hint, nearest
from nt_dist.errors import ConfigError
from nt_dist.inference import Ensemble, load_ensemble
from nt_dist.inference.ensemble import parse_combination
from nt_dist.inference.generate import Sampling
from nt_dist.inference.harness_tasks import check_task_files

MODEL = "nt_dist"
LOGIT_ENTRIES = 1 << 26  # of [T, B, S, V] at once, with batch_size "auto"
_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_ARGUMENTS = ("checkpoint", "combine", "dtype", "max_length", "add_bos_token", "tokenizer", "prepared", "batch_size")
_SAMPLING = ("until", "max_gen_toks", "do_sample", "temperature", "top_p")  # of generation_kwargs


class EnsembleLM(TemplateLM):
    """A trained ensemble in the harness.

    Args:
        checkpoint: A checkpoint, a folder of checkpoints, a run's folder, or an ensemble that has been loaded.
        combine: "prob", "logit" or a trail's number from 1.
        batch_size: Sequences in one pass; "auto" for as many as hold LOGIT_ENTRIES logits.
        max_batch_size: Not needed: "auto" does not try.
        device: Where to compute; None for a GPU. Without one, and with the harness's default, the CPU.
        dtype: "float32", "bfloat16" or "float16".
        max_length: Tokens that the model sees at once; None for as many as it was trained on.
        add_bos_token: Whether a text begins with BOS; None for whether the tokenizer has one.
        tokenizer: The run's .model file, where it has been moved.
        prepared: The run's prepared texts, where they have been moved.
        unknown: Whatever else was given, which is refused.

    Raises:
        NTDistError: The checkpoint or an argument cannot be used.
    """

    def __init__(
        self,
        checkpoint: str | Path | Ensemble | None = None,
        combine: str | int = "prob",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        dtype: str = "float32",
        max_length: int | None = None,
        add_bos_token: bool | None = None,
        tokenizer: str | None = None,
        prepared: str | None = None,
        **unknown: Any,
    ):
        super().__init__()
        problems = [f"--model_args {name} is none{hint(nearest(name, _ARGUMENTS))}" for name in unknown]
        if checkpoint is None:
            problems.append("--model_args checkpoint=DIR is missing")
        if dtype not in _TYPES:
            problems.append(f"--model_args dtype={dtype} must be one of {', '.join(_TYPES)}")
        if batch_size != "auto" and not str(batch_size).isdecimal():
            problems.append(f"--batch_size {batch_size} must be a number or auto")
        if problems:
            raise ConfigError(problems)
        if isinstance(checkpoint, Ensemble):
            self.ensemble = checkpoint
        else:
            if not torch.cuda.is_available():  # the harness asks for a GPU where nothing else was said
                device = "cpu"
            places = (Path(tokenizer) if tokenizer else None, Path(prepared) if prepared else None)
            self.ensemble = load_ensemble(checkpoint, device or "cuda", _TYPES[dtype], *places)
        self.pieces = self.ensemble.tokenizer
        self.how = parse_combination(str(combine), self.ensemble.num_trails, "--model_args combine")
        self.max_length = max_length or self.ensemble.max_length
        self.add_bos = self.pieces.bos is not None if add_bos_token is None else bool(add_bos_token)
        if self.add_bos and self.pieces.bos is None:
            raise ConfigError(["--model_args add_bos_token=True: the run's tokenizer has no BOS"])
        self._device = self.ensemble.device
        entries = self.ensemble.num_trails * self.pieces.vocab_size * self.max_length
        self.batch_size = max(1, LOGIT_ENTRIES // entries) if batch_size == "auto" else int(batch_size)

    # -- tokens ------------------------------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        """The token that ends a document."""
        return self.pieces.eos

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without a context."""
        return self.pieces.eos if self.pieces.bos is None else self.pieces.bos

    @property
    def tokenizer_name(self) -> str:
        """What tells this tokenizer from others in the harness's caches."""
        return f"{MODEL}-{self.pieces.sha256}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """The tokens of a text, after BOS unless ``add_special_tokens`` or ``add_bos_token`` says otherwise."""
        with_bos = self.add_bos if add_special_tokens is None else add_special_tokens and self.pieces.bos is not None
        return [*([self.pieces.bos] if with_bos else []), *self.pieces.encode(string)]

    # -- likelihoods -------------------------------------------------------------------------------------------

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether it is the likeliest, token by token.

        A continuation longer than the model's sequences is scored in parts, each after as much as fits before it.
        """
        parts = [
            (number, part)
            for number, (_, context, continuation) in enumerate(requests)
            for part in _parts(context, continuation, self.max_length)
        ]
        parts.sort(key=lambda each: -len(each[1][0]))  # the longest first: what does not fit in memory shows at once
        totals, greedy = [0.0] * len(requests), [True] * len(requests)
        with tqdm(total=len(parts), disable=disable_tqdm, desc="Running loglikelihood requests") as bar:
            for start in range(0, len(parts), self.batch_size):
                batch = parts[start : start + self.batch_size]
                for (number, _), (score, is_greedy) in zip(batch, self._score([p for _, p in batch]), strict=True):
                    totals[number] += score
                    greedy[number] &= is_greedy
                bar.update(len(batch))
        answers = list(zip(totals, greedy, strict=True))
        for (text, _, _), answer in zip(requests, answers, strict=True):
            if text is not None:  # windows of a rolling likelihood have none
                self.cache_hook.add_partial("loglikelihood", text, answer)
        return answers

    def _score(self, batch: Sequence[tuple[list[int], int]]) -> Iterator[tuple[float, bool]]:
        """Scores the last so many tokens of each sequence, given those before."""
        longest = max(len(tokens) for tokens, _ in batch) - 1
        inputs = torch.zeros(len(batch), longest, dtype=torch.long)
        for row, (tokens, _) in enumerate(batch):
            inputs[row, : len(tokens) - 1] = torch.tensor(tokens[:-1])  # padding to the right: no token looks there
        logits = self.ensemble.logits(inputs)  # [T, B, S, V]
        for row, (tokens, count) in enumerate(batch):
            end = len(tokens) - 1
            log_probs = self.ensemble.combine(logits[:, row, end - count : end], self.how)  # [count, V]
            targets = torch.tensor(tokens[-count:], device=log_probs.device)
            score = log_probs.gather(-1, targets[:, None]).sum()
            yield float(score), bool((log_probs.argmax(-1) == targets).all())

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each whole text, over windows that do not overlap."""
        windows, counts = [], []
        for request in requests:
            cut = get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, context_len=1
            )
            own = [(None, *make_disjoint_window(window)) for window in cut]
            windows += own
            counts.append(len(own))
        scores = iter(self._loglikelihood_tokens(windows, disable_tqdm))
        totals = [sum(next(scores)[0] for _ in range(count)) for count in counts]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    # -- generation --------------------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The text that follows each context, up to the first of its stop texts or the end of a document."""
        answers: list[str | None] = [None] * len(requests)
        contexts = [self.tok_encode(request.args[0]) for request in requests]
        groups: dict[str, list[int]] = {}
        for number in sorted(range(len(requests)), key=lambda number: -len(contexts[number])):
            groups.setdefault(repr(requests[number].args[1]), []).append(number)
        with tqdm(total=len(requests), disable=disable_tqdm, desc="Running generate_until requests") as bar:
            for numbers in groups.values():
                for start in range(0, len(numbers), self.batch_size):
                    batch = numbers[start : start + self.batch_size]
                    texts = self._generate([contexts[number] for number in batch], requests[batch[0]].args[1])
                    for number, text in zip(batch, texts, strict=True):
                        answers[number] = text
                        self.cache_hook.add_partial("generate_until", requests[number].args, text)
                    bar.update(len(batch))
        return answers

    def _generate(self, contexts: list[list[int]], settings: dict[str, Any]) -> list[str]:
        """Continues contexts side by side.

        Raises:
            ConfigError: A setting of the generation is not known here.
        """
        settings = normalize_gen_kwargs(settings, default_max_gen_toks=256)
        strange = [name for name in settings if name not in _SAMPLING]
        if strange:
            known = ", ".join(_SAMPLING)
            raise ConfigError([f"generation_kwargs: {name} is not known; known are {known}" for name in strange])
        temperature = float(settings.get("temperature", 1.0)) if settings["do_sample"] else 0.0
        sampling = Sampling(temperature, float(settings.get("top_p", 1.0)))
        generator = torch.Generator().manual_seed(sampling.seed)
        count = int(settings["max_gen_toks"])
        room = self.max_length - count if count < self.max_length else max(self.max_length // 2, 1)
        texts = _Texts([context[-room:] for context in contexts], self.pieces, settings["until"])
        cache, waiting = None, None
        for _ in range(count):
            if cache is None or cache.length + 1 > self.max_length:  # what was written has filled the model's sequence
                rows = [tokens[-room:] for tokens in texts.tokens]
                waiting, padding = _left_padded(rows)
                cache = self.ensemble.new_cache(padding)
            log_probs = self.ensemble.combine(self.ensemble.logits(waiting, cache)[:, :, -1], self.how)  # [B, V]
            texts.add([sampling.choose(each, generator) for each in log_probs])
            if all(texts.are_done):
                break
            waiting = torch.tensor([[tokens[-1]] for tokens in texts.tokens])
        return texts.results()


class _Texts:
    """Texts that are being written side by side.

    Args:
        contexts: The tokens before them.
        tokenizer: Decodes.
        until: Texts that end them.
    """

    def __init__(self, contexts: list[list[int]], tokenizer: Any, until: Sequence[str]):
        self.tokens = [list(context) for context in contexts]
        self.are_done = [False] * len(contexts)
        self._starts = [len(context) for context in contexts]
        self._ends: list[int | None] = [None] * len(contexts)
        self._tokenizer = tokenizer
        self._until = [each for each in until if each]

    def add(self, tokens: Sequence[int]) -> None:
        """Adds a token to each; what comes after a text's end does not count."""
        for row, token in enumerate(tokens):
            self.tokens[row].append(token)
            if not self.are_done[row]:
                self.are_done[row] = token == self._tokenizer.eos or any(
                    each in self._text(row) for each in self._until
                )
                self._ends[row] = len(self.tokens[row]) - (token == self._tokenizer.eos)

    def _text(self, row: int) -> str:
        end = len(self.tokens[row]) if not self.are_done[row] else self._ends[row]
        return self._tokenizer.decode(self.tokens[row][self._starts[row] : end])

    def results(self) -> list[str]:
        """The texts, each up to where it was to end."""
        results = []
        for row in range(len(self.tokens)):
            text = self._text(row)
            for each in self._until:
                text = text.split(each)[0]
            results.append(text)
        return results


def _parts(context: list[int], continuation: list[int], length: int) -> Iterator[tuple[list[int], int]]:
    """Cuts a continuation into what a model of ``length`` can score at once: tokens, and how many of them to score."""
    assert context and continuation
    for start in range(0, len(continuation), length):
        part = continuation[start : start + length]
        yield [*context, *continuation[:start], *part][-(length + 1) :], len(part)


def _left_padded(rows: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token sequences as one tensor [B, S], and how much each is padded [B]."""
    longest = max(len(row) for row in rows)
    padding = torch.tensor([longest - len(row) for row in rows])
    return torch.tensor([[0] * (longest - len(row)) + row for row in rows]), padding


def register() -> None:
    """Make the class known to the harness as MODEL."""
    import lm_eval.models  # noqa: F401  # it registers the harness's own, but only into a registry without any

    if MODEL not in model_registry:
        model_registry.register(MODEL, target=EnsembleLM)


def evaluate_tasks(
    checkpoint: Path, tasks: Sequence[str], combine: str = "prob", include_path: str | None = None
) -> tuple[str, dict[str, Any]]:
    """Evaluate a checkpoint on tasks.

    Args:
        checkpoint: A checkpoint, a folder of checkpoints or a run's folder.
        tasks: Names of the harness's tasks, or of task files (*.yaml).
        combine: "prob", "logit" or a trail's number from 1.
        include_path: A folder of further tasks.

    Returns:
        The harness's table, and its results by task.

    Raises:
        NTDistError: The checkpoint or a task cannot be used.
    """
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml
    from lm_eval.utils import make_table

    check_task_files(tasks, include_path)
    specs = [load_yaml(task) if task.endswith((".yaml", ".yml")) else task for task in tasks]
    named = [task for task in specs if isinstance(task, str)]
    manager = TaskManager(include_path=include_path, include_defaults=bool(named))  # reading its own takes seconds
    unknown = [task for task in named if not manager.match_tasks([task])]
    if unknown:
        raise ConfigError([f"--tasks {task}: is no task of the harness" for task in unknown])
    model = EnsembleLM(checkpoint, combine, batch_size="auto")
    results = simple_evaluate(model, tasks=specs, task_manager=manager, log_samples=False)
    return make_table(results), {"results": results["results"], "versions": results["versions"]}


def main() -> None:
    """Run the harness's own command line with this model."""
    from lm_eval._cli import HarnessCLI
    from lm_eval.utils import setup_logging

    setup_logging()
    register()
    cli = HarnessCLI()
    arguments = cli.parse_args()
    if arguments.command == "run":
        arguments.model = arguments.model or MODEL
        check_task_files(arguments.tasks or [], arguments.include_path)
    try:
        cli.execute(arguments)
    except ValueError as problem:
        if str(problem).startswith(("Tasks not found", "Need to specify")):
            raise ConfigError([f"--tasks: {problem}"]) from None
        raise


if __name__ == "__main__":
    run_main(main)
