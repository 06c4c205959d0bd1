"""CIFAR-10-C, ImageNet-C and folders with some of the classes, as stand-ins of the same form."""

import shutil

import numpy as np
import pytest

from nt_dist.errors import DataError
from nt_dist.images.opening import open_other
from nt_dist.images.robustness import open_corrupted
from tests.unit.images.picture_case import CLASSES, SIDE, config, pixels, write_folder

COUNT = 4  # pictures of a severity
LABELS = np.tile(np.array([3, 0, 4, 1]), 5)


def write_arrays(root, kinds=("fog", "gaussian_noise"), side=SIDE):
    """KIND.npy and labels.npy; the picture of kind k, severity s and number n has the seed 1000 k + 100 s + n."""
    root.mkdir()
    for number, kind in enumerate(kinds):
        seeds = [1000 * number + 100 * severity + each for severity in range(1, 6) for each in range(COUNT)]
        np.save(root / f"{kind}.npy", np.stack([pixels(seed, side) for seed in seeds]))
    np.save(root / "labels.npy", LABELS)
    return root


def write_folders(root, kinds=("fog", "gaussian_noise"), classes=CLASSES):
    for number, kind in enumerate(kinds):
        for severity in range(1, 6):
            counts, first = (1,) * len(classes), 1000 * number + 100 * severity
            write_folder(root / kind / str(severity), counts, classes, first)
    return root


def seeds(found, known):
    """Which of the known seeds the pictures of an evaluation have."""
    by_content = {pixels(seed).tobytes(): seed for seed in known}
    return [by_content[found.validation[number].inputs.tobytes()] for number in range(len(found.validation))]


def targets(found):
    return [found.validation[number].targets.item() for number in range(len(found.validation))]


def other(tmp_path, path, classes=CLASSES, **sections):
    return open_other(config(tmp_path, source="digits", **sections), str(path), lambda work: work(), classes)


def test_arrays_are_read_by_kind_and_severity_in_turns(tmp_path):
    root = write_arrays(tmp_path / "CIFAR-10-C")
    found = other(tmp_path, root)
    # of 'gaussian_noise' and 'fog', in the order of the paper
    first = [1000 * kind + 100 * severity for kind in (1, 0) for severity in range(1, 6)]
    assert found.foreign == "" and found.among == () and len(found.validation) == 10 * COUNT
    assert seeds(found, range(2000)) == [seed + each for each in range(COUNT) for seed in first]
    assert targets(found) == [label for label in LABELS[:COUNT] for _ in first]
    assert found.validation.turns == len(first)  # fewer pictures than all are whole rounds of them


def test_one_kind_of_arrays_is_its_file(tmp_path):
    root = write_arrays(tmp_path / "CIFAR-10-C")
    found = other(tmp_path, root / "fog.npy")
    assert seeds(found, range(1000)) == [100 * severity + each for each in range(COUNT) for severity in range(1, 6)]
    assert targets(found) == [label for label in LABELS[:COUNT] for _ in range(5)]


def test_arrays_of_another_size_are_scaled_and_labels_of_other_classes_are_foreign(tmp_path):
    root = write_arrays(tmp_path / "CIFAR-10-C", side=SIDE + 4)
    assert other(tmp_path, root).validation[0].inputs.shape == (SIDE, SIDE, 3)
    np.save(root / "labels.npy", LABELS + 3)
    found = other(tmp_path, root)
    assert "label 6" in found.foreign and set(targets(found)) == {0}


def test_folders_are_read_by_kind_and_severity_in_turns(tmp_path):
    root = write_folders(tmp_path / "ImageNet-C")
    first = [1000 * kind + 100 * severity for kind in (1, 0) for severity in range(1, 6)]
    found = other(tmp_path, root)
    assert found.foreign == "" and found.among == ()
    assert seeds(found, range(2000)) == [seed + 10 * label for label in range(5) for seed in first]
    assert targets(found) == [label for label in range(5) for _ in first]
    one = other(tmp_path, root / "fog")
    assert seeds(one, range(1000)) == [100 * severity + 10 * label for label in range(5) for severity in range(1, 6)]
    severity = other(tmp_path, root / "fog" / "3")
    assert seeds(severity, range(1000)) == [300, 310, 320, 330, 340] and targets(severity) == [0, 1, 2, 3, 4]


def test_classes_of_corrupted_folders_have_the_models_numbers(tmp_path):
    root = write_folders(tmp_path / "ImageNet-C", classes=("bee", "elk"))
    for path in (root, root / "fog", root / "fog" / "1"):
        found = other(tmp_path, path)
        assert found.foreign == "" and set(targets(found)) == {1, 4} and found.among == [1, 4]


def test_some_of_the_classes_are_named_and_all_of_them_are_not(tmp_path):
    some = write_folder(tmp_path / "some", (2, 1), ("cow", "elk"))
    (some / "README.txt").write_text("as ImageNet-R has one")
    assert other(tmp_path, some).among == [2, 4] and set(targets(other(tmp_path, some))) == {2, 4}
    assert other(tmp_path, write_folder(tmp_path / "all")).among == ()
    assert other(tmp_path, write_folder(tmp_path / "strange", (1, 1), ("cow", "gnu"))).among == ()
    assert other(tmp_path, some, classes=()).among == ()  # a model whose classes have no names


def test_other_folders_are_not_taken_for_corrupted_ones(tmp_path):
    for root in (write_folder(tmp_path / "some"), write_folder(tmp_path / "fog"), tmp_path / "nothing"):
        assert open_corrupted("data", root) is None


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda root: (root / "labels.npy").write_bytes(b"x"), "labels.npy cannot be read as an array"),
        (lambda root: (root / "fog.npy").write_bytes(b""), "fog.npy cannot be read as an array"),
        (lambda root: np.save(root / "labels.npy", LABELS[:-1]), r"labels.npy must hold 20 whole numbers.*\(19,\)"),
        (lambda root: np.save(root / "labels.npy", LABELS / 2), "labels.npy must hold 20 whole numbers.*float64"),
        (lambda root: np.save(root / "fog.npy", np.zeros((20, 8, 8, 3))), r"bytes \[5 N, side, side, 3\], not float64"),
        (lambda root: np.save(root / "fog.npy", np.zeros((21, 8, 8, 3), np.uint8)), r"fog.npy must hold.*\(21, 8"),
        (lambda root: np.save(root / "fog.npy", np.zeros((20, 8, 8), np.uint8)), r"fog.npy must hold.*\(20, 8, 8\)"),
        (lambda root: [(root / f"{kind}.npy").unlink() for kind in ("fog", "gaussian_noise")], "holds no picture"),
    ],
)
def test_arrays_that_cannot_be_used_are_named(tmp_path, spoil, says):
    root = write_arrays(tmp_path / "arrays")
    spoil(root)
    with pytest.raises(DataError, match=f"data = '.*arrays'.*{says}"):
        other(tmp_path, root)


def test_an_array_alone_needs_its_labels(tmp_path):
    root = write_arrays(tmp_path / "arrays")
    (root / "labels.npy").unlink()
    with pytest.raises(DataError, match="labels.npy cannot be read as an array"):
        other(tmp_path, root / "fog.npy")


def test_severities_with_other_classes_are_refused(tmp_path):
    root = write_folders(tmp_path / "ImageNet-C")
    shutil.rmtree(root / "fog" / "2" / "bee")
    with pytest.raises(DataError, match="every severity of every corruption must have the same classes"):
        other(tmp_path, root)
