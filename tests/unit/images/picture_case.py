"""Pictures on disk and configs that read them, for tests."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from PIL import Image

from nt_dist.images.opening import open_data
from tests.unit.resnet.small import small

SIDE, CLASSES = 8, ("ant", "bee", "cow", "dog", "elk")


def pixels(seed, side=SIDE):
    """A picture that no other seed has, bytes [side, side, 3]."""
    return np.random.default_rng(seed).integers(256, size=(side, side, 3), dtype=np.uint8)


def encoded(picture, form="PNG", **options):
    """The contents of a file."""
    file = io.BytesIO()
    (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(file, form, **options)
    return file.getvalue()


def write_folder(root, counts=(2, 2, 2, 2, 2), classes=CLASSES, first=0):
    """A folder for each class with so many pictures in it."""
    for label, (name, count) in enumerate(zip(classes, counts, strict=True)):
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{number}.png").write_bytes(encoded(pixels(first + 10 * label + number)))
    return root


def write_parquet(path, contents, labels, key="image", **columns):
    """A table as Hugging Face stores it: {bytes, path} and a label in each row; or plain columns."""
    cells = [{"bytes": each, "path": None} for each in contents]
    pyarrow.parquet.write_table(pa.table({key: cells, "label": labels, **columns}), path)
    return path


def config(tmp_path, **data):
    """A small ResNet's config that reads these pictures."""
    data = {"path": "", "source": "folder", "crop": "none", "flip": False, "num_workers": 0} | data
    data["path"] = str(data["path"]) if not isinstance(data["path"], list | tuple) else data["path"]
    return small(data=data, run={"dir": str(tmp_path / "run")})


def opened(tmp_path, **data):
    """What training opens."""
    return open_data(config(tmp_path, **data), True, lambda work: work())
