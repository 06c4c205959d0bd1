"""Densities per weight: they meet the overall one, and follow their formula."""

import math

import pytest

from nt_dist.sparsity.density import spread_density

SHAPES = {
    "wide": ((512, 2048), 1),
    "square": ((512, 512), 3),
    "small": ((16, 16), 3),
    "convolution": ((64, 32, 3, 3), 1),
}


def overall(densities):
    sizes = {name: math.prod(shape) * copies for name, (shape, copies) in SHAPES.items()}
    return sum(densities[name] * size for name, size in sizes.items()) / sum(sizes.values())


@pytest.mark.parametrize("distribution", ["erk", "er", "uniform"])
@pytest.mark.parametrize("density", [0.01, 0.2, 0.5, 0.9, 0.999])
def test_the_overall_density_is_met(distribution, density):
    densities = spread_density(SHAPES, density, distribution)
    assert overall(densities) == pytest.approx(density)
    assert all(0 < each <= 1 for each in densities.values())


def test_density_one_is_dense():
    assert spread_density(SHAPES, 1.0, "erk") == dict.fromkeys(SHAPES, 1.0)


def test_erk_is_proportional_to_the_sum_over_the_product_of_dimensions():
    densities = spread_density(SHAPES, 0.05, "erk")
    assert densities["wide"] / densities["square"] == pytest.approx((2560 / (512 * 2048)) / (1024 / 512**2))
    assert densities["convolution"] / densities["square"] == pytest.approx((102 / (64 * 32 * 9)) / (1024 / 512**2))


def test_er_counts_channels_only():
    densities = spread_density(SHAPES, 0.05, "er")
    assert densities["convolution"] / densities["square"] == pytest.approx((96 / (64 * 32)) / (1024 / 512**2))


def test_what_would_be_denser_than_dense_is_dense_and_the_others_share_the_rest():
    densities = spread_density(SHAPES, 0.5, "erk")
    assert densities["small"] == 1.0 and densities["wide"] < 1.0


def test_uniform_is_uniform():
    assert set(spread_density(SHAPES, 0.3, "uniform").values()) == {0.3}
