"""A topology update: counts, what continues and what is new, equal in both storages and in any cut."""

import dataclasses
import math

import pytest
import torch

from nt_dist.config.settings import Sparsity
from nt_dist.model.counts import Counting
from nt_dist.sparsity import weight as weights
from nt_dist.sparsity.spec import WeightSpec
from nt_dist.sparsity.storages import STORAGES
from nt_dist.sparsity.update import TopologyUpdate

RULES = Sparsity(drop="soft_magnitude", temperature=3.0, grow="gradient", new_moments="zero")
SPECS = [
    WeightSpec("columns", (16, 12), 0, trails=3, shards=4, density=0.4),
    WeightSpec("rows", (12, 16), 1, trails=2, shards=4, density=0.6),
    WeightSpec("padded", (16, 12), 0, trails=2, shards=4, valid=13, density=0.5),
    WeightSpec("groups of columns", (16, 12), 0, trails=3, shards=4, density=0.4, group=3),
    WeightSpec("groups of rows", (14, 32), 1, trails=3, shards=4, density=0.5, group=4),
    WeightSpec("padded groups", (16, 12), 0, trails=3, shards=4, valid=13, density=0.5, group=3),
    WeightSpec("blocks of columns", (16, 12), 0, trails=3, shards=4, density=0.6, group=3, block=2),
    WeightSpec("blocks of rows", (14, 64), 1, trails=3, shards=4, valid=48, density=0.5, group=4, block=3),
    WeightSpec("no group in a shard", (16, 12), 0, trails=3, shards=4, valid=12, density=0.5, group=3),
    WeightSpec("padded inputs of groups", (14, 32), 1, trails=3, shards=4, valid=29, density=0.5, group=4),
]


def case(spec, kind, trails=None, shards=None):
    """Return a weight, its moments (which tell entries apart) and a dense gradient, all cut from the same whole."""
    weight = STORAGES[kind](spec, trails, shards)
    weight.reset(7)
    whole = torch.randn(spec.trails, *spec.shape, generator=torch.Generator().manual_seed(3))
    length = spec.shard_length
    gradient = whole[weight.trails.start : weight.trails.stop].narrow(
        spec.cut_axis + 1, weight.shards.start * length, len(weight.shards) * length
    )
    slots = weight.to_slots(weight.values.data)
    return weight, weight.from_slots(slots * 10), weight.from_slots(slots.square() + 1), gradient


def run(weight, m, v, gradient, rules=RULES, fraction=0.3, step=50):
    """Update; return which slots are new [T, slots], and the moments."""
    before = torch.zeros(len(weight.trails), math.prod(weight.local_shape)).scatter_(1, weight.slot_index(), 1.0)
    m, v = m.clone(), v.clone()
    state = {"value": weight.values.data, "exp_avg": m, "exp_avg_sq": v}
    replaced = TopologyUpdate(weight, state, gradient, rules, 1, step, fraction).apply()
    is_new = before.gather(1, weight.slot_index()) == 0
    assert replaced == is_new.sum()
    return is_new, m, v


def blocks(dense):
    """Return the shards of a dense tensor of SPECS[0]: [trails, shards, entries]."""
    return dense.view(3, 4, 48)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("kind", ["compact", "masked"])
def test_slots_continue_or_start_anew(spec, kind):
    weight, m, v, gradient = case(spec, kind)
    old_dense, old_index = weight.build(weight.values).clone(), weight.slot_index()
    is_new, m, v = run(weight, m, v, gradient)
    new_index, value = weight.slot_index(), weight.to_slots(weight.values.data)
    continues = ~is_new
    assert not torch.equal(old_index, new_index) and 0 < is_new.sum() < new_index.numel() * 0.3 + 20
    assert torch.equal(value, old_dense.flatten(1).gather(1, new_index) * continues)
    assert torch.equal(weight.to_slots(m), value * 10)
    assert torch.equal(weight.to_slots(v), torch.where(continues, value.square() + 1, 0.0))
    for _, where in weight.by_shard():
        assert weight.slot_positions()[:, where].diff().gt(0).all()
    if kind == "masked":
        assert torch.equal(weight.mask.flatten(1).sum(1), torch.full((spec.trails,), spec.total_slots()))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_storages_agree(spec):
    compact, masked = (case(spec, kind) for kind in ("compact", "masked"))
    one, other = run(*compact), run(*masked)
    padding = masked[0].mask.narrow(spec.cut_axis + 1, spec.valid, spec.shape[spec.cut_axis] - spec.valid)
    assert not padding.any(), "what is padding must not grow, whatever its gradient"
    if spec.group:
        grouped = case(spec, "grouped")
        for found, expected in zip(run(*grouped), one, strict=True):
            assert torch.equal(found, expected)
        assert torch.equal(grouped[0].slot_index(), masked[0].slot_index())
    assert torch.equal(compact[0].slot_index(), masked[0].slot_index()) and torch.equal(one[0], other[0])
    for slots, dense in zip((compact[0].values.data, *one[1:]), (masked[0].values.data, *other[1:]), strict=True):
        assert torch.equal(masked[0].from_slots(slots), dense)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_how_many_shards_are_worked_on_at_once_does_not_matter(spec, monkeypatch):
    results = []
    for entries in (1, 2 * spec.shard_elements, 1 << 20):
        monkeypatch.setitem(weights._ENTRIES_AT_ONCE, "cpu", entries)
        weight, *rest = case(spec, "compact")
        run(weight, *rest)
        results.append((weight.index.clone(), weight.checksum(), len(list(weight.groups()))))
    assert results[0][2] == spec.trails * spec.shards > results[1][2] > results[2][2]
    assert all(torch.equal(each[0], results[0][0]) and torch.equal(each[1], results[0][1]) for each in results)


@pytest.mark.parametrize("kind", ["compact", "masked"])
def test_all_shards_and_trails_take_no_more_kernels_than_one(kind):
    """On GPUs an update is bound by how many it launches: once several for each shard of each trail."""
    kernels = []
    for trails, shards in ((1, 1), (3, 4)):
        spec = WeightSpec("columns", (16, 12), 0, trails=trails, shards=shards, density=0.4)
        weight, m, v, gradient = case(spec, kind)
        state = {"value": weight.values.data, "exp_avg": m, "exp_avg_sq": v}
        with Counting() as counting:
            TopologyUpdate(weight, state, gradient, RULES, 1, 50, 0.3).apply()
            weight.checksum()
        kernels.append(counting.counts.kernels)
    assert kernels[1] <= kernels[0] + 6 <= 110  # where parts do not lie side by side they are copied


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("rules", [RULES, dataclasses.replace(RULES, drop="set", grow="random", new_moments="mean")])
def test_a_part_updates_as_the_whole_does(spec, rules):
    """No rank needs another one for an update: this is what makes layouts interchangeable."""
    if spec.group:
        rules = dataclasses.replace(rules, drop="magnitude")  # "set" goes by signs
    whole, *rest = case(spec, "compact")
    _, _, whole_v = run(whole, *rest, rules=rules)
    for trails in (range(1), range(1, spec.trails)):
        for shards in (range(2), range(2, 4)):
            part, *rest = case(spec, "compact", trails, shards)
            _, _, v = run(part, *rest, rules=rules)
            for trail in trails:
                for shard in shards:
                    assert torch.equal(part.positions(trail, shard), whole.positions(trail, shard))
                    assert torch.equal(part.fragment(v, trail, shard), whole.fragment(whole_v, trail, shard))


def test_the_largest_gradients_outside_are_grown():
    weight, m, v, gradient = case(SPECS[0], "masked")
    active, before = weight.mask.clone(), blocks(gradient.abs())
    run(weight, m, v, gradient, dataclasses.replace(RULES, drop="magnitude"))
    grown = blocks(weight.mask & ~active)
    never = blocks(~weight.mask & ~active)
    for trail in range(3):
        for shard in range(4):
            assert before[trail, shard][grown[trail, shard]].min() > before[trail, shard][never[trail, shard]].max()


@pytest.mark.parametrize(("name", "width", "slots", "kept"), [("groups", 1, 5, 3), ("blocks", 2, 4, 2)])
def test_groups_drop_the_inputs_of_smallest_norm_and_grow_those_of_largest_gradient(name, width, slots, kept):
    spec = next(each for each in SPECS if each.name == f"{name} of columns")
    weight, m, v, gradient = case(spec, "masked")
    active, values = weight.mask.clone(), weight.values.data.clone()
    run(weight, m, v, gradient, dataclasses.replace(RULES, drop="magnitude"), fraction=1 - kept / slots)
    for rows in (
        range(first, first + size) for shard in range(4) for first, size in ((4 * shard, 3), (4 * shard + 3, 1))
    ):
        rows = list(rows)
        for trail in range(3):
            before, after = active[trail, rows[0]], weight.mask[trail, rows[0]]
            assert (weight.mask[trail, rows] == after).all() and before.sum() == after.sum() == slots * width
            norm, of_gradient = (
                each[trail, rows].unflatten(1, (-1, width)).norm(dim=(0, 2)) for each in (values, gradient)
            )
            stay = norm.masked_fill(~before[::width], -1).topk(kept).indices
            open_to = of_gradient.index_fill(0, stay, -1.0)
            expected = torch.zeros(12 // width, dtype=torch.bool)
            expected[torch.cat([stay, open_to.topk(slots - kept).indices])] = True
            assert torch.equal(after, expected.repeat_interleave(width))


def test_nothing_changes_at_fraction_zero():
    weight, m, v, gradient = case(SPECS[0], "compact")
    before = weight.index.clone()
    is_new, _, _ = run(weight, m, v, gradient, fraction=0.0)
    assert torch.equal(weight.index, before) and not is_new.any()


def test_everything_can_be_dropped():
    weight, m, v, gradient = case(SPECS[2], "compact")
    run(weight, m, v, gradient, fraction=1.0)
    dense = torch.zeros(2, 16 * 12, dtype=torch.bool).scatter(1, weight.slot_index(), True)
    assert dense.sum() == 2 * SPECS[2].total_slots() and not dense[:, 13 * 12 :].any()


@pytest.mark.parametrize("new_moments", ["zero", "gradient", "mean"])
def test_moments_of_new_slots(new_moments):
    weight, m, v, gradient = case(SPECS[0], "compact")
    old_v = torch.zeros(3, 192).scatter_(1, weight.slot_index(), v)
    is_new, m, v = run(weight, m, v, gradient, dataclasses.replace(RULES, new_moments=new_moments))
    assert is_new.any() and not m[is_new].any() and not weight.values.data[is_new].any()
    survivors = old_v.gather(1, weight.slot_index())
    for _, where in weight.by_shard():
        for trail in range(3):
            here = is_new[trail, where]
            expected = {
                "zero": torch.zeros(int(here.sum())),
                "gradient": gradient.flatten(1)[trail, weight.slot_index()[trail, where][here]].square(),
                "mean": survivors[trail, where][~here].mean().expand(int(here.sum())),
            }[new_moments]
            torch.testing.assert_close(v[trail, where][here], expected)


def test_groups_draw_apart():
    spec = WeightSpec("alike", (8, 40), 0, density=0.5, group=4)
    weight, m, v, gradient = case(spec, "masked")
    weight.set_positions(torch.arange(8)[None, :, None].mul(40).add(torch.arange(20)).flatten(1))
    weight.values.data.copy_(weight.mask)  # both groups are the same
    run(weight, m, v, gradient, dataclasses.replace(RULES, grow="random"))
    mask = weight.mask[0]
    assert not torch.equal(mask[0, :20], mask[4, :20]), "drop"
    assert not torch.equal(mask[0, 20:], mask[4, 20:]), "growth"


def test_trails_and_steps_draw_apart():
    results = []
    for step in (50, 100, 50):
        weight, m, v, gradient = case(SPECS[0], "compact")
        weight.values.data.fill_(1.0)
        run(weight, m, v, gradient, step=step)
        results.append(weight.index)
    assert torch.equal(results[0], results[2]) and not torch.equal(results[0], results[1])
