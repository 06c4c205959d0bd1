"""RandAugment's operations do what their names say; mixed pictures are those of their papers."""

import numpy as np
import pytest
from PIL import Image

from nt_dist.images.augment import OPERATIONS, cutmix, drawn_share, mixup, randaugment
from tests.unit.images.picture_case import pixels

SIDE = 20
GREY = (128, 128, 128)


def picture():
    """Colours of 40 to 200 that rise from left to right and, less, from top to bottom."""
    down, right = np.mgrid[:SIDE, :SIDE] / (SIDE - 1)
    return np.stack([40 + 110 * right + 50 * down, 60 + 100 * right, 200 - 90 * right], -1).round().astype(np.uint8)


def done(name, strength, of=None):
    return np.asarray(OPERATIONS[name](Image.fromarray(picture() if of is None else of), strength)).astype(int)


def luma(x):
    return x @ (0.299, 0.587, 0.114)


def test_there_are_the_fourteen_of_the_paper():
    first = ["identity", "autocontrast", "equalize", "rotate", "solarize", "color", "posterize"]
    then = ["contrast", "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y"]
    assert list(OPERATIONS) == first + then


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in ("autocontrast", "equalize")])
def test_of_no_strength_they_change_nothing(name):
    assert np.array_equal(done(name, 0.0), picture())


def test_autocontrast_takes_each_channel_from_darkest_to_brightest():
    found = done("autocontrast", 0.5)
    assert found.min((0, 1)).tolist() == [0] * 3 and found.max((0, 1)).tolist() == [255] * 3
    assert np.array_equal(found[..., 0].argsort(axis=None, kind="stable"), picture()[..., 0].argsort(None, "stable"))


def test_equalize_makes_all_values_as_frequent():
    dark = np.tile((255 * (picture() / 255.0) ** 3).astype(np.uint8), (8, 8, 1))
    before, after = (np.histogram(each[..., 0], 4, (0, 256))[0] for each in (dark, done("equalize", 0.5, dark)))
    assert np.abs(after / after.sum() - 0.25).max() < 0.05 < np.abs(before / before.sum() - 0.25).max()


@pytest.mark.parametrize("strength", [-1.0, 0.5, 1.0])
def test_rotate_turns_by_up_to_30_degrees_about_the_middle(strength):
    dot = np.zeros((41, 41, 3), np.uint8)
    dot[19:22, 34:37] = 255  # 15 to the right of the middle
    down, right = np.argwhere(done("rotate", strength, dot)[..., 0] > 150).mean(0) - 20
    assert np.degrees(np.arctan2(-down, right)) == pytest.approx(30 * strength, abs=1.5)
    assert np.hypot(down, right) == pytest.approx(15, abs=0.5)
    assert tuple(done("rotate", 1.0)[0, 0]) == GREY


def test_solarize_inverts_what_is_brighter_the_more_the_stronger():
    before = picture().astype(int)
    for strength in (-0.5, 0.5):
        assert np.array_equal(done("solarize", strength), np.where(before >= 128, 255 - before, before))
    assert np.array_equal(done("solarize", 1.0), 255 - before)


def test_posterize_keeps_fewer_bits():
    before = picture().astype(int)
    for strength in (-1.0, 1.0):
        assert np.array_equal(done("posterize", strength), before & 0b11110000)
    assert np.array_equal(done("posterize", 0.5), before & 0b11111100)


def test_color_is_the_distance_from_grey():
    before = picture().astype(int)
    for strength, factor in ((-1.0, 0.1), (0.2, 1.18)):
        expected = luma(before)[..., None] * (1 - factor) + before * factor
        assert np.abs(done("color", strength) - expected.clip(0, 255)).max() <= 1.5


def test_contrast_is_the_distance_from_the_mean_and_brightness_from_black():
    before = picture().astype(int)
    mean = luma(before).mean()
    for strength, factor in ((-1.0, 0.1), (-0.5, 0.55), (0.3, 1.27)):
        expected = mean * (1 - factor) + before * factor
        assert np.abs(done("contrast", strength) - expected.clip(0, 255)).max() <= 1.5
        assert np.abs(done("brightness", strength) - (before * factor).clip(0, 255)).max() <= 1


def test_sharpness_is_the_difference_of_neighbours():
    step = np.repeat(np.where(np.arange(SIDE) < SIDE // 2, 100, 150).astype(np.uint8)[None], SIDE, 0)
    step = np.repeat(step[..., None], 3, -1)
    edges = [np.ptp(done("sharpness", strength, step)[5, 8:12, 0]) for strength in (-1.0, 0.0, 1.0)]
    jumps = [abs(np.diff(done("sharpness", strength, step)[5, :, 0])).max() for strength in (-1.0, 0.0, 1.0)]
    assert jumps[0] < jumps[1] == 50 < jumps[2] and edges[2] > 50


@pytest.mark.parametrize("axis", ["x", "y"])
def test_shears_and_translations_move_along_one_axis(axis):
    across = axis == "x"  # the axis along which pixels move is the second of the turned picture
    before = picture() if across else picture().transpose(1, 0, 2).copy()

    def moved(kind, strength):
        found = done(f"{kind}_{axis}", strength, before)
        return found if across else found.transpose(1, 0, 2)

    expected = picture().astype(int)
    for strength in (-1.0, 1.0):
        found, pixels_away = moved("translate", strength), round(0.45 * SIDE)
        kept, gone = (slice(pixels_away, None), slice(None, pixels_away))
        if strength > 0:
            assert np.array_equal(found[:, : SIDE - pixels_away], expected[:, kept])
            assert (found[:, SIDE - pixels_away :] == GREY).all()
        else:
            assert np.array_equal(found[:, kept], expected[:, : SIDE - pixels_away]) and (found[:, gone] == GREY).all()
    sheared = moved("shear", 1.0)
    assert np.abs(sheared[0, 1:-1] - expected[0, 1:-1]).max() <= 2  # the first row hardly moves
    assert (sheared[-1, SIDE - round(0.3 * (SIDE - 1)) + 1 :] == GREY).all()
    assert np.abs(sheared[-1, :10] - expected[-1, 6:16]).max() <= 4


def test_randaugment_does_one_operation_for_each_draw_in_turn():
    kinds, strong = list(OPERATIONS), 0.45
    for first in range(14):
        draws = np.array([[(first + 0.5) / 14, 0.2], [(4 + 0.5) / 14, 0.7]])
        then = done(kinds[first], -strong).astype(np.uint8)
        assert np.array_equal(randaugment(picture(), 4.5, draws[:1]), then), kinds[first]
        assert np.array_equal(randaugment(picture(), 4.5, draws), done("solarize", strong, then))


@pytest.mark.parametrize("alpha", [1e-3, 0.2, 1.0, 50.0])
def test_shares_are_of_the_beta_distribution(alpha):
    shares = np.array([drawn_share(alpha, (number + 0.5) / 2000) for number in range(2000)])
    assert shares.min() >= 0 and shares.max() <= 1
    assert shares.mean() == pytest.approx(0.5, abs=1e-3)
    assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.02)  # of Beta(alpha, alpha)


def test_mixup_is_the_weighted_mean():
    one, two = pixels(1).astype(float), pixels(2).astype(float)
    found = mixup(pixels(1), pixels(2), 0.3)
    assert found.dtype == np.uint8 and np.abs(found - (0.3 * one + 0.7 * two)).max() <= 0.5
    assert np.array_equal(mixup(pixels(1), pixels(2), 1.0), pixels(1))


def test_cutmix_puts_in_a_square_and_counts_what_is_left():
    one, two = np.zeros((10, 10, 3), np.uint8), np.ones((10, 10, 3), np.uint8)
    found, share = cutmix(one, two, 0.75, np.array([0.5, 0.6]))
    assert found[3:8, 4:9].all() and found.sum() == 3 * 25 and share == 0.75 and not one.any()
    found, share = cutmix(one, two, 0.75, np.array([0.0, 0.95]))
    assert found[:3, 7:].all() and found.sum() == 3 * 9 and share == pytest.approx(0.91)
    for size in range(11):
        found, share = cutmix(one, two, 1 - size**2 / 100, np.array([0.5, 0.5]))
        assert found.sum() == 3 * size**2 and share == pytest.approx(1 - size**2 / 100)
