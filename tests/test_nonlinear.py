"""Are equations with a nonlinear implicit term solved, to every scheme's order and when stiff?"""

import math

import numpy as np
import pytest
import torch
from cases import double, slope, times
from nonlinear_cases import F64, KNOWN, RATES, STIFF, both, explicit_half, implicit_half, robertson

from pyg_sinode import NonFiniteStateError, imex_odeint
from pyg_sinode.operators import (
    Banded,
    BlockDiagonal,
    Circulant,
    Dense,
    Diagonal,
    Graph,
    MatrixFree,
    ScaledIdentity,
)
from pyg_sinode.schemes import MULTISTEP, RUNGE_KUTTA
from pyg_sinode.solvers import CG, GMRES, Direct, Newton
from pyg_sinode.terms import Nonlinear

IMEX = {**RUNGE_KUTTA, **MULTISTEP}
every_scheme = pytest.mark.parametrize("scheme", IMEX.values(), ids=IMEX)


def error(explicit, implicit, method, n, dims=-1, newton=None):
    t = times(0, 1)
    u0 = KNOWN.solution(t[0]).expand(2, 3).contiguous()
    u = imex_odeint(explicit, Nonlinear(implicit, dims=dims, newton=newton), u0, t, method=method,
                    step_size=1 / n)
    return float((u[-1] - KNOWN.solution(t[-1])).abs().max())


# Orders


@every_scheme
def test_every_scheme_reaches_its_order_with_a_nonlinear_term_that_depends_on_time(scheme):
    steps = [32, 64, 128] if scheme.order < 5 else [16, 32, 64]
    errors = [error(explicit_half, implicit_half, scheme, n) for n in steps]
    assert slope(steps, errors) == pytest.approx(scheme.order, abs=0.25), errors


@pytest.mark.parametrize(("method", "order"), [
    ("implicit_euler", 1), ("crank_nicolson", 2), ("ark324l2sa", 3), ("ark436l2sa", 4),
    ("ark548l2sa", 5), ("sbdf2", 2), ("sbdf3", 3), ("sbdf4", 4), ("cnab2", 2)])
def test_the_implicit_half_alone_has_its_order(method, order):
    steps = [32, 64, 128] if order < 5 else [16, 32, 64]
    errors = [error(None, both, method, n) for n in steps]
    assert slope(steps, errors) == pytest.approx(order, abs=0.25), errors


def test_crank_nicolson_is_the_trapezoidal_rule():
    h, u = 0.1, double([1.0, -0.5])
    found = imex_odeint(None, Nonlinear(lambda t, u: -u**3 + torch.cos(t)), u, times(0, 0.1, 0.2),
                        method="crank_nicolson", step_size=h)
    for n in (0, 1):
        a, b = found[n], found[n + 1]
        t0, t1 = n * h, (n + 1) * h
        left = b - a - h / 2 * (-a**3 + math.cos(t0) - b**3 + math.cos(t1))
        assert float(left.abs().max()) < 1e-15


@pytest.mark.parametrize("method", ["ark436l2sa", "ars443", "crank_nicolson", "ssp222", "sbdf3"])
def test_backwards_in_time_it_comes_to_where_it_started(method):
    part, u0 = Nonlinear(implicit_half, dims=-1), KNOWN.solution(double(0.0))
    there = imex_odeint(explicit_half, part, u0, times(0, 0.5), method=method, step_size=1 / 64)[-1]
    back = imex_odeint(explicit_half, part, there, times(0.5, 0), method=method, step_size=1 / 64)
    torch.testing.assert_close(back[-1], u0, rtol=0, atol=1e-3)


# A linear function


LINEAR = {
    "dense": Dense(torch.randn(5, 5, dtype=F64, generator=torch.Generator().manual_seed(0))
                   - 3 * torch.eye(5)),
    "diagonal": Diagonal(-torch.arange(1.0, 6.0, dtype=F64)),
    "banded": Banded(double([[1.0] * 5, [-2.0] * 5, [1.0] * 5]), (-1, 0, 1)),
    "circulant": Circulant(double([4.0, -8.0, 4.0])),
    "graph": Graph(torch.tensor([[0, 1, 2, 3, 4], [1, 2, 3, 4, 0]]), torch.ones(5, dtype=F64), 5,
                   dim=-1) + ScaledIdentity(-1.0),
}


@every_scheme
def test_a_linear_function_gives_what_its_operator_gives(scheme):
    u0 = torch.randn(3, 5, dtype=F64)
    for J in LINEAR.values():
        t = times(0, 0.5, 1)
        expected = imex_odeint(explicit_five, J, u0, t, method=scheme, step_size=0.1)
        found = imex_odeint(explicit_five, Nonlinear(lambda t, u, J: J.mv(u), J, dims=-1), u0, t,
                            method=scheme, step_size=0.1)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def explicit_five(t, u):
    return torch.sin(u.roll(1, -1) + t)


@pytest.mark.parametrize("newton", [
    Newton(), Newton(solver=Direct()), Newton(solver=GMRES()), Newton(solver=GMRES(rtol=1e-12)),
    Newton(solver=CG()), Newton(line_search=False)], ids=repr)
@pytest.mark.parametrize("dims", [None, -1, (-2, -1)])
@pytest.mark.parametrize("own", [False, True], ids=["autograd", "jacobian"])
def test_every_way_to_solve_gives_the_same(newton, dims, own):
    J, u0, t = LINEAR["banded"], torch.randn(3, 5, dtype=F64), times(0, 0.5, 1)
    expected = imex_odeint(explicit_five, J, u0, t, step_size=0.1)
    part = Nonlinear(lambda t, u: J.mv(u), dims=dims, newton=newton,
                     jacobian=(lambda t, u: J) if own else None)
    found = imex_odeint(explicit_five, part, u0, t, step_size=0.1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("jacobian", [
    lambda t, u: Diagonal(-3 * u**2), lambda t, u: Dense(torch.diag(-3 * u[0] ** 2)),
    lambda t, u: BlockDiagonal.jacobian(lambda x: -x**3, u),
    lambda t, u: MatrixFree(lambda v: -3 * u**2 * v), lambda t, u: ScaledIdentity(-1.0),
    lambda t, u: Diagonal(-3 * u**2) + Circulant(double([0.1, -0.2, 0.1]))])
@pytest.mark.filterwarnings("ignore:The jacobian of Nonlinear is off")
def test_a_jacobian_may_be_any_operator_and_an_approximation(jacobian):
    u0, t = 0.5 + torch.rand(4, dtype=F64).expand(2, 4), times(0, 1)
    expected = u0[:1] / (1 + 2 * u0[:1] ** 2).sqrt()
    part = Nonlinear(lambda t, u: -u**3, dims=-1, jacobian=jacobian)
    found = imex_odeint(None, part, u0, t, method="ark548l2sa", step_size=1 / 32)[-1]
    torch.testing.assert_close(found[:1], expected, rtol=1e-8, atol=0)


def test_float32_is_solved_to_its_rounding():
    part = Nonlinear(lambda t, u: -u**3, dims=())
    u0 = torch.linspace(0.5, 1.5, 7)
    found = imex_odeint(None, part, u0, torch.tensor([0.0, 1.0]), method="ark436l2sa",
                        step_size=1 / 32)[-1]
    torch.testing.assert_close(found, u0 / (1 + 2 * u0**2).sqrt(), rtol=1e-5, atol=0)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("newton", [Newton(), Newton(solver=GMRES())], ids=repr)
def test_inference_mode_and_empty_states(newton):
    part = Nonlinear(lambda t, u: -u**3, newton=newton)
    u0 = torch.linspace(0.5, 1.5, 7, dtype=F64)
    expected = imex_odeint(None, part, u0, times(0, 1), step_size=0.1)
    with torch.inference_mode():
        found = imex_odeint(None, part, u0.clone(), times(0, 1), step_size=0.1)
    assert torch.equal(found, expected)
    rate = torch.nn.Parameter(double(2.0))
    with torch.inference_mode():
        own = Nonlinear(lambda t, u, rate: -rate * u**3, double(1.0), newton=newton)
        assert torch.equal(imex_odeint(None, own, u0.clone(), times(0, 1), step_size=0.1), expected)
        outer = Nonlinear(lambda t, u, rate: -rate * u**3, rate, newton=newton)
        imex_odeint(None, outer, u0.clone(), times(0, 1), step_size=0.1)


class Made(torch.nn.Module):
    """A module with a parameter and a buffer."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 3, dtype=F64)
        self.register_buffer("factor", torch.ones(3, dtype=F64))

    def forward(self, t, u):
        return torch.tanh(self.layer(u)) * self.factor - u


@pytest.mark.parametrize("newton", [Newton(), Newton(solver=GMRES())], ids=repr)
def test_a_module_made_in_inference_mode(newton):
    with torch.inference_mode():
        torch.manual_seed(0)
        made, u0 = Made(), torch.ones(2, 3, dtype=F64)
        found = imex_odeint(None, Nonlinear(made, newton=newton), u0, times(0, 1), step_size=0.25)
    with torch.no_grad():
        later = imex_odeint(None, Nonlinear(made, newton=newton), torch.ones(2, 3, dtype=F64),
                            times(0, 1), step_size=0.25)
        torch.manual_seed(0)
        expected = imex_odeint(None, Nonlinear(Made(), newton=newton),
                               torch.ones(2, 3, dtype=F64), times(0, 1), step_size=0.25)
    assert torch.equal(found, expected)
    assert torch.equal(later, expected)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (0, 70), (3, 0)])
@pytest.mark.parametrize("gradient", ["discrete", "backprop"])
@pytest.mark.parametrize("options", [{"step_size": 0.25}, {"method": "ssp222"}], ids=str)
def test_empty_states_are_integrated_and_differentiated(shape, gradient, options):
    u0 = torch.zeros(shape, dtype=F64, requires_grad=True)
    u = imex_odeint(None, Nonlinear(lambda t, u: -u**3), u0, times(0, 1), gradient=gradient,
                    **options)
    u.sum().backward()
    assert u.shape == (2, *shape)
    assert u0.grad.shape == shape


@pytest.mark.parametrize("size", [3, 9, 70])
def test_an_h_that_does_not_depend_on_the_state(size):
    rate = torch.ones(size, dtype=F64, requires_grad=True)
    part = Nonlinear(lambda t, u, rate: rate * t, rate)
    u = imex_odeint(None, part, torch.zeros(size, dtype=F64), times(0, 1), step_size=0.5)[-1]
    torch.testing.assert_close(u, torch.full_like(u, 0.5))
    u.sum().backward()
    torch.testing.assert_close(rate.grad, torch.full_like(rate, 0.5))


def test_an_energy_whose_gradient_is_taken_inside():
    def downhill(t, u):
        with torch.enable_grad():
            u = u if u.requires_grad else u.requires_grad_()
            energy = (u**4 / 4).sum()
            return -torch.autograd.grad(energy, u, create_graph=True)[0]

    def ambient(t, u):
        return -torch.autograd.grad((u**4 / 4).sum(), u, create_graph=True)[0]

    u0 = torch.linspace(0.5, 1.5, 7, dtype=F64)
    expected = imex_odeint(None, Nonlinear(lambda t, u: -u**3), u0, times(0, 1), step_size=0.1)
    for fn in (downhill, ambient):
        found = imex_odeint(None, Nonlinear(fn), u0, times(0, 1), step_size=0.1)
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)


# Stiff equations


def plain_steps(f, u0, end, scheme, rtol, atol):
    """The steps of the implicit half with exact Newton and the usual controller, in NumPy."""
    A, b, d = scheme.a_implicit, scheme.b_implicit, scheme.b_implicit - scheme.b_embedded
    c, s = scheme.c_implicit, scheme.stages
    order = scheme.embedded_order + 1

    def rate(t, u):
        return f(None, torch.from_numpy(u)).numpy()

    def jacobian(u):
        return torch.autograd.functional.jacobian(lambda x: f(None, x), torch.from_numpy(u)).numpy()

    t, u, h, steps, identity = 0.0, np.array(u0), 1e-6, 0, np.eye(len(u0))
    k = np.zeros((s, len(u0)))
    k[0] = rate(t, u)
    while t < end * (1 - 1e-12):
        h = min(h, end - t)
        for i in range(1, s):
            r = u + h * A[i, :i] @ k[:i]
            gamma = h * A[i, i]
            U = r + gamma * k[i - 1]
            for _ in range(50):
                update = np.linalg.solve(identity - gamma * jacobian(U), U - r - gamma * rate(t, U))
                U = U - update
                if np.abs(update).max() <= 1e-14 * np.abs(U).max():
                    break
            k[i] = (U - r) / gamma
        assert c[-1] == pytest.approx(1.0)
        assert np.allclose(b, A[-1])
        scale = atol + rtol * np.maximum(np.abs(u), np.abs(U))
        e = np.abs(h * d @ k / scale).max()
        steps += 1
        if e <= 1.0:
            t, u = t + h, U
            k[0] = k[-1]
        h *= min(10.0, max(0.2, 0.9 * e ** (-1 / order))) if e > 0 else 10.0
    return steps


@pytest.mark.parametrize(("name", "method", "rtol", "factor"), [
    ("Robertson", "ark436l2sa", 1e-7, 1), ("Robertson", "ark548l2sa", 1e-7, 1),
    # Of the long ones fewer steps, and more of the error that the looser tolerance leaves.
    ("van der Pol", "ark436l2sa", 1e-5, 3), ("Oregonator", "ark548l2sa", 1e-5, 100)])
def test_stiff_equations_are_solved_in_the_steps_of_exact_newton(name, method, rtol, factor):
    f, u0, end, expected, allowed = STIFF[name]
    found, stats = imex_odeint(None, Nonlinear(f), double(u0), times(0, end), method=method,
                               rtol=rtol, atol=1e-5 * rtol, return_stats=True)
    allowed *= factor
    torch.testing.assert_close(found[-1], double(expected), rtol=allowed, atol=0)
    steps = stats.steps_accepted + stats.steps_rejected
    assert steps <= 1.5 * plain_steps(f, u0, end, RUNGE_KUTTA[method], rtol,
                                      1e-5 * rtol)
    assert stats.newton_iterations <= 3 * steps * RUNGE_KUTTA[method].stages


def test_systems_side_by_side_are_what_each_is_alone():
    spread = 10 ** (torch.rand(3, 3, dtype=F64, generator=torch.Generator().manual_seed(1)) - 0.5)
    u0 = double([1.0, 0.0, 0.0]).expand(3, 3)
    together = imex_odeint(None, Nonlinear(robertson, RATES * spread, dims=-1), u0, times(0, 100.0),
                           rtol=1e-8, atol=1e-13)[-1]
    for n in range(3):
        alone = imex_odeint(None, Nonlinear(robertson, RATES * spread[n]), u0[n], times(0, 100.0),
                            rtol=1e-8, atol=1e-13)[-1]
        torch.testing.assert_close(together[n], alone, rtol=1e-6, atol=0)


def test_equal_steps_where_an_explicit_solver_blows_up():
    def decay(t, u):
        return -1e6 * (u**3 - torch.cos(t) ** 3)

    u0 = torch.ones(3, dtype=F64)
    found = imex_odeint(None, Nonlinear(decay), u0, times(0, 1), step_size=0.1)[-1]
    torch.testing.assert_close(found, torch.cos(double(1.0)).expand(3), rtol=0, atol=1e-4)
    with pytest.raises(NonFiniteStateError):
        imex_odeint(decay, None, u0, times(0, 1), step_size=0.1)


@pytest.mark.parametrize(("n", "width", "ways"), [(32, 0.05, 3), (128, 0.0125, 1)])
def test_allen_cahn_on_a_grid_with_everything_implicit(n, width, ways):
    x = torch.arange(n, dtype=F64) / n
    u0 = 0.9 * torch.sin(2 * math.pi * x).outer(torch.cos(2 * math.pi * x)) + 0.1
    laplacian = Circulant((width * n) ** 2 * double([[0, 1, 0], [1, -4, 1], [0, 1, 0]]),
                          dim=(-2, -1))

    def rate(t, u):
        return laplacian.mv(u) + u - u**3

    def derivative(t, u):
        return laplacian + Diagonal(1 - 3 * u**2)

    t = times(0, 2)
    truth = imex_odeint(lambda t, u: u - u**3, laplacian, u0, t, method="ark548l2sa",
                        step_size=1 / 100)[-1]
    for jacobian in (lambda t, u: laplacian - ScaledIdentity(1.0), derivative, None)[:ways]:
        found, stats = imex_odeint(None, Nonlinear(rate, jacobian=jacobian), u0, t, rtol=1e-6,
                                   return_stats=True)
        torch.testing.assert_close(found[-1], truth, rtol=0, atol=2e-6)
        assert stats.steps_accepted < 60
