"""The three storages: equal results, gradients of active entries only, the same model in any cut."""

import sys

import pytest
import torch
import torch.nn.functional as F

from nt_dist.model import layers
from nt_dist.model.layers import Linear, Lookup, products
from nt_dist.sparsity import grouped, storages
from nt_dist.sparsity.grouped_convolution import GroupedConvolution
from nt_dist.sparsity.spec import WeightSpec
from nt_dist.sparsity.storages import STORAGES

SPARSE = [
    WeightSpec("columns", (16, 12), 0, trails=3, shards=4, density=0.4),
    WeightSpec("rows", (12, 16), 1, trails=3, shards=4, density=0.4),
    WeightSpec("trunk", (16, 12), 0, trails=1, shards=4, density=0.7),
    WeightSpec("padded", (16, 12), 0, trails=3, shards=4, valid=13, density=0.5),
    WeightSpec("convolution", (8, 4, 3, 3), 0, trails=2, shards=2, density=0.3, role="convolution"),
    WeightSpec("groups of columns", (16, 12), 0, trails=3, shards=4, density=0.4, group=3),
    WeightSpec("groups of rows", (14, 16), 1, trails=3, shards=4, density=0.4, group=4),
    WeightSpec("padded groups", (16, 12), 0, trails=3, shards=4, valid=13, density=0.5, group=3),
    WeightSpec("blocks of columns", (16, 12), 0, trails=3, shards=4, density=0.6, group=3, block=2),
    WeightSpec("blocks of rows", (14, 64), 1, trails=3, shards=4, valid=48, density=0.5, group=4, block=3),
    WeightSpec("no group in a shard", (16, 12), 0, trails=3, shards=4, valid=12, density=0.5, group=3),
    WeightSpec("padded inputs of groups", (14, 16), 1, trails=3, shards=4, valid=14, density=0.5, group=4),
]
IDS = [spec.name for spec in SPARSE]


def made(spec, storage, trails=None, shards=None, seed=5):
    weight = STORAGES[storage](spec, trails, shards)
    weight.reset(seed)
    return weight


@pytest.mark.parametrize("spec", SPARSE, ids=IDS)
def test_storages_hold_the_same_entries(spec):
    compact, masked = made(spec, "compact"), made(spec, "masked")
    if spec.group:
        by_groups = made(spec, "grouped")
        assert torch.equal(by_groups.build(by_groups.values), masked.values.data)
        assert torch.equal(by_groups.values, compact.values)
        assert torch.equal(by_groups.slot_index(), masked.slot_index())
        assert by_groups.index.numel() < 0.6 * compact.index.numel()
    assert torch.equal(compact.build(compact.values), masked.values.data)
    assert torch.equal(compact.slot_index(), masked.slot_index())
    assert torch.equal(compact.checksum(), masked.checksum())
    assert torch.equal(masked.to_slots(masked.values.data), compact.values.data)
    assert torch.equal(masked.from_slots(compact.values.data), masked.values.data)
    assert torch.equal(masked.mask, masked.values != 0)
    assert compact.values.numel() == compact.active_elements == spec.trails * spec.total_slots()


@pytest.mark.parametrize("spec", SPARSE, ids=IDS)
@pytest.mark.parametrize("storage", ["compact", "masked"])
def test_a_part_is_cut_from_the_whole(spec, storage):
    """A rank that holds some trails and shards has exactly the whole model's entries there."""
    whole = made(spec, storage)
    trails, shards = range(spec.trails - 1, spec.trails), range(spec.shards // 2, spec.shards)
    part = made(spec, storage, trails, shards)
    length = spec.shard_length
    cut = whole.build(whole.values)[trails.start :].narrow(
        spec.cut_axis + 1, shards.start * length, len(shards) * length
    )
    assert torch.equal(part.build(part.values), cut)
    assert torch.equal(part.checksum(), whole.checksum()[trails.start :, shards.start :])
    for shard in shards:
        trail = trails.start
        assert torch.equal(part.positions(trail, shard), whole.positions(trail, shard))
        assert part.positions(trail, shard).diff().gt(0).all()
        one, other = part.to_slots(part.values), whole.to_slots(whole.values)
        assert torch.equal(part.fragment(one, trail, shard), whole.fragment(other, trail, shard))


@pytest.mark.parametrize("spec", [each for each in SPARSE if each.group], ids=lambda spec: spec.name)
def test_outputs_of_a_group_have_the_same_inputs(spec):
    weight = made(spec, "masked")
    width = 2 if spec.name.startswith("blocks") else 1  # also of blocks of up to 3, where that divides no 16
    for trail in weight.trails:
        for shard in weight.shards:
            mask = weight.block(weight.mask, trail, shard)[: spec.real_rows(shard)]
            for first in range(0, len(mask), spec.group):
                group = mask[first : first + spec.group]
                units = group[0].view(-1, width)
                assert (group == group[0]).all() and (units == units[:, :1]).all()
                assert units[:, 0].sum() == round(spec.density * spec.real_columns(shard) / width)
    assert not torch.equal(weight.mask[0], weight.mask[1])
    if spec.cut_axis == 0:
        whole = weight.block(weight.mask, 0, 0)
        assert not torch.equal(whole[0], whole[spec.group]), "groups must draw apart"


def test_a_dense_weight_is_drawn_by_shard_too():
    spec = WeightSpec("exempt", (16, 12), 0, trails=2, shards=4)
    whole, part = made(spec, "dense"), made(spec, "dense", range(1, 2), range(1, 3))
    assert torch.equal(part.values, whole.values[1:, 4:12])
    assert float(whole.values.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert torch.equal(whole.checksum(), torch.zeros(2, 4, dtype=torch.int64))


def test_trails_differ_in_values_and_topology():
    weight = made(SPARSE[0], "compact")
    assert not torch.equal(weight.index[0], weight.index[1])
    assert not torch.equal(made(SPARSE[0], "compact", seed=6).index, weight.index)


def test_padding_is_never_active():
    weight = made(SPARSE[3], "masked")
    assert not weight.mask[:, 13:].any() and weight.mask[:, 12].any()


@pytest.mark.parametrize(
    "spec, storage",
    [(spec, name) for spec in SPARSE for name in STORAGES if spec.role == "linear" and STORAGES[name].fits(spec)],
    ids=lambda each: getattr(each, "name", each),
)
@pytest.mark.parametrize("one_input", [False, True])
def test_linear_is_the_dense_product_and_its_gradients(spec, storage, one_input):
    weight = made(spec, storage)
    out, inside = spec.shape
    x = torch.randn(1 if one_input else spec.trails, 2, 5, inside, requires_grad=True)
    dense = weight.build(weight.values).clone().requires_grad_()
    expected = torch.einsum("tbsi,toi->tbso", x.expand(spec.trails, -1, -1, -1), dense)
    seed = torch.randn(spec.trails, 2, 5, out)
    grad_x, grad_dense = torch.autograd.grad(expected, (x, dense), seed)
    weight.collecting = True
    result = Linear(weight)(x)
    got_x, got_values = torch.autograd.grad(result, (x, weight.values), seed)
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(got_x, grad_x)
    torch.testing.assert_close(
        weight.to_slots(got_values),
        weight.to_slots(grad_dense.view_as(dense))
        if storage == "masked"
        else grad_dense.flatten(1).gather(1, weight.slot_index()),
    )
    torch.testing.assert_close(weight.dense_gradient, grad_dense)
    if storage == "masked":
        assert not got_values[~weight.mask].any()


@pytest.mark.parametrize("one_input", [False, True])
@pytest.mark.parametrize("batched", [False, True])
def test_products_of_one_input_are_those_of_each_matrix(batched, one_input, monkeypatch):
    monkeypatch.setattr(layers, "is_eager_cpu", lambda device: not batched)
    dense = WeightSpec("dense", (8, 12), 0, trails=3, shards=4)
    weights = [made(SPARSE[0], "compact"), made(SPARSE[3], "masked"), made(dense, "dense")]
    x = torch.randn(1 if one_input else 3, 2, 5, 12, requires_grad=True)
    seeds = [torch.randn(3, 2, 5, out) for out in (16, 16, 8)]

    def passed(multiply, collecting):
        for weight in weights:
            weight.collecting, weight.dense_gradient = collecting, None
        results = multiply(x, *map(Linear, weights))
        gradients = torch.autograd.grad(results, (x, *(weight.values for weight in weights)), seeds)
        return [*results, *gradients, *(weight.dense_gradient for weight in weights if collecting)]

    for collecting in (False, True):
        one_by_one = passed(lambda x, *matrices: [matrix(x) for matrix in matrices], collecting)
        for each, other in zip(passed(products, collecting), one_by_one, strict=True):
            torch.testing.assert_close(each, other)


def test_products_with_a_matrix_of_groups_are_those_of_each():
    weights = made(SPARSE[0], "compact"), made(SPARSE[5], "grouped")
    x, found = torch.randn(3, 2, 5, 12), []
    for run in (lambda x: products(x, *map(Linear, weights)), lambda x: [Linear(weight)(x) for weight in weights]):
        leaf = x.clone().requires_grad_()
        results = run(leaf)
        sum((each * each.detach().cos()).sum() for each in results).backward()
        found.append([*results, leaf.grad, *(weight.values.grad for weight in weights)])
        for weight in weights:
            weight.values.grad = None
    for several, one in zip(*found, strict=True):
        torch.testing.assert_close(several, one, rtol=1e-5, atol=1e-6)
    turned, plain = (each[1].flatten(1, 2).stride()[1:] for each in found)
    assert turned == (1, 10) and plain == (16, 1)  # tokens next to one another, and features


def test_where_nothing_is_asked_of_the_input_only_values_have_gradients():
    weights = made(SPARSE[0], "compact"), made(SPARSE[3], "masked")
    weights[1].values.requires_grad_(False)
    results = products(torch.randn(3, 2, 5, 12), *map(Linear, weights))
    sum(each.sum() for each in results).backward()
    assert weights[0].values.grad.all() and weights[1].values.grad is None


@pytest.mark.parametrize("num_trails", [1, 2, 3])
def test_trails_that_are_built_at_once_are_those_built_one_by_one(num_trails, monkeypatch):
    weight = made(SPARSE[0], "compact")
    one_by_one, slots = weight.build(weight.values), weight.index.shape[1]
    monkeypatch.setitem(storages._SLOTS_AT_ONCE, "cpu", num_trails * slots)
    assert torch.equal(weight.build(weight.values), one_by_one)
    assert torch.equal(weight.build(weight.values[1:], slice(1, 3)), one_by_one[1:])


def test_without_triton_a_gpu_builds_the_dense_tensor_and_it_is_said_once(monkeypatch):
    said = []
    monkeypatch.setattr(grouped.LOGGER, "warning", said.append)
    weight, gpu, cpu = STORAGES["grouped"](SPARSE[5]), torch.device("cuda"), torch.device("cpu")
    for module, product in ((None, None), (object(), grouped.TritonLinear)):
        monkeypatch.setitem(sys.modules, "triton", module)
        grouped._has_triton.cache_clear()
        assert [weight.linear(gpu), weight.linear(gpu), weight.linear(cpu)] == [product, product, grouped.GroupedLinear]
    grouped._has_triton.cache_clear()
    (message,) = said
    assert "Triton is not installed" in message


@pytest.mark.parametrize("group, block", [(3, 1), (8, 1), (5, 6)])
@pytest.mark.parametrize("side, stride, size", [(1, 1, 5), (1, 2, 5), (3, 1, 4), (3, 2, 7), (3, 2, 6), (7, 2, 9)])
def test_convolutions_of_groups_are_dense_ones_and_their_gradients(side, stride, size, group, block):
    spec = WeightSpec("c", (16, 6, side, side), 0, 2, 2, density=0.4, role="convolution", group=group, block=block)
    weight = made(spec, "grouped")
    assert torch.equal(weight.build(weight.values), made(spec, "masked").values)
    weight.collecting = True
    dense = weight.build(weight.values).clone().requires_grad_()
    of_values = torch.zeros_like(weight.values)
    for row in range(2):
        x = torch.randn(3, 6, size, size).contiguous(memory_format=torch.channels_last).requires_grad_()
        expected = F.conv2d(x, dense[row], stride=stride, padding=side // 2)
        seed = torch.randn_like(expected)
        of_x, of_dense = torch.autograd.grad(expected, (x, dense), seed)
        found = GroupedConvolution.apply(weight.values[row], weight, row, stride, x)
        got_x, got_values = torch.autograd.grad(found, (x, weight.values), seed)
        of_values += got_values
        for each in (found, got_x):
            assert each.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(got_x, of_x)
        torch.testing.assert_close(got_values, weight.gradient_of(of_dense, False))
        torch.testing.assert_close(weight.dense_gradient[row], of_dense[row])


@pytest.mark.parametrize("storage", ["compact", "masked"])
def test_dense_serves_any_operation(storage):
    weight = made(SPARSE[4], storage)
    x = torch.randn(2, 4, 9, 9)
    weight.collecting = True
    result = F.conv2d(x, weight.dense()[1]).square().sum()
    result.backward()
    dense = weight.build(weight.values)[1].clone().requires_grad_()
    F.conv2d(x, dense).square().sum().backward()
    active = weight.slot_index()
    torch.testing.assert_close(weight.dense_gradient[1], dense.grad)
    torch.testing.assert_close(weight.to_slots(weight.values.grad)[1], dense.grad.flatten()[active[1]])
    assert not weight.values.grad[0].any()


@pytest.mark.parametrize("storage", ["compact", "masked"])
def test_lookup(storage):
    spec = WeightSpec("embedding", (16, 6), 0, trails=2, shards=4, density=0.5, role="lookup")
    weight = made(spec, storage)
    numbers = torch.tensor([[0, 3, 15], [3, 3, 7]])
    rows = Lookup(weight)(numbers)
    dense = weight.build(weight.values)
    assert torch.equal(rows, dense[:, numbers])
    weight.collecting = True
    rows.sum().backward()
    counts = torch.bincount(numbers.flatten(), minlength=16).float()
    assert torch.equal(weight.dense_gradient, counts[None, :, None].expand(2, 16, 6))


def test_lookup_of_rows_held_elsewhere_gives_zeros():
    spec = WeightSpec("embedding", (16, 6), 0, trails=2, shards=4, density=0.5, role="lookup")
    whole = made(spec, "compact")
    parts = [made(spec, "compact", shards=each) for each in (range(1), range(1, 4))]
    numbers = torch.tensor([[0, 3, 4, 15]])
    rows = [Lookup(each)(numbers) for each in (*parts, whole)]
    assert torch.equal(rows[0] + rows[1], rows[2])


def test_collected_gradients_add_up_over_micro_batches_in_fp32():
    weight = made(SPARSE[0], "compact").bfloat16()
    weight.collecting = True
    x = torch.randn(3, 1, 4, 12, dtype=torch.bfloat16)
    for _ in range(2):
        Linear(weight)(x).sum().backward()
    assert weight.dense_gradient.dtype == torch.float32
    once = x.float().sum((1, 2))[:, None].expand(3, 16, 12)
    torch.testing.assert_close(weight.dense_gradient, 2 * once, rtol=0.02, atol=0.02)
    weight.dense_gradient = None
    assert weight.dense_gradient is None


def test_nothing_is_collected_unasked():
    weight = made(SPARSE[0], "compact")
    Linear(weight)(torch.randn(3, 1, 4, 12)).sum().backward()
    assert weight.dense_gradient is None


def test_a_changed_index_changes_its_own_checksum_only():
    weight = made(SPARSE[0], "compact")
    before = weight.checksum()
    start = list(weight.by_shard())[2][1].start
    free = set(range(8 * 12, 12 * 12)) - set(weight.index[1].tolist())
    weight.index[1, start] = min(free)
    changed = weight.checksum() != before
    assert changed.nonzero().tolist() == [[1, 2]]


@pytest.mark.parametrize("kind", ["compact", "grouped"])
def test_a_dense_tensor_that_is_kept_is_built_once_until_it_is_forgotten(kind):
    weight = STORAGES[kind](WeightSpec("kept", (16, 12), 0, trails=2, shards=4, density=0.4, group=4))
    weight.reset(1)
    before = weight.build(weight.values)
    weight.keep_built(True)
    kept = [weight.dense(), weight.build(weight.values), weight.build(weight.values[:1], slice(0, 1))]
    weight.values.data.mul_(2)
    assert all(torch.equal(each, before[: len(each)]) for each in [*kept, weight.dense()])
    weight.dense().sum().backward()
    assert (weight.values.grad == 1).all()
    weight.keep_built(False)
    assert torch.equal(weight.build(weight.values), 2 * before)
