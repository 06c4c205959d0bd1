"""Each of the 15 corruptions does what its name says, more so at a higher severity, and the same every time."""

import io
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from nt_dist.images import corruptions
from nt_dist.images.corruptions import corrupt, plasma
from nt_dist.images.decoding import Crop, decode
from nt_dist.images.samples import Broken, CorruptedSamples, PictureSamples
from nt_dist.images.settings import Data
from nt_dist.images.severities import CORRUPTIONS, KINDS, SMALL
from nt_dist.images.sources import Pictures

SMALL_SIDE, LARGE_SIDE = 32, SMALL


def photographs(side):
    crops = [Crop(0.25, 1.0, right, down) for right in (0.0, 0.5, 1.0) for down in (0.2, 0.9)]
    return [decode(image, side, crop) for image in load_sample_images().images for crop in crops]


PHOTOGRAPHS = {side: photographs(side) for side in (SMALL_SIDE, LARGE_SIDE)}
FLAT = np.full((32, 32, 3), 128, np.uint8)
DRAW = np.random.default_rng


def distances(kind, side, severities=range(1, 6), draws=2):
    """Root of the mean square by which pictures change, mean over pictures, at each severity."""

    def distance(severity, number, picture):
        return np.sqrt(np.square(corrupt(picture, kind, severity, number).astype(float) - picture).mean())

    numbered = list(enumerate(PHOTOGRAPHS[side] * draws))
    return [float(np.mean([distance(severity, *each) for each in numbered])) for severity in severities]


# The published numbers do not make every step of these a larger change of pixels: they have tests of their own.
ELSEWHERE = {
    SMALL_SIDE: {"glass_blur", "motion_blur", "frost", "elastic_transform"},
    LARGE_SIDE: {"frost", "fog", "elastic_transform"},
}


@pytest.mark.parametrize("side", [SMALL_SIDE, LARGE_SIDE])
@pytest.mark.parametrize("kind", KINDS)
def test_a_higher_severity_changes_more(kind, side):
    found = distances(kind, side)
    assert found[0] > 1
    if kind not in ELSEWHERE[side]:
        assert all(one < other for one, other in pairwise(found)), found


def test_more_frost_leaves_less_of_the_picture():
    def likeness(severity):
        pairs = [(corrupt(x, "frost", severity, number), x) for number in range(3) for x in PHOTOGRAPHS[LARGE_SIDE]]
        return np.mean([np.corrcoef(one.ravel(), other.ravel())[0, 1] for one, other in pairs])

    found = [likeness(severity) for severity in range(1, 6)]
    assert all(one > other for one, other in pairwise(found)), found


def test_small_motion_is_longer_with_its_deviation_and_its_radius():
    found = distances("motion_blur", SMALL_SIDE, (1, 2, 3, 5), draws=4)
    assert all(one < other for one, other in pairwise(found)), found


def test_small_glass_moves_farther_where_it_is_passed_twice():
    one_pass, two_passes = distances("glass_blur", SMALL_SIDE, (2, 4), draws=4)
    assert two_passes > 1.1 * one_pass


def test_an_elastic_picture_is_stretched_more_at_equal_smoothness():
    found = distances("elastic_transform", LARGE_SIDE, (3, 4, 5), draws=4)
    assert found == sorted(found)


@pytest.mark.parametrize("side", [1, 2, 7, 8, SMALL - 1, SMALL])
@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_of_any_side_stays_one_and_each_draw_is_its_own(kind, side):
    picture = DRAW(0).integers(256, size=(side, side, 3), dtype=np.uint8)
    before = picture.copy()
    found = corrupt(picture, kind, 5, 3)
    assert found.dtype == np.uint8 and found.shape == picture.shape and np.array_equal(picture, before)
    assert np.array_equal(corrupt(picture, kind, 5, 3), found)
    for extreme in (0, 255):
        assert corrupt(np.full_like(picture, extreme), kind, 3, 0).shape == picture.shape


RANDOM = {"gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur"}
RANDOM |= {"snow", "frost", "fog", "elastic_transform"}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_random_follows_from_the_samples_number(kind):
    picture = PHOTOGRAPHS[SMALL_SIDE][0]
    assert np.array_equal(corrupt(picture, kind, 3, 1), corrupt(picture, kind, 3, 2)) == (kind not in RANDOM)


def test_small_pictures_take_other_numbers_than_large_ones():
    assert all(len(each.small) == len(each.large) == 5 for each in KINDS.values())
    assert list(CORRUPTIONS.kinds) == list(KINDS) and len(KINDS) == 15
    below, above = (corrupt(np.full((side, side, 3), 100, np.uint8), "brightness", 1, 0) for side in (SMALL - 1, SMALL))
    assert below[0, 0, 0] == 113 and above[0, 0, 0] == 126  # 0.05 and 0.1 of 255 more


@pytest.mark.parametrize(("kind", "deviation"), [("gaussian_noise", 0.08), ("shot_noise", (128 / 255 / 100) ** 0.5)])
def test_noise_has_its_deviation_and_no_bias(kind, deviation):
    noise = np.concatenate([corrupt(FLAT, kind, 3, number).ravel() for number in range(8)]).astype(float) - 128
    assert abs(noise.mean()) < 0.5 and noise.std() == pytest.approx(255 * deviation, rel=0.05)


def test_shot_noise_is_stronger_where_it_is_brighter():
    dark, bright = (corrupt(np.full_like(FLAT, value), "shot_noise", 5, 0).std() for value in (20, 180))
    assert bright / dark == pytest.approx(3, rel=0.2)


def test_impulses_are_black_or_white_and_as_many_as_said():
    found = np.concatenate([corrupt(FLAT, "impulse_noise", 5, number).ravel() for number in range(8)])
    changed = found[found != 128]
    assert set(changed) == {0, 255} and len(changed) / len(found) == pytest.approx(0.07, rel=0.1)
    assert abs((changed == 0).mean() - 0.5) < 0.05


BLURS = ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "pixelate", "jpeg_compression")


@pytest.mark.parametrize("kind", BLURS)
def test_a_blur_leaves_a_flat_picture_alone(kind):
    for number in range(3):
        assert np.abs(corrupt(FLAT, kind, 5, number).astype(int) - 128).max() <= 1


def test_a_defocused_point_is_a_disk():
    point = np.zeros((41, 41, 3), np.float32)
    point[20, 20] = 1
    found = corruptions.defocus_blur(point, DRAW(0), 6, 0.1)[..., 0]
    down, right = np.mgrid[-20:21, -20:21]
    inside = down**2 + right**2 <= 36
    assert found.sum() == pytest.approx(1, rel=1e-5)
    assert np.allclose(found[inside], 1 / inside.sum(), atol=1e-5) and np.abs(found[~inside]).max() < 1e-5


def test_a_moved_point_is_a_trace_in_one_direction():
    point = np.zeros((41, 41, 3), np.float32)
    point[20, 20] = 1
    for seed in range(10):
        found = corruptions.motion_blur(point, DRAW(seed), 6, 3)[..., 0]
        down, right = np.argwhere(found > 0).T - 20
        assert found.sum() == pytest.approx(1, rel=1e-5) and 9 <= len(down) <= 13
        assert right.min() == -max(abs(right)) and abs(down).max() <= abs(right).max()


def test_a_zoom_leaves_the_middle_and_smears_the_rim():
    found = corrupt(PHOTOGRAPHS[LARGE_SIDE][0], "zoom_blur", 5, 0).astype(float)
    change = np.abs(found - PHOTOGRAPHS[LARGE_SIDE][0]).mean(-1)
    middle = change[LARGE_SIDE // 2 - 8 : LARGE_SIDE // 2 + 8, LARGE_SIDE // 2 - 8 : LARGE_SIDE // 2 + 8]
    assert middle.mean() < change.mean()


@pytest.mark.parametrize("kind", ["snow", "frost"])
def test_weather_makes_a_dark_picture_brighter(kind):
    assert corrupt(np.zeros_like(FLAT), kind, 5, 0).mean() > 30


def test_fog_takes_contrast_away_and_keeps_the_brightest():
    picture = PHOTOGRAPHS[SMALL_SIDE][0]
    contrasts = [np.std(corrupt(picture, "fog", level, 0) * 1.0 - plasma_of(level) * 255) for level in (1, 5)]
    assert contrasts[1] < contrasts[0] and corrupt(picture, "fog", 5, 0).max() <= picture.max()


def plasma_of(level):
    """The fog before the first sample's picture, as far as it shows."""
    thickness, decay = KINDS["fog"].small[level - 1]
    draw = DRAW((0, list(KINDS).index("fog"), level, 0))
    brightest = PHOTOGRAPHS[SMALL_SIDE][0].max() / 255
    return thickness * plasma(draw, SMALL_SIDE, decay)[..., None] * brightest / (brightest + thickness)


def test_a_plasma_fills_its_range_and_is_rougher_the_slower_it_decays():
    smooth, rough = (plasma(DRAW(1), 100, decay) for decay in (3, 1.3))
    for each in (smooth, rough):
        assert each.shape == (100, 100) and each.min() >= 0 and each.max() <= 1 and np.ptp(each) > 0.7
    assert np.abs(np.diff(rough)).mean() > 3 * np.abs(np.diff(smooth)).mean()


def test_brightness_adds_to_the_value_and_keeps_the_hue():
    colour = np.full((8, 8, 3), (100, 60, 20), np.uint8)
    assert corrupt(colour, "brightness", 4, 0)[0, 0].tolist() == [151, 91, 30]
    assert (corrupt(np.zeros_like(colour), "brightness", 4, 0) == 51).all()


def test_contrast_shrinks_each_channel_towards_its_mean():
    picture = PHOTOGRAPHS[SMALL_SIDE][1]
    found = corrupt(picture, "contrast", 2, 0).astype(float)
    mean = picture.mean((0, 1))
    assert np.abs(found - mean - 0.5 * (picture - mean)).max() <= 0.51


def test_an_elastic_map_that_moves_nothing_changes_nothing():
    picture = PHOTOGRAPHS[SMALL_SIDE][0].astype(np.float32) / 255
    assert np.allclose(corruptions.elastic_transform(picture, DRAW(0), 0, 0.1, 0), picture, atol=1e-5)
    tilted = corruptions.elastic_transform(picture, DRAW(0), 0, 0.1, 0.08)
    assert np.abs(tilted - picture).mean() > 0.02


def test_pixels_become_boxes():
    found = corrupt(DRAW(0).integers(256, size=(128, 128, 3), dtype=np.uint8), "pixelate", 2, 0)
    assert np.array_equal(found, found[::2, ::2].repeat(2, 0).repeat(2, 1))


def test_a_jpeg_is_that_of_pillow_at_its_quality():
    picture, file = PHOTOGRAPHS[SMALL_SIDE][2], io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=40)
    assert np.array_equal(corrupt(picture, "jpeg_compression", 5, 0), np.asarray(Image.open(file)))


def test_samples_are_corrupted_by_their_number():
    pictures = Pictures("these", np.arange(12), (), PHOTOGRAPHS[SMALL_SIDE])
    samples = PictureSamples(pictures, Data(), SMALL_SIDE, 0, Broken(0.0, 12))
    corrupted = CorruptedSamples(samples, "gaussian_noise", 4)
    assert len(corrupted) == 12
    for number in (0, 11):
        found = corrupted[number]
        assert np.array_equal(found.inputs, corrupt(PHOTOGRAPHS[SMALL_SIDE][number], "gaussian_noise", 4, number))
        assert found.targets.tolist() == [number] and found.weights.tolist() == [1]
    assert not corrupted.blank().weights.any()
