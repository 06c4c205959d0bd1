"""The table of weights: counts, densities, storages."""

import math
from pathlib import Path

import pytest
import torch

from nt_dist.families import load_config
from nt_dist.model.trails import build_model, weights_of
from nt_dist.model.weights import bytes_per_value, choose_storages, count_parameters, weight_specs

from .tiny import tiny

CONFIGS = Path(__file__).resolve().parents[3] / "configs"

# One trail's parameters, dense: 2·V·H for embedding and output, 4·H² + 3·H·F + 2·H a block, H for the final norm.
SHIPPED = {"llama_60m": 58_073_600, "llama_130m": 134_105_856, "llama_350m": 367_969_280}


def single(model) -> int:
    vocab, hidden, ffn = model.vocab_size, model.hidden_size, model.ffn_size
    return 2 * vocab * hidden + hidden + model.num_layers * (4 * hidden**2 + 3 * hidden * ffn + 2 * hidden)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_config_builds_on_the_meta_device_with_its_parameters(path):
    config = load_config(path, check_paths=False)
    counts = count_parameters(config)
    if config.family.name == "llama":
        check_counts(path, config, counts)
    weights = weights_of(build_model(config, device="meta"))
    assert list(weights) == list(weight_specs(config))
    stored = sum(weight.active_elements for weight in weights.values())
    padding = sum(
        (math.prod(each.spec.shape) - math.prod(each.spec.real_shape)) * each.spec.trails
        for each in weights.values()
        if not each.spec.is_sparse
    )
    assert stored - padding == counts["stored"]


def check_counts(path, config, counts):
    """Compare a LLaMA's counts with the formula."""
    model = config.model
    block = 4 * model.hidden_size**2 + 3 * model.hidden_size * model.ffn_size + 2 * model.hidden_size
    own = config.trails.layers * block + model.vocab_size * model.hidden_size + model.hidden_size
    shared = single(model) - own
    assert counts["dense"] == shared + config.trails.count * own
    norms = (2 * model.num_layers + 1) * model.hidden_size
    outer = (1 + config.trails.count) * model.vocab_size * model.hidden_size  # embedding and outputs
    exempt = outer if config.sparsity.exempt else 0
    stored = exempt + config.sparsity.density * (counts["dense"] - exempt)
    assert counts["stored"] == pytest.approx(stored, rel=1e-3, abs=4 * norms)
    assert single(model) == SHIPPED.get(path.stem, single(model))


def test_trunk_weights_exist_once_and_trail_weights_once_a_trail():
    specs = weight_specs(tiny())
    assert {specs[name].trails for name in ("embedding", "blocks.0.mlp.up", "blocks.0.attention.norm")} == {1}
    assert {specs[name].trails for name in ("output", "norm", "blocks.1.mlp.up", "blocks.2.attention.norm")} == {3}


def test_a_full_ensemble_forks_before_the_embedding():
    specs = weight_specs(tiny(trails={"fork": "embedding", "layers": 3}))
    assert {spec.trails for spec in specs.values()} == {3} and all(spec.in_trail for spec in specs.values())


def test_exempt_weights_are_dense_and_the_others_meet_the_density():
    specs = weight_specs(tiny(sparsity={"exempt": ["embedding", "blocks.*.attention.*"]}))
    assert not any(specs[name].is_sparse for name in ("embedding", "blocks.1.attention.query", "norm"))
    sparse = [spec for spec in specs.values() if spec.is_sparse]
    size = [math.prod(spec.real_shape) * spec.trails for spec in sparse]
    active = sum(spec.density * each for spec, each in zip(sparse, size, strict=True))
    assert active / sum(size) == pytest.approx(0.5)


def test_column_parallel_matrices_are_cut_along_rows_and_row_parallel_ones_along_columns():
    specs = weight_specs(tiny())
    cut_along_columns = {name for name, spec in specs.items() if spec.cut_axis == 1}
    assert cut_along_columns == {f"blocks.{n}.{name}" for n in range(3) for name in ("attention.output", "mlp.down")}
    assert {name for name, spec in specs.items() if spec.shards == 1} == {n for n in specs if n.endswith("norm")}


@pytest.mark.parametrize("density,expected", [(0.1, "compact"), (0.95, "masked")])
def test_auto_takes_the_storage_with_fewer_bytes(density, expected):
    config = tiny(sparsity={"density": density, "storage": "auto", "distribution": "uniform"})
    per_value = bytes_per_value(config)
    assert (density * (per_value + 4) < per_value + 1) == (expected == "compact")
    assert {choose_storages(config)[name] for name in ("output", "blocks.1.mlp.up")} == {expected}


def test_initial_values_are_the_stored_ones_in_both_storages():
    models = [build_model(tiny(sparsity={"storage": each})) for each in ("compact", "masked")]
    for one, other in zip(*(weights_of(model).values() for model in models), strict=True):
        assert torch.equal(one.build(one.values), other.build(other.values))
