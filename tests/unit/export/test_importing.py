"""A foreign checkpoint becomes step 0 of a run: the same function where nothing is pruned, the largest weights else."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from nt_dist.errors import CheckpointError, ConfigError, DataError
from nt_dist.export.huggingface import export
from nt_dist.export.importing import check, fill, import_run, open_foreign
from nt_dist.families import DEFAULT, make_config
from nt_dist.inference import load_ensemble
from nt_dist.llama.foreign import Dense
from nt_dist.model.trails import build_model, weights_of
from nt_dist.text.prepare import open_data
from nt_dist.text.tokenizer import load_tokenizer
from tests.unit.checkpoint.checkpoint_case import on_one_rank
from tests.unit.inference.trained_run import SECTIONS, write_run
from tests.unit.text.data_case import byte_level, sentences, write_jsonl

TOKENS = torch.randint(0, 331, (2, 12), generator=torch.Generator().manual_seed(1))


def config_of(**sections):
    sections = {"data": {"path": "texts.jsonl"}, **sections}
    merged = {name: {**SECTIONS.get(name, {}), **sections.get(name, {})} for name in {**SECTIONS, **sections}}
    return make_config(merged)


def llama(seed=0):
    """A dense LLaMA of SECTIONS' sizes with clearly different weights."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": 331, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 16}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, initializer_range=0.2, tie_word_embeddings=False)).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.uniform_(0.5, 1.5)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A folder with a dense LLaMA, and the model."""
    folder = tmp_path_factory.mktemp("llama")
    model = llama()
    model.save_pretrained(folder)
    return folder, model


def filled(folder, config, noise=0.0):
    model = build_model(config, device="meta").to_empty(device="cpu").requires_grad_(False)
    return model, fill(model, open_foreign(folder, DEFAULT), config, noise)


def test_every_trail_of_density_one_is_the_dense_model(dense):
    folder, theirs = dense
    config = config_of(sparsity={"density": 1.0})
    check(open_foreign(folder, DEFAULT), config, 0.0)
    model, (kept, found, lost) = filled(folder, config)
    logits = model(TOKENS)[..., :331]
    for trail in logits:
        torch.testing.assert_close(trail, theirs(TOKENS).logits, rtol=1e-4, atol=1e-4)
    assert kept == found and lost == 0


def test_each_shard_keeps_its_largest_weights(dense):
    folder, theirs = dense
    config = config_of()
    model, (kept, found, lost) = filled(folder, config)
    weight = weights_of(model)["blocks.2.mlp.down"]  # cut along its columns, in the trails
    whole = theirs.state_dict()["model.layers.2.mlp.down_proj.weight"]
    shards, dense = range(weight.spec.shards), weight.dense()
    for shard, expected in enumerate(weight.blocks(whole[None], [(0, shard) for shard in shards])):
        count = weight.spec.slots(shard)
        least = expected.abs().sort(descending=True).values[count - 1]
        for trail in range(3):
            torch.testing.assert_close(
                weight.block(dense, trail, shard).flatten(), expected.where(expected.abs() >= least, 0.0)
            )
    assert 0.45 * found < kept < 0.55 * found and lost > 0
    table = weights_of(model)["embedding"]
    assert table.positions(0, 3).max() < 82 * 32  # of its 83 rows the last one is padding


def test_noise_makes_the_trails_differ_and_is_seeded(dense):
    folder, theirs = dense
    config = config_of(sparsity={"density": 1.0})
    plain, *noisy = (filled(folder, config, noise)[0](TOKENS)[..., :331] for noise in (0.0, 0.1, 0.1))
    assert torch.equal(plain[0], plain[1]) and torch.equal(*noisy)
    assert not torch.equal(noisy[0][0], noisy[0][1])
    model, _ = filled(folder, config, 0.1)
    weights, whole = weights_of(model), theirs.state_dict()["model.layers.1.self_attn.v_proj.weight"]
    share = (weights["blocks.1.attention.value"].values - whole).std(dim=(1, 2)) / whole.std()
    torch.testing.assert_close(share, torch.full((3,), 0.1), rtol=0.1, atol=0)
    trunk = theirs.state_dict()["model.layers.0.self_attn.v_proj.weight"]
    assert torch.equal(weights["blocks.0.attention.value"].values[0], trunk)
    sparse, _ = filled(folder, config_of(), 0.1)
    index = weights_of(sparse)["blocks.1.attention.value"].slot_index()
    assert not torch.equal(index[0], index[1])


def write_paper(folder, pickled=True):
    """A checkpoint in the layout of the paper's code, and its three trails as LLaMAs whose final norm runs twice."""
    first = llama(1)
    state, trails = {}, []
    for name, value in first.state_dict().items():
        if "embed_tokens" in name or "layers.0." in name:
            state[f"backbone_model.{name}"] = value
    for number in range(3):
        trail = llama(10 + number)
        trail.model.embed_tokens, trail.model.layers[0] = first.model.embed_tokens, first.model.layers[0]
        for name, value in trail.state_dict().items():
            block = name.startswith(("model.layers.1.", "model.layers.2."))
            if block or name in ("model.norm.weight", "lm_head.weight"):
                name = name.replace("layers.1.", "layers.0.").replace("layers.2.", "layers.1.")
                state[f"head_model_{number}.{name}"] = value
        trail.model.norm = nn.Sequential(trail.model.norm, trail.model.norm)
        trails.append(trail)
    settings = first.config.to_dict() | {"num_ensemble": 3, "blocks_in_head": 2}
    (folder / "config.json").write_text(json.dumps(settings))
    state = {name: value.clone() for name, value in state.items()}
    if pickled:
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file(state, folder / "model.safetensors")
    return trails


@pytest.mark.parametrize("pickled", [True, False])
def test_the_papers_layout_gives_its_own_trails(tmp_path, pickled):
    trails = write_paper(tmp_path, pickled)
    config = config_of(sparsity={"density": 1.0}, trails={"final_norm_twice": True})
    check(open_foreign(tmp_path, DEFAULT), config, 0.0)
    model, _ = filled(tmp_path, config)
    for found, theirs in zip(model(TOKENS)[..., :331], trails, strict=True):
        torch.testing.assert_close(found, theirs(TOKENS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("trails", [{}, {"fork": "embedding"}, {"final_norm_twice": True}], ids=" ".join)
def test_an_exported_ensemble_comes_back_with_its_topology(tmp_path, trails):
    ensemble = load_ensemble(write_run(tmp_path, trails=trails))
    export(ensemble, tmp_path / "out", sparse=True)
    config = config_of(trails=trails)
    check(open_foreign(tmp_path / "out", DEFAULT), config, 0.0)
    model, (kept, found, lost) = filled(tmp_path / "out", config)
    assert torch.equal(model(TOKENS)[..., :331], ensemble.logits(TOKENS)) and kept == found and lost == 0
    for name, weight in weights_of(ensemble.model).items():
        assert torch.equal(weights_of(model)[name].dense(), weight.dense()), name
    other = {"trails": {"count": 2, "layers": 1, "fork": trails.get("fork", "blocks")}, "model": {"num_layers": 4}}
    with pytest.raises(ConfigError) as caught:
        check(open_foreign(tmp_path / "out", DEFAULT), config_of(**other), 0.0)
    assert "trails.count = 2 must be 3, the num_trails of the imported model" in str(caught.value)
    assert "model.num_layers = 4 must be 3, trunk_layers and trail_layers together" in str(caught.value)
    assert ("trails.final_norm_twice = false must be true" in str(caught.value)) == ("final_norm_twice" in trails)
    fork = "blocks" if trails.get("fork") else "embedding"
    with pytest.raises(ConfigError, match=f"trails.fork = '{fork}' must be"):
        check(open_foreign(tmp_path / "out", DEFAULT), config_of(trails={"fork": fork}), 0.0)


def test_a_config_of_another_model_is_refused_with_every_difference(dense, tmp_path):
    config = config_of(model={"ffn_size": 64, "num_layers": 4}, trails={"final_norm_twice": True})
    with pytest.raises(ConfigError) as caught:
        check(open_foreign(dense[0], DEFAULT), config, -1.0)
    assert str(caught.value).splitlines() == [
        "model.ffn_size = 64 must be 48, the intermediate_size of the imported model",
        "model.num_layers = 4 must be 3, the num_hidden_layers of the imported model",
        "trails.final_norm_twice = true must be false: a LLaMA's final norm runs once",
        "--noise -1 must be at least 0",
    ]
    write_paper(tmp_path)
    with pytest.raises(ConfigError) as caught:
        check(open_foreign(tmp_path, DEFAULT), config_of(trails={"count": 2, "layers": 1}), 0.0)
    assert str(caught.value).splitlines() == [
        "trails.count = 2 must be 3, the num_ensemble of the imported model",
        "trails.layers = 1 must be 2, the blocks_in_head of the imported model",
        "trails.final_norm_twice = false must be true: in the paper's code each trail's final norm runs twice",
    ]


def with_settings(dense, folder, **changed):
    """The dense LLaMA, with other things in its config.json; None removes."""
    settings = json.loads((dense[0] / "config.json").read_text()) | changed
    settings = {name: value for name, value in settings.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "model.safetensors").write_bytes((dense[0] / "model.safetensors").read_bytes())
    return open_foreign(folder, DEFAULT)


@pytest.mark.parametrize("kind", ["gemma", "granite", "helium", "smollm3", "qwen2", None])
def test_other_architectures_with_the_same_tensors_are_refused(dense, tmp_path, kind):
    with pytest.raises(ConfigError, match=f"model_type = {kind!r} must be 'llama' or 'mistral'"):
        check(with_settings(dense, tmp_path, model_type=kind), config_of(), 0.0)


@pytest.mark.parametrize(
    "changed, rule",
    [
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' must be 'silu'"),
        ({"head_dim": 16}, "head_dim = 16 must be 8"),
        ({"attention_bias": True}, "attention_bias = True must be False"),
        ({"mlp_bias": True}, "mlp_bias = True must be False"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 must be 1.0"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            r"rope_scaling = \{'type': .* is not supported",
        ),
        ({"rope_parameters": {"rope_type": "yarn"}}, r"rope_scaling = \{'rope_type': 'yarn'\} is not supported"),
        ({"rope_parameters": "yarn"}, r"rope_scaling = \{'rope_type': 'yarn'\} is not supported"),
        ({"sliding_window": "8"}, "config.json: a setting is of another type: '<' not supported"),
        ({"rope_theta": 500000.0}, "rope_theta = 500000 and 10000 must be the same"),
        ({"sliding_window": 8}, "sliding_window = 8 must be null or at least model.max_seq_len = 16"),
        ({"model_type": "mistral", "num_key_value_heads": None}, "model.num_kv_heads = 2 must be 8"),
        ({"model_type": "mistral", "sliding_window": 8}, "sliding_window = 8 must be null"),
        ({"logits_scaling": 8.0}, "logits_scaling = 8.0 is not known here: remove it if the model computes the same"),
        ({"no_rope_layers": [1, 1, 0]}, r"no_rope_layers = \[1, 1, 0\] is not known here"),
    ],
    ids=lambda each: " ".join(map(str, each.values())) if isinstance(each, dict) else "",
)
def test_settings_that_change_what_is_computed_are_refused_by_name(dense, tmp_path, changed, rule):
    with pytest.raises(ConfigError, match=rule):
        check(with_settings(dense, tmp_path, **changed), config_of(), 0.0)


def test_a_mistral_whose_window_is_no_shorter_than_the_sequences_is_the_same(dense, tmp_path):
    settings = {**dense[1].config.to_dict(), "sliding_window": 16}
    settings = {name: value for name, value in settings.items() if name not in ("model_type", "architectures")}
    theirs = MistralForCausalLM(MistralConfig(**settings)).eval().requires_grad_(False)
    theirs.load_state_dict(dense[1].state_dict())
    theirs.save_pretrained(tmp_path)
    config = config_of(sparsity={"density": 1.0})
    check(open_foreign(tmp_path, DEFAULT), config, 0.0)
    found = filled(tmp_path, config)[0](TOKENS)[0, ..., :331]
    torch.testing.assert_close(found, theirs(TOKENS).logits, rtol=1e-4, atol=1e-4)


def test_tensors_of_another_model_are_named(dense, tmp_path):
    folder, model = dense
    state = dict(model.state_dict())
    state["model.norm.bias"] = torch.zeros(32)
    state["model.layers.1.mlp.up_proj.weight"] = torch.zeros(40, 32)
    del state["lm_head.weight"]
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(ConfigError) as caught:
        check(open_foreign(tmp_path, DEFAULT), config_of(), 0.0)
    assert str(caught.value).splitlines() == [
        f"{tmp_path}: has no tensor lm_head.weight",
        f"{tmp_path}: model.layers.1.mlp.up_proj.weight has shape [40, 32], must have [48, 32]",
        f"{tmp_path}: has tensors of another model: model.norm.bias",
    ]


class Evil:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_files_that_cannot_be_read_or_would_run_code_are_refused(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    torch.save({"head_model_0.x": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin: is no file of tensors alone"):
        open_foreign(tmp_path, DEFAULT)
    assert "must not run" not in capsys.readouterr().out
    torch.save({"model.embed_tokens.weight": torch.zeros(2, 2)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"a dense LLaMA is read from \*.safetensors only"):
        open_foreign(tmp_path, DEFAULT)
    (tmp_path / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    with pytest.raises(CheckpointError, match="neither a LLaMA .* nor in the layout of the paper's code"):
        open_foreign(tmp_path, DEFAULT)
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="model.safetensors: cannot be read"):
        open_foreign(tmp_path, DEFAULT)
    (tmp_path / "model.safetensors").unlink()
    torch.save({3: torch.zeros(2, 2)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="must hold a state dict, tensors by name"):
        open_foreign(tmp_path, DEFAULT)
    (tmp_path / "config.json").write_text('{"a":' * 100_000)
    with pytest.raises(CheckpointError, match="config.json cannot be read: maximum recursion depth"):
        open_foreign(tmp_path, DEFAULT)
    with pytest.raises(CheckpointError, match="config.json cannot be read"):
        open_foreign(tmp_path / "nowhere", DEFAULT)


def test_a_tensor_in_two_files_is_refused(dense, tmp_path):
    folder, _ = dense
    shutil.copytree(folder, tmp_path / "twice")
    save_file({"model.norm.weight": torch.zeros(32)}, tmp_path / "twice" / "model-2.safetensors")
    with pytest.raises(CheckpointError, match=r"model.norm.weight is in model-2.safetensors and in model.safetensors"):
        open_foreign(tmp_path / "twice", DEFAULT)


def test_an_import_starts_a_run_and_replaces_none(dense, tmp_path):
    corpus = write_jsonl(tmp_path / "corpus.jsonl", [sentences(12, seed) for seed in range(10)])
    config = config_of(data={"path": str(corpus)}, run={"dir": str(tmp_path / "run")})
    foreign, data = open_foreign(dense[0], DEFAULT), open_data(config, is_writer=False)
    path, _ = on_one_rank(lambda mesh: import_run(foreign, config, mesh, data, 0.1))
    ensemble = load_ensemble(tmp_path / "run")
    assert ensemble.checkpoint == path and ensemble.manifest.training_state.step == 0
    progress = ensemble.manifest.training_state
    assert progress.data_digest == data.digest and data.identity.items() <= progress.extra.items()
    torch.testing.assert_close(ensemble.logits(TOKENS), filled(dense[0], config, 0.1)[0](TOKENS)[..., :331])
    with pytest.raises(CheckpointError, match="run.dir = .* has checkpoints already"):
        check(foreign, config, 0.0)
    others = {
        "sparsity": {"start_density": 0.8},
        "train": {"average_decay": 1.0},
        "run": {"dir": str(tmp_path / "two")},
    }
    config = config_of(data={"path": str(corpus)}, **others)  # at the density that it begins with; averages are values
    other = open_data(config, is_writer=False)
    on_one_rank(lambda mesh: import_run(foreign, config, mesh, other))
    ensemble = load_ensemble(tmp_path / "two")
    assert ensemble.config.sparsity.density == 0.8 and ensemble.logits(TOKENS).std() > 0.1
    weight = weights_of(ensemble.model)["blocks.2.mlp.down"]
    assert weight.num_slots == pytest.approx(0.8 * 32 * 48, rel=0.2) and bool(
        (weight.to_slots(weight.values) != 0).all()
    )


def test_a_tokenizer_that_is_not_the_models_is_refused(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"theirs")
    foreign = Dense(tmp_path, {}, {}, None)
    foreign.check_data(None, SimpleNamespace(tokenizer=SimpleNamespace(data=b"theirs", name="")))
    with pytest.raises(DataError, match=r"data.tokenizer: own.model is not the imported model's; set data.tokenizer="):
        foreign.check_data(None, SimpleNamespace(tokenizer=SimpleNamespace(data=b"ours", name="own.model")))
    own = load_tokenizer(byte_level(tmp_path), 300)  # what lies beside a tokenizer.json is read for its ends only
    foreign.check_data(None, SimpleNamespace(tokenizer=own))
    (tmp_path / "tokenizer.model").unlink()  # transformers leaves it behind
    with pytest.raises(DataError, match=r"own.model is not the imported model's; set data.tokenizer=.*tokenizer.json"):
        foreign.check_data(None, SimpleNamespace(tokenizer=SimpleNamespace(pieces={"a": 0}, name="own.model")))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer.json: cannot be read"):
        foreign.check_data(None, SimpleNamespace(tokenizer=own))
