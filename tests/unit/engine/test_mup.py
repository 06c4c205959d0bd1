"""muP: what was tuned at one width and density holds at others."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from nt_dist.engine.optimizers import group_key, make_optimizer
from nt_dist.model.trails import build_model, run_layers
from nt_dist.model.weights import weight_specs
from tests.unit.model.tiny import tiny


def _config(width=64, density=1.0, base=0, **train):
    heads = {"num_attention_heads": width // 16, "num_kv_heads": 0}
    return tiny(
        model={"hidden_size": width, "ffn_size": 2 * width, "num_layers": 2, **heads},
        trails={"count": 1, "layers": 1},
        sparsity={"density": density, "distribution": "uniform", "exempt": ["embedding", "output"]},
        train={"lr": 1e-2, "mup_base_hidden": base, **train},
    )


def _changes(config):
    """How far three steps move the last block's states and the logits, on the same tokens: root mean squares."""
    model = build_model(config)
    optimizer = make_optimizer(config, model, None)
    for group in optimizer.param_groups:
        group["lr"] *= group["lr_factor"]
    tokens = torch.randint(config.model.vocab_size, (4, 17), generator=torch.Generator().manual_seed(1))

    def states():
        *blocks, output = model
        state = run_layers(blocks, tokens[:, :-1], recompute=False)
        return state, output(state)[..., : config.model.vocab_size]

    before = [state.detach() for state in states()]
    for _ in range(3):
        optimizer.zero_grad()
        cross_entropy(states()[1].flatten(0, 2), tokens[:, 1:].flatten()).backward()
        optimizer.step()
    pairs = zip(states(), before, strict=True)
    return [float((after.detach() - then).square().mean().sqrt()) for after, then in pairs]


@pytest.mark.parametrize(
    "configs",
    [
        [{"width": width, "base": 32} for width in (32, 64, 128)],
        [{"width": 64, "density": density, "base": 64} for density in (0.25, 0.5, 1.0)],
    ],
    ids=["width", "density"],
)
def test_activations_move_alike_with_it_and_by_their_inputs_without(configs):
    """The coordinate check of Yang et al., arXiv 2203.03466, appendix D.1."""
    for sizes in zip(*(_changes(_config(**each)) for each in configs), strict=True):
        assert max(sizes) < 1.6 * min(sizes), sizes
    fewest, most = (_changes(_config(**{**each, "base": 0}))[0] for each in (configs[0], configs[-1]))
    assert most > 3 * fewest


def test_rates_and_initial_values_go_by_active_inputs():
    plain, scaled = (_config(128, 0.5, base, lr_embedding=5.0, lr_output=3.0) for base in (0, 32))
    before, after = weight_specs(plain), weight_specs(scaled)
    # four times as wide, half of that active: twice as many inputs; the output matrix is dense, four times as many
    for name, (rate, spread) in {
        "blocks.0.attention.query": (1 / 2, 2**-0.5),
        "blocks.1.mlp.down": (1 / 2, 2**-0.5),
        "output": (3 / 4, 1 / 4),
        "norm": (3.0, None),
        "embedding": (5.0, 1.0),
        "blocks.1.mlp.norm": (1.0, None),
    }.items():
        assert group_key(scaled, after[name]).lr_factor == pytest.approx(rate), name
        assert spread is None or after[name].init == pytest.approx(spread * before[name].init), name
    assert weight_specs(_config(128, 1.0, 128)) == weight_specs(_config(128, 1.0, 0))
