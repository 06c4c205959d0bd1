"""Tables and pictures of comparisons and of the diversity study hold the figures they are made of."""

import csv
import io
import itertools
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from nt_dist.config.family import Headline
from nt_dist.errors import CheckpointError, RunError
from nt_dist.evaluation.evaluate_checkpoint import saved_config
from nt_dist.families import FAMILIES, load_config, make_config
from nt_dist.files import write_whole
from nt_dist.images.published import PUBLISHED
from nt_dist.llama.family import Llama
from nt_dist.study.plan import SweepPoint
from nt_dist.study.results import check_alike
from nt_dist.study.tables import Row, compare, diversity_study, read_comparison
from tests.unit.resnet.small import small
from tests.unit.study.study_case import result, rows

RESULTS = [result("single", 1, 2_250_000), result("trails", 3, 4_420_000)]


def _markdown_rows(text):
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_the_table_says_what_each_run_costs_and_how_well_it_predicts():
    single, trails = _markdown_rows(compare(rows(RESULTS)).markdown().replace("|  |", "| name |"))
    figures = RESULTS[1].figures
    assert (single["trails"], trails["trails"]) == ("1", "3")
    assert trails["weights stored"] == "4.42 M of 8.84 M" and trails["training FLOP"] == "26.5 M (53 M)"
    assert trails["perplexity of each trail"] == ", ".join(f"{each:.2f}" for each in figures["ppl_trails"])
    assert trails["ensemble, mean of probabilities"] == f"{figures['ppl_ensemble_prob']:.2f}"
    best = min(figures["nll"]["trails"]) - figures["nll"]["prob"]
    assert trails["over the best trail (nats)"] == f"{best:.4f}" and single["over the best trail (nats)"] == "–"
    assert trails["ECE"] == f"{figures['calibration']['ece']['prob']:.2%}"
    assert trails["disagreement"] == f"{figures['disagreement']:.1%}"
    assert single["gain (nats)"] == single["disagreement"] == single["ensemble, mean of logits"] == "–"


def test_sources_of_mixtures_have_columns():
    mixed = [
        replace(RESULTS[1], name=name, figures={**RESULTS[1].figures, "sources": each})
        for name, each in (
            ("one", {"code": RESULTS[0].figures}),
            ("two", {"code": RESULTS[1].figures, "prose": RESULTS[0].figures}),
        )
    ]
    table = compare(rows([RESULTS[0], *mixed]))
    single, one, two = _markdown_rows(table.markdown().replace("|  |", "| name |"))
    first, second = (f"{each.figures['ppl_ensemble_prob']:.2f}" for each in RESULTS)
    assert [each["perplexity on code"] for each in (single, one, two)] == ["–", first, second]
    assert [each["perplexity on prose"] for each in (single, one, two)] == ["–", "–", first]
    found = list(csv.DictReader(io.StringIO(table.csv())))
    assert [each["perplexity on prose"] for each in found] == ["", "", str(RESULTS[0].figures["ppl_ensemble_prob"])]


def test_the_csv_has_every_digit():
    found = list(csv.DictReader(io.StringIO(compare(rows(RESULTS)).csv())))
    for row, expected in zip(found, RESULTS, strict=True):
        figures = expected.figures
        assert row["name"] == expected.name and int(row["weights_stored"]) == expected.weights_stored
        assert [float(each) for each in row["ppl_trails"].split()] == figures["ppl_trails"]
        assert float(row["brier"]) == figures["calibration"]["brier"]["prob"]
        assert float(row["mutual_information"]) == figures["diversity"]["mutual_information"]


def _of_seeds(name, perplexities, **changes):
    """A model of so many seeds, whose ensembles have these perplexities."""
    found = []
    for seed, perplexity in enumerate(perplexities):
        figures = {**RESULTS[1].figures, "ppl_ensemble_prob": perplexity}
        found.append(result(f"{name}_seed{seed}", 3, 1000, figures=figures, **changes))
    return found


def test_several_seeds_are_a_mean_its_spread_and_a_rule_for_differences():
    names = {"good": [10.0, 10.2], "near": [10.5, 10.5], "far": [11.0], "alike": [10.1, 10.3]}
    table = compare([Row(name, _of_seeds(name, each)) for name, each in names.items()])
    found = {row["name"]: row for row in _markdown_rows(table.markdown().replace("|  |", "| name |"))}
    assert found["good"]["ensemble, mean of probabilities"] == "10.10 ± 0.14"
    assert found["far"]["ensemble, mean of probabilities"] == "11.00"
    assert [row["seeds"] for row in found.values()] == ["2", "2", "1", "2"]
    # s² = (0.02 + 0 + 0.02) / 3, t = 3.182 of three degrees: 0.37 between two seeds each, 0.45 between two and one
    assert {name: row["behind the best"] for name, row in found.items()} == {
        "good": "–",
        "near": "0.40, counts",
        "far": "0.90, counts",
        "alike": "0.10, does not count",
    }
    (rule,) = [note for note in table.notes if "±" in note]
    assert "from 0.52, two 0.37, three 0.30. s = 0.12 is" in rule and "3 degrees of freedom" in rule
    assert not any("±" in note for note in compare(rows(RESULTS)).notes)


class Answers(Llama):
    """A family whose figures are better the higher they are."""

    def headline(self, figures):
        return replace(super().headline(figures), lower_is_better=False)


def test_the_best_is_the_highest_where_more_is_better(monkeypatch):
    monkeypatch.setitem(FAMILIES, "pictures", Answers())
    for_family = {"family": "pictures"}
    table = compare([Row(name, _of_seeds(name, each, **for_family)) for name, each in (("a", [10, 10]), ("b", [9, 9]))])
    assert [row["behind the best"] for row in table.cells] == ["–", "1.00, counts"]


def test_a_comparison_that_was_written_is_read_as_it_was(tmp_path):
    several = [Row("one", _of_seeds("one", [10.0, 10.2]), "train.lr = 0.1: 10.00 (taken); train.lr = 0.2: 10.70")]
    table = compare([*several, *rows([RESULTS[0]])], "flops")
    for each in [*several[0].results, RESULTS[0]]:
        write_whole(tmp_path / "results" / f"{each.name}.json", json.dumps(asdict(each)))
    write_whole(tmp_path / "comparison.csv", table.csv())
    assert read_comparison(tmp_path).markdown() == table.markdown()
    assert [row["tried"] for row in table.cells] == [several[0].tried, "–"]


def test_the_table_says_in_what_rows_are_equal():
    longer = replace(RESULTS[0], tokens_seen=9000)
    assert "Trained on equal tokens, 5,000." in compare(rows(RESULTS)).notes
    assert "Not trained on equal tokens, but on 5,000 / 9,000." in compare(rows([longer, RESULTS[1]])).notes
    assert "Trained on equal training FLOP, sparse-effective." in compare(rows([longer, RESULTS[1]]), "flops").notes
    both = result("both", 4, 9_000_000)  # as an ensemble of runs is, each of which costs as much as the others
    notes = compare(rows([longer, RESULTS[1], both]), "flops").notes
    assert "Trained on equal training FLOP, sparse-effective, but for both." in notes
    cells = compare(rows([longer, replace(RESULTS[1], training_seconds=0.0)])).cells
    assert [row["time"] for row in cells] == ["1:05", "–"]
    assert [row["whole training FLOP"] for row in cells] == ["122 G", "133 G"]  # 6 · 2.25 M · 9,000; 6 · 4.42 M · 5,000


def test_rows_of_other_texts_are_named():
    assert "cannot be compared" not in compare(rows(RESULTS)).markdown()
    other = result("other", 1, 1000, digest="xyz")
    assert "same data (other)" in compare(rows([*RESULTS, other])).markdown()


def test_what_others_published_on_the_data_of_a_run_stands_below_once():
    on = {name: small(data={"benchmark": name}) for name in PUBLISHED}
    said = {name: list(config.family.published(config)) for name, config in on.items()}
    assert said["none"] == [] and "published" not in compare(rows(RESULTS)).markdown().lower()
    for name, figures in {
        "cifar10": ("WRN-28-10 single 96.0 % / 0.159 / 0.023", "four 96.6 % / 0.114 / 0.010", "2106.04015"),
        "cifar100": ("WRN-28-10 single 79.8 % / 0.875 / 0.086", "four 82.7 % / 0.666 / 0.021"),
        "imagenet": ("ResNet-50 single 76.2 % / 0.939 / 0.032", "four 77.9 % / 0.857 / 0.017", "77.17 %", "1911.11134"),
    }.items():
        text = compare(rows(replace(each, published=said[name]) for each in RESULTS)).markdown()
        assert all(text.count(each) == 1 for each in figures), text


def test_only_configs_of_whole_public_data_sets_name_one():
    named = {}
    for path in sorted(Path("configs").glob("*.toml")):
        config = load_config(path, check_paths=False)
        if config.family.published(config):
            named[path.stem] = config.data.benchmark
    assert named == {
        "resnet50_imagenet": "imagenet",
        "wrn28_10_cifar10": "cifar10",
        "wrn28_10_cifar100": "cifar100",
    }


def test_a_comparison_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(RunError, match="holds no comparison"):
        read_comparison(tmp_path)
    write_whole(tmp_path / "comparison.csv", compare(rows(RESULTS)).csv())
    with pytest.raises(RunError, match=r"single.json: is not there"):
        read_comparison(tmp_path)


def test_points_stand_at_their_cost_and_their_perplexity():
    (figure, several) = compare(rows(RESULTS)).figures.values()
    drawn = {tuple(line.get_xydata()[0]) for axes in figure.axes for line in axes.lines}
    for each in RESULTS:
        assert (each.weights_stored, each.figures["ppl_ensemble_prob"]) in drawn
    assert {text.get_text() for text in figure.axes[0].texts} == {"single", "trails"}
    assert [axes.get_xlabel().split()[0] for axes in several.axes] == ["training", "inference"]


def test_names_that_would_lie_on_one_another_are_moved_apart():
    alike = [result(name, 1, 1000, figures=RESULTS[0].figures) for name in ("one", "two", "three")]
    texts = compare(rows(alike)).figures["perplexity_against_parameters"].axes[0].texts
    heights = sorted(text.xyann[1] for text in texts)
    assert min(b - a for a, b in itertools.pairwise(heights)) > 8.5


class Pictures(Llama):
    """A family of image models, as far as a study asks."""

    def headline(self, figures):
        return Headline("error", figures["nll"]["trails"], figures["nll"]["prob"], 0.8, True, ".3f", "image")


def test_a_comparison_names_what_its_family_counts(monkeypatch):
    monkeypatch.setitem(FAMILIES, "pictures", Pictures())
    results = [replace(each, family="pictures", figures={**each.figures, "images": 7}) for each in RESULTS]
    comparison = compare(rows(results))
    assert list(comparison.figures) == ["error_against_parameters", "error_against_flops"]
    assert "Evaluated on 7 images." in comparison.notes and comparison.rows[0]["images_evaluated"] == 7
    assert "error of each trail" in comparison.cells[0] and "images seen" in comparison.cells[0]


def test_models_predict_together_only_where_their_family_finds_them_alike():
    first, other = (make_config({"model": {"max_seq_len": length}, "trails": {"layers": 1}}) for length in (32, 64))
    check_alike({Path("a"): first, Path("b"): first}, ["x", "x"], "x")
    with pytest.raises(CheckpointError, match="b: model.max_seq_len = 64 differs from 32"):
        check_alike({Path("a"): first, Path("b"): other}, ["x", "x"], "x")
    with pytest.raises(CheckpointError, match="b: was trained on other data"):
        check_alike({Path("a"): first, Path("b"): first}, ["x", "y"], "x")


def test_a_run_on_many_ranks_is_read_on_one(tmp_path):
    config = make_config({"parallel": {"tensor": 2}}, world_size=2)
    (tmp_path / "config.toml").write_text(config.to_toml())
    assert saved_config(tmp_path).parallel.tensor == 1


def test_the_study_has_a_row_and_a_mark_for_each_point():
    points = [SweepPoint(density, layers, joint) for density in (0.5, 0.9) for layers, joint in ((1, 0.0), (2, 0.5))]
    results = {point: result(point.name, 3, 1000 + number) for number, point in enumerate(points)}
    dense = SweepPoint(1.0, 2, 0.0)
    results[dense] = result("dense", 3, 3000)
    results[dense].figures["topology"] = None
    study = diversity_study(results)
    found = study.rows
    assert [(row["density"], row["layers"], row["joint"]) for row in found] == [*points, dense]
    nll = results[points[0]].figures["nll"]
    assert found[0]["gain"] == pytest.approx(sum(nll["trails"]) / 3 - nll["prob"]) and found[0]["gain"] > 0
    assert found[-1]["overlap"] is None
    weights = [row["weight of the ensemble's loss"] for row in _markdown_rows(study.markdown())]
    assert weights == ["0", "0.5"] * 2 + ["0"]
    gain = study.figures["gain_against_diversity"]
    drawn = {tuple(point) for line in gain.axes[0].lines if len(line.get_xydata()) for point in line.get_xydata()}
    assert drawn == {(row["disagreement"], row["gain"]) for row in found}
