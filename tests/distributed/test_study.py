"""The commands that compare, sweep and report, on runs that are there already: what they write is right."""

import csv
import json
import math
import re
import runpy
import sys
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nt_dist.data.loader import spread
from nt_dist.errors import printable
from nt_dist.inference import load_ensemble
from nt_dist.inference.generate import generate
from nt_dist.study.plan import parse_points, plan_runs, plan_sweep, read_plan
from nt_dist.study.report import SAMPLE_TOKENS, SAMPLING
from nt_dist.testing import RankError, run_distributed
from nt_dist.text.prepare import open_data
from tests.unit.inference.trained_run import write_checkpoint
from tests.unit.resnet.small import small
from tests.unit.text.data_case import sentences, write_jsonl

ROOT = Path(__file__).resolve().parents[2]
BASE = """
[model]
hidden_size = 16
ffn_size = 24
num_layers = 2
num_attention_heads = 2
vocab_size = 331
max_seq_len = 8
[trails]
count = 2
layers = 1
[sparsity]
density = 0.5
topology_shards = 2
[data]
source = "jsonl"
path = "{folder}/corpus.jsonl"
validation = 0.2
num_workers = 0
[train]
recipe = "paper"
steps = 4
warmup_steps = 1
batch_size = 4
micro_batch_size = 4
[run]
eval_batches = 2
"""
PLAN = """
base = "{folder}/base.toml"
dir = "{folder}/compared"
[runs.dense]
trails.count = 1
sparsity.density = 1.0
[runs.dense_seed1]
trails.count = 1
sparsity.density = 1.0
train.seed = 1
[runs.trails]
[ensembles]
deep = ["dense", "dense_seed1"]
"""
METRICS = [
    {"step": 2, "loss_per_trail": [6.0, 6.1]},
    {"step": 4, "loss_per_trail": [5.0, 5.2]},
    {"step": 4, "eval": {"ppl_trails": [300.0, 310.0], "ppl_ensemble_prob": 290.0, "ppl_ensemble_logit": 291.0}},
]
SWEEP = ("--densities", "0.5,1", "--layers", "1,2", "--steps", "4")


def _command(rank, world_size, *arguments):
    """Runs one of the tools in a rank, as its main function; returns what it printed."""
    import contextlib
    import io

    sys.argv = [str(each) for each in arguments]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert runpy.run_path(sys.argv[0])["main"]() == 0
    return printed.getvalue()


def _run(tool, *arguments):
    return run_distributed(_command, 1, ROOT / "tools" / f"{tool}.py", *arguments)[0]


def _pretend_trained(runs):
    for run in runs:
        data = open_data(run.config, is_writer=False)
        extra = {"tokens": 128, "tokenizer_sha256": data.tokenizer.sha256, "commit": "0123abcd"}
        write_checkpoint(run.config, data.digest, extra, step=run.config.train.steps)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A plan whose runs have been trained, and their comparison."""
    folder = tmp_path_factory.mktemp("study")
    write_jsonl(folder / "corpus.jsonl", [sentences(12, seed) for seed in range(10)])
    (folder / "base.toml").write_text(BASE.format(folder=folder))
    (folder / "plan.toml").write_text(PLAN.format(folder=folder))
    _pretend_trained(read_plan(folder / "plan.toml").runs.values())
    (folder / "printed").write_text(_run("compare", folder / "plan.toml"))
    return folder


def _rows(file):
    return {row["name"]: row for row in csv.DictReader(file.read_text().splitlines())}


def test_a_comparison_has_every_run_and_ensemble(folder):
    out = folder / "compared"
    rows = _rows(out / "comparison.csv")
    assert list(rows) == ["dense", "dense_seed1", "trails", "deep"]
    assert (out / "comparison.md").read_text() in (folder / "printed").read_text()
    for name in ("perplexity_against_parameters", "perplexity_against_flops"):
        assert (out / f"{name}.png").stat().st_size > 1000 and (out / f"{name}.svg").stat().st_size > 1000
    one, two, deep = (rows[name] for name in ("dense", "dense_seed1", "deep"))
    for cost in ("weights_stored", "training_flops_sparse", "inference_flops_dense"):
        assert float(deep[cost]) == float(one[cost]) + float(two[cost])
    assert deep["tokens_seen"] == one["tokens_seen"] == "128"
    assert rows["trails"]["trails"] == deep["trails"] == "2"


def test_models_trained_apart_predict_by_the_mean_of_their_probabilities(folder):
    rows = _rows(folder / "compared" / "comparison.csv")
    members = [load_ensemble(folder / "compared" / name) for name in ("dense", "dense_seed1")]
    samples = open_data(read_plan(folder / "plan.toml").runs["dense"].config, is_writer=False).validation
    nll = torch.zeros(3, dtype=torch.float64)
    for number in spread(samples, 8).tolist():  # run.eval_batches × train.batch_size
        tokens, targets, weights = (torch.as_tensor(each) for each in samples[number])
        assert bool((weights == 1).all())
        probs = torch.cat([member.logits(tokens.long()[None]) for member in members])[:, 0].double().softmax(-1)
        probs = torch.cat([probs, probs.mean(0, keepdim=True)])  # [3, S, V]
        nll -= probs.log().gather(-1, targets.long().expand(3, -1)[..., None]).sum((1, 2))
    expected = [math.exp(each / 64) for each in nll.tolist()]
    found = [*map(float, rows["deep"]["ppl_trails"].split()), float(rows["deep"]["ppl_ensemble_prob"])]
    assert found == pytest.approx(expected, rel=1e-5)
    assert [float(rows[name]["ppl_trails"]) for name in ("dense", "dense_seed1")] == pytest.approx(
        expected[:2], rel=1e-5
    )
    assert rows["deep"]["tokens_evaluated"] == "64"


def test_pictures_of_models_trained_apart_are_told_by_all_trails(tmp_path):
    paths = [tmp_path / name for name in ("first", "second")]
    for seed, path in enumerate(paths):
        sections = {"model": {"num_classes": 10}, "data": {"max_images": 60}, "train": {"seed": seed}}
        config = small(**sections, run={"dir": str(path), "eval_batches": 2})
        data = config.family.open_data(config, False, lambda work: work())
        write_checkpoint(config, data.digest, {"tokens": 16, **data.identity})
    _run("compare", *paths, "--together", f"both={paths[0]},{paths[1]}", "--out", tmp_path / "out")
    row = _rows(tmp_path / "out" / "comparison.csv")["both"]
    samples = [data.validation[number] for number in spread(data.validation, 8)]  # run.eval_batches × train.batch_size
    pictures, targets = (torch.stack([torch.as_tensor(each[part]) for each in samples]) for part in (0, 1))
    probs = torch.cat([load_ensemble(path).logits(pictures) for path in paths]).double().softmax(-1)
    nll = -probs.mean(0).log().gather(-1, targets[..., None]).mean()
    assert row["trails"] == "6" and float(row["nll_ensemble_prob"]) == pytest.approx(float(nll), rel=1e-5)


def test_results_are_kept_until_the_checkpoint_or_the_evaluation_changes(folder):
    kept = folder / "compared" / "results" / "trails.json"
    before, evaluated = kept.read_text(), kept.stat().st_mtime_ns
    printed = _run("compare", folder / "plan.toml", "--only", "trails", "--equal", "tokens", "--out", kept.parents[1])
    assert kept.stat().st_mtime_ns == evaluated and "Trained on equal tokens." in printed
    _run("compare", folder / "compared" / "trails", "run.eval_batches=1", "--out", folder / "folders")
    other = json.loads((folder / "folders" / "results" / "trails.json").read_text())
    assert other["figures"]["tokens"] == 32 and json.loads(before)["figures"]["tokens"] == 64
    kept.write_text("damaged")
    _run("compare", folder / "plan.toml")
    assert json.loads(kept.read_text()) == json.loads(before)


def test_folders_of_runs_and_what_cannot_be_compared(folder):
    paths = [folder / "compared" / name for name in ("dense", "trails")]
    _run("compare", *paths, "--together", f"both={paths[0]},{paths[1]}", "--out", folder / "apart")
    rows = _rows(folder / "apart" / "comparison.csv")
    assert list(rows) == ["dense", "trails", "both"] and rows["both"]["trails"] == "3"
    dense, trails, both = (float(row["ppl_ensemble_prob"]) for row in rows.values())
    over_best = math.log(min(dense, trails) / both)  # of the runs, not of one run's trails
    assert float(rows["both"]["gain_over_best_member"]) == pytest.approx(over_best, abs=1e-6)
    of_trails = [float(each) for row in rows.values() for each in row["ppl_trails"].split()]
    over_trail = float(rows["both"]["gain_over_best_trail"])
    assert over_trail == pytest.approx(math.log(min(of_trails) / both), abs=1e-6) and over_trail != over_best
    assert rows["both"]["best_member"] == ("dense" if dense < trails else "trails")
    assert not rows["trails"]["gain_over_best_member"]
    cell = f"{over_best:.4f} ({rows['both']['best_member']})"
    assert f"| {cell} |" in (folder / "apart" / "comparison.md").read_text()
    for arguments, message in (
        ([folder / "plan.toml", folder / "compared" / "dense"], "a plan stands alone"),
        ([folder / "compared" / "dense"], "--out FOLDER"),
        ([folder / "compared" / "dense", "--equal", "flops", "--out", folder / "x"], "--equal is for a plan"),
        ([folder / "nowhere", "--out", folder / "x"], "there is no whole checkpoint in it"),
        ([folder / "plan.toml", "--no_train", "--only", "trials"], "did you mean trails"),
    ):
        with pytest.raises(RankError, match=message):
            _run("compare", *arguments)
    assert not (folder / "x").exists()


def test_runs_of_other_data_cannot_predict_together(folder):
    write_jsonl(folder / "other.jsonl", [sentences(12, seed) for seed in range(20, 30)])
    (run,) = plan_runs(
        str(folder / "base.toml"), folder / "others", {"other": [f'data.path="{folder}/other.jsonl"']}, "other"
    ).values()
    _pretend_trained([run])
    paths = f"{folder / 'compared' / 'trails'},{run.dir}"
    with pytest.raises(RankError, match="others/other.*: was trained on other data"):
        _run("compare", "--together", f"both={paths}", "--out", folder / "others")


def test_a_sweep_shows_the_points_that_are_trained(folder):
    out = folder / "sweep"
    runs = plan_sweep(parse_points("0.5,1", "1,2", "", "0.5:1,0.5:2,1:2"), str(folder / "base.toml"), out, 4, [])
    _pretend_trained(runs.values())
    printed = _run("diversity", "--config", folder / "base.toml", "--out", out, *SWEEP, "--no_train")
    rows = list(csv.DictReader((out / "diversity.csv").read_text().splitlines()))
    assert [(float(row["density"]), int(row["layers"])) for row in rows] == [(0.5, 1), (0.5, 2), (1.0, 2)]
    assert all(float(row["gain"]) > 0 for row in rows) and rows[2]["overlap"] == ""
    assert (out / "diversity.md").read_text() in printed
    assert {file.suffix for file in out.glob("gain_against_diversity.*")} == {".png", ".svg"}


class _Page(HTMLParser):
    """What a page holds, and what it would load."""

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.images, self.tags, self.text = [], [], {}, set(), ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.add(tag)
        if tag not in ("meta", "img", "link"):
            self.open.append(tag)
        self.links += [attributes[key] for key in ("src", "href", "srcset", "data", "action") if key in attributes]
        if tag == "img":
            assert attributes["alt"]
            self.images[self.open[-1]] = self.images.get(self.open[-1], 0) + 1

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_a_report_is_one_file_that_needs_nothing_else(folder):
    run = folder / "compared" / "trails"
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in METRICS))
    _run("report", run, "--comparison", folder / "compared")
    text = (run / "report.html").read_text(encoding="utf-8")
    page = _Page(text)
    assert not page.open and "script" not in page.tags and "link" not in page.tags
    assert page.links and all(link.startswith("data:image/svg+xml;base64,") for link in page.links)
    assert "default-src 'none'" in text and not re.search(r"@import|url\(|@font-face", text)
    pictures = [b64decode(link.partition(",")[2]).decode() for link in page.links]
    inside = [link for svg in pictures for link in re.findall(r'(?:xlink:)?href="([^"]*)"', svg)]
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in inside)
    names = ["loss_curves", "reliability", "disagreement", "topology_maps", "topology_overlap", "topology_explored"]
    names += ["perplexity_against_parameters", "perplexity_against_flops"]
    assert re.findall(r'<figure id="(\w+)"', text) == names and page.images == {"figure": len(names)}
    figures = json.loads((run / "report" / "trails.json").read_text())["figures"]
    shown_there = ("step 4 of 4, 128 tokens", "deep", "hidden_size = 16", "0.1.0, commit 0123abcd", "learning rate")
    for shown in (f"{figures['ppl_ensemble_prob']:.2f}", *shown_there):
        assert shown in page.text
    pieces = generate(load_ensemble(run), "", SAMPLE_TOKENS, SAMPLING)
    assert (
        printable("".join(piece.text for piece in pieces))
        in page.text.split("What the ensemble writes from nothing")[1]
    )
    assert {file.stem for file in (run / "report").glob("*.svg")} == set(names)
    events = EventAccumulator(str(run / "tensorboard" / "trails" / "pictures"))
    events.Reload()
    assert set(events.Tags()["images"]) == set(names)


def test_a_dense_model_that_has_logged_nothing_has_a_report(folder):
    run = folder / "compared" / "dense"
    _run("report", run, "--out", folder / "dense.html")
    found = re.findall(r'<figure id="(\w+)"', (folder / "dense.html").read_text())
    assert found == ["reliability"]  # one trail, no topology
    with pytest.raises(RankError, match="nowhere: no such folder"):
        _run("report", folder / "nowhere")
