"""Are functions of J by polynomials right on large discs, and refused where digits are lost?"""

import math

import pytest
import scipy.linalg
import torch
from operators_cases import F64

from pyg_sinode import StepSizeError, imex_odeint, operators
from pyg_sinode.operators import SolveError

PAIR = torch.tensor([[0, 1], [1, 0]])
ONES = torch.ones(2, dtype=F64)


def exchange(rate, dtype=F64):
    """Two nodes that exchange at a rate: (1, 1) stays, (1, -1) decays."""
    return operators.DissipativeGraph(PAIR, torch.full((2,), rate, dtype=dtype), 2, dim=-1)


def heat(n, rate):
    """Insulated heat: the sum stays."""
    diagonals = torch.stack([torch.ones(n), -2 * torch.ones(n), torch.ones(n)]).to(F64) * rate
    diagonals[1, 0] = diagonals[1, -1] = -rate
    return operators.Banded(diagonals, (-1, 0, 1))


def rotation(n, rate, dtype):
    """A skew matrix of bands: the norm stays."""
    diagonals = torch.stack([-rate * torch.ones(n), rate * torch.ones(n)]).to(dtype)
    return operators.Banded(diagonals, (-1, 1))


# Aliases of powers


@pytest.mark.parametrize("radius", [1.0, 46.0, 100.0, 700.0, 750.0, 1500.0, 3500.0, 7000.0, 2e4])
def test_the_exponential_on_a_large_disc_keeps_what_does_not_decay(radius):
    found = exchange(radius).function(torch.exp).mv(ONES)
    torch.testing.assert_close(found, ONES, rtol=1e-9, atol=0)
    u = torch.linspace(0.0, 1.0, 32, dtype=F64).square()
    found = heat(32, radius / 2).function(torch.exp).mv(u)
    assert float(found.sum() - u.sum()) == pytest.approx(0.0, abs=1e-8)
    assert float(found.min()) > -1e-9


@pytest.mark.parametrize("radius", [750.0, 3500.0])
@pytest.mark.parametrize("method", ["etd1", "etdrk4", "etdrk4s", "lawson4"])
@pytest.mark.parametrize("explicit", [None, lambda t, u: 0.0 * u])
def test_every_scheme_keeps_a_fixed_point_of_a_stiff_graph(method, radius, explicit):
    t = torch.tensor([0.0, 1.0], dtype=F64)
    u = imex_odeint(explicit, exchange(radius), ONES, t, method=method, step_size=1.0)[-1]
    torch.testing.assert_close(u, ONES, rtol=1e-9, atol=0)


def test_many_radii_against_scipy():
    for radius in torch.logspace(-1, 3, 40).tolist():
        J = exchange(radius / 2)
        matrix = J.mv(torch.eye(2, dtype=F64)).T.numpy()
        expected = scipy.linalg.expm(matrix) @ [1.0, 0.3]
        found = J.function(torch.exp).mv(torch.tensor([1.0, 0.3], dtype=F64))
        torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-10, atol=1e-12)


# Poles inside the disc


@pytest.mark.parametrize("pole", [0.5, -0.3, 0.0])
def test_a_pole_inside_the_disc_is_refused(pole):
    J = operators.Graph(PAIR, ONES, 2, dim=-1)  # eigenvalues -1 and 1
    with pytest.raises(ValueError, match="Expected functions of J that polynomials of degree 2048"):
        J.function(lambda z: 1.0 / (z - pole)).mv(ONES)


def test_a_pole_outside_the_disc_is_no_obstacle():
    J = operators.Graph(PAIR, ONES, 2, dim=-1)
    found = J.function(lambda z: 1.0 / (2.0 - z)).mv(ONES)
    torch.testing.assert_close(found, ONES, rtol=1e-12, atol=0)


# Rounding


@pytest.mark.parametrize(("rate", "dtype"), [(10.0, torch.float32), (25.0, F64)])
def test_a_rotation_whose_digits_would_be_lost_is_refused(rate, dtype):
    J, t = rotation(20, rate, dtype), torch.tensor([0.0, 1.0], dtype=F64)
    u = torch.linspace(-1.0, 1.0, 20).to(dtype)
    with pytest.raises(SolveError, match=r"has rounding errors of .* Take smaller steps") as caught:
        imex_odeint(lambda t, u: 0.0 * u, J, u, t, method="etdrk4", step_size=1.0)
    assert (caught.value.time, caught.value.step) == (0.0, 0)
    assert math.isfinite(caught.value.residual)
    assert caught.value.state.shape == u.shape
    end = imex_odeint(lambda t, u: 0.0 * u, J, u, t, method="etdrk4", step_size=1 / 64)[-1]
    assert float(end.norm() / u.norm()) == pytest.approx(1.0, rel=1e3 * torch.finfo(dtype).eps)


def test_adaptive_steps_become_smaller_instead():
    J, t = rotation(20, 25.0, F64), torch.tensor([0.0, 1.0], dtype=F64)
    u = torch.linspace(-1.0, 1.0, 20, dtype=F64)
    end, stats = imex_odeint(None, J, u, t, method="etdrk4s", rtol=1e-6, first_step=1.0,
                             return_stats=True)
    assert stats.steps_rejected > 0
    assert float(end[-1].norm() / u.norm()) == pytest.approx(1.0, rel=1e-7)
    with pytest.raises(StepSizeError, match="rounding errors"):
        imex_odeint(None, J, u, t, method="etdrk4s", rtol=1e-6, first_step=1.0, min_step=0.9)


def test_coefficients_beyond_the_range_of_float32_are_refused():
    with pytest.raises(ValueError, match="Expected functions of J that polynomials"):
        rotation(20, 100.0, torch.float32).function(torch.exp).mv(torch.ones(20))


def test_a_disc_that_is_larger_than_the_norm_loses_no_digits():
    generator = torch.Generator().manual_seed(0)
    edges = torch.randint(0, 400, (2, 40_000), generator=generator)
    weight = 0.15 * torch.randn(40_000, generator=generator)
    u = torch.randn(400, generator=generator)
    found = operators.Graph(edges, weight, 400, dim=-1).function(torch.exp).mv(u)
    J = operators.Graph(edges, weight.double(), 400, dim=-1)
    expected = torch.linalg.matrix_exp(J.mv(torch.eye(400, dtype=F64)).T) @ u.double()
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)


def test_growth_and_decay_are_not_taken_for_lost_digits():
    u = torch.tensor([1.0, -1.0], dtype=F64)
    decayed = exchange(25.0).function(torch.exp).mv(u)  # by exp(-50)
    assert float(decayed.abs().max()) < 1e-12
    J = operators.Graph(PAIR, 30.0 * ONES, 2, dim=-1)
    found = J.function(torch.exp).mv(ONES)
    torch.testing.assert_close(found, math.exp(30.0) * ONES, rtol=1e-10, atol=0)


# Which operators have functions


def test_a_multiple_of_a_transpose_has_the_functions_that_it_can_compute():
    K = operators.Transposed(operators.Banded(torch.ones(2, 3, dtype=F64), (0, 1)))
    u, t = torch.ones(3, dtype=F64), torch.tensor([0.0, 1.0], dtype=F64)
    for J in (K, 0.5 * K, K + operators.ScaledIdentity(-1.0)):
        assert J.has_functions(u)
        matrix = J.mv(torch.eye(3, dtype=F64)).T.numpy()
        expected = torch.from_numpy(scipy.linalg.expm(matrix)) @ u
        found = imex_odeint(None, J, u, t, method="etdrk4", step_size=0.1)[-1]
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    times = t.clone().requires_grad_()
    end = imex_odeint(None, K, u, times, method="etdrk4", step_size=0.1)[-1].sum()
    (grad,) = torch.autograd.grad(end, times)
    assert float(grad[1]) == pytest.approx(float(K.mv(
        imex_odeint(None, K, u, t, method="etdrk4", step_size=0.1)[-1]).sum()), rel=1e-6)
