"""How one overall density is spread over the weights.

``erk`` is Erdős–Rényi-Kernel (Evci et al., RigL, arXiv 1911.11134, §3): the density of a weight is proportional to
(sum of its dimensions) / (product of its dimensions), scaled so that the overall density is met, and capped at 1.
``er`` (Mocanu et al., SET, arXiv 1707.04780) counts a convolution's input and output channels only. ``uniform`` gives
every weight the same density.
"""

import math


def spread_density(
    shapes: dict[str, tuple[tuple[int, ...], int]], density: float, distribution: str
) -> dict[str, float]:
    """Return the density of every weight, given its real shape and how many copies of it the model has."""
    assert distribution in ("erk", "er", "uniform"), distribution
    if density == 1.0:  # exactly: a rounding error below would make a weight sparse
        return dict.fromkeys(shapes, 1.0)
    sizes = {name: math.prod(shape) * copies for name, (shape, copies) in shapes.items()}
    axes = {name: shape[:2] if distribution == "er" else shape for name, (shape, _) in shapes.items()}
    raw = {name: 1.0 if distribution == "uniform" else sum(each) / math.prod(each) for name, each in axes.items()}
    wanted = density * sum(sizes.values())
    full: set[str] = set()
    while len(full) < len(shapes):
        left = wanted - sum(sizes[name] for name in full)
        scale = left / sum(raw[name] * sizes[name] for name in shapes if name not in full)
        over = {name for name in shapes if name not in full and scale * raw[name] >= 1.0}
        if not over:
            return {name: 1.0 if name in full else scale * raw[name] for name in shapes}
        full |= over
    return dict.fromkeys(shapes, 1.0)
