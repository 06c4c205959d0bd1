"""A sparse file holds the same weights in fewer bytes, and sparse products give the same logits."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from torch import nn

from nt_dist.errors import ConfigError
from nt_dist.export.hf import sparse_neurotrails
from nt_dist.export.hf.modeling_neurotrails import NeuroTrailsForCausalLM
from nt_dist.export.hf.sparse_neurotrails import FILE, SparseLinear, hold_sparse, pack, unpack
from nt_dist.export.huggingface import export
from nt_dist.inference import load_ensemble
from nt_dist.kernels import bitmap as module
from tests.unit.inference.trained_run import write_run

TOKENS = torch.randint(0, 331, (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("density, where", [(0.0, ".positions"), (0.02, ".positions"), (0.3, ".bits"), (0.95, ".bits")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packing_and_unpacking_changes_nothing(density, where, dtype):
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(37, 29, generator=generator).to(dtype)
    size = weight.numel()
    weight.view(-1)[torch.randperm(size, generator=generator)[round(density * size) :]] = 0
    parts = pack(weight)
    if density == 0.95 and dtype == torch.bfloat16:
        assert set(parts) == {""}  # a bit for each entry would cost more than its zeros
    else:
        assert set(parts) == {".values", where}
        assert sum(each.nbytes for each in parts.values()) < (density + 0.13) * weight.nbytes * 4 / weight.itemsize
    assert torch.equal(unpack(parts, weight.shape), weight)
    vector = torch.zeros(5)
    assert pack(vector)[""] is not None and torch.equal(unpack(pack(vector), vector.shape), vector)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An export at density 0.3 with a sparse file, and what it was made from."""
    place = tmp_path_factory.mktemp("sparse")
    ensemble = load_ensemble(write_run(place, sparsity={"density": 0.3, "distribution": "uniform"}))
    export(ensemble, place / "out", sparse=True)
    return place / "out", ensemble


def test_the_file_follows_the_density(folder):
    out, _ = folder
    dense, sparse = ((out / name).stat().st_size for name in ("model.safetensors", FILE))
    assert 0.28 * dense < sparse < 0.45 * dense  # 0.3, a bit for each entry, a header larger than it is at real sizes
    assert (out / "sparse_neurotrails.py").exists()


@pytest.mark.parametrize("kernel", ["dense", "sparse", "fastest"])
def test_every_kernel_gives_the_checkpoints_logits(folder, kernel):
    out, ensemble = folder
    model = NeuroTrailsForCausalLM.from_sparse(out, kernel)
    logits = ensemble.logits(TOKENS)
    with torch.no_grad():
        answer = model(TOKENS[:, :-1], output_trail_logits=True)
        torch.testing.assert_close(answer.trail_logits, logits[:, :, :-1], rtol=1e-4, atol=1e-4)
        one = model(TOKENS[:1, :-1])
        step = model(TOKENS[:1, -1:], cache=one.cache, output_trail_logits=True)
        torch.testing.assert_close(step.trail_logits, logits[:, :1, -1:], rtol=1e-4, atol=1e-4)
    sparse = sum(isinstance(each, SparseLinear) for each in model.modules())
    assert sparse == {"dense": 0, "sparse": 7 * (1 + 3 * 2) + 3}.get(kernel, sparse)


@pytest.mark.parametrize("kernel", ["dense", "sparse"])
def test_whatever_saves_a_model_saves_all_of_it(folder, kernel, tmp_path):
    dense, model = (NeuroTrailsForCausalLM.from_sparse(folder[0], each) for each in ("dense", kernel))
    for number, one in enumerate((model, copy.deepcopy(model))):
        one.save_pretrained(tmp_path / str(number), max_shard_size="50KB")
        back = NeuroTrailsForCausalLM.from_pretrained(tmp_path / str(number), local_files_only=True)
        assert torch.equal(back(TOKENS).logits, dense(TOKENS).logits)
    save_model(model, str(tmp_path / "model.safetensors"))
    torch.testing.assert_close(load_file(tmp_path / "model.safetensors"), dict(dense.state_dict()), rtol=0, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("is_kept", [False, True])
def test_a_state_that_is_loaded_is_multiplied_with(folder, is_kept, monkeypatch):
    monkeypatch.setattr(module, "faster", lambda one, other, between: True)
    model, other = (NeuroTrailsForCausalLM.from_sparse(folder[0], "dense") for _ in range(2))
    if is_kept:
        assert hold_sparse(model) == 7 * (1 + 3 * 2) + 3
    else:
        model = NeuroTrailsForCausalLM.from_sparse(folder[0], "sparse")
    for parameter in other.parameters():
        parameter.mul_(1.5)
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(model(TOKENS[:1, :1]).logits, other(TOKENS[:1, :1]).logits, rtol=1e-4, atol=1e-4)


def test_what_sparse_matrices_cannot_do_is_refused(folder):
    model = NeuroTrailsForCausalLM.from_sparse(folder[0], "sparse")
    with pytest.raises(ValueError, match="held sparse cannot be resized: load with kernel = 'dense'"):
        model.resize_token_embeddings(400)
    with pytest.raises(ValueError, match="x is on meta, and sparse products are of CPUs"):
        model.to("meta")(TOKENS.to("meta"))


@pytest.mark.parametrize("structure", ["groups", "blocks"])
def test_topologies_of_units_are_exported_as_any_other(structure, tmp_path):
    sparsity = {"density": 0.3, "distribution": "uniform", "structure": structure, "group_size": 4}
    ensemble = load_ensemble(write_run(tmp_path, sparsity=sparsity))
    export(ensemble, tmp_path / "out", sparse=True)
    model = NeuroTrailsForCausalLM.from_sparse(tmp_path / "out", "dense")
    matrix = model.trails[0].blocks[0].mlp.up_proj.weight
    assert (matrix != 0).float().mean() == pytest.approx(0.3, abs=0.06)  # of blocks a quarter
    columns = matrix.unflatten(0, (-1, 4)) != 0
    assert (columns.any(1) == columns.all(1)).all()  # outputs of a group share their inputs
    answer = model(TOKENS, output_trail_logits=True)
    torch.testing.assert_close(answer.trail_logits, ensemble.logits(TOKENS), rtol=1e-4, atol=1e-4)


def test_the_fastest_is_what_was_measured(folder, monkeypatch):
    out, _ = folder
    asked = []

    def rows_win(one, other, between):
        product, (dense,) = one(), other()
        asked.append((product[0].shape, dense.shape))
        return product.shape[-1] == 48

    monkeypatch.setattr(module, "faster", rows_win)
    model = NeuroTrailsForCausalLM.from_sparse(out, tokens=5)
    kinds = {name.split(".")[-1]: type(each) for name, each in model.named_modules() if "_proj" in name}
    assert kinds["up_proj"] is kinds["gate_proj"] is SparseLinear and kinds["down_proj"] is nn.Linear
    assert all(one == other and one[0] == 5 for one, other in asked)
    assert len(asked) < 12  # of 52 matrices: once for each size and density


def test_without_the_package_matrices_stay_dense_and_that_is_said_once(folder, monkeypatch, caplog):
    out, _ = folder
    monkeypatch.setattr(sparse_neurotrails, "Bitmap", None)
    for _ in range(2):
        model = NeuroTrailsForCausalLM.from_sparse(out)
        assert not any(isinstance(each, SparseLinear) for each in model.modules())
    assert [each.getMessage() for each in caplog.records] == [
        "sparse matrices stay dense: their products are those of the package nt_dist, which is not installed"
    ]
    with pytest.raises(ValueError, match="kernel = 'sparse' must be 'dense' or 'fastest' where .* is not installed"):
        NeuroTrailsForCausalLM.from_sparse(out, "sparse")


def test_a_file_of_another_model_is_refused(folder, tmp_path):
    out, ensemble = folder
    state = load_file(out / FILE)
    (tmp_path / "config.json").write_bytes((out / "config.json").read_bytes())

    def refused(changed, rule):
        save_file(changed, tmp_path / FILE)
        with pytest.raises(ValueError, match=rule):
            NeuroTrailsForCausalLM.from_sparse(tmp_path, "dense")

    refused({name: each for name, each in state.items() if "trails.2" not in name}, "is of another model: trails.2")
    name = "trunk.0.self_attn.q_proj.weight"
    refused({**state, f"{name}.values": state[f"{name}.values"][1:]}, f"{name}: has .* values for .* places")
    refused({**state, f"{name}.bits": state[f"{name}.bits"][1:]}, f"{name}: has .* values for .* places")
    with pytest.raises(ValueError, match="kernel = 'csr' must be one of fastest, dense, sparse"):
        NeuroTrailsForCausalLM.from_sparse(out, "csr")
    with pytest.raises(ConfigError, match="--sparse is of the ensemble"):
        export(ensemble, tmp_path / "trail", trail=1, sparse=True)
