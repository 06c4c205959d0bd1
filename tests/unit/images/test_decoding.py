"""Every kind of file becomes the same three bytes a pixel, or an error that says so."""

import contextlib
import random

import numpy as np
import pytest
from PIL import Image

from nt_dist.errors import DataError
from nt_dist.images.decoding import Crop, decode
from tests.unit.images.picture_case import encoded, pixels

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


def test_a_picture_of_the_right_size_is_read_as_it_is():
    assert np.array_equal(decode(encoded(pixels(0)), 8), pixels(0))
    assert np.array_equal(decode(pixels(0), 8), pixels(0))


def test_a_path_is_read_as_its_contents_are(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(pixels(0)))
    assert np.array_equal(decode(str(tmp_path / "a.png"), 8), pixels(0))


def test_grey_is_three_times_the_same():
    assert np.array_equal(decode(encoded(GREY), 8), np.repeat(GREY[..., None], 3, -1))


def test_sixteen_bits_become_eight_and_are_not_cut_off():
    wide = GREY.astype(np.uint16) * 257
    assert np.array_equal(decode(encoded(Image.fromarray(wide)), 8)[..., 0], GREY)
    assert np.array_equal(decode(encoded(Image.fromarray(wide), "TIFF"), 8)[..., 0], GREY)


def test_a_palette_is_looked_up():
    picture = Image.new("P", (8, 8), 1)
    picture.putpalette([0, 0, 0, 200, 100, 50])
    assert (decode(encoded(picture), 8) == (200, 100, 50)).all()
    assert (decode(encoded(picture, "GIF"), 8) == (200, 100, 50)).all()


@pytest.mark.parametrize("transparent", ["alpha", "grey with alpha", "palette"])
def test_what_is_transparent_is_white(transparent):
    options = {}
    if transparent == "palette":
        picture, options = Image.new("P", (8, 8), 0), {"transparency": 0}
        picture.putpalette([10, 20, 30])
    elif transparent == "alpha":
        picture = Image.new("RGBA", (8, 8), (10, 20, 30, 0))
    else:
        picture = Image.new("LA", (8, 8), (10, 0))
    assert (decode(encoded(picture, **options), 8) == 255).all()


def test_half_transparent_is_half_white():
    assert decode(encoded(Image.new("RGBA", (8, 8), (0, 100, 200, 128))), 8)[0, 0].tolist() == [127, 177, 227]


def test_cmyk_becomes_rgb():
    found = decode(encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG", quality=95), 8)
    assert (found[..., 0] < 10).all() and (found[..., 1:] > 245).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_a_camera_is_undone(orientation):
    """A picture of 64 × 48 whose left half is white, stored as EXIF's orientation says."""
    upright = Image.new("RGB", (64, 48))
    upright.paste("white", (0, 0, 32, 48))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # of Image.Transpose, from upright to stored
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decode(encoded(stored, "JPEG", quality=95, exif=exif.tobytes()), 16)
    assert (found[:, :6] > 245).all() and (found[:, 10:] < 10).all()


def test_the_middle_square_is_taken_with_the_customary_margin():
    wide = np.zeros((256, 400, 3), np.uint8)
    wide[16:240, 88:312] = 255  # 224 of 256 pixels, in the middle
    found = decode(wide, 112)
    assert found.shape == (112, 112, 3) and (found[1:-1, 1:-1] == 255).all()
    wide[:] = 255 - wide
    assert decode(wide, 112)[1:-1, 1:-1].max() == 0


def test_a_small_picture_is_scaled_up_without_a_margin():
    assert np.array_equal(decode(pixels(0, 4), 8), np.asarray(Image.fromarray(pixels(0, 4)).resize((8, 8), 2)))


def test_a_crop_is_a_share_of_the_area_with_its_own_ratio():
    picture = np.zeros((60, 120, 3), np.uint8)
    picture[20:50, 40:80] = 255  # 1,200 of 7,200 pixels, four to three
    found = decode(picture, 16, Crop(1200 / 7200, 4 / 3, 40 / 80, 20 / 30))
    assert (found[1:-1, 1:-1] == 255).all()
    assert decode(picture, 16, Crop(1.0, 1.0, 0.5, 0.5)).shape == (16, 16, 3)


@pytest.mark.parametrize("crop", [None, Crop(0.5, 0.8, 0.3, 0.6)])
def test_a_jpeg_decoded_at_a_smaller_scale_is_nearly_the_same(crop):
    smooth = Image.fromarray(pixels(0, 6)).resize((300, 200), Image.Resampling.BICUBIC)
    small = decode(encoded(smooth, "JPEG", quality=95), 24, crop).astype(int)
    assert np.abs(small - decode(encoded(smooth), 24, crop)).mean() < 4


@pytest.mark.parametrize("contents", [b"", b"no picture", b"\x89PNG\r\n\x1a\n", b"GIF89a"])
def test_what_is_no_picture_is_said(contents):
    with pytest.raises(DataError, match="cannot be read as a picture"):
        decode(contents, 8)


def test_a_truncated_jpeg_is_refused():
    whole = encoded(pixels(0, 64), "JPEG")
    with pytest.raises(DataError, match="cannot be read as a picture: .*truncated"):
        decode(whole[: len(whole) // 2], 8)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_damaged_files_raise_nothing_else(form):
    chance, whole = random.Random(form), encoded(pixels(0, 24), form)
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 8)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        with contextlib.suppress(DataError):
            assert decode(bytes(damaged[: chance.randint(1, len(damaged))]), 8).shape == (8, 8, 3)


def test_a_file_that_is_not_there_is_an_error_of_the_data(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        decode(str(tmp_path / "nothing.png"), 8)
