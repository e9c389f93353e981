"""Does an implicit part that depends on time do what it says, and are its gradients complete?"""

import copy
import functools
import math

import numpy as np
import pytest
import torch
from cases import KnownSolution, double, graph, slope, symmetric_graph, times
from scipy.integrate import solve_ivp
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from pyg_sinode import imex_odeint, operators, solvers, terms
from pyg_sinode.operators import Circulant, Dense, Diagonal, ScaledIdentity
from pyg_sinode.operators.checks import foreign_leaf
from pyg_sinode.schemes import MULTISTEP, RUNGE_KUTTA
from pyg_sinode.terms import Affine

ALL = {**RUNGE_KUTTA, **MULTISTEP}
every_scheme = pytest.mark.parametrize("scheme", ALL.values(), ids=ALL)
every_runge_kutta = pytest.mark.parametrize("scheme", RUNGE_KUTTA.values(), ids=RUNGE_KUTTA)
every_method = pytest.mark.parametrize("method", ALL)
every_gradient = pytest.mark.parametrize("gradient", ["discrete", "backprop"])
both_directions = pytest.mark.parametrize(
    ("start", "end"), [(0.0, 1.0), (1.0, 0.0)], ids=["onwards", "backwards"])


def random(*shape):
    return torch.randn(shape, dtype=torch.float64)


# A stiff forcing

TENTHS = torch.linspace(0, 10, 101, dtype=torch.float64)


def damping_at_infinity(scheme):
    """What is left of the stiffest component after a step: 0 for an L-stable implicit part."""
    A, b, z = scheme.a_implicit, scheme.b_implicit, -1e7
    return abs(1 + z * b @ np.linalg.solve(np.eye(len(b)) - z * A, np.ones(len(b))))


# It falls with 1/z, up to 1e-6 here; rounding amplified by z leaves about 1e-8.
L_STABLE = {name: s for name, s in RUNGE_KUTTA.items() if damping_at_infinity(s) < 1e-5}


def test_all_schemes_but_ars122_are_l_stable():
    assert set(RUNGE_KUTTA) - set(L_STABLE) == {"ars122"}


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


# Order


class Manufactured(KnownSolution):
    """u' = G(t, u) + a(t) J u + f(t), coupled and not stiff, with a solution that is known.

    Args:
        explicit (bool): Whether there is a G, nonlinear and time-dependent.
    """

    J = double([[-1.0, 0.5, 0.3], [0.4, -0.5, -0.8], [0.2, 0.9, -1.5]])

    def __init__(self, explicit=True, dtype=torch.float64):
        self.explicit, self.matrix = explicit, self.J.to(dtype)

    def scale(self, t):
        return 1 + torch.sin(2 * t + 0.3) / 2

    def forcing(self, t):
        value = self.rate(t) - self.scale(t) * (self.solution(t) @ self.matrix.T)
        return value - self.coupling(t, self.solution(t)) if self.explicit else value

    def run(self, method, t, **kwargs):
        part = Affine(Dense(self.matrix), self.forcing, scale=self.scale)
        t = t.to(self.matrix.dtype)
        return imex_odeint(self.coupling if self.explicit else None, part, self.solution(t[0]), t,
                           method=method, **kwargs)

    def error(self, method, steps, start=0.0, end=1.0):
        result = self.run(method, times(start, end), step_size=abs(end - start) / steps)
        return float((result[-1] - self.solution(double(end))).abs().max())


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


# The factor


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


# The forcing


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


# Adaptive steps and dense output

ADAPTIVE = [name for name, s in RUNGE_KUTTA.items() if s.embedded_order > 0]
DENSE = [name for name, s in RUNGE_KUTTA.items() if s.interpolant is not None]


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


# Gradients

TIMES = times(0.3, 0.5, 0.7, 0.9)


class Forcing(nn.Module):
    def __init__(self):
        super().__init__()
        self.amplitude = nn.Parameter(double([0.5, -1.0, 0.8]))
        self.frequency = nn.Parameter(double(1.3))

    def forward(self, t):
        return self.amplitude * torch.sin(self.frequency * t)


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(double(0.4))

    def forward(self, t):
        return 1 + torch.sin(self.weight * t)


class Rate(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(double([0.5, 1.0, 1.5]))

    def forward(self, t, u):
        return torch.sin(self.weight * u.roll(1, -1) + t)


KINDS = ["module", "leaf", "nonleaf", "broadcast", "scale", "operator", "everything", "same_tensor"]


def setting(kind):
    """The implicit part, and the tensors that get a gradient through it."""
    torch.manual_seed(7)
    matrix = 0.4 * random(3, 3) - torch.eye(3, dtype=torch.float64)
    vector = random(3).requires_grad_()
    if kind == "module":
        f = Forcing()
        return Affine(Dense(matrix), f), list(f.parameters())
    if kind == "leaf":
        return Affine(Dense(matrix), vector), [vector]
    if kind == "nonleaf":
        return Affine(Dense(matrix), vector.exp()), [vector]
    if kind == "broadcast":
        number = double(0.7).requires_grad_()
        return Affine(Dense(matrix), number), [number]
    if kind == "scale":
        a = Scale()
        return Affine(Dense(matrix), scale=a), list(a.parameters())
    if kind == "operator":
        matrix.requires_grad_()
        part = Affine(Dense(matrix), lambda t: torch.cos(t), scale=lambda t: 1 + t)
        return part, [matrix]
    if kind == "same_tensor":
        return Affine(Diagonal(-vector.exp()), vector), [vector]
    f, a = Forcing(), Scale()
    matrix.requires_grad_()
    return Affine(Dense(matrix), f, scale=a), [matrix, *f.parameters(), *a.parameters()]


def gradients(kind, method, explicit=True, t=TIMES, **given):
    part, wanted = setting(kind)
    rate, u0 = Rate() if explicit else None, random(2, 3).requires_grad_()
    wanted = [u0, *(rate.parameters() if explicit else ()), *wanted]
    weights = random(len(t), 2, 3)
    steps = {"atol": 1e-4} if "rtol" in given else {"step_size": 0.1}
    result = imex_odeint(rate, part, u0, t, method=method, **steps, **given)
    return result.detach(), torch.autograd.grad((weights * result).sum(), wanted)


def assert_equal(found, expected, tolerance):
    """Each tensor agrees relative to the largest entry of the expected one."""
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        size = float(b.abs().max())
        assert a.shape == b.shape
        assert size > 1e-3, i
        assert float((a - b).abs().max()) / size <= tolerance, i


@pytest.mark.parametrize(("method", "kind", "explicit"), [
    *((method, "everything", explicit) for method in ALL for explicit in (True, False)),
    *((method, kind, True) for method in ("ssp222", "ark324l2sa", "cnab2")
      for kind in KINDS if kind != "everything")])
def test_the_discrete_gradient_is_that_of_backprop(method, kind, explicit):
    found = gradients(kind, method, explicit)
    expected = gradients(kind, method, explicit, gradient="backprop")
    assert torch.equal(found[0], expected[0])
    assert_equal(found[1], expected[1], 1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["ark324l2sa", "ars122"])
def test_it_is_so_against_time_and_with_adaptive_steps(kind, method):
    for kwargs in ({"t": TIMES.flip(0)}, {"rtol": 1e-3}, {"t": TIMES.flip(0), "rtol": 1e-3}):
        found = gradients(kind, method, **kwargs)
        expected = gradients(kind, method, gradient="backprop", **kwargs)
        assert_equal(found[1], expected[1], 1e-11)


@pytest.mark.parametrize("method", DENSE)
def test_it_is_so_with_dense_output(method):
    t = times(0.3, 0.34, 0.5, 0.77, 0.9)
    found, expected = (gradients("everything", method, t=t, dense=True, gradient=g)[1]
                       for g in ("discrete", "backprop"))
    assert_equal(found, expected, 1e-11)


@every_method
def test_checkpoints_give_the_gradient_to_the_last_bit(method):
    expected = gradients("everything", method)[1]
    for checkpoints in (1, 2, "auto"):
        found = gradients("everything", method, checkpoints=checkpoints)[1]
        assert all(map(torch.equal, found, expected)), checkpoints


class Layer(nn.Module):
    """A module that integrates an affine part of its own."""

    def __init__(self, method="ars222", gradient="discrete"):
        super().__init__()
        self.f, self.scale, self.method, self.gradient = Forcing(), Scale(), method, gradient
        self.matrix = nn.Parameter(Manufactured.J.clone())

    def forward(self, u0):
        part = Affine(Dense(self.matrix), self.f, scale=self.scale)
        return imex_odeint(lambda t, u: torch.sin(u.roll(1, -1)), part, u0, TIMES[:3],
                           method=self.method, step_size=0.1, gradient=self.gradient)


def of_its_tensors(layer):
    """The layer as a function of its state and of everything in it, and values for these."""
    names = [name for name, _ in layer.named_parameters()]

    def run(u0, *tensors):
        return torch.func.functional_call(layer, dict(zip(names, tensors, strict=True)), (u0,))

    values = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    return run, [double([0.3, -0.8, 1.1]).requires_grad_(), *values]


@every_method
def test_gradcheck_passes_for_everything_at_once(method):
    assert gradcheck(*of_its_tensors(Layer(method)), fast_mode=method != "ars222")


@pytest.mark.parametrize("method", ["ars222", "sbdf2", "cnab2"])
def test_second_derivatives_of_backprop_pass_gradgradcheck(method):
    assert gradgradcheck(*of_its_tensors(Layer(method, "backprop")), fast_mode=True)


def test_gradients_reach_the_tensors_that_functional_call_puts_in_place():
    run, (u0, *values) = of_its_tensors(Layer())
    leaves = [v.detach().clone().requires_grad_() for v in values]
    found = torch.autograd.grad(run(u0, *(x.sin() for x in leaves)).square().sum(), leaves)
    run, _ = of_its_tensors(Layer(gradient="backprop"))
    expected = torch.autograd.grad(run(u0, *(x.sin() for x in leaves)).square().sum(), leaves)
    assert_equal(found, expected, 1e-12)


@every_gradient
def test_frozen_tensors_get_no_gradient_and_leave_the_others_as_they_are(gradient):
    whole = Layer(gradient=gradient)
    whole(double([0.3, -0.8, 1.1])).square().sum().backward()
    for name, _ in whole.named_parameters():
        layer = Layer(gradient=gradient)
        for other, p in layer.named_parameters():
            p.requires_grad_(other == name)
        layer(double([0.3, -0.8, 1.1])).square().sum().backward()
        for other, p in layer.named_parameters():
            if other == name:
                torch.testing.assert_close(p.grad, whole.get_parameter(name).grad, rtol=1e-12,
                                           atol=1e-14)
            else:
                assert p.grad is None


@every_gradient
def test_a_parameter_that_is_not_used_gets_none_and_the_others_what_is_theirs(gradient):
    class Spare(Forcing):
        def __init__(self):
            super().__init__()
            self.spare = nn.Parameter(double(1.0))

    f, u0 = Spare(), double([1.0, 2.0, 3.0])
    imex_odeint(None, Affine(ScaledIdentity(-1.0), f), u0, TIMES, step_size=0.1,
                gradient=gradient).sum().backward()
    assert f.spare.grad is None
    assert f.amplitude.grad is not None


def test_a_module_that_uses_none_of_its_parameters_gets_none():
    class Idle(Forcing):
        def forward(self, t):
            return t.new_ones(3)

    f, u0 = Idle(), double([1.0, 2.0, 3.0]).requires_grad_()
    imex_odeint(None, Affine(ScaledIdentity(-1.0), f), u0, TIMES, step_size=0.1).sum().backward()
    assert f.amplitude.grad is None
    assert u0.grad is not None


def test_a_module_that_is_both_forcing_and_scale_gets_the_sum():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(double(0.6))

        def forward(self, t):
            return self.weight * torch.cos(t)

    found = []
    for gradient in ("discrete", "backprop"):
        both = Both()
        result = imex_odeint(None, Affine(Dense(Manufactured.J), both, scale=both),
                             double([1.0, 2.0, 3.0]), TIMES, step_size=0.1, gradient=gradient)
        found.append(torch.autograd.grad(result.square().sum(), [both.weight]))
    assert_equal(*found, 1e-12)


@every_method
def test_gradients_in_float32_are_those_of_float64_to_rounding(method):
    layers = Layer(method), Layer(method).float()
    for layer in layers:
        u0 = layer.matrix.new_tensor([0.3, -0.8, 1.1])
        result = layer(u0)
        assert result.dtype == u0.dtype
        result.square().sum().backward()
    for low, high in zip(layers[1].parameters(), layers[0].parameters(), strict=True):
        torch.testing.assert_close(low.grad.double(), high.grad, rtol=1e-4, atol=1e-4)


def test_the_result_is_the_same_with_and_without_gradients():
    u0 = double([0.3, -0.8, 1.1])
    expected = Layer()(u0)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            torch.testing.assert_close(Layer()(u0), expected, rtol=1e-13, atol=1e-14)
    for layer in (Layer(gradient="backprop"), Layer().requires_grad_(False)):
        torch.testing.assert_close(layer(u0), expected, rtol=1e-13, atol=1e-14)


# The parameters in force


@pytest.mark.parametrize("which", ["f", "scale"])
@pytest.mark.parametrize("method", ["ark324l2sa", "sbdf2"])
def test_a_weight_swapped_between_the_passes_changes_nothing(which, method):
    layers, u0 = (Layer(method), Layer(method)), random(2, 3)
    losses = [layer(u0).square().sum() for layer in layers]
    name = {"f": "amplitude", "scale": "weight"}[which]
    module = getattr(layers[0], which)
    old = getattr(module, name)
    new = nn.Parameter(torch.full_like(old, 7.0))
    setattr(module, name, new)
    for loss in losses:
        loss.backward()
    assert torch.equal(old.grad, getattr(getattr(layers[1], which), name).grad)
    assert new.grad is None
    assert getattr(module, name) is new
    assert torch.equal(layers[0].matrix.grad, layers[1].matrix.grad)


@pytest.mark.parametrize("name", ["f.amplitude", "f.frequency", "scale.weight", "matrix"])
def test_a_change_in_place_between_the_passes_is_an_error(name):
    layer = Layer()
    loss = layer(random(2, 3)).sum()
    with torch.no_grad():
        layer.get_parameter(name).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_so_is_one_of_a_tensor_that_is_the_forcing():
    f = double([1.0, 2.0, 3.0]).requires_grad_()
    loss = imex_odeint(None, Affine(ScaledIdentity(-1.0), f), random(3), TIMES,
                       step_size=0.1).sum()
    with torch.no_grad():
        f.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# A tensor that nobody named

LEAF = double([1.0, -0.7, 0.3])


class Closure(nn.Module):
    """A module with a parameter, which also uses another tensor."""

    def __init__(self, use):
        super().__init__()
        self.weight, self.use = nn.Parameter(double(1.0)), [use]

    def forward(self, t):
        return self.weight * self.use[0]


def unnamed(kind):
    leaf = LEAF.clone().requires_grad_()
    made = leaf.exp()
    number = double(0.5).requires_grad_()
    linear = nn.Linear(1, 3).double()
    return {
        "leaf": lambda t: leaf * t, "leaf_itself": lambda t: leaf,
        "nonleaf": lambda t: made, "method": lambda t: linear(t.view(1)),
        "module": Closure(leaf), "scale_leaf": lambda t: number * t,
        "scale_itself": lambda t: number, "scale_module": Closure(number)}[kind]


def part_with(value, what):
    return Affine(ScaledIdentity(-1.0), value) if what == "forcing f" else Affine(
        ScaledIdentity(-1.0), scale=value)


UNNAMED = {"leaf": ("forcing f", r"\(3,\)"), "leaf_itself": ("forcing f", r"\(3,\)"),
           "nonleaf": ("forcing f", r"\(3,\)"), "method": ("forcing f", r"\(3(, 1)?,?\)"),
           "module": ("forcing f", r"\(3,\)"), "scale_leaf": ("scale", r"\(\)"),
           "scale_itself": ("scale", r"\(\)"), "scale_module": ("scale", r"\(\)")}
MESSAGE = ("Expected the {} to use only its own parameters .got another tensor of shape {} that "
           r"requires a gradient, which would be lost.; make it a torch\.nn\.Module")


@pytest.mark.parametrize("kind", UNNAMED)
@pytest.mark.parametrize("requires_grad", [True, False], ids=["with_gradient", "nothing_else"])
@every_gradient
def test_a_tensor_that_nobody_named_is_refused_before_any_work(kind, requires_grad, gradient):
    def fails(t, u):
        raise AssertionError

    what, shape = UNNAMED[kind]
    u0 = double([1.0, 2.0, 3.0]).requires_grad_(requires_grad)
    with pytest.raises(ValueError, match=MESSAGE.format(what, shape)):
        imex_odeint(fails, part_with(unnamed(kind), what), u0, TIMES, step_size=0.1,
                    gradient=gradient)


@pytest.mark.parametrize("kind", UNNAMED)
@pytest.mark.parametrize("method", ["ars222", "ark324l2sa", "cnab2"])
def test_a_tensor_used_only_later_is_refused_in_the_backward_pass(kind, method):
    what, shape = UNNAMED[kind]
    early, late = LEAF if what == "forcing f" else double(1.0), unnamed(kind)

    class Later(nn.Module):
        def forward(self, t):
            return late(t) if t > 0.6 else early

    for value in (Later(), lambda t: late(t) if t > 0.6 else early):
        u0 = double([1.0, 2.0, 3.0]).requires_grad_()
        result = imex_odeint(None, part_with(value, what), u0, TIMES, step_size=0.1, method=method)
        with pytest.raises(ValueError, match=MESSAGE.format(what, shape)):
            result.sum().backward()
        assert u0.grad is None


def test_a_frozen_tensor_need_not_be_named():
    u0 = double([1.0, 2.0, 3.0]).requires_grad_()
    part = Affine(ScaledIdentity(-1.0), lambda t: LEAF * t, scale=lambda t: LEAF[0])
    imex_odeint(None, part, u0, TIMES, step_size=0.01).sum().backward()
    torch.testing.assert_close(u0.grad, 1 + torch.exp(0.3 - TIMES[1:]).sum().expand(3), rtol=1e-5,
                               atol=0.0)


def test_foreign_leaf_finds_the_leaf_that_is_not_among_the_named():
    a, b, c = (double([1.0]).requires_grad_() for _ in range(3))
    assert foreign_leaf(a, [a]) is None
    assert foreign_leaf(a, [b]) is a
    assert foreign_leaf(a.exp(), [a]) is None
    assert foreign_leaf(a.exp() * b, [a]) is b
    assert foreign_leaf((a * b + a.exp()) * c, [a, b, c]) is None
    assert foreign_leaf((a * b + a.exp()) * c, [a, b]) is c
    assert foreign_leaf(a.detach(), []) is None
    assert foreign_leaf((a * b).detach() * c, [c]) is None
    with torch.no_grad():
        assert foreign_leaf(a * b, []) is None


# What is refused

META = torch.ones(3, dtype=torch.float64, device="meta")
I3 = ScaledIdentity(-1.0)


def affine(f=None, scale=None, operator=I3):
    return lambda: Affine(operator, f, scale=scale)


NO_GOOD = {
    "operator_tensor": (affine(operator=Manufactured.J), TypeError,
                        r"as a LinearOperator \(got Tensor\); wrap a matrix with operators.Dense"),
    "operator_affine": (affine(operator=Affine(I3)), TypeError, r"\(got Affine\)"),
    "f_number": (affine(1.0), TypeError, r"a module or a tensor \(got float\)"),
    "f_integer_tensor": (affine(torch.ones(3, dtype=torch.int64)), TypeError,
                         "the forcing f of a real floating dtype .got torch.int64"),
    "f_complex_tensor": (affine(torch.ones(3, dtype=torch.complex128)), TypeError,
                         "the forcing f of a real floating dtype"),
    "scale_number": (affine(scale=2.0), TypeError,
                     r"scale as a function .* \(got float\); multiply the operator by a constant"),
    "scale_tensor": (affine(scale=double(2.0)), TypeError, r"scale .* \(got Tensor\)"),
}


@pytest.mark.parametrize(("make", "error", "message"), NO_GOOD.values(), ids=NO_GOOD)
def test_what_is_no_affine_part_is_refused_when_it_is_made(make, error, message):
    with pytest.raises(error, match=message):
        make()


REFUSED = {
    "operator_size": (affine(operator=Dense(torch.eye(2).double())), ValueError,
                      "Expected a state of size 2 along"),
    "operator_nan": (affine(operator=Diagonal(LEAF * math.nan)), ValueError,
                     "Expected finite tensors in Diagonal"),
    "f_none": (affine(lambda t: None), TypeError, r"return a tensor \(got NoneType at time 0\.3\)"),
    "f_float": (affine(lambda t: 1.0), TypeError, r"return a tensor \(got float at time 0\.3\)"),
    "f_float32": (affine(lambda t: torch.ones(3)), ValueError,
                  r"f in the dtype .* torch.float64 on cpu \(got torch.float32 on cpu\)"),
    "f_meta": (affine(lambda t: META), ValueError, r"on cpu \(got torch.float64 on meta\)"),
    "f_shape": (affine(lambda t: LEAF[:2]), ValueError, r"broadcast .* \(3,\) \(got \(2,\)\)"),
    "f_larger": (affine(lambda t: torch.ones(2, 3).double()), ValueError,
                 r"f to broadcast to the state of shape \(3,\) \(got \(2, 3\)\)"),
    "f_tensor_float32": (affine(torch.ones(3)), TypeError,
                         "the tensors of Affine in the dtype of the state, torch.float64"),
    "f_tensor_meta": (affine(META), ValueError, "tensors of Affine on the device of the state"),
    "f_tensor_nan": (affine(LEAF * math.nan), ValueError, "Expected finite tensors in Affine"),
    "f_tensor_shape": (affine(LEAF[:2]), ValueError, r"f to broadcast .* \(got \(2,\)\)"),
    "f_module_float32": (affine(Forcing().float()), TypeError, "tensors of Affine in the dtype"),
    "f_module_meta": (affine(Forcing().to("meta")), ValueError, "of Affine on the device"),
    "scale_none": (affine(scale=lambda t: None), TypeError,
                   r"scale to return a number or a 0-dim tensor \(got NoneType at time 0\.3\)"),
    "scale_text": (affine(scale=lambda t: "1"), TypeError, r"0-dim tensor \(got str at time 0\.3"),
    "scale_complex": (affine(scale=lambda t: 1j), TypeError, r"0-dim tensor \(got complex at"),
    "scale_shape": (affine(scale=lambda t: LEAF), ValueError,
                    r"number or a 0-dim tensor \(got shape \(3,\) at time 0\.3\)"),
    "scale_nan": (affine(scale=lambda t: math.nan), ValueError,
                  r"Expected a finite scale \(got nan at time 0\.3\)"),
    "scale_infinite": (affine(scale=lambda t: double(math.inf)), ValueError,
                       r"Expected a finite scale \(got inf at"),
    "scale_module_float32": (affine(scale=Scale().float()), TypeError, "tensors of Affine in the"),
}


@pytest.mark.parametrize(("make", "error", "message"), REFUSED.values(), ids=REFUSED)
@every_gradient
def test_what_does_not_fit_the_state_is_refused_before_any_work(make, error, message, gradient):
    def fails(t, u):
        raise AssertionError

    with pytest.raises(error, match=message):
        imex_odeint(fails, make(), double([1.0, 2.0, 3.0]), TIMES, step_size=0.1, gradient=gradient)


LATER = {
    "f_none": ({"f": lambda t: LEAF if t < 0.65 else None}, TypeError, r"NoneType at time 0\.7\)"),
    "scale_shape": ({"scale": lambda t: 1.0 if t < 0.65 else LEAF}, ValueError,
                    r"got shape \(3,\) at time 0\.7\)"),
    "scale_none": ({"scale": lambda t: 1.0 if t < 0.65 else None}, TypeError, r"at time 0\.7\)"),
    "f_nan": ({"f": lambda t: LEAF if t < 0.65 else LEAF * math.nan}, RuntimeError,
              r"finite in step 3, which starts at time 0\.6"),
}


@pytest.mark.parametrize(("given", "error", "message"), LATER.values(), ids=LATER)
def test_what_goes_wrong_on_the_way_is_an_error_with_its_time(given, error, message):
    with pytest.raises(error, match=message):
        imex_odeint(None, Affine(I3, **given), double([1.0, 2.0, 3.0]), TIMES, method="imex_euler",
                    step_size=0.1)


# Other operators and solvers


def grid_operator():
    return Circulant([1.0, -2.0, 1.0])


OPERATORS = {
    "circulant": (grid_operator, (2, 6), [None, solvers.CG(rtol=1e-14), solvers.GMRES(rtol=1e-14)]),
    "graph": (lambda: graph(torch.linspace(0.1, 0.4, 9).double()), (6, 3),
              [None, solvers.GMRES(rtol=1e-14), solvers.BiCGStab(rtol=1e-14), solvers.Direct()]),
    "symmetric_graph": (lambda: symmetric_graph(torch.linspace(0.1, 0.3, 6).double()) + I3, (6, 3),
                        [None, solvers.CG(rtol=1e-14), solvers.Direct()]),
    "diagonal": (lambda: Diagonal(-torch.linspace(0.1, 2, 3).double()), (6, 3), [None]),
    "matrix_free": (lambda: operators.MatrixFree(lambda u: u.roll(1, -1) - u), (2, 5),
                    [None, solvers.GMRES(rtol=1e-14)]),
}


class Wave(nn.Module):
    def __init__(self, amplitude):
        super().__init__()
        self.amplitude = nn.Parameter(amplitude.clone())

    def forward(self, t):
        return torch.cos(t) * self.amplitude


def whole_matrix(name):
    make, shape, _ = OPERATORS[name]
    size, operator = math.prod(shape), make()
    units = torch.eye(size, dtype=torch.float64)
    return torch.stack([operator.mv(e.view(shape)).flatten() for e in units], dim=1)


def with_operator(operator, shape, solver, gradient):
    """Result and gradients of an integration of a linear part with forcing and factor."""
    u0 = torch.linspace(-1, 1, math.prod(shape), dtype=torch.float64).view(shape)
    u, f, a = u0.clone().requires_grad_(), Wave(u0), Scale()
    result = imex_odeint(None, Affine(operator, f, scale=a), u, times(0, 0.5, 1), step_size=0.25,
                         method="ark324l2sa", solver=solver, gradient=gradient)
    found = torch.autograd.grad(result.square().sum(), [u, f.amplitude, a.weight])
    return [x.flatten() for x in (result.detach(), *found)]


@functools.cache
def on_the_whole_matrix(name):
    return with_operator(Dense(whole_matrix(name)), (math.prod(OPERATORS[name][1]),), None,
                         "backprop")


@pytest.mark.parametrize(("name", "i"), [(n, i) for n, o in OPERATORS.items()
                                         for i in range(len(o[2]))])
@every_gradient
def test_every_operator_and_solver_gives_result_and_gradients_of_the_whole_matrix(
        name, i, gradient):
    make, shape, several = OPERATORS[name]
    found = with_operator(make(), shape, several[i], gradient)
    exact = several[i] is not None or make().has_closed_inverse()
    assert_equal(found, on_the_whole_matrix(name), 1e-11 if exact else 1e-7)


# The object


def test_a_part_gives_its_products_and_their_transposes():
    part = Affine(Dense(Manufactured.J), Forcing(), scale=Scale())
    u, w, t = random(3), random(3), 0.4
    a, M = 1 + math.sin(0.4 * t), Manufactured.J
    f = double([0.5, -1.0, 0.8]) * math.sin(1.3 * t)
    torch.testing.assert_close(part.product(t, u), a * M @ u + f, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(part.transposed(t, w), a * M.T @ w, rtol=1e-14, atol=1e-14)
    found = part.vjp(t, u, w, [True] * 4)
    expected = torch.autograd.grad(part.product(t, u) @ w, part.f.tensors + part.a.tensors)
    torch.testing.assert_close(found[0], a * torch.outer(w, u), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(found[1:], list(expected), rtol=1e-14, atol=1e-14)
    assert part.vjp(t, u, w, [False] * 4) == [None] * 4
    assert [g is None for g in part.vjp(t, u, w, [True, False, False, False])] == [
        False, True, True, True]
    assert [g is None for g in part.vjp(t, u, w, [False, False, True, False])] == [
        True, True, False, True]


def test_a_part_on_other_tensors_is_another_part():
    part, u = Affine(Dense(Manufactured.J), Forcing(), scale=Scale()), random(3)
    before = part.product(0.4, u)
    other = part.with_tensors([2 * p for p in part.tensors])
    expected = (1 + math.sin(0.8 * 0.4)) * (2 * Manufactured.J) @ u + 2 * double(
        [0.5, -1.0, 0.8]) * math.sin(2.6 * 0.4)
    torch.testing.assert_close(other.product(0.4, u), expected, rtol=1e-14, atol=1e-14)
    assert torch.equal(part.product(0.4, u), before)


def test_a_copied_part_gives_the_same_result():
    part = Affine(Dense(Manufactured.J), Forcing(), scale=Scale())
    results = [imex_odeint(None, p, double([1.0, 2.0, 3.0]), TIMES, step_size=0.1)
               for p in (part, copy.copy(part), copy.deepcopy(part))]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_the_representation_names_the_operator():
    assert repr(Affine(Dense(Manufactured.J), LEAF)) == "Affine(Dense((3, 3)))"


# Functions of time alone


class Stateful(nn.Module):
    """Another value at every call: by dropout, or by a buffer that counts."""

    def __init__(self, kind):
        super().__init__()
        self.drop = nn.Dropout(0.5) if kind == "dropout" else nn.Identity()
        self.register_buffer("calls", torch.zeros((), dtype=torch.float64))
        self.counts = kind == "buffer"

    def forward(self, t):
        if self.counts:
            self.calls += 1
        return self.drop(torch.ones(64, dtype=torch.float64)) + self.calls


@pytest.mark.parametrize("what", ["forcing f", "scale"])
@pytest.mark.parametrize("kind", ["dropout", "buffer"])
def test_a_part_that_is_not_a_function_of_time_alone_is_refused(kind, what):
    torch.manual_seed(0)
    f = Stateful(kind)
    part = (terms.Affine(operators.ScaledIdentity(-1.0), f) if what == "forcing f" else
            terms.Affine(operators.ScaledIdentity(-1.0), scale=lambda t: f(t).sum()))
    with pytest.raises(ValueError, match=f"the {what} to be a function of time alone"):
        imex_odeint(None, part, torch.ones(64).double(), times(0, 1), step_size=0.5)


def test_dropout_that_is_switched_off_is_fine():
    part = terms.Affine(operators.ScaledIdentity(-1.0), Stateful("dropout").eval())
    u = imex_odeint(None, part, torch.ones(64).double(), times(0, 1), step_size=0.5)
    torch.testing.assert_close(u[-1], torch.ones(64).double())


@pytest.mark.parametrize("gradient", ["discrete", "backprop"])
def test_an_integer_tensor_is_a_scale(gradient):
    part = terms.Affine(operators.ScaledIdentity(-1.0), scale=lambda t: torch.tensor(2))
    u0 = torch.ones(2).double().requires_grad_()
    u = imex_odeint(None, part, u0, times(0, 1), step_size=0.01, gradient=gradient)
    assert float(u[-1, 0].detach()) == pytest.approx(math.exp(-2.0), rel=1e-6)


def test_a_scale_that_becomes_nan_is_named_with_its_time():
    part = terms.Affine(operators.ScaledIdentity(-1.0),
                            scale=lambda t: math.nan if t > 0.55 else 1.0)
    with pytest.raises(ValueError, match=r"finite scale \(got nan at time 0\.\d+\)"):
        imex_odeint(None, part, torch.ones(2).double(), times(0, 1), step_size=0.1)


def test_without_gradients_a_closure_need_not_be_a_module():
    weight = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    part = terms.Affine(operators.ScaledIdentity(-1.0), lambda t: weight * torch.cos(t))
    with torch.no_grad():
        u = imex_odeint(None, part, torch.ones(1).double(), times(0, 1), step_size=0.5)
    assert not u.requires_grad
