"""Token losses against torch's own cross-entropy."""

import pytest
import torch
import torch.nn.functional as F

from nt_dist.model import functions
from nt_dist.model.place import Place


@pytest.fixture(autouse=True)
def a_few_rows_at_once(monkeypatch):
    monkeypatch.setitem(functions.AT_ONCE, "cpu", 4 * 7)  # of 30 rows: the last lot is smaller


def example(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(3, 2, 5, 7, generator=generator)).to(dtype).requires_grad_()
    return logits, torch.randint(0, 7, (2, 5), generator=generator), torch.rand(3, 2, 5, generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_and_gradients_are_those_of_torch(dtype):
    logits, targets, upstream = example(dtype)
    ours = Place().token_losses(logits, targets)
    assert ours.dtype == torch.float32
    (gradient,) = torch.autograd.grad((ours * upstream).sum(), logits)
    flat = F.cross_entropy(logits.flatten(0, -2).float(), targets.expand(3, -1, -1).flatten(), reduction="none")
    torch.testing.assert_close(ours, flat.view(3, 2, 5))
    torch.testing.assert_close(gradient, torch.autograd.grad((flat.view(3, 2, 5) * upstream).sum(), logits)[0])


def test_losses_weigh_tokens():
    logits, targets, _ = example()
    weights = torch.tensor([[1.0, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    expected = -logits.log_softmax(-1).gather(-1, targets.expand(3, -1, -1)[..., None])[..., 0]
    torch.testing.assert_close(Place().trail_losses(logits, targets, weights), (expected * weights).sum((1, 2)))


def test_large_logits_do_not_overflow_and_padding_has_no_gradient():
    logits = torch.tensor([[[[1e4, -1e4, 0.0, -torch.inf]]]], requires_grad=True)
    loss = Place().token_losses(logits, torch.tensor([[1]]))
    torch.testing.assert_close(loss, torch.tensor([[[2e4]]]))
    loss.sum().backward()
    assert logits.grad.tolist() == [[[[1.0, -1.0, 0.0, 0.0]]]]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_logit_that_is_no_number_makes_the_loss_none(bad):
    logits, targets, _ = example()
    logits.data[1, 0, 2, 3] = bad
    finite = Place().token_losses(logits, targets).isfinite()
    assert not finite[1, 0, 2] and finite.sum() == finite.numel() - 1


def test_nothing_of_the_logits_size_is_kept_beside_them():
    logits, targets, _ = example(torch.bfloat16)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each):
        Place().token_losses(logits, targets)
    large = [each for each in kept if each.numel() >= logits.numel()]
    assert [each.data_ptr() for each in large] == [logits.data_ptr()]
