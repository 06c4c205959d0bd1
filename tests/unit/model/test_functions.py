"""The layers' own operations against plain formulas of torch."""

import pytest
import torch

from nt_dist.model import functions
from nt_dist.model.functions import gradients_in_lots, norm_by_torch, norm_in_lots, rms_norm, rotate

EPS = 1e-5


@pytest.fixture(autouse=True)
def a_few_rows_at_once(monkeypatch):
    monkeypatch.setitem(functions.AT_ONCE, "cpu", 4 * 3 * 8)  # of 10 rows: the last lot is smaller


def example(dtype=torch.float32, rows=3):
    generator = torch.Generator().manual_seed(0)
    x, scale, gradient = (torch.randn(*shape, 8, generator=generator) for shape in ((rows, 2, 5), (3, 1, 1), (3, 2, 5)))
    return x.to(dtype).expand(3, -1, -1, -1), scale.to(dtype), gradient.to(dtype)


@pytest.mark.parametrize("rows", [3, 1])  # 1: all trails read the trunk's
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_in_lots_are_torchs(dtype, rows):
    x, scale, gradient = example(dtype, rows)
    fp32 = [each.float() for each in (x, scale, gradient)]
    limits = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 8e-3, "atol": 8e-3}
    ours = norm_in_lots(x, scale, EPS)
    assert ours.dtype == dtype
    inputs = [each.clone().requires_grad_() for each in fp32[:2]]
    theirs = norm_by_torch(*inputs, EPS)
    torch.testing.assert_close(ours.float(), theirs, **limits)
    expected = torch.autograd.grad(theirs, inputs, fp32[2])
    for each, other in zip(gradients_in_lots(x, scale, EPS, gradient), expected, strict=True):
        assert each.dtype == dtype
        torch.testing.assert_close(each.float(), other, **limits)


@pytest.mark.parametrize("trails", [1, 3])
def test_what_other_devices_do_is_the_same(trails, monkeypatch):
    x, scale, gradient = example(rows=1)
    inputs = x[:1].clone().requires_grad_(), scale[:trails].clone().requires_grad_()

    def pass_through():
        result = rms_norm(inputs[0].expand(trails, -1, -1, -1), inputs[1], EPS)
        return result, *torch.autograd.grad(result, inputs, gradient[:trails])

    ours = pass_through()
    monkeypatch.setattr(functions, "is_eager_cpu", lambda device: False)
    for each, other in zip(ours, pass_through(), strict=True):
        torch.testing.assert_close(each, other, rtol=1e-5, atol=1e-6)


def test_the_norm_keeps_its_input_only():
    x, scale, _ = example(torch.bfloat16)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each):
        rms_norm(x, scale.requires_grad_(), EPS)
    assert [each.data_ptr() for each in kept] == [x.data_ptr(), scale.data_ptr()]


def test_the_norm_has_the_gradients_of_its_formula():
    x, scale, _ = (each.contiguous().requires_grad_() for each in example())
    formula = x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * scale
    ours = rms_norm(x, scale, EPS)
    torch.testing.assert_close(ours, formula, rtol=1e-5, atol=1e-6)
    for each, other in zip(*(torch.autograd.grad(y.sin().sum(), (x, scale)) for y in (ours, formula)), strict=True):
        torch.testing.assert_close(each, other, rtol=1e-5, atol=1e-5)


def test_rotation_is_that_of_complex_numbers():
    angles = torch.randn(5, 4, dtype=torch.float64)
    tables = (torch.cat([each, each], -1) for each in (angles.cos(), angles.sin()))
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64).transpose(0, 1).requires_grad_()
    ours = rotate(x, *tables)
    turned = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones_like(angles), angles)
    expected = torch.cat([turned.real, turned.imag], -1)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(*(torch.autograd.grad(each.sin().sum(), x) for each in (ours, expected)))
