"""The model against transformers' LlamaForCausalLM, and its trails against each other."""

import zlib

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from nt_dist.llama.layers import Rotary
from nt_dist.model.place import Place
from nt_dist.model.trails import build_model, weights_of
from tests.unit.model.tiny import tiny

TOKENS = torch.randint(0, 101, (2, 17), generator=torch.Generator().manual_seed(1))
THEIRS = {
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "attention.norm": "input_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
    "mlp.norm": "post_attention_layernorm",
}


def their_name(name: str) -> str:
    if name.startswith("blocks."):
        _, number, rest = name.split(".", 2)
        return f"model.layers.{number}.{THEIRS[rest]}.weight"
    return {"embedding": "model.embed_tokens.weight", "norm": "model.norm.weight", "output": "lm_head.weight"}[name]


@pytest.mark.parametrize("kv_heads", [2, 4])
def test_one_dense_trail_equals_transformers_in_logits_and_gradients(kv_heads):
    config = tiny(model={"num_kv_heads": kv_heads}, trails={"count": 1}, sparsity={"density": 1.0})
    model = build_model(config)
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=101,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=kv_heads,
            max_position_embeddings=16,
            rms_norm_eps=config.model.norm_eps,
            rope_theta=config.model.rope_theta,
            tie_word_embeddings=False,
        )
    )
    parameters = dict(theirs.named_parameters())
    weights = weights_of(model)
    assert {their_name(name) for name in weights} == set(parameters)
    torch.manual_seed(0)
    for name, weight in weights.items():
        weight.values.data.normal_(1.0 if name.endswith("norm") else 0.0, 0.2)
        parameters[their_name(name)].data.copy_(weight.values[0, : len(parameters[their_name(name)])])
    inputs, targets = TOKENS[:, :-1], TOKENS[:, 1:]
    logits, expected = model(inputs)[0, ..., :101], theirs(inputs).logits
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    Place().trail_losses(model(inputs), targets, torch.ones(2, 16)).sum().backward()
    F.cross_entropy(expected.flatten(0, 1), targets.flatten(), reduction="sum").backward()
    for name, weight in weights.items():
        gradient = parameters[their_name(name)].grad
        scale = gradient.abs().max()
        torch.testing.assert_close(weight.values.grad[0, : len(gradient)] / scale, gradient / scale, rtol=0, atol=1e-5)


def test_each_trail_is_the_network_that_it_would_be_alone():
    """Trails do not leak into each other: the logits of one do not change with the weights of another."""
    model = build_model(tiny())
    before = model(TOKENS)
    for weight in weights_of(model).values():
        if weight.spec.in_trail:
            weight.values.data[1] += 0.05
    after = model(TOKENS)
    assert torch.equal(before[[0, 2]], after[[0, 2]]) and not torch.allclose(before[1], after[1])


def test_the_trunk_hears_every_trail():
    model = build_model(tiny())
    trunk = weights_of(model)["blocks.0.mlp.up"].values
    logits = model(TOKENS)[..., :101]
    gradients = [torch.autograd.grad(logits[trail].square().sum(), trunk, retain_graph=True)[0] for trail in range(3)]
    (whole,) = torch.autograd.grad(logits.square().sum(), trunk)
    torch.testing.assert_close(whole, sum(gradients))
    assert all(each.abs().max() > 0 for each in gradients)


def test_attention_sees_no_later_token():
    model = build_model(tiny())
    changed = TOKENS.clone()
    changed[:, 9:] = (changed[:, 9:] + 1) % 101
    assert torch.equal(model(TOKENS)[:, :, :9], model(changed)[:, :, :9])


def test_padded_pieces_have_no_probability():
    logits = build_model(tiny())(TOKENS)
    assert logits.shape == (3, 2, 17, 104)
    assert (logits[..., 101:] == -torch.inf).all() and logits[..., :101].isfinite().all()


def test_padding_does_not_change_the_gradients():
    gradients = []
    for shards in (1, 8):  # no padding, 3 rows of it
        sparsity = {"density": 1.0, "topology_shards": shards}
        model = build_model(tiny(sparsity=sparsity))
        for weight in weights_of(model).values():
            torch.manual_seed(zlib.crc32(weight.spec.name.encode()))
            weight.values.data[:, :101] = torch.randn(weight.values[:, :101].shape) * 0.1
        Place().trail_losses(model(TOKENS[:, :-1]), TOKENS[:, 1:], torch.ones(2, 16)).sum().backward()
        gradients.append({name: weight.values.grad[:, :101] for name, weight in weights_of(model).items()})
    for name in gradients[0]:
        torch.testing.assert_close(gradients[0][name], gradients[1][name])


def test_the_final_norm_can_run_twice():
    once, twice = (build_model(tiny(trails={"final_norm_twice": each})) for each in (False, True))
    for model in (once, twice):
        weights_of(model)["norm"].values.data.copy_(torch.linspace(0.5, 2, 32).expand(3, -1))
    assert not torch.allclose(once(TOKENS), twice(TOKENS))
    hidden = torch.randn(3, 2, 5, 32)
    norm = twice[-1].norm
    torch.testing.assert_close(twice[-1](hidden)[..., :101], once[-1](norm(hidden))[..., :101])


@pytest.mark.parametrize("storage", ["compact", "masked"])
def test_recomputing_activations_changes_nothing(storage):
    gradients = []
    for recompute in (False, True):
        config = tiny(train={"activation_checkpointing": recompute}, sparsity={"storage": storage})
        model = build_model(config)
        weights = weights_of(model)
        for weight in weights.values():
            weight.collecting = weight.spec.is_sparse
        Place().trail_losses(model(TOKENS[:, :-1]), TOKENS[:, 1:], torch.ones(2, 16)).sum().backward()
        gradients.append([(each.values.grad, each.dense_gradient) for each in weights.values()])
    for (one, one_dense), (other, other_dense) in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
        assert (one_dense is None) == (other_dense is None)
        if one_dense is not None:
            torch.testing.assert_close(one_dense, other_dense)


def test_rotary_positions_are_relative_and_survive_bf16():
    rotary = Rotary(8, 10000.0)
    query, key = torch.randn(8), torch.randn(8)
    scores = rotary(query.expand(20, 8)) @ rotary(key.expand(20, 8)).T
    torch.testing.assert_close(scores.diagonal(3), scores[0, 3].expand(17), rtol=1e-4, atol=1e-4)
    model = build_model(tiny()).bfloat16()
    assert model(TOKENS).dtype == torch.bfloat16
    assert not [name for name, each in model.named_buffers() if each.is_floating_point()]
