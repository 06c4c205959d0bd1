"""Crops and flips belong to a global sample number; pictures that cannot be read are counted and passed over."""

from itertools import islice

import numpy as np
import pytest
import torch

from nt_dist.data.loader import EvaluationBatches, StepLoader
from nt_dist.errors import DataError
from nt_dist.images.augment import cutmix, drawn_share, mixup, randaugment
from nt_dist.images.decoding import decode
from nt_dist.images.samples import Broken, PictureSamples, resized_crop, shifted, uniform
from nt_dist.images.settings import Data
from nt_dist.images.sources import Pictures
from tests.unit.images.picture_case import SIDE, encoded, pixels

COUNT = 12


def samples(crop="pad", flip=True, seed=3, broken=(), share=0.0, **data):
    raw = [b"broken" if number in broken else encoded(pixels(number)) for number in range(COUNT)]
    pictures = Pictures("these", np.arange(COUNT), (), raw)
    return PictureSamples(pictures, Data(crop=crop, flip=flip, padding=2, **data), SIDE, seed, Broken(share, COUNT))


MIXED = {"mixup": 0.4, "cutmix": 1.0, "randaugment": 2}


def steps(count, of=None, **options):
    """Pictures, targets and weights of each step, in one row a sample."""
    loader = StepLoader(of or samples(), **{"seed": 3, "batch_size": 6, "micro_batch_size": 3} | options)
    return [torch.cat([_rows(batch) for batch in step]) for step in islice(loader, count)]


def _rows(batch):
    return torch.cat([each.flatten(1).double() for each in batch], 1)


def test_draws_are_of_the_seed_and_the_number():
    assert np.array_equal(uniform(3, 7), uniform(3, 7))
    assert len({tuple(uniform(seed, number)) for seed in range(3) for number in range(50)}) == 150
    every = np.concatenate([uniform(0, number) for number in range(2000)])
    assert 0 <= every.min() < every.max() < 1 and abs(every.mean() - 0.5) < 0.01


def test_what_is_not_drawn_is_the_picture_itself():
    found = samples()[4]
    assert np.array_equal(found.inputs, pixels(4))
    assert found.targets.tolist() == [4] and found.weights.tolist() == [1]
    assert np.array_equal(samples("none", False).drawn(4, 99).inputs, pixels(4))
    found.inputs[:] = found.targets[:] = 0  # the caller's own
    with pytest.raises(IndexError):
        samples()[COUNT]


def test_a_drawn_picture_is_shifted_and_mirrored_as_its_number_says():
    seen = set()
    for number in range(40):
        draws = uniform(3, number)
        down, right = int(draws[0] * 5), int(draws[1] * 5)
        wide = np.pad(pixels(1), ((2, 2), (2, 2), (0, 0)), "reflect")[down : down + SIDE, right : right + SIDE]
        mirrored = draws[4] < 0.5
        assert np.array_equal(samples().drawn(1, number).inputs, wide[:, ::-1] if mirrored else wide)
        assert np.array_equal(samples(flip=False).drawn(1, number).inputs, wide)
        seen.add((down, right, mirrored))
    assert len(seen) > 25


def test_all_shifts_occur_and_none_is_farther_than_the_padding():
    middle = np.zeros((9, 9, 3), np.uint8)
    middle[4, 4] = 1
    places = {tuple(np.argwhere(shifted(middle, 2, uniform(0, number)[:2])[..., 0])[0]) for number in range(400)}
    assert places == {(row, column) for row in range(2, 7) for column in range(2, 7)}


def test_a_resized_crop_is_drawn_as_its_number_says():
    crops = [resized_crop(uniform(3, number)[:4]) for number in range(500)]
    areas, ratios = np.array([each.area for each in crops]), np.log([each.ratio for each in crops])
    assert 0.08 <= areas.min() < 0.12 and 0.95 < areas.max() <= 1
    assert np.abs(ratios).max() <= np.log(4 / 3) and abs(ratios.mean()) < 0.02
    found = samples("resized", flip=False).drawn(1, 17).inputs
    assert np.array_equal(found, decode(pixels(1), SIDE, crops[17]))
    assert not np.array_equal(found, samples("resized", flip=False).drawn(1, 18).inputs)


@pytest.mark.parametrize(("crop", "data"), [("pad", {}), ("resized", {}), ("pad", MIXED)])
def test_workers_data_ranks_and_a_resume_change_nothing(crop, data):
    these = samples(crop, **data)
    expected = steps(6, these)
    for found in (steps(6, these, num_workers=3), steps(6, these, micro_batch_size=2)):
        assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
    resumed = steps(3, these, start=18, num_workers=2)
    assert all(torch.equal(one, other) for one, other in zip(expected[3:], resumed, strict=True))
    ranks = [steps(6, these, micro_batch_size=1, data_rank=rank, data_degree=2) for rank in range(2)]
    assert all(torch.equal(one, torch.cat(parts)) for one, *parts in zip(expected, *ranks, strict=True))
    assert not torch.equal(expected[0], expected[2])  # the same pictures an epoch later
    assert not torch.equal(expected[0], steps(1, samples(crop, seed=4, **data))[0])


def test_a_mixed_sample_is_made_from_its_own_number_alone():
    """Partner, partner's crop and flip, share and place; by mixup and by cutmix, half of the samples each."""
    kinds, partners = [], []
    for number in range(60):
        found = samples(**MIXED).drawn(1, number)
        draws = uniform(3, number, "mix")
        partner = int(draws[0] * COUNT)
        first, second = augmented(1, number, "picture"), augmented(partner, number, "partner")
        if draws[1] < 0.5:
            share = drawn_share(0.4, draws[2])
            picture = mixup(first, second, share)
        else:
            picture, share = cutmix(first, second, drawn_share(1.0, draws[2]), draws[3:5])
        assert np.array_equal(found.inputs, picture) and found.targets.tolist() == [1, partner]
        assert found.weights.dtype == np.float32 and found.weights.tolist() == pytest.approx([share, 1 - share])
        kinds.append(draws[1] < 0.5)
        partners.append(partner)
    assert 20 < sum(kinds) < 40 and len(set(partners)) == COUNT


def augmented(index, number, of):
    """Cropped, mirrored and changed by two operations."""
    draws = uniform(3, number, of)
    picture = shifted(pixels(index), 2, draws[:2])
    picture = picture[:, ::-1] if draws[4] < 0.5 else picture
    return randaugment(picture, 9.0, [uniform(3, number, f"{of}/{each}") for each in range(2)])


@pytest.mark.parametrize(("kind", "other"), [("mixup", "cutmix"), ("cutmix", "mixup")])
def test_each_way_of_mixing_stands_alone(kind, other):
    for number in range(10):
        found, draws = samples("none", False, **{kind: 1.0, other: 0.0}).drawn(1, number), uniform(3, number, "mix")
        second = pixels(int(draws[0] * COUNT))
        share = drawn_share(1.0, draws[2])
        parts = mixup(pixels(1), second, share) if kind == "mixup" else cutmix(pixels(1), second, share, draws[3:5])[0]
        assert np.array_equal(found.inputs, parts)


def test_samples_of_an_evaluation_are_neither_changed_nor_mixed():
    some = samples(**MIXED)
    assert np.array_equal(some[4].inputs, pixels(4))
    assert some[4].targets.tolist() == [4] and some[4].weights.tolist() == [1]


def test_in_place_of_a_broken_partner_the_next_one_is_mixed_in():
    number = next(number for number in range(99) if int(uniform(3, number, "mix")[0] * COUNT) == 5)
    found = samples("none", False, broken=[5], share=0.2, mixup=1.0).drawn(1, number)
    assert found.targets.tolist() == [1, 6]
    share = drawn_share(1.0, uniform(3, number, "mix")[2])
    assert np.array_equal(found.inputs, mixup(pixels(1), pixels(6), share))


def test_a_broken_picture_is_refused():
    with pytest.raises(DataError, match=r"these: picture 5 cannot be read.*; 1 so far, data.max_bad_share = 0.0 of 12"):
        samples(broken=[5]).drawn(5, 0)
    with pytest.raises(DataError, match="picture 5"):
        samples(broken=[5])[5]


def test_up_to_a_share_the_next_picture_takes_its_place(caplog):
    some = samples("none", False, broken=[5, 6], share=0.2)
    for _ in range(3):
        found = some.drawn(5, 0)
        assert np.array_equal(found.inputs, pixels(7)) and found.targets.tolist() == [7]
    assert caplog.text.count("passed over") == 1
    (batch,) = EvaluationBatches(some, COUNT, 0)
    assert batch.weights[:, 0].tolist() == [1.0] * 5 + [0.0] * 2 + [1.0] * 5
    assert np.array_equal(batch.inputs[7], pixels(7)) and not batch.inputs[5].any()


def test_one_more_than_the_share_is_refused():
    with pytest.raises(DataError, match=r"picture 7 .*; 3 so far, data.max_bad_share = 0.2 of 12"):
        samples("none", broken=[5, 6, 7], share=0.2).drawn(5, 0)
    with pytest.raises(DataError, match="12 so far"):  # rather than to look for one without end
        samples("none", broken=range(COUNT), share=1.0).drawn(5, 0)


def test_a_blank_sample_has_the_shapes_of_the_others():
    blank, other = samples().blank(), samples()[0]
    assert not blank.weights.any()
    assert [(each.shape, each.dtype) for each in blank] == [(each.shape, each.dtype) for each in other]
