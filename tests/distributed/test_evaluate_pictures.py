"""Evaluations of runs on pictures: corruptions, pictures of other things, pictures whose classes have other numbers."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nt_dist.errors import DataError
from nt_dist.families import make_config
from nt_dist.images.severities import KINDS
from nt_dist.testing import RankError, run_distributed

CLASSES = ("ant", "bee", "cow", "dog", "elk", "fox")  # one more than five, so that five of them say something
COLOURS = np.array([(200, 60, 60), (60, 200, 60), (60, 60, 200), (200, 200, 60), (60, 200, 200), (200, 60, 200)])


def write(root, classes, count, first=0):
    """Pictures whose colour nearly tells their class."""
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(count):
            chance = np.random.default_rng((first, number, *map(ord, name)))
            colour = COLOURS[(ord(name[0]) - ord("a")) % 6] + chance.normal(0, 20, (8, 8, 3))
            Image.fromarray(colour.clip(0, 255).astype(np.uint8)).save(root / name / f"{number}.png")
    return root


def _train(rank, world_size, folder):
    """Trains a little, and saves."""
    from nt_dist.training.loop import train

    model = {
        "family": "resnet",
        "block": "preactivation",
        "stem": "small",
        "stem_width": 8,
        "width": 8,
        "depths": [1, 1],
    }
    model |= {"num_classes": 6, "image_size": 8, "norm_batch": 6}
    data = {"source": "folder", "path": str(folder / "train"), "validation": str(folder / "held"), "num_workers": 0}
    sections = {
        "model": model,
        "trails": {"count": 2, "layers": 1},
        "sparsity": {"density": 0.5, "topology_shards": 2, "update_every": 4, "drop": "magnitude"},
        "data": data | {"crop": "none", "flip": False},
        "train": {
            "steps": 40,
            "batch_size": 12,
            "micro_batch_size": 12,
            "warmup_steps": 1,
            "optimizer": "sgd",
            "lr": 0.1,
        },
        "run": {"dir": str(folder / "run"), "eval_batches": 0, "eval_every": 0, "stall_timeout": 0},
    }
    train(make_config(sections))


def _evaluate(rank, world_size, path, data=None, shift=None, corruptions=False):
    from nt_dist.evaluation.evaluate_checkpoint import evaluate_checkpoint, join

    return evaluate_checkpoint(Path(path), join(world_size), data, (), True, shift, corruptions)


def _published(rank, world_size, folder, overrides):
    from nt_dist.evaluation.evaluate_checkpoint import join
    from nt_dist.study.results import result_of

    return result_of("one", [folder / "run"], join(1), folder / "kept", overrides).published


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    write(folder / "train", CLASSES, 10)
    write(folder / "held", CLASSES, 3, first=1)
    run_distributed(_train, 1, folder)
    return folder


@pytest.fixture(scope="module")
def alone(run):
    """All figures there are, on one rank."""
    other = write(run / "other", ("gnu", "hen"), 7)
    return run_distributed(_evaluate, 1, run / "run", None, str(other), True)[0]


def _numbers(thing):
    if isinstance(thing, dict):
        return [number for key in sorted(thing) for number in _numbers(thing[key])]
    if isinstance(thing, list):
        return [number for each in thing for number in _numbers(each)]
    return [thing] if isinstance(thing, int | float) else []


def test_corruptions_and_other_pictures_on_any_number_of_ranks(run, alone):
    other = run / "other"
    first, second = run_distributed(_evaluate, 2, run / "run", None, str(other))
    assert first.figures == second.figures
    found = alone.figures
    without = {key: value for key, value in found.items() if key != "corruptions"}
    assert _numbers(first.figures) == pytest.approx(_numbers(without), rel=1e-3, abs=1e-5)
    assert found["pictures"] == 18 and found["accuracy_ensemble_prob"] > 0.5
    assert found["accuracy"]["prob"] <= found["top5"]["prob"] <= 1
    shift = found["shift"]
    assert shift["samples"] == {"unshifted": 18, "shifted": 14} and shift["eval"] is None
    assert shift["against"] == str(other) and 0 <= shift["auroc"]["entropy"] <= 1
    corruptions = found["corruptions"]
    assert list(corruptions["kinds"]) == list(KINDS) and corruptions["levels"] == [1, 2, 3, 4, 5]
    assert _numbers(corruptions["clean"]["nll"]) == pytest.approx(_numbers(found["nll"]))
    table = alone.table()
    for part in ("14 shifted ones of other classes", "36 pictures", "top-5", "gaussian noise", "jpeg compression"):
        assert part in table or (part == "36 pictures" and "36" in table)
    assert f"{corruptions['mean']['accuracy']['prob']:.1%}" in table


def test_one_corruption_is_that_of_the_table(run, alone):
    (found,) = run_distributed(_evaluate, 1, run / "run", None, "contrast:5")
    shift = found.figures["shift"]
    assert shift["against"] == "the same pictures with contrast of severity 5"
    assert shift["eval"]["accuracy"] == alone.figures["corruptions"]["kinds"]["contrast"][4]["accuracy"]
    ece = alone.figures["corruptions"]["kinds"]["contrast"][4]["ece"]
    assert _numbers(shift["eval"]["calibration"]["ece"]) == pytest.approx(_numbers(ece))


def test_other_pictures_have_the_numbers_that_their_names_have_in_the_checkpoint(run):
    some = write(run / "some", ("bee", "elk"), 3, first=1)
    (found,) = run_distributed(_evaluate, 1, run / "run", str(some))
    assert found.figures["pictures"] == 6 and found.data == str(some)
    assert found.figures["accuracy"]["prob"] > 0.5


@pytest.mark.parametrize(("overrides", "words"), [((), ()), (("data.benchmark=cifar10",), ("CIFAR-10", "WRN-28-10"))])
def test_a_result_says_what_others_reached_on_its_data(run, overrides, words):
    (found,) = run_distributed(_published, 1, run, overrides)
    assert len(found) == bool(words) and all(word in found[0] for word in words)


def test_corrupted_pictures_are_read_as_they_are_published(run, alone):
    """As CIFAR-10-C: with the validation pictures in place of corrupted ones, the figures are those of validation."""
    held = sorted((run / "held").rglob("*.png"))
    pictures = np.stack([np.asarray(Image.open(file)) for file in held])
    (run / "c").mkdir()
    for kind in ("snow", "fog"):
        np.save(run / "c" / f"{kind}.npy", np.tile(pictures, (5, 1, 1, 1)))
    np.save(run / "c" / "labels.npy", np.tile([CLASSES.index(file.parent.name) for file in held], 5))
    for found in run_distributed(_evaluate, 2, run / "run", None, str(run / "c")):
        shift, clean = found.figures["shift"], alone.figures
        assert shift["samples"] == {"unshifted": 18, "shifted": 180} and shift["auroc"]["entropy"] == pytest.approx(0.5)
        assert shift["eval"]["accuracy"]["prob"] == pytest.approx(clean["accuracy"]["prob"])
        assert _numbers(shift["eval"]["calibration"]["ece"]) == pytest.approx(
            _numbers(clean["calibration"]["ece"]), rel=1e-4, abs=1e-5
        )


def test_with_some_of_the_classes_an_answer_is_one_of_them(run):
    """As ImageNet-A and -R: figures are those of a model with these classes alone; scores are the model's."""
    some = write(run / "part", ("bee", "elk"), 3, first=1)
    (shifted,) = run_distributed(_evaluate, 1, run / "run", None, str(some))
    (whole,) = run_distributed(_evaluate, 1, run / "run", str(some))
    found, all_classes = shifted.figures["shift"]["eval"], whole.figures
    assert found["pictures"] == all_classes["pictures"] == 6
    assert all(one < other for one, other in zip(found["nll_trails"], all_classes["nll_trails"], strict=True))
    assert found["diversity"]["entropy_mean"] < np.log(2)
    assert found["accuracy"]["prob"] >= all_classes["accuracy"]["prob"]


def test_what_cannot_be_evaluated_is_refused_on_every_rank(run):
    strange = write(run / "strange", ("bee", "gnu"), 2)
    for data, message in (
        (str(strange), "the class 'gnu', which training does not"),
        (str(run / "nothing"), "nothing"),
    ):
        with pytest.raises(RankError, match=message) as raised:
            run_distributed(_evaluate, 2, run / "run", data)
        assert isinstance(raised.value.error, DataError)
