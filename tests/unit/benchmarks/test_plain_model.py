"""The opponent of the benchmark is the same model: same size, same logits, same step."""

from types import SimpleNamespace

import pytest
import torch

from benchmarks.plain_model import PlainModel
from benchmarks.plain_trainer import PlainTrainer
from nt_dist.families import make_config
from nt_dist.model.place import Place
from nt_dist.model.trails import build_model, weights_of

PARTS = {  # of a block: here -> in nt_dist.model.weights
    "attention_norm": "attention.norm",
    "query": "attention.query",
    "key": "attention.key",
    "value": "attention.value",
    "output": "attention.output",
    "mlp_norm": "mlp.norm",
    "gate": "mlp.gate",
    "up": "mlp.up",
    "down": "mlp.down",
}


def _config(precision="fp32", **trails):
    return make_config(
        {
            "model": {
                "hidden_size": 16,
                "ffn_size": 24,
                "num_layers": 3,
                "num_attention_heads": 4,
                "num_kv_heads": 2,
                "vocab_size": 37,
                "max_seq_len": 8,
            },
            "trails": {"count": 3, "layers": 2, **trails},
            "sparsity": {"density": 1.0, "topology_shards": 2, "update_every": 0},
            "train": {"batch_size": 4, "micro_batch_size": 2, "precision": precision, "lr": 0.01, "warmup_steps": 0},
        }
    )


def _copy(config, model, plain):
    """Gives the plain model the weights of a dense TrailsModel."""
    weights = {name: weight.values for name, weight in weights_of(model).items()}

    def copy_block(block, number, trail):
        for here, there in PARTS.items():
            getattr(block, here).weight.copy_(weights[f"blocks.{number}.{there}"][trail])

    with torch.no_grad():
        for trail, table in enumerate(plain.embeddings):
            table.weight.copy_(weights["embedding"][trail])
        for number, block in enumerate(plain.trunk):
            copy_block(block, number, 0)
        for trail, module in enumerate(plain.trails):
            for offset, block in enumerate(module.blocks):
                copy_block(block, config.trunk_layers + offset, trail)
            module.norm.weight.copy_(weights["norm"][trail])
            module.output.weight.copy_(weights["output"][trail])


def _batch(seed):
    generator = torch.Generator().manual_seed(seed)
    tokens, targets = torch.randint(37, (2, 2, 8), generator=generator)
    weights = (torch.rand(2, 8, generator=generator) < 0.8).float()
    return SimpleNamespace(inputs=tokens, targets=targets, weights=weights)


@pytest.mark.parametrize(
    "trails", [{}, {"final_norm_twice": True}, {"fork": "embedding"}], ids=["blocks", "twice", "full"]
)
def test_logits_and_size_are_the_trainers(trails):
    config = _config(**trails)
    model, plain = build_model(config), PlainModel(config)
    for weight in weights_of(model).values():
        weight.values.data.normal_(std=0.3)  # far from a fresh model, whose norms are all one
    _copy(config, model, plain)
    tokens = _batch(0).inputs
    with torch.no_grad():
        expected, logits = model(tokens)[..., :37], torch.stack(plain(tokens))[..., :37]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert sum(each.numel() for each in plain.parameters()) == sum(each.numel() for each in model.parameters())


def test_a_step_is_the_trainers_step():
    config = _config()
    model, trainer = build_model(config), PlainTrainer(config, torch.device("cpu"))
    _copy(config, model, trainer.model)
    batches = [_batch(1), _batch(2)]
    train = config.train
    optimizer = torch.optim.AdamW(model.parameters(), train.lr, train.betas, train.adam_eps, train.weight_decay)
    tokens = sum(batch.weights.sum() for batch in batches)
    for batch in batches:
        (Place().trail_losses(model(batch.inputs), batch.targets, batch.weights).sum() / tokens).backward()
    optimizer.step()
    trainer.step(batches)
    after = PlainModel(config)
    _copy(config, model, after)
    for (name, expected), found in zip(after.named_parameters(), trainer.model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


def test_bf16_parameters_follow_fp32_masters():
    config, exact = _config("bf16"), PlainTrainer(_config(), torch.device("cpu"))
    trainer = PlainTrainer(config, torch.device("cpu"))
    for mine, theirs in zip(exact.masters, trainer.masters, strict=True):
        mine.data.copy_(theirs)
    before = [master.detach().clone() for master in trainer.masters]
    for each in (trainer, exact):
        each.step([_batch(1), _batch(2)])
    for mine, theirs in zip(exact.masters, trainer.masters, strict=True):  # the gradients of both micro-batches
        expected, found = (each.optimizer.state[of]["exp_avg"] for each, of in ((exact, mine), (trainer, theirs)))
        assert float((found - expected).norm()) < 0.1 * float(expected.norm())
    assert all(master.dtype == torch.float32 and master.grad is None for master in trainer.masters)
    for old, master, parameter in zip(before, trainer.masters, trainer.model.parameters(), strict=True):
        assert parameter.dtype == torch.bfloat16 and parameter.grad is None
        assert torch.equal(parameter, master.bfloat16())
        # the first step of Adam is of the size of the learning rate (0 where a token did not occur)
        assert float((master.detach() - old).abs().max()) == pytest.approx(0.01, rel=0.01)
