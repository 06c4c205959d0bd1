"""Random streams: the same number for the same entry, whoever asks; and the right distributions."""

import torch

from nt_dist.sparsity.streams import gumbel, hash_positions, normal, stream_key, stream_keys, uniform

KEY = stream_keys([(1, "drop", "output", 0, 3, 50)])


def test_a_number_depends_on_its_key_and_position_alone():
    whole = uniform(KEY, torch.arange(1000))
    assert torch.equal(uniform(KEY, torch.tensor([7, 999, 0])), whole[[7, 999, 0]])
    assert torch.equal(uniform(KEY, torch.arange(1000, dtype=torch.int32)), whole)


def test_every_word_of_a_key_counts():
    words = (1, "drop", "output", 0, 3, 50)
    others = [(2, *words[1:]), (1, "grow", *words[2:]), (*words[:3], 1, 3, 50), (*words[:4], 2, 50), (*words[:5], 51)]
    assert len({stream_key(*each) for each in (words, *others)}) == 6
    assert stream_key("ab", "c") != stream_key("a", "bc")


def test_streams_are_what_they_were_when_checkpoints_were_written():
    assert stream_key(1, "drop", "output") == stream_key(1, "drop", "output")
    # splitmix64 from seed 0: its published first outputs
    first = hash_positions(torch.zeros(1, dtype=torch.int64), torch.arange(3))
    assert [int(each) % 2**64 for each in first] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_distributions():
    positions = torch.arange(200_000)
    flat, bell, extreme = uniform(KEY, positions), normal(KEY, positions), gumbel(KEY, positions)
    assert flat.min() > 0 and flat.max() < 1
    assert abs(flat.mean() - 0.5) < 0.003 and abs(flat.var() - 1 / 12) < 0.002
    assert abs(bell.mean()) < 0.01 and abs(bell.var() - 1) < 0.02 and abs((bell**4).mean() - 3) < 0.15
    assert abs(extreme.mean() - 0.5772) < 0.01 and abs(extreme.var() - torch.pi**2 / 6) < 0.03


def test_neighbouring_streams_are_not_correlated():
    keys = stream_keys([(1, "init value", "output", trail, 0) for trail in range(2)])[:, None]
    first, second = normal(keys, torch.arange(50_000).expand(2, -1))
    assert abs((first * second).mean()) < 0.02
