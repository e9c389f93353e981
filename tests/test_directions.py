"""Are queries and keys scaled to length one, with exact derivatives?"""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from pyg_sinode.directions import LEAST, directions

F64 = torch.float64


def vectors(scale=1.0, dtype=F64):
    torch.manual_seed(0)
    return (scale * torch.randn(5, 2, 3, dtype=F64)).to(dtype)


@pytest.mark.parametrize("scale", [1.0, 1e15, 0.1 * LEAST])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_values_and_gradients_are_those_of_normalize(dtype, scale):
    x, w = vectors(scale, dtype).requires_grad_(), vectors(dtype=dtype).cos()
    y, expected = directions(x), F.normalize(x, dim=-1, eps=LEAST)
    tolerance = 16 * torch.finfo(dtype).eps
    assert float((y - expected).detach().abs().max()) <= tolerance
    (found,), (wanted,) = (torch.autograd.grad((z * w).sum(), x) for z in (y, expected))
    assert float((found - wanted).abs().max()) <= tolerance * float(wanted.abs().max())


def test_derivatives_to_second_order_are_those_of_finite_differences():
    assert gradcheck(directions, vectors().requires_grad_())
    assert gradgradcheck(directions, vectors().requires_grad_())


def test_a_vector_of_zeros_stays_zero_with_a_finite_gradient():
    x = torch.zeros(2, 3, dtype=F64, requires_grad=True)
    y = directions(x)
    assert not bool(y.detach().any())
    (found,) = torch.autograd.grad(y.sum(), x)
    assert bool((found == 1 / LEAST).all())


def test_memory_that_others_hold_is_left_alone():
    x, g = vectors().requires_grad_(), vectors().cos()
    kept = g.clone(), x.detach().clone()
    directions(x).backward(g)
    assert torch.equal(g, kept[0])
    assert torch.equal(x.detach(), kept[1])
