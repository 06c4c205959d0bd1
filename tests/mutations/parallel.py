"""What makes every layout train the same model."""

from tests.mutations.mutation import Mutation

LAYOUTS = "tests/distributed/test_layouts.py"
_LAYOUT = LAYOUTS + "::test_a_layout_trains_as_one_rank_does[{}, fp32]"
TENSOR, SPLIT, REPLICATED, DATA = (
    _LAYOUT.format(name) for name in ("tensor 2", "trail 2, split trunk", "trail 2, replicated trunk", "data 2, ZeRO 1")
)
EQUAL_REPLICAS = LAYOUTS + "::test_replicas_of_the_trunk_stay_the_same_to_the_bit[{}]"
PIPE = "tests/distributed/test_pipeline.py::test_a_pipeline_trains_as_one_rank_does[pipe 2]"
CUT = "tests/distributed/test_pipeline.py::test_a_cut_before_the_fork_of_a_split_trunk[at the fork]"
COMPARED = LAYOUTS + "::test_topologies_are_compared_where_there_are_copies[trunk over trails]"
STREAMS = "tests/unit/sparsity/test_update.py::test_a_part_updates_as_the_whole_does"
STEPS = "tests/unit/sparsity/test_update.py::test_trails_and_steps_draw_apart"
PARTS = "tests/unit/sparsity/test_storage.py::test_a_part_is_cut_from_the_whole"
LOADER = "tests/unit/data/test_loader.py"

PARALLEL = [
    # Streams: a word of a key is dropped, or counts what this rank holds.
    Mutation(
        "init streams without the trail",
        "words = (self.spec.name, trail, shard)",
        "words = (self.spec.name, shard)",
        "tests/unit/sparsity/test_storage.py::test_trails_differ_in_values_and_topology",
    ),
    Mutation(
        "init streams with the trail's number on this rank",
        "words = (self.spec.name, trail, shard)",
        "words = (self.spec.name, trail - self.trails.start, shard)",
        PARTS,
    ),
    Mutation(
        "init streams with the shard's number on this rank",
        "words = (self.spec.name, trail, shard)",
        "words = (self.spec.name, trail, shard - self.shards.start)",
        PARTS,
    ),
    Mutation(
        "drop and grow streams without the step",
        "(self.seed, purpose, name, *row[:2], self.step, *row[2:]) for",
        "(self.seed, purpose, name, *row) for",
        STEPS,
    ),
    Mutation(
        "drop and grow streams with the trail's number on this rank",
        "(self.seed, purpose, name, *row[:2], self.step, *row[2:]) for",
        "(self.seed, purpose, name, row[0] - rows[0][0], row[1], self.step, *row[2:]) for",
        STREAMS,
    ),
    Mutation(
        "drop and grow streams with the shard's number on this rank",
        "(self.seed, purpose, name, *row[:2], self.step, *row[2:]) for",
        "(self.seed, purpose, name, row[0], row[1] - rows[0][1], self.step, *row[2:]) for",
        STREAMS,
    ),
    # The split trunk.
    Mutation(
        "split trunk: its gradients are not summed over the trail axis",
        "of_trunk = self.mesh.all_reduce if self.mesh.splits_trunk else self.mesh.broadcast",
        "of_trunk = self.mesh.broadcast",
        SPLIT,
    ),
    Mutation(
        "split trunk: its regrowth gradients are not summed over the trail axis",
        "self.mesh.all_reduce(gradient, self.mesh.sample_axes(weight.spec.in_trail)).mul_(scale)",
        'self.mesh.all_reduce(gradient, ("data",)).mul_(scale)',
        SPLIT,
    ),
    Mutation(
        "fork of a split trunk: gradients of the trails not summed (no reduce-scatter)",
        "dist.reduce_scatter_tensor(share, parts.flatten(0, 1), group=axis.group)",
        "share.copy_(parts[axis.rank])",
        SPLIT,
    ),
    Mutation(
        "fork of a split trunk: shares not gathered",
        "dist.all_gather_into_tensor(parts.flatten(0, 1), share.contiguous(), group=axis.group)",
        "parts.copy_(share)",
        SPLIT,
    ),
    Mutation(
        "split trunk: all ranks take the first share",
        "return tokens[share.start : share.stop]",
        "return tokens[: len(share)]",
        SPLIT,
    ),
    Mutation(
        "pipeline: before the fork, a stage of an evaluation expects whole micro-batches",
        "(1, self.place.into_trunk(tokens)) if",
        "(1, tokens) if",
        CUT,
    ),
    # Positions in shares.
    Mutation(
        "sequence parallelism: gradients of norms are not summed",
        'weight.values.register_hook(_joined(self.mesh.all_reduce, "tensor"))',
        "pass",
        _LAYOUT.format("tensor 2").replace("]", ", sequence]"),
    ),
    Mutation(
        "sequence parallelism: what was gathered is kept for backward",
        "if tensor.data_ptr() != self._address:",
        "if True:",
        "tests/distributed/test_memory.py::test_the_peaks_of_a_ranks_steps_are_the_formula[tensor 2, sequence]",
    ),
    # The replicated trunk.
    Mutation(
        "fork of a replicated trunk: gradients of the trails not summed",
        "return _copied_to(x, self.mesh.trail)",
        "return x",
        REPLICATED,
    ),
    Mutation(
        "trunk: replicas that computed other gradients keep them",
        'weight.values.register_hook(_joined(of_trunk, "trail"))',
        "pass",
        EQUAL_REPLICAS.format("replicated"),
    ),
    Mutation(
        "regrowth: replicas that computed other dense gradients keep them",
        "self.mesh.broadcast(gradient, self.place.replica_axes(weight))",
        "pass",
        EQUAL_REPLICAS.format("replicated"),
    ),
    # Tensor parallelism.
    Mutation(
        "column-parallel: gradient of the input not summed over the tensor axis",
        "return _copied_to(x, self.mesh.tensor)",
        "return x",
        TENSOR,
    ),
    Mutation(
        "row-parallel: partial results not summed over the tensor axis",
        "return _summed(x.contiguous(), self.mesh.tensor) if self.mesh.tensor.degree > 1 else x",
        "return x",
        TENSOR,
    ),
    Mutation(
        "cut cross-entropy: highest logit of this rank alone",
        "highest = maximum(rows.amax(-1).float())",
        "highest = rows.amax(-1).float()",
        TENSOR,
    ),
    Mutation(
        "cut cross-entropy: exponentials and target's logit not summed",
        "total_exp, target, *rest = total(sums)",
        "total_exp, target, *rest = sums",
        TENSOR,
    ),
    Mutation(
        "evaluation: likeliest class of this rank's classes",
        "highest = self.max_over_classes(value.clone())",
        "highest = value",
        TENSOR,
    ),
    Mutation(
        "evaluation: ranks of the tensor axis do not agree on the likeliest class",
        'return highest, self.mesh.all_reduce(index, ("tensor",), op="min")',
        "return highest, index",
        TENSOR,
    ),
    # Figures of all trails.
    Mutation(
        "losses of the trails held here alone",
        "dist.all_gather(parts, figures.detach().contiguous(), group=axis.group)",
        "return figures",
        REPLICATED,
    ),
    Mutation(
        "evaluation: mean of the logits of the trails held here alone",
        "return _summed(mean, axis) / axis.degree if axis.degree > 1 else mean",
        "return mean",
        REPLICATED,
    ),
    Mutation(
        "joint loss: not added",
        "return sums.sum() if joint is None else sums[:-1].sum() + joint * sums[-1]",
        "return sums.sum() if joint is None else sums[:-1].sum()",
        "tests/unit/model/test_losses.py::test_the_ensembles_loss_and_gradient_are_those_of_its_mean",
    ),
    Mutation(
        "joint loss: its figure stays on this data rank",
        'sums = self.mesh.all_reduce(torch.cat([self.place.all_trails(trails), joint]), ("pipe", "data"))',
        'sums = torch.cat([self.mesh.all_reduce(self.place.all_trails(trails), ("pipe", "data")), joint])',
        _LAYOUT.format("data 2, ZeRO 2").replace("fp32", "fp32, joint probabilities"),
    ),
    Mutation(
        "rates: all groups learn alike",
        'group["lr"] = rate * group["lr_factor"]',
        'group["lr"] = rate',
        "tests/distributed/test_training.py::test_groups_learn_at_their_own_rates_as_in_plain_torch",
    ),
    Mutation(
        "joint loss: its probabilities are over those of the best trail held here",
        'return self.mesh.all_reduce(figures, ("trail",), op="min")',
        "return figures",
        _LAYOUT.format("trail 3, replicated trunk").replace("fp32", "fp32, joint probabilities"),
    ),
    # The pipeline.
    Mutation(
        "pipeline: losses stay on the last stage",
        '), ("pipe", "data"))',
        '), ("data",))',
        PIPE,
    ),
    Mutation(
        "pipeline: figures of an evaluation stay on the last stage",
        'mesh.all_reduce(self.sums, ("pipe", "data"))',
        'mesh.all_reduce(self.sums, ("data",))',
        PIPE,
    ),
    # Data parallelism.
    Mutation(
        "losses of this data rank alone",
        '), ("pipe", "data"))',
        '), ("pipe",))',
        DATA,
    ),
    Mutation(
        "mean over this data rank's tokens alone",
        'torch.stack([batch.weights.sum() for batch in micro_batches]).sum(), ("data",))',
        "torch.stack([batch.weights.sum() for batch in micro_batches]).sum(), ())",
        DATA,
    ),
    Mutation(
        "regrowth: dense gradients not summed over the data axis",
        "self.mesh.all_reduce(gradient, self.mesh.sample_axes(weight.spec.in_trail)).mul_(scale)",
        "self.mesh.all_reduce(gradient, self.mesh.sample_axes(weight.spec.in_trail)[1:]).mul_(scale)",
        DATA,
    ),
    Mutation(
        "ZeRO 1: masters and moments of this rank's partition alone",
        "comm.all_reduce(whole.view(torch.int32), group=self.engine.data_parallel_group)",
        "pass",
        DATA,
    ),
    Mutation(
        "evaluation: all data ranks read the first rank's samples",
        "first = (number * self.data_degree + self.data_rank) * self.micro_batch_size",
        "first = number * self.data_degree * self.micro_batch_size",
        LOADER + "::test_evaluation_covers_each_sample_once_on_equal_shapes",
    ),
    # The norm's rule: each weight counts once.
    Mutation(
        "norm: every copy of a replicated weight counts",
        "return all(getattr(self.mesh, axis).rank == 0 for axis in self.replica_axes(weight))",
        "return True",
        REPLICATED,
    ),
    Mutation(
        "norm: weights that are cut over the tensor axis count on its first rank alone",
        "over_shards = self.mesh.tensor.degree > 1 and weight.spec.shards == 1",
        "over_shards = self.mesh.tensor.degree > 1",
        TENSOR,
    ),
    Mutation(
        "norm: of this rank's part alone",
        "return mesh.all_reduce(squares, axes).sqrt().float()",
        "return squares.sqrt().float()",
        TENSOR,
    ),
    # Topologies.
    Mutation(
        "topologies of replicas are not compared over the trail axis",
        'axes = [("data", *self.place.replica_axes(weight)) for weight in self.sparse.values()]',
        'axes = [("data",) for weight in self.sparse.values()]',
        COMPARED,
    ),
]
