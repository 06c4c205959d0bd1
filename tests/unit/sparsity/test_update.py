"""A topology update: counts, what continues and what is new, equal in both storages and in any cut."""

import dataclasses

import pytest
import torch

from nt_dist.sparsity.shards import WeightSpec, to_blocks
from nt_dist.sparsity.storage import Weight
from nt_dist.sparsity.update import NEW_MOMENTS, UpdateRules, apply_update, plan_update

RULES = UpdateRules("soft_magnitude", 3.0, "gradient", "zero", seed=1)
SPECS = [
    WeightSpec("columns", (16, 12), 0, trails=3, shards=4, density=0.4),
    WeightSpec("rows", (12, 16), 1, trails=2, shards=4, density=0.6),
    WeightSpec("padded", (16, 12), 0, trails=2, shards=4, valid=13, density=0.5),
]


def case(spec, storage, trails=None, shards=None):
    """Return a weight, its moments (which tell entries apart) and a dense gradient, all cut from the same whole."""
    weight = Weight(spec, storage, trails, shards)
    weight.reset(7)
    whole = torch.randn(spec.trails, *spec.shape, generator=torch.Generator().manual_seed(3))
    length = spec.shard_length
    gradient = whole[weight.trails.start : weight.trails.stop].narrow(
        spec.cut_axis + 1, weight.shards.start * length, len(weight.shards) * length
    )
    slots = weight.to_slots(weight.values.data)
    return weight, weight.from_slots(slots * 10), weight.from_slots(slots.square() + 1), gradient


def run(weight, m, v, gradient, rules=RULES, fraction=0.3):
    rewrite = plan_update(weight, weight.values.data, gradient, rules, 50, fraction)
    value, m, v = apply_update(weight, rewrite, weight.values.data, m, v, gradient, rules.new_moments)
    weight.values.data.copy_(value)
    return rewrite, m, v


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("storage", ["compact", "masked"])
def test_slots_continue_or_start_anew(spec, storage):
    weight, m, v, gradient = case(spec, storage)
    old_dense, old_index = weight.build(weight.values).clone(), weight.slot_index()
    rewrite, m, v = run(weight, m, v, gradient)
    new_index, value = weight.slot_index(), weight.to_slots(weight.values.data)
    was_active = torch.zeros_like(old_dense.flatten(1), dtype=torch.bool).scatter(1, old_index, True)
    continues = was_active.gather(1, new_index)
    assert torch.equal(continues, rewrite.source >= 0) and 0 < rewrite.replaced < new_index.numel() * 0.3 + 20
    assert torch.equal(value, old_dense.flatten(1).gather(1, new_index) * continues)
    assert torch.equal(weight.to_slots(m), value * 10)
    assert torch.equal(weight.to_slots(v), torch.where(continues, value.square() + 1, 0.0))
    for _, start, stop in weight.slot_ranges():
        assert weight.slot_positions()[:, start:stop].diff().gt(0).all()
    if storage == "masked":
        assert torch.equal(weight.mask.flatten(1).sum(1), torch.full((spec.trails,), spec.total_slots()))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_storages_agree(spec):
    results = [run(*case(spec, storage))[0] for storage in ("compact", "masked")]
    assert torch.equal(results[0].index, results[1].index) and torch.equal(results[0].source, results[1].source)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("rules", [RULES, dataclasses.replace(RULES, drop="set", grow="random", new_moments="mean")])
def test_a_part_updates_as_the_whole_does(spec, rules):
    """No rank needs another one for an update: this is what makes layouts interchangeable."""
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
    active, before = weight.mask.clone(), to_blocks(SPECS[0], gradient.abs())
    run(weight, m, v, gradient, dataclasses.replace(RULES, drop="magnitude"))
    grown = to_blocks(SPECS[0], weight.mask & ~active)
    never = to_blocks(SPECS[0], ~weight.mask & ~active)
    for trail in range(3):
        for shard in range(4):
            assert before[trail, shard][grown[trail, shard]].min() > before[trail, shard][never[trail, shard]].max()


def test_nothing_changes_at_fraction_zero():
    weight, m, v, gradient = case(SPECS[0], "compact")
    before = weight.index.clone()
    rewrite, _, _ = run(weight, m, v, gradient, fraction=0.0)
    assert torch.equal(weight.index, before) and rewrite.replaced == 0


def test_everything_can_be_dropped():
    weight, m, v, gradient = case(SPECS[2], "compact")
    run(weight, m, v, gradient, fraction=1.0)
    dense = torch.zeros(2, 16 * 12, dtype=torch.bool).scatter(1, weight.slot_index(), True)
    assert dense.sum() == 2 * SPECS[2].total_slots() and not dense[:, 13 * 12 :].any()


@pytest.mark.parametrize("new_moments", NEW_MOMENTS)
def test_moments_of_new_slots(new_moments):
    weight, m, v, gradient = case(SPECS[0], "compact")
    old_v = v.clone()
    rewrite, m, v = run(weight, m, v, gradient, dataclasses.replace(RULES, new_moments=new_moments))
    is_new = rewrite.source < 0
    assert is_new.any() and not m[is_new].any() and not weight.values.data[is_new].any()
    survivors = old_v.gather(1, rewrite.source.clamp(min=0))
    for _, start, stop in weight.slot_ranges():
        for trail in range(3):
            here = is_new[trail, start:stop]
            expected = {
                "zero": torch.zeros(int(here.sum())),
                "gradient": gradient.flatten(1)[trail, weight.slot_index()[trail, start:stop][here]].square(),
                "mean": survivors[trail, start:stop][~here].mean().expand(int(here.sum())),
            }[new_moments]
            torch.testing.assert_close(v[trail, start:stop][here], expected)


def test_trails_and_steps_draw_apart():
    weight, _, _, gradient = case(SPECS[0], "compact")
    weight.values.data.fill_(1.0)
    first = plan_update(weight, weight.values.data, gradient, RULES, 50, 0.3)
    second = plan_update(weight, weight.values.data, gradient, RULES, 100, 0.3)
    assert not torch.equal(first.index, second.index)
    assert torch.equal(first.index, plan_update(weight, weight.values.data, gradient, RULES, 50, 0.3).index)
