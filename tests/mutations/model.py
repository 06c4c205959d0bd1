"""Derivatives written by hand."""

from tests.mutations.mutation import Mutation

LOSSES = "tests/unit/model/test_losses.py::test_losses_and_gradients_are_those_of_torch"

MODEL = [
    Mutation(
        "losses: the gradient lacks the target",
        "found.scatter_add_(1, index[some], less[some])",
        "found",
        LOSSES,
    ),
    Mutation(
        "losses: exponentials that were kept are taken for the softmax",
        "times = total_exp if keeps else",
        "times =",
        LOSSES,
    ),
    Mutation(
        "products of one input: its gradient is that of the last",
        "grad_x = add_product(grad_x, gradient, weight.build(ctx.values[number]))",
        "grad_x = multiply(gradient, weight.build(ctx.values[number]))",
        "tests/unit/sparsity/test_storage.py::test_products_of_one_input_are_those_of_each_matrix",
    ),
    Mutation(
        "trails that are built at once: the first stands for all",
        "some.scatter_(1, index.long(), entries)",
        "some.scatter_(1, index[:1].expand_as(index).long(), entries)",
        "tests/unit/sparsity/test_storage.py::test_trails_that_are_built_at_once_are_those_built_one_by_one",
    ),
    Mutation(
        "norm: the gradient of x lacks the projection",
        "normalized *= (product @ to_mean) * inverse",
        "normalized *= 0",
        "tests/unit/model/test_functions.py::test_norms_in_lots_are_torchs",
    ),
    Mutation(
        "rotation: its gradient is turned the same way",
        "return _rotated(gradient, cosines, sines, back=True), None, None",
        "return _rotated(gradient, cosines, sines), None, None",
        "tests/unit/model/test_functions.py::test_rotation_is_that_of_complex_numbers",
    ),
    Mutation(
        "evaluations take the weights where there are averages",
        "with averaged(self.model, self.optimizer_state):",
        "if True:",
        "tests/unit/training/test_loop.py::test_evaluations_take_the_averages",
    ),
    Mutation(
        "averages of weights stay where they began",
        "            average_weights(self.config, self.model, self.optimizer_state, step)\n",
        "",
        "tests/distributed/test_resume.py::test_a_killed_and_resumed_run_is_the_uninterrupted_one[0-1-degrees0]",
    ),
    Mutation(
        "averages that a checkpoint lacks begin at zero",
        "if AVERAGE in states and AVERAGE not in saved:",
        "if False:",
        "tests/unit/checkpoint/test_checkpoint.py::test_an_average_that_a_checkpoint_lacks_begins_as_the_value",
    ),
    Mutation(
        "a falling density: engines of ZeRO 3 stay",
        "    FWD_MODULE_STACK.clear()  # in which ZeRO 3 leaves its model, as in the cache below\n",
        "",
        "tests/distributed/test_resume.py::test_a_falling_density_is_the_same_in_every_layout_and_frees_memory",
    ),
    Mutation(
        "a falling density: topologies are updated before they are pruned",
        "is_due and step not in prunings(self.config)",
        "is_due",
        "tests/distributed/test_resume.py::test_a_falling_density_is_the_same_in_every_layout_and_frees_memory",
    ),
    Mutation(
        "a falling density: the first weights of a shard stay",
        '(kept,) = largest(spec, [(0, shard)], dense["value"][None])',
        '(kept,) = largest(spec, [(0, shard)], dense["value"].abs().sort(descending=True).values[None])',
        "tests/unit/checkpoint/test_checkpoint.py::test_the_largest_weights_of_each_shard_stay_where_the_density_has_fallen",
    ),
    Mutation(
        "a convolution of groups adds the gradients of its inputs to other planes",
        "plane.index_add_(0, channels, of_inputs[there])",
        "plane.index_add_(0, channels, of_inputs[: len(there)])",
        "tests/unit/sparsity/test_storage.py::test_convolutions_of_groups_are_dense_ones_and_their_gradients",
    ),
]
