"""What TensorBoard is told: read back from its own files, as TensorBoard reads them."""

import io
import time

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from nt_dist.evaluation.topology import Overlap
from nt_dist.families import DEFAULT
from nt_dist.sparsity.spec import WeightSpec
from nt_dist.sparsity.storages import STORAGES, DenseWeight
from nt_dist.training import tensorboard
from nt_dist.training.tensorboard import (
    PICTURE_SIDE,
    TensorBoard,
    draw_pictures,
    of_evaluation,
    pictured_weight,
    topology_picture,
)


def _record(step, loss=4.0):
    return {
        "step": step,
        "tokens": 512 * step,
        "loss": loss,
        "objective": 2 * loss,
        "loss_per_trail": [loss - 0.5, loss + 0.5],
        "joint_loss": loss - 0.25,
        "lr": 1e-3,
        "grad_norm": 1.25,
        "density": 0.5,
        "regrown": 0.25,
        "drop_fraction": 0.5,
        "topology_checksum": "0123",
        "rollbacks": step // 20,
        "share_of_source": {"code": 0.25},
    }


def _evaluation(step):
    figures = {"ppl_trails": [60.0, 62.0], "ppl_ensemble_prob": 55.0, "ppl_ensemble_logit": 54.0}
    figures |= {"disagreement": 0.3, "ensemble_gain": 6.0, "tokens": 4096}
    return step, figures, DEFAULT.headline(figures)


def _read(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def _curve(events, name):
    return [(event.step, pytest.approx(event.value)) for event in events.Scalars(name)]


def _sparse(name="blocks.2.mlp.gate", trails=2, shape=(8, 6), storage="compact", in_trail=True):
    weight = STORAGES[storage](WeightSpec(name, shape, trails=trails, shards=2, density=0.5, in_trail=in_trail))
    weight.reset(seed=0)
    return weight


def test_curves_are_drawn_for_each_trail_and_figure(tmp_path):
    board = TensorBoard(tmp_path, 0)
    board.training(_record(10))
    board.training(_record(20, loss=3.0))
    step, figures, headline = _evaluation(20)
    board.draw(step, of_evaluation(figures, headline, Overlap(0.4, 1 / 3), {"code": headline}))
    board.close()
    events, first, second = (_read(tmp_path / each) for each in ("", "trail_1", "trail_2"))
    assert _curve(first, "trails/loss") == [(10, 3.5), (20, 2.5)]
    assert _curve(second, "trails/loss") == [(10, 4.5), (20, 3.5)]
    ensemble = _read(tmp_path / "ensemble")
    assert _curve(ensemble, "trails/loss") == [(10, 3.75), (20, 2.75)]
    assert _curve(events, "training/loss") == [(10, 4.0), (20, 3.0)]
    assert _curve(events, "topology/density") == [(10, 0.5), (20, 0.5)]
    assert _curve(events, "topology/regrown") == [(10, 0.25), (20, 0.25)]
    assert _curve(events, "warnings/rollbacks") == [(10, 0), (20, 1)]
    assert _curve(events, "topology/overlap") == [(20, 0.4)]
    assert _curve(events, "topology/overlap_by_chance") == [(20, 1 / 3)]
    assert _curve(events, "validation/disagreement") == [(20, 0.3)]
    assert _curve(second, "trails/validation") == [(20, 62.0)]
    assert _curve(events, "validation_of_source/code") == [(20, 55.0)]
    assert _curve(events, "share_of_source/code") == [(10, 0.25), (20, 0.25)]
    assert _curve(ensemble, "trails/validation") == [(20, 55.0)]
    assert "validation/tokens" not in events.Tags()["scalars"]


def test_the_trails_of_a_run_share_a_chart_with_a_line_each(tmp_path):
    TensorBoard(tmp_path, 0).close()
    (event,) = _read(tmp_path).Tensors("custom_scalars__config__")
    (category,) = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0]).category
    charts = {chart.title: list(chart.multiline.tag) for chart in category.chart}
    assert charts == {"loss": ["trails/loss"], "validation": ["trails/validation"]}


def test_pictures_of_a_finished_run_take_the_place_of_older_ones(tmp_path):
    def png(color):
        buffer = io.BytesIO()
        Image.new("RGB", (4, 2), color).save(buffer, "png")
        return buffer.getvalue()

    draw_pictures(tmp_path, {"old": png("red")}, 10)
    draw_pictures(tmp_path, {"new": png("blue")}, 20)
    events = _read(tmp_path / "pictures")
    assert events.Tags()["images"] == ["new"]
    (shown,) = events.Images("new")
    assert shown.step == 20
    assert np.asarray(Image.open(io.BytesIO(shown.encoded_image_string))).tolist() == [[[0, 0, 255]] * 4] * 2


@pytest.mark.parametrize("behind", [0, 3600])
def test_a_resumed_run_hides_what_the_killed_one_wrote_after_the_checkpoint(tmp_path, monkeypatch, behind):
    """Also where it goes on in the same second, or on a host whose clock is behind."""
    clock, curve = time.time, [(10, 5.0)]
    for first, loss in ((0, 5.0), (10, 4.0), (10, 3.0)):
        board = TensorBoard(tmp_path, first)
        for step in (20, 30) if first else (10, 20, 30):
            board.training(_record(step, loss=loss))
        board.close()
        assert _curve(_read(tmp_path), "training/loss") == [*curve, (20, loss), (30, loss)]
        of_trail = [(step, each - 0.5) for step, each in [(10, 5.0), (20, loss), (30, loss)]]
        assert _curve(_read(tmp_path / "trail_1"), "trails/loss") == of_trail
        behind += 3600 if behind else 0
        monkeypatch.setattr(time, "time", lambda behind=behind: clock() - behind)


def test_a_start_from_nothing_hides_everything_older(tmp_path):
    for loss, trails in ((5.0, 3), (4.0, 2)):
        board = TensorBoard(tmp_path, 0)
        board.topology(_sparse(), 0)
        board.training(_record(10, loss=loss) | {"loss_per_trail": [loss] * trails})
        board.close()
    assert _curve(_read(tmp_path / "trail_2"), "trails/loss") == [(10, 4.0)]
    assert _curve(_read(tmp_path / "trail_3"), "trails/loss") == []  # there is none any more
    events = _read(tmp_path)
    assert _curve(events, "training/loss") == [(10, 4.0)]
    assert [image.step for image in events.Images("topology/blocks.2.mlp.gate")] == [0]


def test_pictures_follow_the_topology(tmp_path):
    weight = _sparse()
    board = TensorBoard(tmp_path, 0)
    board.topology(weight, 0)
    weight.set_positions(weight.slot_positions().flip(0))
    board.topology(weight, 50)
    board.close()
    images = _read(tmp_path).Images("topology/blocks.2.mlp.gate")
    assert [image.step for image in images] == [0, 50]
    first, second = (np.asarray(Image.open(io.BytesIO(image.encoded_image_string))) for image in images)
    first, second = (shown[: 8 * 32 : 32, : 6 * 32 : 32] for shown in (first, second))
    assert np.array_equal(first[..., 0], second[..., 1]) and np.array_equal(first[..., 1], second[..., 0])
    assert not np.array_equal(first, second)


def test_a_picture_says_below_what_it_shows(monkeypatch):
    written = []
    monkeypatch.setattr(tensorboard.ImageDraw.ImageDraw, "multiline_text", lambda *a, **k: written.append(a[2]))
    said = []
    for trails in (1, 2, 3, 4):
        said.append(tensorboard._colours(trails))
    assert said[0] == "White: active; black: not."
    assert said[1] == "Red: trail 1, green: trail 2; yellow: active in all; black: in none."
    assert said[2] == said[3] and "blue: trail 3; white: active in all" in said[2]
    picture = np.zeros((100, 4, 3), np.uint8)
    shown = tensorboard.labelled(picture, said[2])
    assert " ".join(written[0].splitlines()) == said[2]
    assert not shown[:200, :8].any() and shown[205:].all() and shown.shape[1] > 100


def test_a_run_is_called_by_its_name_where_it_has_no_curves_yet(tmp_path):
    run, top = tmp_path / "mine", tmp_path / "mine" / "tensorboard"
    assert tensorboard.curves_folder(run, top) == top / "mine"
    board = TensorBoard(tensorboard.curves_folder(run, top), 0)
    board.training(_record(10))
    board.close()
    draw_pictures(tensorboard.curves_folder(run, top), {}, 0)
    assert tensorboard.curves_folder(tmp_path / "renamed", top) == top / "mine"
    TensorBoard(tmp_path / "old" / "tensorboard", 0).close()  # as earlier versions did
    assert tensorboard.curves_folder(tmp_path / "old", tmp_path / "old" / "tensorboard") == tmp_path / "old/tensorboard"


@pytest.mark.parametrize("storage", ["compact", "masked"])
def test_each_trail_has_a_colour_of_its_own(storage):
    weight = _sparse(storage=storage)
    picture = topology_picture(weight)
    assert picture.shape == (8, 6, 3) and picture.dtype == np.uint8
    for trail in range(2):
        expected = torch.zeros(48).index_fill(0, weight.slot_index()[trail], 255.0).view(8, 6)
        assert np.array_equal(picture[..., trail], expected.numpy())
    assert not picture[..., 2].any()


def test_one_trail_is_grey():
    picture = topology_picture(_sparse(trails=1))
    assert np.array_equal(picture[..., 0], picture[..., 1]) and np.array_equal(picture[..., 0], picture[..., 2])
    assert (picture == 255).mean() == 0.5


def test_large_matrices_are_shrunk_to_their_local_density():
    weight = _sparse(trails=1, shape=(4 * PICTURE_SIDE, 8))
    picture = topology_picture(weight)
    assert picture.shape == (PICTURE_SIDE, 8, 3)
    assert picture.mean() / 255 == pytest.approx(0.5, abs=0.01)


def test_the_pictured_weight_is_a_sparse_matrix_of_the_trails():
    dense = DenseWeight(WeightSpec("norm", (8,), trails=2, init=None, role="scale", in_trail=True))
    trunk = _sparse("blocks.0.mlp.gate", trails=1, in_trail=False)
    trail = _sparse("blocks.2.mlp.gate")
    assert pictured_weight({"a": dense, "b": trunk, "c": trail}) is trail
    assert pictured_weight({"a": dense, "b": trunk}) is trunk
    assert pictured_weight({"a": dense}) is None
