"""Derivatives written by hand."""

from tests.mutations.mutation import Mutation

LOSSES = "tests/unit/model/test_losses.py::test_losses_and_gradients_are_those_of_torch"

MODEL = [
    Mutation(
        "losses: the gradient lacks the target",
        "softmax.scatter_add_(1, index[some], less[some])",
        "softmax",
        LOSSES,
    ),
    Mutation(
        "norm: the gradient of x lacks the projection",
        "normalized *= (product @ to_mean) * inverse",
        "normalized *= 0",
        "tests/unit/model/test_functions.py::test_norms_in_lots_are_torchs",
    ),
    Mutation(
        "rotation: its gradient is turned the same way",
        "return _rotated(gradient, cosines, -sines), None, None",
        "return _rotated(gradient, cosines, sines), None, None",
        "tests/unit/model/test_functions.py::test_rotation_is_that_of_complex_numbers",
    ),
]
