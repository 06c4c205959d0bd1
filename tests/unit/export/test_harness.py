"""The ensemble in the lm-evaluation-harness: scores are those of single whole passes, whatever the batch and length."""

import functools
import json
import math
import runpy
import sys
from pathlib import Path

import lm_eval.tasks
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from lm_eval.models.huggingface import HFLM

from nt_dist import harness
from nt_dist.errors import CheckpointError, ConfigError, RunError
from nt_dist.export.huggingface import export
from nt_dist.harness import EnsembleLM, load_tasks
from nt_dist.inference import load_ensemble
from nt_dist.inference.generate import Sampling, generate
from tests.unit.inference.trained_run import write_pictures_run, write_run

ROOT = Path(__file__).resolve().parents[3]
TASKS = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "configs" / "tasks").glob("*.yaml"))]
LONG = "the old trunk stands in the rain while its leaves fall " * 3
PAIRS = [("the old", " trunk"), ("", "rain and moss"), (LONG, " falls"), ("moss ", "under"), ("green", LONG)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def ensemble(run):
    return load_ensemble(run)


def _requests(kind, arguments):
    return [Instance(kind, {}, each, number) for number, each in enumerate(arguments)]


def _log_probs(ensemble, tokens, how):
    """Log-probabilities [S, V] after each of the tokens, by the definition of the combination."""
    logits = ensemble.logits(torch.tensor([tokens]))[:, 0].double()
    if how == "prob":
        return logits.softmax(-1).mean(0).log()
    return (logits.mean(0) if how == "logit" else logits[how - 1]).log_softmax(-1)


def _expected(ensemble, context, continuation, how):
    """Each token of the continuation after all that fits, in parts as long as the model's sequences."""
    length, total, greedy = ensemble.max_length, 0.0, True
    for start in range(0, len(continuation), length):
        part = continuation[start : start + length]
        tokens = [*context, *continuation[:start], *part][-(length + 1) :]
        log_probs = _log_probs(ensemble, tokens[:-1], how)[-len(part) :]
        total += sum(float(row[token]) for row, token in zip(log_probs, part, strict=True))
        greedy &= log_probs.argmax(-1).tolist() == part
    return total, greedy


@pytest.mark.parametrize("how", ["prob", "logit", 2])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_likelihoods_are_those_of_single_passes(ensemble, how, batch_size):
    model = EnsembleLM(ensemble, how, batch_size)
    found = model.loglikelihood(_requests("loglikelihood", PAIRS), disable_tqdm=True)
    bos, encode = ensemble.tokenizer.bos, ensemble.tokenizer.encode
    lengths = set()
    for (context, continuation), (score, greedy) in zip(PAIRS, found, strict=True):
        moved = len(context) - len(context.rstrip())  # a space at the end of a context belongs to what follows
        head = [bos, *encode(context[: len(context) - moved])]
        tail = [bos, *encode(context + continuation)][len(head) :]
        lengths.add((len(head) > ensemble.max_length, len(tail) > ensemble.max_length))
        expected, expected_greedy = _expected(ensemble, head, tail, how)
        assert score == pytest.approx(expected, rel=1e-5) and greedy == expected_greedy
    assert lengths == {(False, False), (True, False), (False, True)}


def test_a_continuation_that_is_one_piece_with_the_context_is_scored_by_itself(ensemble):
    tokenizer = ensemble.tokenizer
    pieces = [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)]
    pairs = [(piece[:-1], piece[-1]) for piece in pieces if len(piece) > 1 and piece.isascii() and piece.isalpha()]
    merged = (pair for pair in pairs if len(tokenizer.encode("".join(pair))) <= len(tokenizer.encode(pair[0])))
    context, continuation = next(merged)  # for which the base class has nothing to score
    before, scored = (tokenizer.encode(text) for text in (context, continuation))
    (answer,) = EnsembleLM(ensemble).loglikelihood(_requests("loglikelihood", [(context, continuation)]), True)
    assert answer[0] == pytest.approx(_expected(ensemble, [tokenizer.bos, *before], scored, "prob")[0], rel=1e-5)
    assert answer[0] < 0


def test_the_likeliest_continuation_is_called_greedy(ensemble):
    model, encode = EnsembleLM(ensemble), ensemble.tokenizer.encode
    context = [ensemble.tokenizer.bos, *encode("the old")]
    likeliest = int(_log_probs(ensemble, context, "prob")[-1].argmax())
    other = (likeliest + 1) % ensemble.tokenizer.vocab_size
    found = model._loglikelihood_tokens([(None, context, [likeliest]), (None, context, [other])], disable_tqdm=True)
    assert [greedy for _, greedy in found] == [True, False]


def test_a_rolling_likelihood_scores_every_token_once(ensemble):
    model = EnsembleLM(ensemble, batch_size=2)
    texts = ["moss", LONG, ""]
    found = model.loglikelihood_rolling(_requests("loglikelihood_rolling", [(text,) for text in texts]), True)
    bos, length = ensemble.tokenizer.bos, ensemble.max_length
    for text, score in zip(texts, found, strict=True):
        tokens = [bos, *ensemble.tokenizer.encode(text)]  # as the harness's own class has it, BOS is scored, too
        before, total = [bos, *tokens], 0.0
        for start in range(0, len(tokens), length):
            end = min(start + length, len(tokens))
            seen = before[max(end - length, 0) : end]  # the last window scores only its end, after all that fits
            log_probs = _log_probs(ensemble, seen, "prob")[start - end :]
            total += sum(float(row[token]) for row, token in zip(log_probs, tokens[start:end], strict=True))
        assert score == pytest.approx(total, rel=1e-5)


def test_texts_are_continued_side_by_side_as_they_are_alone(ensemble):
    settings = {"until": [], "max_gen_toks": 6, "do_sample": False}
    contexts = ["the", "moss and rain", "old"]
    requests = _requests("generate_until", [(context, settings) for context in contexts])
    alone = EnsembleLM(ensemble).generate_until(requests, True)
    assert EnsembleLM(ensemble, batch_size=3).generate_until(requests, True) == alone
    for context, found in zip(contexts, alone, strict=True):
        pieces = generate(ensemble, context, 6, Sampling(temperature=0))
        assert "".join(piece.text for piece in pieces).strip() == found.strip()


def test_a_text_may_grow_beyond_the_models_sequences(ensemble):
    settings = {"until": [], "max_gen_toks": 3 * ensemble.max_length}
    (found,) = EnsembleLM(ensemble).generate_until(_requests("generate_until", [(LONG, settings)]), True)
    assert len(ensemble.tokenizer.encode(found)) > ensemble.max_length


def test_a_stop_text_ends_a_text_and_is_left_out(ensemble):
    def write(until):
        settings = {"until": until, "max_gen_toks": 12}
        return EnsembleLM(ensemble).generate_until(_requests("generate_until", [("the old", settings)]), True)[0]

    whole = write([])
    stop = whole[4:7]
    assert write([stop]) == whole.split(stop)[0] != whole
    assert write(stop) == write([stop])


def test_sampling_draws_the_same_text_each_time(ensemble):
    settings = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.5, "top_p": 0.9}
    requests = _requests("generate_until", [("the old", settings)])
    model = EnsembleLM(ensemble)
    greedy = model.generate_until(_requests("generate_until", [("the old", {"max_gen_toks": 8})]), True)
    assert model.generate_until(requests, True) == model.generate_until(requests, True) != greedy
    with pytest.raises(ConfigError, match="generation_kwargs: num_beams is not known"):
        model.generate_until(_requests("generate_until", [("the", {**settings, "num_beams": 3})]), True)


def test_a_context_that_is_cut_is_said(ensemble, caplog):
    model = EnsembleLM(ensemble)
    caplog.clear()
    model.loglikelihood(_requests("loglikelihood", [(LONG, " rain"), ("the", " rain")]), True)
    assert ["exceeds model's maximum length" in message for message in caplog.messages] == [True]  # by the harness
    caplog.clear()
    settings = {"max_gen_toks": 3}
    model.generate_until(_requests("generate_until", [(LONG, settings), ("the", settings)]), True)
    assert caplog.messages == ["1 of 1 contexts are longer than 13 tokens: their left end is cut"]


def test_shipped_tasks_run_without_a_network(run, ensemble, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a network is asked for"))
    table, found = harness.evaluate_tasks(run, TASKS, "prob")
    results = found["results"]
    assert set(results) == {"bracket_choice", "continue_line", "lines"} and "bracket_choice" in table
    documents = [json.loads(line) for line in Path("configs/tasks/bracket_choice.jsonl").read_text().splitlines()]
    model, right = EnsembleLM(ensemble), 0
    for document in documents:
        pairs = _requests("loglikelihood", [(document["opening"], choice) for choice in document["choices"]])
        scores = [score for score, _ in model.loglikelihood(pairs, True)]
        right += scores.index(max(scores)) == document["right"]
    assert results["bracket_choice"]["acc,none"] == right / len(documents)
    texts = [json.loads(line)["text"] for line in Path("configs/tasks/lines.jsonl").read_text().splitlines()]
    total = sum(model.loglikelihood_rolling(_requests("loglikelihood_rolling", [(text,) for text in texts]), True))
    bits = -total / sum(len(text.encode()) for text in texts) / math.log(2)
    assert results["lines"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-5)


def test_the_command_takes_the_harnesss_own_flags(run, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    arguments = [
        "--model_args",
        f"checkpoint={run},combine=2",
        "--tasks",
        TASKS[0],
        "--limit",
        "2",
        "--batch_size",
        "auto",
    ]
    monkeypatch.setattr(sys, "argv", ["harness", *arguments, "--output_path", str(tmp_path / "out.json")])
    without_its_own = functools.partial(lm_eval.tasks.TaskManager, include_defaults=False)  # reading them takes seconds
    monkeypatch.setattr("lm_eval.tasks.TaskManager", without_its_own)
    harness.main()
    assert "bracket_choice" in capsys.readouterr().out
    (written,) = tmp_path.glob("out*.json")
    content = json.loads(written.read_text())
    assert content["n-samples"]["bracket_choice"]["effective"] == 2
    assert content["config"]["model"] == harness.MODEL
    assert content["model_name"] == "-".join([*run.parts[-3:], "2"])  # which names a folder of --output_path too


def test_answers_kept_by_the_harness_are_those_of_one_model(ensemble, tmp_path):
    """Its file of --use_cache tells requests apart and not models: no answer of another combination may come out."""
    requests = _requests("loglikelihood_rolling", [(text,) for text in (LONG, "rain and moss")])

    def score(model):
        return CachingLM(model, str(tmp_path / "answers.db")).loglikelihood_rolling(requests)

    models = [EnsembleLM(ensemble, how) for how in (1, 2, "prob")] + [EnsembleLM(ensemble, "prob", max_length=8)]
    expected = [model.loglikelihood_rolling(requests, True) for model in models]
    assert len({tuple(each) for each in expected}) == len(models)
    assert [score(model) for model in models] == expected
    models[2].loglikelihood_rolling = lambda requests: pytest.fail("the kept answers are not used")
    assert score(models[2]) == expected[2]


def test_what_the_harness_cannot_reach_or_apply_is_said_without_a_traceback(run, monkeypatch, tmp_path):
    arguments = ["harness", "--model_args", f"checkpoint={run}", "--tasks", TASKS[0], "--limit", "1"]
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr(
        "lm_eval.tasks.TaskManager", functools.partial(lm_eval.tasks.TaskManager, include_defaults=False)
    )
    monkeypatch.setattr(sys, "argv", [*arguments, "--apply_chat_template"])
    with pytest.raises(ConfigError, match="--apply_chat_template: the run's tokenizer has no chat template"):
        harness.main()
    (tmp_path / "kept_rank0.db").mkdir()
    monkeypatch.setattr(sys, "argv", [*arguments, "--use_cache", str(tmp_path / "kept")])
    with pytest.raises(RunError, match="the harness says: OperationalError: unable to open database file"):
        harness.main()
    monkeypatch.setattr(sys, "argv", arguments)
    unreachable = ConnectionError("Couldn't reach\nthe hub")
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: (_ for _ in ()).throw(unreachable))
    with pytest.raises(RunError, match="the harness says: ConnectionError: Couldn't reach the hub"):
        harness.main()


def test_evaluate_py_hands_tasks_to_the_harness(run, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))

    def evaluate(*arguments):
        monkeypatch.setattr(sys, "argv", ["evaluate.py", "--checkpoint", str(run), *arguments])
        return runpy.run_path("tools/evaluate.py")["main"]()

    assert evaluate("--tasks", TASKS[1], "--combine", "3", "--json", str(tmp_path / "figures.json")) == 0
    assert "continue_line" in capsys.readouterr().out
    assert "exact_match,none" in json.loads((tmp_path / "figures.json").read_text())["results"]["continue_line"]
    with pytest.raises(RunError, match="--tasks goes with --checkpoint, --combine and --json alone"):
        evaluate("--tasks", TASKS[1], "--full")
    with pytest.raises(ConfigError, match="configs/tasks/nowhere.yaml: no such file"):
        evaluate("--tasks", "configs/tasks/nowhere.yaml")
    with pytest.raises(ConfigError, match="--include_path configs/nowhere: no such folder"):
        evaluate("--tasks", "lines", "--include_path", "configs/nowhere")
    with pytest.raises(RunError, match="--include_path goes with --tasks alone"):
        evaluate("--include_path", "configs/tasks")
    asked = []
    monkeypatch.setattr(harness, "evaluate_tasks", lambda *arguments: asked.append(arguments) or ("", {}))
    assert evaluate("--tasks", "continue_line", "--include_path", "configs/tasks") == 0
    assert asked == [(run, ["continue_line"], "prob", Path("configs/tasks"))]
    (task,) = load_tasks(["continue_line"], Path("configs/tasks"))
    assert task.config.task == "continue_line"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "checkpoint=DIR is missing"),
        ({"combin": "prob"}, "combin is none; did you mean combine"),
        ({"combine": "mean"}, "combine = 'mean' must be 'prob', 'logit' or a trail's number from 1 to 3"),
        ({"combine": 4}, "a trail's number from 1 to 3"),
        ({"dtype": "int8"}, "dtype=int8 must be one of float32"),
        ({"batch_size": "many"}, "--batch_size many must be a number or auto"),
    ],
)
def test_wrong_arguments_are_named(ensemble, arguments, message):
    given = {} if not arguments else {"checkpoint": ensemble}
    with pytest.raises(ConfigError, match=message):
        EnsembleLM(**given, **arguments)


def test_a_checkpoint_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        EnsembleLM(tmp_path / "nowhere")


def test_a_checkpoint_that_writes_no_text(tmp_path):
    with pytest.raises(ConfigError, match="'resnet' is for image-classification; this is for text-generation"):
        EnsembleLM(write_pictures_run(tmp_path))


TASK = """
task: example
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: right
"""


def _task(folder, old="", new=""):
    (folder / "data.jsonl").write_text('{"q": "a", "choices": ["b", "c"], "right": 0}\n')
    text = TASK.format(data=folder / "data.jsonl")
    assert old in text
    (folder / "example.yaml").write_text(text.replace(old, new))
    return str(folder / "example.yaml")


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("task: example", "", "example.yaml: cannot be used"),
        ("dataset_path: json", "dataset_pth: json", "dataset_pth"),
        ("doc_to_text", "doc_to_txt", "doc_to_txt"),
        ("doc_to_choice", "choices", "choices"),
        ("doc_to_target: right", "", "example.yaml: cannot be used"),
        ("test_split: test", "", "example.yaml: cannot be used"),
        ("multiple_choice", "multiple_chioce", "multiple_chioce"),
        ("data.jsonl", "other.jsonl", "other.jsonl"),
        ("task: example", "task: [", "example.yaml: cannot be used"),
        ("task: example", "include: base.yaml", "base.yaml"),
    ],
)
def test_a_task_file_that_the_harness_cannot_use_is_named_before_a_model_is_loaded(tmp_path, old, new, message):
    with pytest.raises(ConfigError, match=message):
        harness.evaluate_tasks(tmp_path / "no run", [_task(tmp_path, old, new)])


def test_good_task_files_pass_also_where_they_include_others(tmp_path):
    (task,) = load_tasks([_task(tmp_path)])
    assert task.config.task == "example"
    (tmp_path / "base.yaml").write_text("doc_to_target: right\n")
    load_tasks([_task(tmp_path, "doc_to_target: right", "include: base.yaml")])


@pytest.fixture(scope="module")
def exported(ensemble, tmp_path_factory):
    """The ensemble and its second trail as models of transformers."""
    folder = tmp_path_factory.mktemp("exported")
    export(ensemble, folder / "ensemble")
    export(ensemble, folder / "trail", trail=2)
    return folder


@pytest.mark.parametrize("name, how", [("trail", 2), ("ensemble", "prob")])
def test_scores_are_those_of_the_harnesss_own_class_on_the_exported_model(ensemble, exported, name, how, monkeypatch):
    theirs = HFLM(
        str(exported / name), device="cpu", dtype="float32", batch_size=2, trust_remote_code=name == "ensemble"
    )
    ours = EnsembleLM(ensemble, how, batch_size=3)
    assert (theirs.max_length, theirs.prefix_token_id) == (ours.max_length, ours.prefix_token_id)
    short = PAIRS[:-1]  # theirs asserts that a continuation fits
    found, expected = (each.loglikelihood(_requests("loglikelihood", short), True) for each in (ours, theirs))
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], rel=1e-5)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    texts = _requests("loglikelihood_rolling", [("moss",), (LONG,)])
    assert ours.loglikelihood_rolling(texts, True) == pytest.approx(theirs.loglikelihood_rolling(texts, True), rel=1e-5)
    settings = {"until": ["\n"], "max_gen_toks": 7, "do_sample": False}
    requests = _requests("generate_until", [("the old", settings), ("moss", settings), (LONG, settings)])
    # a model that was not trained writes bytes that are no text, which the two tokenizers show in different ways
    monkeypatch.setattr(ensemble.tokenizer, "decode", theirs.tok_decode)
    assert ours.generate_until(requests, True) == theirs.generate_until(requests, True)
