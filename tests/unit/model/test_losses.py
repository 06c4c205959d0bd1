"""Token losses against torch's own cross-entropy."""

import pytest
import torch
import torch.nn.functional as F

from nt_dist.model import functions
from nt_dist.model.losses import objective
from nt_dist.model.place import Place


@pytest.fixture(autouse=True, params=[4, 30])
def rows_at_once(request, monkeypatch):
    monkeypatch.setitem(functions.AT_ONCE, "cpu", request.param * 7)  # of 30 rows: the last lot is smaller, or all
    return request.param


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mean", ["logits", "probabilities"])
def test_the_ensembles_loss_and_gradient_are_those_of_its_mean(mean, dtype):
    logits, targets, weights = example(dtype)
    ours = Place().trail_losses(logits, targets, weights[0], mean)
    plain = logits.float()
    joint = plain.mean(0).log_softmax(-1) if mean == "logits" else plain.softmax(-1).mean(0).log()
    chosen = torch.cat([plain.log_softmax(-1), joint[None]]).gather(-1, targets.expand(4, -1, -1)[..., None])[..., 0]
    wanted = -(chosen * weights[0]).sum((1, 2))
    torch.testing.assert_close(ours, wanted)
    minimised = objective(ours, 0.7), wanted[:-1].sum() + 0.7 * wanted[-1]
    gradients = [torch.autograd.grad(each, logits)[0] for each in minimised]
    limits = {"rtol": 2e-2, "atol": 2e-3} if dtype == torch.bfloat16 else {}  # ours adds two rounded gradients
    torch.testing.assert_close(*gradients, **limits)


def test_without_the_ensembles_loss_the_objective_is_the_sum_of_the_trails():
    assert float(objective(torch.tensor([1.0, 2.0, 4.0]), None)) == 7.0
    assert float(objective(torch.tensor([1.0, 2.0, 4.0]), 0.5)) == 5.0
    assert float(objective(torch.tensor([1.0, 2.0, 4.0]), 0.0)) == 3.0  # a course that has come to nothing


def test_the_ensembles_loss_is_finite_where_no_trail_gives_the_target_a_chance():
    logits = torch.tensor([300.0, 0.0]).expand(2, 1, 1, 2).clone().requires_grad_()
    sums = Place().trail_losses(logits, torch.tensor([[1]]), torch.ones(1, 1), "probabilities")
    assert sums.tolist() == [300.0, 300.0, 300.0]
    objective(sums, 1.0).backward()
    torch.testing.assert_close(logits.grad, torch.tensor([1.5, -1.5]).expand(2, 1, 1, 2))


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


def test_nothing_of_the_logits_size_is_kept_beside_them_but_what_was_worked_on_at_once(rows_at_once):
    logits, targets, _ = example(torch.bfloat16)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each):
        Place().token_losses(logits, targets)
    large = [each for each in kept if each.numel() >= logits.numel()]
    assert large[0].data_ptr() == logits.data_ptr()
    assert [each.dtype for each in large[1:]] == [torch.float32] * (rows_at_once == 30)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_smoothed_labels_are_torchs_and_leave_padding_out(dtype):
    logits, targets, upstream = example(dtype)
    padded = F.pad(logits, (0, 2), value=-torch.inf)
    ours = Place().token_losses(padded, targets, 0.2)
    (gradient,) = torch.autograd.grad((ours * upstream).sum(), logits)
    flat = F.cross_entropy(
        logits.flatten(0, -2).float(), targets.expand(3, -1, -1).flatten(), reduction="none", label_smoothing=0.2
    )
    torch.testing.assert_close(ours, flat.view(3, 2, 5))
    torch.testing.assert_close(gradient, torch.autograd.grad((flat.view(3, 2, 5) * upstream).sum(), logits)[0])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("mean", ["", "logits", "probabilities"])
def test_the_loss_of_a_mixed_target_is_torchs_of_a_soft_one(mean, smoothing):
    logits = example()[0][:, :, :1]
    targets, weights = torch.tensor([[1, 4], [3, 3]]), torch.tensor([[0.3, 0.7], [0.6, 0.4]])
    soft = torch.zeros(2, 7).scatter_add_(1, targets, weights)
    ours = Place().trail_losses(logits, targets, weights, mean, smoothing)
    wanted = [F.cross_entropy(each, soft, reduction="sum", label_smoothing=smoothing) for each in logits[:, :, 0]]
    if mean:
        mean_of_all = logits.mean(0) if mean == "logits" else logits.softmax(-1).mean(0).log()
        wanted.append(F.cross_entropy(mean_of_all[:, 0], soft, reduction="sum"))
    torch.testing.assert_close(ours, torch.stack(wanted))
    gradients = [torch.autograd.grad(each.sum(), logits, retain_graph=True)[0] for each in (ours, sum(wanted))]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("mean", ["logits", "probabilities"])
def test_the_ensembles_own_loss_has_exact_labels(mean):
    logits, targets, _ = example()
    weights = torch.ones(2, 5)
    exact, smoothed = (Place().trail_losses(logits, targets, weights, mean, each) for each in (0.0, 0.2))
    torch.testing.assert_close(exact[3:], smoothed[3:])
    assert not torch.isclose(exact[:3], smoothed[:3]).any()
