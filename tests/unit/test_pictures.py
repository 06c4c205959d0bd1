"""Pictures show the figures they are given, and become files that stand alone."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from nt_dist.families import DEFAULT
from nt_dist.pictures import (
    drawn,
    loss_curves,
    reliability_diagram,
    save_pictures,
    short,
    topology_maps,
    trail_matrix,
    weight_table,
)
from tests.unit.study.study_case import figures

RECORDS = [
    {"step": 1, "loss_per_trail": [5.0, 5.5]},
    {"step": 2, "loss_per_trail": [4.0, 4.5]},
    {"step": 2, "eval": {"ppl_trails": [60.0, 65.0], "ppl_ensemble_prob": 55.0, "ppl_ensemble_logit": 56.0}},
    {"step": 3, "loss_per_trail": [3.0, None]},
]


def _lines(axes):
    return {line.get_label(): line.get_xydata().tolist() for line in axes.lines}


def test_each_trail_has_a_line():
    training, apart, validation = loss_curves(RECORDS, DEFAULT).axes
    assert _lines(apart)["trail 2"][:2] == [[1, 0.25], [2, 0.25]]
    lines = _lines(training)
    assert lines["trail 1"] == [[1, 5.0], [2, 4.0], [3, 3.0]]
    assert lines["trail 2"][:2] == [[1, 5.5], [2, 4.5]] and np.isnan(lines["trail 2"][2][1])  # null: not finite
    assert _lines(validation) == {"trail 1": [[2, 60.0]], "trail 2": [[2, 65.0]], "ensemble": [[2, 55.0]]}
    look = [(line.get_color(), line.get_linestyle()) for line in training.lines]
    assert look[0][0] != look[1][0] and look[0][1] != look[1][1]  # told apart without colour, too


def test_a_run_that_has_logged_nothing_yet_can_be_drawn():
    assert not any(axes.lines for axes in loss_curves([{"step": 1, "other": 2}], DEFAULT).axes)


def test_the_reliability_diagram_shows_bins_that_hold_tokens():
    reliability = figures(2)["reliability"]
    upper, lower = reliability_diagram(reliability, "tokens").axes
    for name, bins in (("trail 2", reliability["trails"][1]), ("ensemble, mean of probabilities", reliability["prob"])):
        full = [number for number, count in enumerate(bins["count"]) if count]
        expected = [[bins["confidence"][number], bins["accuracy"][number]] for number in full]
        assert _lines(upper)[name] == expected
    shares = [bar.get_height() for bar in lower.patches]
    assert shares == pytest.approx(np.array(reliability["prob"]["count"]) / sum(reliability["prob"]["count"]))
    alone, _ = reliability_diagram(figures(1)["reliability"], "tokens").axes
    assert set(_lines(alone)) == {"as it should be", "trail 1"}


def test_a_matrix_of_trails_has_its_values_written_into_it():
    axes, _ = trail_matrix([[0.0, 0.25], [0.25, 0.0]], "Disagreement", "share").axes
    assert [text.get_text() for text in axes.texts] == ["0.250", "0.250"]  # the diagonal says nothing
    assert [label.get_text() for label in axes.get_xticklabels()] == ["trail 1", "trail 2"]


def _table_of(values, layers):
    axes, _ = weight_table(values, layers, "Title", "label").axes
    ticks = ([label.get_text() for label in each] for each in (axes.get_yticklabels(), axes.get_xticklabels()))
    return axes.images[0].get_array().filled(np.nan), *ticks


def test_weights_stand_in_the_row_of_their_kind_and_the_column_of_their_block():
    blocks = {
        f"blocks.{block}.{kind}": (10 * block + row) / 100 for block in (2, 3) for row, kind in enumerate(("a.b", "c"))
    }
    layers = {name: name[:8] for name in blocks} | {"embedding": "embedding", "output": "output"}
    table, rows, columns = _table_of({"embedding": 0.07, **blocks, "output": 0.09}, layers)
    assert np.array_equal(table, [[0.2, 0.3], [0.21, 0.31], [0.07, np.nan], [np.nan, 0.09]], equal_nan=True)
    assert (rows, columns) == (["a.b", "c", "embedding", "output"], ["2", "3"])


def test_layers_of_any_names_have_a_table():
    values = {"stem": 0.1, "stage1.0.conv": 0.2, "stage2.0.conv": 0.3, "stage2.0.shortcut": 0.4, "head.fc": 0.5}
    table, rows, columns = _table_of(values, {name: name.rpartition(".")[0] or name for name in values})
    expected = [[0.2, 0.3], [np.nan, 0.4], [0.1, np.nan], [np.nan, 0.5]]
    assert np.array_equal(table, expected, equal_nan=True)
    assert (rows, columns) == (["conv", "shortcut", "stem", "fc"], ["stage1.0", "stage2.0"])
    alone, rows, columns = _table_of({"stem": 0.1, "blocks.0.conv": 0.2}, {"stem": "stem", "blocks.0.conv": "blocks.0"})
    assert (alone.tolist(), rows, columns) == ([[0.1], [0.2]], ["stem", "conv"], [])


def test_maps_share_one_scale():
    maps = {"first": np.full((4, 4), 0.2), "second": np.full((3, 5), 0.6)}
    first, second, _ = topology_maps(maps).axes
    assert [each.images[0].get_clim() for each in (first, second)] == [(0, 0.6)] * 2
    assert (first.get_title("left"), second.get_title("left")) == ("first", "second")


def test_a_picture_is_saved_as_png_and_svg_that_needs_nothing_else(tmp_path):
    save_pictures({"curves": drawn(loss_curves(RECORDS, DEFAULT))}, tmp_path)
    with Image.open(tmp_path / "curves.png") as image:
        assert image.width > 600
    root = ElementTree.parse(tmp_path / "curves.svg").getroot()
    links = [value for each in root.iter() for key, value in each.attrib.items() if key.endswith("href")]
    assert links and all(link.startswith("#") for link in links)  # letters are drawn: no font is needed
    assert not any(each.tag.endswith("}text") for each in root.iter())


def test_the_same_picture_is_the_same_file():
    first, second = (drawn(trail_matrix([[0.0, 0.25], [0.25, 0.0]], "", "")) for _ in range(2))
    assert first == second


def test_large_numbers_in_few_letters():
    assert [short(number) for number in (0.5, 999, 1500, 2.25e6, 3.1e9, 4e15)] == [
        "0.5",
        "999",
        "1.5 k",
        "2.25 M",
        "3.1 G",
        "4 P",
    ]
