"""Batches of anything: inputs of any shape, as many positions as the samples have."""

import numpy as np
import torch

from nt_dist.data.loader import collate
from nt_dist.data.samples import Sample


class Pictures:
    """Pictures of 3 × 2 × 2 with one class each."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return Sample(np.full((3, 2, 2), index, dtype=np.uint8), np.array([index]), np.ones(1, dtype=np.float32))

    def blank(self):
        return Sample(np.zeros((3, 2, 2), dtype=np.uint8), np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.float32))


def test_pictures_have_one_position_and_keep_their_type():
    inputs, targets, weights = collate([Pictures()[4], Pictures()[2], Pictures().blank()])
    assert (inputs.shape, inputs.dtype) == ((3, 3, 2, 2), torch.uint8)
    assert inputs[:, 0, 0, 0].tolist() == [4, 2, 0]
    assert targets.tolist() == [[4], [2], [0]]
    assert weights.tolist() == [[1], [1], [0]]


def test_a_batch_of_blanks_alone_has_the_shape_of_the_others():
    batch = collate([Pictures().blank()] * 2)
    assert [tuple(tensor.shape) for tensor in batch] == [(2, 3, 2, 2), (2, 1), (2, 1)]
    assert not batch.weights.any()
