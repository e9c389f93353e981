"""Does an implicit part with a forcing and a factor integrate as it should?"""

import math

import numpy as np
import pytest
import torch
from affine_cases import ALL, DENSE, Manufactured, every_gradient, every_method, random
from cases import double, slope, times
from scipy.integrate import solve_ivp
from torch import nn

from pyg_sinode import imex_odeint
from pyg_sinode.operators import Dense, ScaledIdentity
from pyg_sinode.schemes import MULTISTEP, RUNGE_KUTTA
from pyg_sinode.terms import Affine

every_scheme = pytest.mark.parametrize("scheme", ALL.values(), ids=ALL)
every_runge_kutta = pytest.mark.parametrize("scheme", RUNGE_KUTTA.values(), ids=RUNGE_KUTTA)
both_directions = pytest.mark.parametrize(
    ("start", "end"), [(0.0, 1.0), (1.0, 0.0)], ids=["onwards", "backwards"])


TENTHS = torch.linspace(0, 10, 101, dtype=torch.float64)


def damping_at_infinity(scheme):
    """What is left of the stiffest component after a step: 0 for an L-stable implicit part."""
    A, b, z = scheme.a_implicit, scheme.b_implicit, -1e7
    return abs(1 + z * b @ np.linalg.solve(np.eye(len(b)) - z * A, np.ones(len(b))))


# It falls with 1/z, up to 1e-6 here; rounding amplified by z leaves about 1e-8.
L_STABLE = {name: s for name, s in RUNGE_KUTTA.items() if damping_at_infinity(s) < 1e-5}


def test_all_schemes_but_two_are_l_stable():
    assert set(RUNGE_KUTTA) - set(L_STABLE) == {"ars122", "crank_nicolson"}


def off_cos(method, explicit, implicit, **kwargs):
    """The errors of u' = 1e6 (cos t - u), u(0) = 1 at all outputs; the solution is cos t + 1e-6."""
    result = imex_odeint(explicit, implicit, double([1.0]), TENTHS, method=method, step_size=0.1,
                         **kwargs)
    return (result[:, 0] - torch.cos(TENTHS)).abs()


def stiff_forcing(t):
    return 1e6 * torch.cos(t)


@pytest.mark.parametrize("method", L_STABLE)
def test_a_stiff_forcing_in_the_implicit_part_is_followed_by_every_l_stable_scheme(method):
    errors = off_cos(method, None, Affine(ScaledIdentity(-1e6), stiff_forcing))
    assert float(errors.max()) < 1e-2


@pytest.mark.parametrize("method", L_STABLE)
def test_so_is_a_stiff_relaxation_rate_that_is_a_scale(method):
    part = Affine(ScaledIdentity(-1.0), stiff_forcing, scale=lambda t: 1e6)
    torch.testing.assert_close(off_cos(method, None, part),
                               off_cos(method, None, Affine(ScaledIdentity(-1e6), stiff_forcing)),
                               rtol=0.0, atol=1e-9)


@pytest.mark.parametrize(("method", "expected"), [
    ("ssp222", 65_000.0), ("ark324l2sa", 1_300.0), ("ark548l2sa", 5.0), ("ars222", 0.03)])
def test_the_same_forcing_in_the_explicit_term_ruins_the_schemes(method, expected):
    errors = off_cos(method, lambda t, u: stiff_forcing(t).expand(1), ScaledIdentity(-1e6))
    assert float(errors[-1]) == pytest.approx(expected, rel=0.2)


@every_scheme
@pytest.mark.parametrize(("explicit", "start", "end"), [(True, 0, 1), (True, 1, 0), (False, 0, 1)],
                         ids=["onwards", "backwards", "without_an_explicit_term"])
def test_every_scheme_reaches_its_order(scheme, explicit, start, end):
    steps = [40, 80, 160] if scheme.name in MULTISTEP else [10, 20, 40]
    errors = [Manufactured(explicit).error(scheme, n, start, end) for n in steps]
    assert slope(steps, errors) == pytest.approx(scheme.order, abs=0.25), errors


@every_method
def test_float32_is_accurate_to_its_rounding(method):
    problem = Manufactured(dtype=torch.float32)
    assert problem.run(method, times(0, 1), step_size=0.1).dtype == torch.float32
    # Each of at most 8 stages in each step adds a few roundings of numbers of order one.
    slack = 8 * torch.finfo(torch.float32).eps * 24 * 8
    assert problem.error(method, 24) == pytest.approx(Manufactured().error(method, 24), abs=slack)


def by_scipy(scale, forcing, matrix, u0, t):
    """The solution of u' = a(t) J u + f(t) at output times, to about 1e-12."""
    J, t = matrix.numpy(), t.numpy()

    def rate(s, u):
        return scale(s) * (J @ u) + forcing(s)

    found = solve_ivp(rate, (t[0], t[-1]), u0.numpy(), "DOP853", t, rtol=1e-13, atol=1e-13)
    return torch.from_numpy(found.y.T)


def a_of(t):
    return 1 + math.sin(3 * t) / 2


def f_of(t):
    return np.array([math.cos(t), 1.0, -t])


SCALES = {
    "number": lambda t: a_of(float(t)),
    "tensor": lambda t: 1 + torch.sin(3 * t) / 2,
    "numpy": lambda t: np.float64(a_of(float(t))),
}


@pytest.mark.parametrize("kind", SCALES)
@pytest.mark.parametrize("t", [times(0, 0.5, 2), times(2, 1, 0.5)], ids=["onwards", "backwards"])
def test_the_result_is_that_of_scipy_whatever_kind_of_number_the_scale_gives(kind, t):
    u0 = double([1.0, -0.5, 2.0])
    part = Affine(Dense(Manufactured.J), lambda t: torch.from_numpy(f_of(float(t))),
                  scale=SCALES[kind])
    result = imex_odeint(None, part, u0, t, method="ark548l2sa", step_size=0.025)
    torch.testing.assert_close(result, by_scipy(a_of, f_of, Manufactured.J, u0, t), rtol=0.0,
                               atol=3e-9)


@every_method
@pytest.mark.parametrize("value", [2.0, 2, double(2.0)], ids=["float", "int", "tensor"])
def test_a_constant_scale_is_a_multiple_of_the_operator_and_one_set_up(method, value):
    u0, t = double([1.0, -0.5, 2.0]), times(0, 0.5, 1)

    def run(part):
        return imex_odeint(lambda t, u: torch.sin(u), part, u0, t, method=method, step_size=0.1,
                           return_stats=True)

    (found, stats), (expected, plain) = (
        run(Affine(Dense(Manufactured.J), scale=lambda t: value)), run(2.0 * Dense(Manufactured.J)))
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    assert stats.factorizations == plain.factorizations == (2 if method in MULTISTEP else 1)
    assert stats.linear_solves == plain.linear_solves


@every_method
def test_a_part_without_forcing_and_scale_is_its_operator_to_the_last_bit(method):
    u0, t = double([1.0, -0.5, 2.0]), times(0, 0.5, 1)
    results = [imex_odeint(lambda t, u: torch.sin(u), part, u0, t, method=method, step_size=0.1)
               for part in (Affine(Dense(Manufactured.J)), Dense(Manufactured.J))]
    assert torch.equal(*results)


def test_every_other_value_of_the_scale_is_a_set_up_of_its_own():
    part = Affine(Dense(Manufactured.J), scale=lambda t: 1 + t)
    _, stats = imex_odeint(None, part, double([1.0, 2.0, 3.0]), times(0, 1), method="imex_euler",
                           step_size=0.1, return_stats=True)
    assert (stats.factorizations, stats.linear_solves) == (10, 10)


def test_values_that_come_again_share_their_set_up():
    part = Affine(Dense(Manufactured.J), scale=lambda t: 1.0 if t < 0.55 else 2.0)
    _, stats = imex_odeint(None, part, double([1.0, 2.0, 3.0]), times(0, 1), method="imex_euler",
                           step_size=0.1, return_stats=True)
    assert (stats.factorizations, stats.linear_solves) == (2, 10)


@every_gradient
def test_a_scale_of_zero_at_one_stage_needs_no_solve_there(gradient):
    part = Affine(Dense(Manufactured.J), scale=lambda t: 0.5 - float(t))
    result, stats = imex_odeint(None, part, double([1.0, 2.0, 3.0]), times(0, 0.5, 1),
                                method="imex_euler", step_size=0.25, return_stats=True,
                                gradient=gradient)
    assert (stats.steps_accepted, stats.linear_solves, stats.factorizations) == (4, 3, 3)
    M, identity, u = Manufactured.J, torch.eye(3, dtype=torch.float64), double([1.0, 2.0, 3.0])
    for a in (0.25, 0.0, -0.25, -0.5):
        u = torch.linalg.solve(identity - 0.25 * a * M, u)
    torch.testing.assert_close(result[-1], u, rtol=1e-13, atol=0.0)


@every_scheme
def test_a_scale_that_is_zero_throughout_leaves_the_forcing_alone(scheme):
    part = Affine(Dense(Manufactured.J), lambda t: torch.cos(t).expand(3), scale=lambda t: 0.0)
    u0 = double([1.0, 2.0, 3.0])
    result, stats = imex_odeint(None, part, u0, times(0, 1), method=scheme, step_size=0.01,
                                return_stats=True)
    assert (stats.linear_solves, stats.factorizations) == (0, 0)
    expected = u0 + math.sin(1)
    torch.testing.assert_close(result[-1], expected, rtol=0.0,
                               atol=1e-2 if scheme.order == 1 else 1e-4)


class Falling(nn.Module):
    """A factor that passes through zero while its derivative does not."""

    def __init__(self, weight=0.5):
        super().__init__()
        self.weight = nn.Parameter(double(weight))

    def forward(self, t):
        return self.weight - t


@every_method
def test_the_gradient_of_a_scale_that_is_zero_at_a_stage_is_not_lost(method):
    # Its value at t = 0.5 is 0, and the derivative of the result by it is not.
    found = []
    for gradient in ("discrete", "backprop"):
        scale, matrix = Falling(), Manufactured.J.clone().requires_grad_()
        result = imex_odeint(None, Affine(Dense(matrix), scale=scale), double([1.0, 2.0, 3.0]),
                             times(0, 0.5, 1), method=method, step_size=0.25, gradient=gradient)
        found.append([result, *torch.autograd.grad(result[-1].sum(), [scale.weight, matrix])])
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)

    def at(weight):
        part = Affine(Dense(Manufactured.J), scale=Falling(weight))
        with torch.no_grad():
            return float(imex_odeint(None, part, double([1.0, 2.0, 3.0]), times(0, 0.5, 1),
                                     method=method, step_size=0.25)[-1].sum())

    difference = (at(0.5 + 1e-5) - at(0.5 - 1e-5)) / 2e-5
    assert float(found[0][1]) == pytest.approx(difference, rel=1e-7)


def test_a_step_by_hand_takes_the_part_at_the_row_sums_of_the_implicit_matrix():
    # ssp222, whose two parts have different row sums: G at 0 and h, the part at gamma h and so on.
    gamma, h, u0 = 1 - 1 / math.sqrt(2), 0.2, np.array([1.0, -0.5, 2.0])
    J, identity = Manufactured.J.numpy(), np.eye(3)

    def stage(t, r):
        U = np.linalg.solve(identity - h * gamma * a_of(t) * J, r + h * gamma * f_of(t))
        return U, a_of(t) * J @ U + f_of(t)

    U1, k1 = stage(gamma * h, u0)
    g1 = np.sin(U1)
    U2, k2 = stage((1 - gamma) * h, u0 + h * g1 + h * (1 - 2 * gamma) * k1)
    g2 = np.sin(U2) + h
    part = Affine(Dense(Manufactured.J), lambda t: torch.from_numpy(f_of(float(t))),
                  scale=SCALES["number"])
    result = imex_odeint(lambda t, u: torch.sin(u) + t, part, torch.from_numpy(u0), times(0, h),
                         method="ssp222", step_size=h)
    np.testing.assert_allclose(result[1].numpy(), u0 + h / 2 * (g1 + g2 + k1 + k2), rtol=1e-13)


@every_method
@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 1), (2, 3)], ids=str)
def test_a_forcing_broadcasts_to_the_state(method, shape):
    value = torch.linspace(-1, 1, math.prod(shape), dtype=torch.float64).view(shape)
    u0 = random(2, 3)
    forcings = (lambda t: torch.cos(t) * value), (lambda t: torch.cos(t) * value.expand(2, 3))
    results = [imex_odeint(None, Affine(Dense(Manufactured.J), f), u0, times(0, 1), method=method,
                           step_size=0.1) for f in forcings]
    torch.testing.assert_close(*results, rtol=1e-13, atol=1e-13)


@every_method
def test_a_tensor_is_a_forcing_that_does_not_change(method):
    value, u0 = random(3), random(2, 3)
    results = [imex_odeint(None, Affine(Dense(Manufactured.J), f), u0, times(0, 1), method=method,
                           step_size=0.1) for f in (value, lambda t: value)]
    assert torch.equal(*results)


def test_a_constant_forcing_leads_to_its_equilibrium():
    value = double([1.0, -2.0, 0.5])
    M = double([[-2.0, 0.1, 0.0], [0.3, -1.0, 0.2], [0.0, 0.1, -3.0]])
    result = imex_odeint(None, Affine(Dense(M), value), double([0.0, 0.0, 0.0]), times(0, 100),
                         method="ars222", step_size=1.0)
    torch.testing.assert_close(result[-1], -torch.linalg.solve(M, value), rtol=1e-12, atol=1e-12)


def test_time_is_a_tensor_like_the_state_without_dimensions():
    seen = []

    def f(t):
        seen.append((t.shape, t.dtype, t.requires_grad))
        return torch.cos(t)

    def scale(t):
        seen.append((t.shape, t.dtype, t.requires_grad))
        return 1.0

    u0 = torch.ones(2, requires_grad=True)
    imex_odeint(None, Affine(ScaledIdentity(-1.0), f, scale=scale), u0, times(0, 1),
                step_size=0.5).sum().backward()
    assert set(seen) == {(torch.Size(), torch.float32, False)}


ADAPTIVE = [name for name, s in RUNGE_KUTTA.items() if s.embedded_order > 0]


@pytest.mark.parametrize("method", ADAPTIVE)
@both_directions
def test_adaptive_steps_follow_a_part_that_depends_on_time(method, start, end):
    problem, t = Manufactured(), times(start, (start + end) / 2, end)
    result, stats = problem.run(method, t, rtol=1e-5, atol=1e-5, return_stats=True)
    torch.testing.assert_close(result, problem.solution(t), rtol=0.0, atol=3e-4)
    assert stats.steps_accepted > 3


def test_adaptive_steps_follow_a_stiff_forcing():
    part = Affine(ScaledIdentity(-1e6), stiff_forcing)
    result, stats = imex_odeint(None, part, double([1.0]), TENTHS[::10], rtol=1e-5, atol=1e-5,
                                return_stats=True)
    torch.testing.assert_close(result[:, 0], torch.cos(TENTHS[::10]), rtol=0.0, atol=1e-3)
    assert stats.steps_accepted < 500


@pytest.mark.parametrize("method", DENSE)
def test_dense_output_of_a_part_that_depends_on_time_converges(method):
    problem, t, errors = Manufactured(), times(0, 0.123, 0.47, 0.811, 1), []
    for n in (10, 20, 40):
        result = problem.run(method, t, step_size=1 / n, dense=True)
        errors.append(float((result - problem.solution(t)).abs().max()))
    # Where the outputs fall into their steps differs from n to n.
    assert slope([10, 20, 40], errors) > min(RUNGE_KUTTA[method].order, 3) - 0.6, errors
