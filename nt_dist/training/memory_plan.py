"""Bytes that one rank holds for the model's weights, from formulas; the activations come on top.

For a weight with n stored values (compact: its active slots; masked or dense: all entries), k active slots, e dense
entries, over D data ranks (arXiv 1910.02054, section 3, for what each ZeRO stage divides; in this trainer's terms):

    weights     the compute copy: 4 n in fp32, 2 n in bf16; / D at stage 3
    masters     4 n / D, a separate fp32 copy from stage 1 on and in bf16; none in fp32 at stage 0
    gradients   4 n, / D from stage 2; in bf16 at stage 1, 2 n more (DeepSpeed adds bf16 gradients to fp32 ones)
    moments     8 n, / D from stage 1 on
    index       compact: 4 n (int32); masked: e (one byte an entry); on every rank
    update      on a topology update only: 4 e for the dense gradient of every sparse weight, and what the update of the
                largest weight needs besides (`UPDATE_BYTES`), one weight being updated at a time

Buffers are DeepSpeed's buckets at the sizes of the JSON: no function of the model.
"""

import math
from dataclasses import dataclass, fields, replace

from nt_dist.config import Config
from nt_dist.model.weights import (
    INDEX_BYTES,
    MASK_BYTES,
    bytes_per_parameter,
    choose_storages,
    count_parameters,
    weight_specs,
)
from nt_dist.sparsity.shards import WeightSpec

ZERO_STAGES = (0, 1, 2, 3)
