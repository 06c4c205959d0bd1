"""What a report reads of a checkpoint's topology, for every family."""

from pathlib import Path

import numpy as np
import pytest

from nt_dist.families import load_config
from nt_dist.model.weights import weight_specs
from nt_dist.study import report

ROOT = Path(__file__).resolve().parents[3]


def test_an_overlap_by_chance_alone_is_none():
    assert report._beyond_chance({"density": 0.5, "overlap": 1 / 3}) == pytest.approx(0)
    assert report._beyond_chance({"density": 0.9, "overlap": 1.0}) == pytest.approx(1)
    assert report._beyond_chance({"density": 1.0, "overlap": 1.0}) == 0


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("quickstart", {"embedding", "blocks.0", "blocks.5", "output"}),
        ("quickstart_images", {"stem", "blocks.0", "blocks.5", "classifier"}),
    ],
)
def test_maps_are_of_the_sparse_matrices_at_either_end(monkeypatch, name, layers):
    config = load_config(ROOT / "configs" / f"{name}.toml", ["sparsity.density=0.5"], check_paths=False)
    specs = weight_specs(config)

    class Reader:
        """A checkpoint all of whose topologies are the first positions."""

        def __init__(self, *_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def read(self, weight, trail, shard, states):
            return {"positions": np.arange(specs[weight].slots(shard), dtype=np.int32)}

    monkeypatch.setattr(report, "FragmentReader", Reader)
    monkeypatch.setattr(report, "read_manifest", lambda _: None)
    shares = report.topology_shares(Path(), config)
    assert set(shares) == {each for each, spec in specs.items() if spec.is_sparse and spec.layer in layers}
    for weight, share in shares.items():
        assert share.ndim == 2 and max(share.shape) <= report.MAP_SIDE and share.max() <= 1 + 1e-6
        assert share.mean() == pytest.approx(specs[weight].density, abs=0.05)
