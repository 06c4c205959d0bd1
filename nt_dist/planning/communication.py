"""Payload bytes of one step's collectives, by the mesh's axis and the operation, on one rank.

What a payload is, and what a ring sends for it, is said in benchmarks/traffic.py. Scalars and Python objects of the
program itself over other axes than data are left out. With n stored values on the rank, c bytes of an element of its
compute copy, D data ranks, A micro-batches, as counted on DeepSpeed 0.19.8 (tests/distributed/test_traffic.py):

data    stage 0        all-reduce 4 n
        stage 1        all-reduce 4 n; all-gather c n (values of one parameter group padded to a multiple of 2 D; the
                       bf16 optimizer's gradients as well)
        stage 2        all-reduce 4 n in each micro-batch; all-gather c n
        stage 3        reduce-scatter 4 n and all-gather c n in each micro-batch (each weight padded to a multiple of
                       D); weights up to stage3_param_persistence_threshold are gathered once a step instead; a weight
                       is gathered a second time for backward if stage3_max_reuse_distance weights lie between
        update         all-reduce 4 a dense entry of the sparse weights if it grows by gradient, 12 a stored value to
                       read partitioned masters and moments (stage 1 on), 16 a shard to compare checksums
        scalars        4 for the real targets, 4 a trail (and the joint loss) for the losses, 8 for the guard's
                       verdict, DeepSpeed's norm and overflow

tensor  hidden states are all-reduced as the family says, or gathered and scattered with parallel.sequence_parallel;
        then gradients of weights that are not cut, c n, are all-reduced. The loss: 12 bytes a trail and position
        (highest logit; sum and the target's), a mean of logits that has a loss of its own (trails.joint) counting as a
        trail; with such a loss twice, as the joint loss below, where logits are many enough to be computed in chunks
        (model/chunks.py).
trail   in each micro-batch:
        joint loss         4 bytes a logit of one trail are all-reduced for a mean of logits, 8 a position for a mean of
                           probabilities (the least loss of a trail; the mean)
        replicated trunk   at the fork, backward, one trunk state is all-reduced; the trunk's gradients, c n, are
                           broadcast, so that its replicas stay equal
        split trunk        at the fork, a trunk state is all-gathered forward and reduce-scattered backward; the trunk's
                           gradients, c n, are all-reduced
        In an update, 4 bytes a dense entry of the trunk are broadcast (and, split, all-reduced before), and checksums
        compared.
pipe    between stages: a hidden state forward, its gradient backward.
"""

from collections import Counter

from nt_dist.config import Config
from nt_dist.engine.optimizers import group_key
from nt_dist.planning.local_layers import LayerPart, Part, local_parts, stage_layers

Payload = dict[tuple[str, str], int]

# DeepSpeed's defaults, in elements.
_PERSISTENCE, _REUSE = 100_000, 1_000_000_000
_FLAG = 4  # of all ranks: whether one has found topologies that differ


def step_payload(config: Config, pipe_stage: int = 0) -> Payload:
    """Return the payloads of an ordinary step, between topology updates."""
    stages = stage_layers(config)
    layers = stages[pipe_stage]
    payload: Counter = Counter()
    if config.data_degree > 1:
        payload.update(_data(config, local_parts(layers)))
    for _ in range(config.accumulation_steps):
        payload.update(_model_axes(config, layers))
    for right in stages[max(pipe_stage, 1) : pipe_stage + 2]:  # the stages behind this one's boundaries
        payload["pipe", "send"] += config.accumulation_steps * right[0].received_bytes
    return dict(+payload)


def update_payload(config: Config, pipe_stage: int = 0) -> Payload:
    """Return the payloads of a topology update, on top of its step's."""
    sparse = [part for part in local_parts(stage_layers(config)[pipe_stage]) if part.spec.is_sparse]
    if config.sparsity.update_every == 0 or not sparse:
        return {}
    trunk = [part for part in sparse if not part.spec.in_trail]
    grows = config.sparsity.uses_gradients
    payload: Counter = Counter()
    if config.data_degree > 1:
        payload["data", "all_reduce"] += _checksums(sparse) + _FLAG * (config.data_degree == config.world_size)
        payload["data", "all_reduce"] += 4 * sum(part.entries for part in sparse) * grows
        payload["data", "all_reduce"] += 12 * sum(part.stored for part in sparse) * (config.zero_stage > 0)
    if config.parallel.trail > 1:
        payload["trail", "all_reduce"] += _checksums(trunk)
        payload["trail", "all_reduce"] += 4 * sum(part.entries for part in trunk) * grows * config.splits_trunk
        payload["trail", "broadcast"] += 4 * sum(part.entries for part in trunk) * grows
    return dict(payload)


def _checksums(parts: list[Part]) -> int:
    """Bytes of the lowest and the highest checksum of each shard."""
    return 16 * sum(part.trails * part.shards for part in parts)


def _data(config: Config, parts: list[Part]) -> Payload:
    ranks, stage, steps, copy = config.data_degree, config.zero_stage, config.accumulation_steps, config.element_bytes
    groups: Counter = Counter()  # values of the optimizer's parameter groups
    for part in parts:
        groups[group_key(config, part.spec)] += part.stored
    stored = groups.total()
    has_parts = stage > 0 and (copy, stage) != (2, 1)  # of the gradients, whose norms add up; bf16 at stage 1 has all
    # real tokens, losses, the guard's verdict, that norm
    scalars = 4 + 4 * (config.trails.count + bool(config.trails.trained_mean)) + 8 + 8 * has_parts
    if stage == 0:
        return {("data", "all_reduce"): 4 * stored + scalars}
    if stage < 3:
        padded = sum(_padded(group, 2 * ranks) for group in groups.values())
        reduced = 4 * (padded if copy == 2 and stage == 1 else stored) * (steps if stage == 2 else 1)
        return {("data", "all_reduce"): reduced + scalars, ("data", "all_gather"): copy * padded}
    return {
        ("data", "all_reduce"): scalars,
        ("data", "reduce_scatter"): 4 * steps * sum(_padded(part.stored, ranks) for part in parts),
        ("data", "all_gather"): copy * _gathered(config, parts),
    }


def _gathered(config: Config, parts: list[Part]) -> int:
    """Values gathered in a step at stage 3."""
    zero, ranks = config.deepspeed["zero_optimization"], config.data_degree
    threshold = zero.get("stage3_param_persistence_threshold", _PERSISTENCE)
    reuse = zero.get("stage3_max_reuse_distance", _REUSE)
    total = between = 0
    for part in reversed(parts):
        padded = _padded(part.stored, ranks)
        if part.stored <= threshold:
            total += padded
        else:
            total += config.accumulation_steps * padded * (1 if between < reuse else 2)
        between += 2 * part.stored
    return total


def _padded(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _model_axes(config: Config, layers: list[LayerPart]) -> Payload:
    """Payloads over the tensor and the trail axis of one micro-batch."""
    payload: Counter = Counter()
    if config.parallel.tensor > 1:
        payload["tensor", "all_reduce"] = sum(layer.all_reduced_bytes for layer in layers)
        payload["tensor", "all_gather"] = sum(layer.all_gathered_bytes for layer in layers)
        payload["tensor", "reduce_scatter"] = sum(layer.reduce_scattered_bytes for layer in layers)
    if config.cuts_sequence:
        whole = [part for part in local_parts(layers) if part.spec.shards == 1]
        payload["tensor", "all_reduce"] += config.element_bytes * sum(part.stored for part in whole)
    if config.parallel.trail > 1:
        trunk = [part for part in local_parts(layers) if not part.spec.in_trail]
        gradients = config.element_bytes * sum(part.stored for part in trunk)
        state = sum(layer.input_bytes for layer in layers if layer.forks)
        if config.splits_trunk:
            each = {"all_gather": state, "reduce_scatter": state, "all_reduce": gradients}
        else:
            each = {"all_reduce": state, "broadcast": gradients}
        payload.update({("trail", operation): size for operation, size in each.items()})
        payload["trail", "all_reduce"] += layers[-1].joined_bytes
    return payload


def sent_bytes(operation: str, payload: float, ranks: int) -> float:
    """Return the bytes that each of ``ranks`` sends for a payload, by the ring algorithms (NCCL's and gloo's for large
    tensors; Patarasuk and Yuan, J. Parallel Distrib. Comput. 69, 2009, section 3).

    An all-reduce is a reduce-scatter and an all-gather, each of which sends all but the own share; a broadcast and a
    reduction to one rank pass everything once; "send" is between two ranks.
    """
    if operation == "send":
        return payload
    if ranks == 1:
        return 0.0
    share = (ranks - 1) / ranks
    return payload * {"all_reduce": 2 * share, "all_gather": share, "reduce_scatter": share}.get(operation, 1.0)
