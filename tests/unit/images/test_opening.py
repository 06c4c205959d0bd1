"""Sources, the checks of their labels and classes, validation, digests, what is decoded once."""

import shutil
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from nt_dist.config.load import missing_paths
from nt_dist.config.rules import warnings
from nt_dist.errors import ConfigError, DataError
from nt_dist.images import opening
from nt_dist.images.opening import open_data, open_other
from nt_dist.messages import ProgressBar
from tests.unit.images.picture_case import (
    CLASSES,
    SIDE,
    config,
    encoded,
    opened,
    pixels,
    write_folder,
    write_parquet,
)
from tests.unit.resnet.small import small

LABELS = [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]


def table(path, labels=LABELS, first=0, **columns):
    return write_parquet(path, [encoded(pixels(first + number)) for number in range(len(labels))], labels, **columns)


def other(tmp_path, path, classes=CLASSES, **data):
    return open_other(config(tmp_path, source="digits", **data), str(path), lambda work: work(), classes)


def test_digits_are_always_there(tmp_path):
    ten = small(model={"num_classes": 10}, run={"dir": str(tmp_path / "run")})
    found = opening.open_data(ten, True, lambda work: work())
    assert found.identity["classes"] == list("0123456789") and len(found.train) + len(found.validation) == 1797
    assert len(found.validation) == round(0.2 * 1797) and found.train[0].inputs.shape == (SIDE, SIDE, 3)
    assert not list(tmp_path.rglob("*"))


def test_links_to_classes_and_inside_them_are_followed_and_none_leads_nowhere(tmp_path):
    """A class that is missing without a word would shift the labels of those behind it."""
    root = write_folder(tmp_path / "pictures")
    (root / "ant").rename(tmp_path / "ant")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "9.png").write_bytes(encoded(pixels(9), "PNG"))
    (root / "ant").symlink_to(tmp_path / "ant")
    (root / "ant" / "more").symlink_to(tmp_path / "more")
    labels = opened(tmp_path, path=root, validation=str(root)).train.pictures.labels.tolist()
    assert labels == [0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    (tmp_path / "ant").rename(tmp_path / "away")
    with pytest.raises(DataError, match="ant: is a link to .*, where there is nothing"):
        opened(tmp_path, path=root, validation=str(root))


def test_a_folder_has_a_class_for_each_of_its_folders(tmp_path):
    root = write_folder(tmp_path / "pictures")
    (root / "ant" / "deeper").mkdir()
    (root / "ant" / "deeper" / "9.JPEG").write_bytes(encoded(pixels(9), "PNG"))
    for name in ("notes.txt", ".hidden.png"):
        (root / "ant" / name).write_text("no picture")
    (root / ".cache").mkdir()
    write_folder(tmp_path / "held", (1, 0, 0, 0, 1))
    found = opened(tmp_path, path=root, validation=str(tmp_path / "held"))
    assert found.identity == {"classes": list(CLASSES)}
    assert found.train.pictures.labels.tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    expected = [0, 1, 9, 10, 11, 20, 21, 30, 31, 40, 41]
    assert all(np.array_equal(found.train[at].inputs, pixels(seed)) for at, seed in enumerate(expected))
    assert [found.validation[at].targets.tolist() for at in range(2)] == [[0], [4]]
    assert np.array_equal(found.validation[1].inputs, pixels(40))


def test_a_folder_of_splits_is_read_as_imagenet_comes(tmp_path):
    write_folder(tmp_path / "root" / "train")
    write_folder(tmp_path / "root" / "val", (1, 0, 0, 0, 1))
    asked = config(tmp_path, path=tmp_path / "root", validation="val")
    assert missing_paths(asked) == []
    found = open_data(asked, True, lambda work: work())
    assert found.identity == {"classes": list(CLASSES)} and len(found.train) == 10
    assert [found.validation[at].targets.tolist() for at in range(2)] == [[0], [4]]
    shared = opened(tmp_path, path=tmp_path / "root", validation=0.2)
    assert (len(shared.train), len(shared.validation)) == (8, 2)
    (wrong,) = missing_paths(config(tmp_path, path=tmp_path / "root", validation="test"))
    assert wrong == "data.validation = 'test': no such file or folder"


def test_names_that_datasets_takes_for_splits_are_classes(tmp_path):
    classes = ("dev", "eval", "test", "train", "validation")
    found = opened(tmp_path, path=write_folder(tmp_path / "pictures", classes=classes), validation=0.2)
    assert found.identity["classes"] == list(classes) and len(found.train) == 8


@pytest.mark.parametrize("storage", ["dictionaries", "binary", "paths", "pattern"])
def test_parquet_files_hold_dictionaries_binary_values_or_paths(tmp_path, storage):
    contents = [encoded(pixels(number)) for number in range(10)]
    path = tmp_path / "some.parquet"
    if storage in ("dictionaries", "pattern"):
        write_parquet(path, contents, LABELS, key="picture")
    else:
        cells = contents
        if storage == "paths":
            cells = [str(tmp_path / f"{number}.png") for number in range(10)]
            for cell, content in zip(cells, contents, strict=True):
                Path(cell).write_bytes(content)
        pyarrow.parquet.write_table(pa.table({"picture": cells, "label": LABELS}), path)
    path = {"pattern": str(tmp_path / "s*.parquet")}.get(storage, path)
    found = opened(tmp_path, source="parquet", path=path, image_key="picture", validation=0.1)
    assert len(found.train) == 9 and len(found.validation) == 1 and found.identity["classes"] == []
    numbers = [sample for sample in range(10) if any(np.array_equal(each, pixels(sample)) for each in inputs(found))]
    assert len(numbers) == 9


def inputs(found):
    return [found.train[number].inputs for number in range(len(found.train))]


def test_several_parquet_files_and_a_folder_of_them_are_read_in_order(tmp_path):
    first, second = table(tmp_path / "a.parquet"), table(tmp_path / "b.parquet", first=10)
    held = table(tmp_path / "held.parquet", first=20)
    for path in ([str(first), str(second), str(first)], [str(first), str(tmp_path / "b.parquet")]):
        found = opened(tmp_path, source="parquet", path=path, validation=str(held))
        assert all(np.array_equal(each, pixels(number)) for number, each in enumerate(inputs(found)))
        assert len(found.train) == 20


def test_names_of_classes_are_those_that_datasets_wrote(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    cells = [{"bytes": encoded(pixels(number)), "path": None} for number in range(10)]
    whole = datasets.Dataset.from_dict({"image": cells, "label": LABELS}, features=features)
    whole.to_parquet(str(tmp_path / "some.parquet"))
    found = opened(tmp_path, source="parquet", path=tmp_path / "some.parquet", validation=0.1)
    assert found.identity["classes"] == list(CLASSES) and len(found.train) == 9


def test_the_index_lies_in_the_runs_folder_and_is_used_again(tmp_path):
    path = table(tmp_path / "some.parquet")
    opened(tmp_path, source="parquet", path=path)
    (arrow,) = (tmp_path / "run" / "data").rglob("*.arrow")
    before = arrow.stat().st_mtime_ns
    opened(tmp_path, source="parquet", path=path)
    assert [each.stat().st_mtime_ns for each in (tmp_path / "run" / "data").rglob("*.arrow")] == [before]


def test_what_one_rank_prepares_is_asked_for_once(tmp_path):
    calls = []

    def exchange(work):
        calls.append(work())
        return calls[-1]

    root = write_folder(tmp_path / "pictures")
    opening.open_data(config(tmp_path, path=root), False, exchange)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("write", "data", "says"),
    [
        (lambda root: root.mkdir(), {}, "holds no folder; it must hold a folder of pictures for each class"),
        (lambda root: root.write_text("x"), {}, "must be a folder that holds a folder of pictures for each class"),
        (lambda root: write_folder(root, (0,) * 5), {}, "holds no picture"),
        (
            lambda root: write_folder(root, (2, 0, 2, 2, 0)),
            {},
            "2 of model.num_classes = 5 classes have no picture to train on: bee",
        ),
        (lambda root: write_folder(root, (2,) * 6, "abcdef"), {}, "has 6 classes, model.num_classes = 5"),
        (
            lambda root: write_folder(root, (2,) * 4, "abcd"),
            {},
            "1 of model.num_classes = 5 classes have no picture to train on",
        ),
        (lambda root: root.mkdir(), {"source": "parquet"}, "holds no file ending in .parquet"),
        (lambda root: root.write_text("no table"), {"source": "parquet"}, "cannot be read"),
        (lambda root: table(root), {"source": "parquet", "image_key": "img"}, "no column data.image_key = 'img'"),
        (lambda root: table(root), {"source": "parquet", "label_key": "fine"}, "no column data.label_key = 'fine'"),
        (
            lambda root: table(root, [*"abcde"] * 2),
            {"source": "parquet"},
            "data.label_key = 'label' must hold whole numbers, not string",
        ),
        (
            lambda root: table(root, [0.5] * 10),
            {"source": "parquet"},
            "data.label_key = 'label' must hold whole numbers, not float64",
        ),
        (
            lambda root: table(root, [0, None, 2, 3, 4]),
            {"source": "parquet"},
            "data.label_key = 'label' has no label in 1 rows",
        ),
        (
            lambda root: table(root, other=LABELS),
            {"source": "parquet", "image_key": "other"},
            "data.image_key = 'other' must hold pictures, not int64",
        ),
        (
            lambda root: table(root, [0, 1, 2, 3, 4, 5, 7]),
            {"source": "parquet"},
            "picture 5 has label 5, which must be from 0 to model.num_classes - 1 = 4; 2 are out of range",
        ),
        (lambda root: table(root, [0, 1, 2, 3, 4, -1]), {"source": "parquet"}, "picture 5 has label -1"),
        (lambda root: table(root), {"source": "parquet", "max_images": 4}, "classes have no picture to train on"),
    ],
)
def test_pictures_that_cannot_be_used_are_named(tmp_path, write, data, says):
    write(tmp_path / "pictures")
    with pytest.raises(DataError) as caught:
        opened(tmp_path, path=tmp_path / "pictures", **data)
    assert f"data.path = '{tmp_path}/pictures'" in str(caught.value) and says in str(caught.value), str(caught.value)


def test_a_cell_without_a_picture_is_a_broken_picture(tmp_path):
    held = table(tmp_path / "held.parquet")
    for cell in (None, {"bytes": None, "path": None}, {"bytes": b"", "path": None}, {"bytes": b"x", "path": "y"}):
        cells = [{"bytes": encoded(pixels(number)), "path": None} for number in range(9)] + [cell]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        columns = {"image": pa.array(cells, kind), "label": LABELS}
        pyarrow.parquet.write_table(pa.table(columns), tmp_path / "some.parquet")
        with pytest.raises(DataError, match="picture 9 cannot be read as a picture"):
            opened(tmp_path, source="parquet", path=tmp_path / "some.parquet", validation=str(held))


def test_a_data_set_of_the_hub_is_named_where_there_is_no_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"data.path = 'cifar10', split 'train': cannot be read: .*cifar10"):
        opened(tmp_path, source="hf", path="cifar10")


def test_validation_is_a_share_of_the_pictures_that_training_does_not_see(tmp_path):
    root = write_folder(tmp_path / "pictures", (6,) * 5)
    found, again = (opened(tmp_path, path=root, validation=0.2) for _ in range(2))
    assert (len(found.train), len(found.validation)) == (24, 6)
    seen = {each.tobytes() for each in inputs(found)}
    assert not any(found.validation[number].inputs.tobytes() in seen for number in range(6))
    assert found.digest == again.digest
    less = opened(tmp_path, path=root, validation=0.1)
    assert len(less.validation) == 3 and less.digest != found.digest


def test_a_share_that_leaves_nothing_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"data.validation = 0.99: leaves none of 10 pictures"):
        opened(tmp_path, path=write_folder(tmp_path / "pictures"), validation=0.99)


def test_validation_has_the_labels_of_training_by_the_names_of_classes(tmp_path):
    root = write_folder(tmp_path / "pictures")
    held = write_folder(tmp_path / "held", (1, 2), ("bee", "elk"))
    found = opened(tmp_path, path=root, validation=str(held))
    assert [found.validation[number].targets.item() for number in range(3)] == [1, 4, 4]


def test_validation_classes_that_training_lacks_are_refused(tmp_path):
    root = write_folder(tmp_path / "pictures")
    held = write_folder(tmp_path / "held", (1, 1), ("bee", "fox"))
    with pytest.raises(
        DataError, match=r"data.validation = '.*held': has the class 'fox', which training does not have"
    ):
        opened(tmp_path, path=root, validation=str(held))


def test_a_validation_label_out_of_range_is_that_of_validation(tmp_path):
    train, held = table(tmp_path / "train.parquet"), table(tmp_path / "held.parquet", [0, 9])
    with pytest.raises(DataError, match=r"data.validation = '.*held.parquet': picture 1 has label 9"):
        opened(tmp_path, source="parquet", path=train, validation=str(held))


@pytest.mark.parametrize("source", ["folder", "parquet"])
@pytest.mark.parametrize("crop", ["none", "resized"])
def test_a_digest_tells_pictures_and_labels_apart(tmp_path, source, crop):
    def digest(labels=LABELS, first=0):
        place = tmp_path / "pictures"
        if source == "parquet":
            table(place, labels, first)
        else:
            shutil.rmtree(place, ignore_errors=True)
            for number, label in enumerate(labels):
                (place / CLASSES[label]).mkdir(parents=True, exist_ok=True)
                (place / CLASSES[label] / f"{number}.png").write_bytes(encoded(pixels(first + number)))
        return opened(tmp_path, source=source, path=place, crop=crop, validation=str(place)).digest

    first = digest()
    assert digest() == first
    assert digest(first=1) != first  # other pictures
    assert digest(labels=[*LABELS[:8], 4, 3]) != first
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    assert digest() == first  # whatever was indexed before


def test_a_digest_of_pictures_that_are_kept_decoded_is_of_all_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr("nt_dist.images.sources._LOOKED_AT", 2)
    root = write_folder(tmp_path / "pictures")
    whole, looked = (opened(tmp_path, path=root, crop=crop, validation=str(root)) for crop in ("none", "resized"))
    (root / "cow" / "1.png").write_bytes(encoded(pixels(99)))
    assert opened(tmp_path, path=root, validation=str(root)).digest != whole.digest
    assert opened(tmp_path, path=root, crop="resized", validation=str(root)).digest == looked.digest


def test_broken_pictures_are_counted_left_out_and_refused_above_the_share(tmp_path, caplog):
    root = write_folder(tmp_path / "pictures", (4,) * 5)
    for name in ("bee/0.png", "cow/3.png"):
        (root / name).write_bytes(b"broken")
    held = write_folder(tmp_path / "held", (1,) * 5)
    found = opened(tmp_path, path=root, validation=str(held), max_bad_share=0.1, num_workers=2)
    assert found.train.pictures.labels.tolist() == [0] * 4 + [1] * 3 + [2] * 3 + [3] * 4 + [4] * 4
    expected = [10 * label + number for label in range(5) for number in range(4)]
    expected = [seed for seed in expected if seed not in (10, 23)]
    assert all(np.array_equal(each, pixels(seed)) for each, seed in zip(inputs(found), expected, strict=True))
    assert "2 of 20 pictures are passed over" in caplog.text
    for share in (0.0, 0.05):
        with pytest.raises(DataError, match=rf"(bee/0|cow/3).png.*data.max_bad_share = {share} of 20 pictures"):
            opened(tmp_path, path=root, validation=str(held), max_bad_share=share)


def test_pictures_that_do_not_fit_into_memory_are_read_when_asked_for(tmp_path, monkeypatch):
    root = write_folder(tmp_path / "pictures")
    kept = opened(tmp_path, path=root, validation=str(root))
    monkeypatch.setattr(opening, "_IN_MEMORY", 10 * SIDE * SIDE * 3 - 1)
    read = opened(tmp_path, path=root, validation=str(root))
    assert isinstance(kept.train.pictures.raw, np.ndarray) and isinstance(read.train.pictures.raw, list)
    assert all(np.array_equal(one, other) for one, other in zip(inputs(kept), inputs(read), strict=True))


def test_decoding_many_pictures_shows_how_far_it_is(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(opening, "_WORTH_A_BAR", 10)
    monkeypatch.setattr(opening, "_AT_ONCE", 4)
    monkeypatch.setattr(ProgressBar, "update", lambda bar, step: shown.append(step))
    root, held = write_folder(tmp_path / "pictures"), write_folder(tmp_path / "held", (1,) * 5)
    opened(tmp_path, path=root, validation=str(held))
    assert shown == [4, 8, 10]


def test_other_pictures_get_the_labels_of_the_models_classes(tmp_path):
    held = write_folder(tmp_path / "held", (1, 2), ("bee", "elk"))
    found = other(tmp_path, held)
    assert found.foreign == "" and found.train is None and found.digest is None
    assert [found.validation[number].targets.item() for number in range(3)] == [1, 4, 4]
    plain = other(tmp_path, table(tmp_path / "some.parquet", [3, 1]))
    assert plain.foreign == "" and plain.validation[0].targets.item() == 3


def test_pictures_of_other_things_have_no_labels_and_say_why(tmp_path):
    held = write_folder(tmp_path / "held", (1, 1), ("bee", "fox"))
    found = other(tmp_path, held)
    assert "'fox'" in found.foreign and [found.validation[number].targets.item() for number in range(2)] == [0, 0]
    many = other(tmp_path, write_folder(tmp_path / "many", (1,) * 7, "abcdefg"))
    assert "'a'" in many.foreign and len(many.validation) == 7
    out = other(tmp_path, table(tmp_path / "some.parquet", [3, 9]))
    assert "label 9" in out.foreign and out.validation[0].targets.item() == 0


def test_a_magnitude_of_nothing_is_named(tmp_path):
    (found,) = warnings(config(tmp_path, path="x", randaugment_magnitude=3.0))
    assert "data.randaugment_magnitude = 3.0 is ignored: data.randaugment = 0" in found
    assert not list(warnings(config(tmp_path, path="x", randaugment_magnitude=3.0, randaugment=1)))


def test_settings_of_other_sources_are_refused_or_named(tmp_path):
    for data, says in (
        ({"source": "folder"}, "data.path = '' must name a folder with data.source = 'folder'"),
        ({"source": "hf"}, "data.path = '' must name a dataset"),
        ({"source": "folder", "path": ["a", "b"]}, "must be one name with data.source = 'folder'"),
        ({"path": "x", "crop": "pad", "padding": 8}, "data.padding = 8 must be less than model.image_size = 8"),
        ({"path": "x", "max_bad_share": 1.5}, "data.max_bad_share = 1.5 must be in [0, 1]"),
        ({"path": "x", "validation": 1.0}, "data.validation = 1.0 must be a path"),
        ({"path": "x", "std": [0.1, 0.0, 0.2]}, "data.std"),
        ({"path": "x", "mixup": -0.1}, "data.mixup = -0.1 must be at least 0"),
        ({"path": "x", "cutmix": -1.0}, "data.cutmix = -1.0 must be at least 0"),
        ({"path": "x", "randaugment": -1}, "data.randaugment = -1 must be at least 0"),
        ({"path": "x", "randaugment_magnitude": 11.0}, "data.randaugment_magnitude = 11.0 must be in [0, 10]"),
    ):
        with pytest.raises(ConfigError) as caught:
            config(tmp_path, **data)
        assert says in str(caught.value)
