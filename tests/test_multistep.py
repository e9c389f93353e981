"""Are the multistep schemes of their order, as stable as they say, and exact in their gradients?"""

import copy
import dataclasses
import functools
import math
import pickle

import numpy as np
import pytest
import torch
from cases import KnownSolution, double, slope, times
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from pyg_sinode import SINODEConv, imex_odeint, operators, solvers, terms
from pyg_sinode.schemes import (
    ALIASES,
    MULTISTEP,
    RUNGE_KUTTA,
    IMEXMultistep,
    IMEXTableau,
    get_scheme,
)
from pyg_sinode.schemes.multistep import CNAB2, SBDF2, SBDF4
from pyg_sinode.schemes.runge_kutta import ARS222, ARS443

every_scheme = pytest.mark.parametrize("scheme", MULTISTEP.values(), ids=MULTISTEP)
every_method = pytest.mark.parametrize("method", MULTISTEP)
every_part = pytest.mark.parametrize("parts", ["both", "explicit", "implicit"])
both_directions = pytest.mark.parametrize(
    ("start", "end"), [(0.0, 1.0), (1.0, 0.0)], ids=["onwards", "backwards"])


def random(*shape):
    return torch.randn(shape, dtype=torch.float64)


# Order


class Manufactured(KnownSolution):
    """u' = G(t, u) + J u, nonlinear, non-autonomous and coupled, with a solution that is known.

    Args:
        parts: Whether both terms are there, or G alone, or J alone (with the forcing beside it).
    """

    J = double([[-2.0, 1.0, 0.3], [0.4, -1.0, -0.8], [0.2, 0.9, -3.0]])

    def __init__(self, parts="both", dtype=torch.float64):
        self.parts, self.matrix = parts, self.J.to(dtype)

    def forcing(self, t):
        return self.rate(t) - self.solution(t) @ self.matrix.T

    def __call__(self, t, u):
        s = self.solution(t)
        off = self.coupling(t, u) - self.coupling(t, s)
        return (self.forcing(t) if self.parts == "both" else self.rate(t)) + off

    def run(self, method, t, **kwargs):
        explicit = None if self.parts == "implicit" else self
        implicit = {"both": operators.Dense(self.matrix), "explicit": None,
                    "implicit": terms.Affine(operators.Dense(self.matrix), self.forcing)}
        t = t.to(self.matrix.dtype)
        return imex_odeint(explicit, implicit[self.parts], self.solution(t[0]), t, method=method,
                           **kwargs)

    def error(self, method, steps, start=0.0, end=1.0):
        result = self.run(method, times(start, end), step_size=abs(end - start) / steps)
        return float((result[-1] - self.solution(double(end))).abs().max())


@every_scheme
@every_part
@both_directions
def test_every_scheme_reaches_its_order_with_both_parts_and_with_each_alone(
        scheme, parts, start, end):
    steps = [80, 160, 320]
    errors = [Manufactured(parts).error(scheme, n, start, end) for n in steps]
    assert slope(steps, errors) == pytest.approx(scheme.order, abs=0.2), errors


@every_scheme
@both_directions
def test_the_order_holds_at_every_output_time_also_while_the_scheme_starts(scheme, start, end):
    problem, errors = Manufactured(), []
    for n in (60, 120, 240):
        t = torch.linspace(start, end, n + 1, dtype=torch.float64)
        result = problem.run(scheme, t, step_size=1.0 / n)
        errors.append(float((result - problem.solution(t)).abs().max()))
    assert slope([60, 120, 240], errors) == pytest.approx(scheme.order, abs=0.25), errors


@every_scheme
def test_float32_is_accurate_to_its_rounding(scheme):
    expected = Manufactured().error(scheme, 32)
    found = Manufactured(dtype=torch.float32).error(scheme, 32)
    # Each earlier value in each step adds a few roundings of numbers of order one.
    slack = 8 * torch.finfo(torch.float32).eps * 32 * 2 * scheme.steps
    assert found == pytest.approx(expected, abs=slack)
    assert Manufactured(dtype=torch.float32).run(
        scheme, times(0, 1), step_size=0.1).dtype == torch.float32


@every_scheme
def test_without_either_part_nothing_moves(scheme):
    result = imex_odeint(None, None, double([1.0, 2.0]), times(0, 1), method=scheme, step_size=0.1)
    torch.testing.assert_close(result[1], double([1.0, 2.0]), rtol=1e-13, atol=0.0)


@every_scheme
def test_one_output_time_gives_the_initial_state(scheme):
    u0 = double([1.0, 2.0])
    result = imex_odeint(lambda t, u: u, None, u0, times(3), method=scheme, step_size=0.1)
    assert torch.equal(result, u0[None])


# A step by hand


def starting_step(G, J, h, u):
    """One step of ars222 as it is published."""
    gamma = 1 - 1 / math.sqrt(2)
    delta = 1 - 1 / (2 * gamma)
    inverse = np.linalg.inv(np.eye(len(u)) - h * gamma * J)
    g0 = G(0.0, u)
    U = inverse @ (u + h * gamma * g0)
    g1 = G(gamma * h, U)
    return inverse @ (u + h * (delta * g0 + (1 - delta) * g1) + h * (1 - gamma) * J @ U)


def second_step(method, G, J, h, u0, u1):
    identity, g0, g1 = np.eye(len(u0)), G(0.0, u0), G(h, u1)
    if method == "sbdf2":
        # (3 u2 - 4 u1 + u0) / (2 h) = 2 g1 - g0 + J u2
        return np.linalg.solve(3 * identity - 2 * h * J, 4 * u1 - u0 + 2 * h * (2 * g1 - g0))
    # (u2 - u1) / h = (3 g1 - g0) / 2 + J (u2 + u1) / 2
    right = u1 + h / 2 * (3 * g1 - g0) + h / 2 * J @ u1
    return np.linalg.solve(identity - h / 2 * J, right)


@pytest.mark.parametrize("method", ["sbdf2", "cnab2"])
@pytest.mark.parametrize("h", [0.1, -0.1], ids=["onwards", "backwards"])
def test_the_first_two_steps_are_those_made_by_hand(method, h):
    J = np.array([[-1.0, 0.5], [0.2, -2.0]])

    def G(t, u):
        return np.array([u[0] * u[1] + np.cos(t), np.sin(u[0]) - t])

    def explicit(t, u):
        return torch.stack([u[0] * u[1] + torch.cos(t), torch.sin(u[0]) - t])

    u0 = np.array([0.5, -1.0])
    u1 = starting_step(G, J, h, u0)
    u2 = second_step(method, G, J, h, u0, u1)
    result = imex_odeint(explicit, operators.Dense(torch.from_numpy(J)), torch.from_numpy(u0),
                         times(0, h, 2 * h), method=method, step_size=0.1)
    np.testing.assert_allclose(result.numpy(), [u0, u1, u2], rtol=1e-14)


# What a step costs


def expected_counts(scheme, steps):
    """Evaluations of G and linear solves by formula."""
    starting = min(steps, scheme.steps - 1)
    rest = steps - starting
    return (starting * scheme.start.explicit_evaluations + rest,
            starting * sum(scheme.start.implicit_stages) + rest)


def test_sbdf2_evaluates_20_times_in_19_steps():
    assert expected_counts(SBDF2, 19) == (20, 20)
    _, stats = Manufactured().run("sbdf2", times(0, 1.9), step_size=0.1, return_stats=True)
    assert (stats.steps_accepted, stats.explicit_evaluations, stats.linear_solves) == (19, 20, 20)


@every_scheme
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 19])
@every_part
def test_every_step_evaluates_and_solves_once_but_those_of_the_start(scheme, steps, parts):
    calls = []

    class Counted(Manufactured):
        def __call__(self, t, u):
            calls.append(float(t))
            return super().__call__(t, u)

    _, stats = Counted(parts).run(scheme, times(0, 0.1 * steps), step_size=0.1, return_stats=True)
    evaluations, solves = expected_counts(scheme, steps)
    assert stats.steps_accepted == steps
    assert stats.explicit_evaluations == len(calls) == (0 if parts == "implicit" else evaluations)
    assert stats.linear_solves == (0 if parts == "explicit" else solves)


@every_scheme
@pytest.mark.parametrize("outputs", [2, 5, 21])
def test_there_are_two_set_ups_however_many_outputs(scheme, outputs):
    t = torch.linspace(0, 2, outputs, dtype=torch.float64)
    result, stats = Manufactured().run(scheme, t, step_size=0.1, return_stats=True)
    assert (stats.steps_accepted, stats.factorizations) == (20, 2)
    assert result.shape == (outputs, 3)


@every_scheme
def test_the_start_alone_makes_one_set_up_and_no_operator_makes_none(scheme):
    _, stats = Manufactured().run(scheme, times(0, 0.1), step_size=0.1, return_stats=True)
    assert stats.factorizations == 1
    _, stats = Manufactured("explicit").run(scheme, times(0, 1), step_size=0.1, return_stats=True)
    assert (stats.factorizations, stats.linear_solves, stats.operator_products) == (0, 0, 0)


def products_in_a_starting_step(scheme):
    """Stages that are not solved for, whose J U is used."""
    solved, used = scheme.start.implicit_stages, scheme.start.needs_implicit
    return sum(u and not s for s, u in zip(solved, used, strict=True))


@every_scheme
def test_products_with_the_operator_are_those_of_the_start_and_one_of_crank_nicolson(scheme):
    _, stats = Manufactured().run(scheme, times(0, 1), step_size=0.05, return_stats=True)
    expected = (scheme.steps - 1) * products_in_a_starting_step(scheme) + (scheme.name == "cnab2")
    assert stats.operator_products == expected


@every_scheme
def test_the_backward_pass_counts_one_product_with_the_jacobian_and_one_solve_a_step(scheme):
    u0 = Manufactured().solution(double(0.0)).requires_grad_()
    result, stats = imex_odeint(Manufactured(), operators.Dense(Manufactured.J), u0, times(0, 2),
                                method=scheme, step_size=0.1, return_stats=True)
    evaluations, solves = expected_counts(scheme, 20)
    assert (stats.explicit_vjps, stats.linear_solves, stats.factorizations) == (0, solves, 2)
    result[-1].sum().backward()
    assert (stats.explicit_evaluations, stats.explicit_vjps) == (evaluations, evaluations)
    assert (stats.linear_solves, stats.factorizations) == (2 * solves, 2)


# Which steps there may be


@every_scheme
@pytest.mark.parametrize("t", [(0, 1, 1.25), (0, 0.3, 1), (1, 0, -0.25)], ids=str)
def test_output_times_that_do_not_give_one_step_size_are_refused_with_the_remedy(scheme, t):
    def fails(t, u):
        raise AssertionError

    message = (rf"one step size apart for {scheme.name} \(got steps from .* to .*\); choose "
               "equally spaced times, or a step_size that divides every interval, or a Runge-Kutta")
    with pytest.raises(ValueError, match=message):
        imex_odeint(fails, None, double([1.0]), times(*t), method=scheme, step_size=0.2)


@every_scheme
@pytest.mark.parametrize("t", [(0, 1, 1.4), (0, 0.2, 1, 3), (1, 0.4, -0.2)], ids=str)
def test_whole_multiples_of_the_step_size_are_fine(scheme, t):
    problem, t = Manufactured(), times(*t)
    result, stats = problem.run(scheme, t, step_size=0.2, return_stats=True)
    assert stats.steps_accepted == round(abs(float(t[-1] - t[0])) / 0.2)
    alone = problem.run(scheme, t[[0, -1]], step_size=0.2)
    torch.testing.assert_close(result[-1], alone[-1], rtol=1e-13, atol=1e-13)


@every_scheme
def test_several_steps_between_equally_spaced_outputs_are_those_of_one_interval(scheme):
    problem = Manufactured()
    coarse = torch.linspace(0, 2, 5, dtype=torch.float64)
    fine = torch.linspace(0, 2, 21, dtype=torch.float64)
    found = problem.run(scheme, coarse, step_size=0.13)  # steps of 0.125
    torch.testing.assert_close(found, problem.run(scheme, torch.linspace(
        0, 2, 17, dtype=torch.float64), step_size=1.0)[::4], rtol=1e-13, atol=1e-13)
    found = problem.run(scheme, coarse, step_size=0.1)
    torch.testing.assert_close(found, problem.run(scheme, fine, step_size=0.1)[::5],
                               rtol=1e-13, atol=1e-13)


@every_scheme
def test_fewer_steps_than_the_start_makes_are_those_of_the_start(scheme):
    problem = Manufactured()
    for steps in range(1, scheme.steps):
        t = times(0, 0.1 * steps)
        expected = problem.run(scheme.start, t, step_size=0.1)
        assert torch.equal(problem.run(scheme, t, step_size=0.1), expected)


@every_scheme
def test_adaptive_steps_and_dense_output_are_refused_with_the_schemes_that_have_them(scheme):
    def fails(t, u):
        raise AssertionError

    t, u0 = times(0, 1), double([1.0])
    having = ", ".join(name for name, s in RUNGE_KUTTA.items() if s.embedded_order > 0)
    with pytest.raises(ValueError, match=rf"\(got {scheme.name}\); these have one: {having}\."):
        imex_odeint(fails, None, u0, t, method=scheme)
    having = ", ".join(name for name, s in RUNGE_KUTTA.items() if s.interpolant is not None)
    with pytest.raises(ValueError, match=rf"dense=True \(got {scheme.name}\); these.*: {having}\."):
        imex_odeint(fails, None, u0, t, method=scheme, step_size=0.1, dense=True)


@every_scheme
def test_a_callback_sees_every_step_and_may_end_the_integration(scheme):
    seen, problem = [], Manufactured()

    def callback(t, u):
        seen.append(t)
        return t > 0.45

    result, stats = problem.run(scheme, times(0, 0.3, 1.2), step_size=0.1, callback=callback,
                                return_stats=True)
    assert seen == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert stats.stopped_at == pytest.approx(0.5)
    expected = problem.run(scheme, times(0, 0.3, 0.5), step_size=0.1)
    torch.testing.assert_close(result, expected, rtol=1e-13, atol=1e-13)


# Stability


def amplification(scheme, g, j):
    """The largest root of the characteristic polynomial, for h lambda_G = g and h lambda_J = j."""
    polynomial = np.array(scheme.a, dtype=complex)
    polynomial[1:] -= g * np.array(scheme.b)
    polynomial[:2] -= j * np.array(scheme.c)
    return np.abs(np.roots(polynomial)).max()


RATIO = {"sbdf2": 1 / 3, "sbdf3": 1 / 7, "sbdf4": 1 / 15, "cnab2": 0.0}
BOUND = {"sbdf2": 2.0, "sbdf3": 10 / 9, "sbdf4": 16 / 21, "cnab2": 1.0}


def test_the_table_of_the_docstring_is_the_one_tested_here():
    rows = [line.split() for line in IMEXMultistep.__doc__.splitlines()]
    table = {row[0]: row[-4:] for row in rows if row and row[0] in ("scheme", "ratio", "h")}

    def number(text):
        return float(np.divide(*map(float, (text + "/1").split("/")[:2])))

    assert set(table["scheme"]) == set(MULTISTEP) == set(RATIO) == set(BOUND)
    for i, name in enumerate(table["scheme"]):
        assert number(table["ratio"][i]) == pytest.approx(RATIO[name], abs=1e-15)
        assert number(table["h"][i]) == pytest.approx(BOUND[name], abs=1e-15)


@every_scheme
def test_every_step_size_is_stable_up_to_the_ratio_and_not_above_it(scheme):
    ratio = RATIO[scheme.name]
    sizes = np.geomspace(1e-3, 1e8, 400)
    for share in (0.0, 0.3, 0.9, 1.0):
        worst = max(amplification(scheme, -share * ratio * x, -x) for x in sizes)
        assert worst <= 1 + 1e-7, share  # a root tends to -1 at the ratio itself
    above = 1.02 * ratio + 0.001
    assert max(amplification(scheme, -above * x, -x) for x in sizes) > 1 + 1e-4


@every_scheme
def test_at_ratio_1_the_bound_on_h_alpha_is_sharp(scheme):
    bound = BOUND[scheme.name]
    for share in np.linspace(0.01, 1.0, 100):
        assert amplification(scheme, -share * bound, -share * bound) <= 1 + 1e-12
    assert amplification(scheme, -bound, -bound) == pytest.approx(1.0, abs=1e-12)
    for share in (1.001, 1.1, 2.0, 100.0):
        assert amplification(scheme, -share * bound, -share * bound) > 1.0


@every_scheme
def test_between_the_eigenvalues_of_a_stochastic_matrix_minus_1_is_the_worst(scheme):
    # G = alpha A u and J = -alpha u: A has real eigenvalues from -1 to 1 where it is symmetric.
    x = BOUND[scheme.name]
    for share in (0.2, 0.6, 1.0):
        worst = max(amplification(scheme, share * x * m, -share * x) for m in
                    np.linspace(-1, 1, 101))
        assert worst <= 1 + 1e-12


def measured_growth(method, h_alpha, start=1.0):
    """The growth in the last of many steps, of the difference between two attention values."""
    alpha, steps = 0.75, 160
    A = double([[0.0, 1.0], [1.0, 0.0]])  # eigenvalues 1 and -1
    h = h_alpha / alpha
    t = h * torch.arange(steps + 1, dtype=torch.float64)
    result = imex_odeint(lambda t, u: alpha * (A @ u), operators.ScaledIdentity(-alpha),
                         double([start, -start]), t, method=method, step_size=h)
    difference = (result[:, 0] - result[:, 1]).abs()
    return float((difference[-1] / difference[-11]) ** 0.1)


@pytest.mark.parametrize(("method", "h_alpha", "growth"), [
    ("sbdf2", 3.0, 1.31), ("sbdf3", 3.0, 2.10), ("cnab2", 3.0, 2.26), ("sbdf4", 0.96, 1.28)])
def test_beyond_the_bound_an_integration_grows_as_the_polynomial_says(method, h_alpha, growth):
    by_root = amplification(MULTISTEP[method], -h_alpha, -h_alpha)
    assert by_root == pytest.approx(growth, abs=0.005)
    assert measured_growth(method, h_alpha) == pytest.approx(by_root, rel=1e-6)


@every_method
def test_an_integration_decays_below_the_bound_and_grows_above_it(method):
    assert measured_growth(method, 0.95 * BOUND[method]) < 1.0
    assert measured_growth(method, 1.05 * BOUND[method]) > 1.0


# Gradients

TIMES = torch.linspace(0.3, 1.5, 7, dtype=torch.float64)  # six steps, or twelve


class Rate(nn.Module):
    """A nonlinear, coupled, time-dependent term with a parameter and an argument."""

    def __init__(self, width=3):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, width, dtype=torch.float64))

    def forward(self, t, u, scale):
        return torch.sin(self.weight * u.roll(1, -1) + t) - scale * u * u


IMPLICIT = {
    "dense": lambda leaves: operators.Dense(leaves[0]),
    "affine": lambda leaves: terms.Affine(
        operators.Dense(leaves[0]), leaves[1], scale=leaves[2]),
    "none": lambda leaves: None,
}


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(double(0.4))

    def forward(self, t):
        return 1 + torch.sin(self.weight * t)


def leaves_of(kind):
    torch.manual_seed(5)
    matrix = (0.4 * random(3, 3) - torch.eye(3, dtype=torch.float64)).requires_grad_()
    if kind == "affine":
        return [matrix, random(3).requires_grad_(), Scale()]
    return [matrix]


def gradients(method, kind="dense", step_size=0.1, explicit=True, wanted=None, times=TIMES,
              **kwargs):
    """Result and gradients of everything, for a loss on every output."""
    leaves, rate = leaves_of(kind), Rate()
    u0, scale = random(2, 3).requires_grad_(), double(0.3).requires_grad_()
    weights = random(len(times), 2, 3)
    result, stats = imex_odeint(rate if explicit else None, IMPLICIT[kind](leaves), u0, times,
                                method=method, step_size=step_size, return_stats=True,
                                args=(scale,) if explicit else (), **kwargs)
    of = [u0, *((rate.weight, scale) if explicit else ())]
    of += [] if kind == "none" else [x.weight if isinstance(x, nn.Module) else x for x in leaves]
    return result.detach(), torch.autograd.grad((weights * result).sum(), of), stats


def assert_equal(found, expected, tolerance):
    """Each tensor agrees relative to the largest entry of the expected one."""
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        size = float(b.abs().max())
        assert a.shape == b.shape
        assert size > 1e-3, i
        assert float((a - b).abs().max()) / size <= tolerance, i


@every_method
@pytest.mark.parametrize("kind", IMPLICIT)
@pytest.mark.parametrize("step_size", [0.1, 0.2], ids=["two_steps_an_output", "one"])
def test_the_discrete_gradient_is_that_of_backprop(method, kind, step_size):
    found = gradients(method, kind, step_size)
    expected = gradients(method, kind, step_size, gradient="backprop")
    assert torch.equal(found[0], expected[0])
    assert_equal(found[1], expected[1], 1e-12)


@every_method
@pytest.mark.parametrize("kind", ["dense", "affine"])
def test_the_discrete_gradient_without_an_explicit_term_is_that_of_backprop(method, kind):
    found = gradients(method, kind, explicit=False)
    expected = gradients(method, kind, explicit=False, gradient="backprop")
    assert_equal(found[1], expected[1], 1e-12)


@every_method
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_the_gradient_of_the_first_few_steps_is_that_of_backprop(method, steps):
    t = TIMES[:steps + 1]
    found, expected = (gradients(method, "affine", 0.2, times=t, gradient=g)[1]
                       for g in ("discrete", "backprop"))
    assert_equal(found, expected, 1e-12)


@every_method
@pytest.mark.parametrize("output", range(7))
def test_a_loss_on_one_output_alone_has_the_gradient_of_backprop(method, output):
    found = []
    for gradient in ("discrete", "backprop"):
        (matrix,), rate, u0 = leaves_of("dense"), Rate(), random(2, 3).requires_grad_()
        result = imex_odeint(rate, operators.Dense(matrix), u0, TIMES, method=method,
                             step_size=0.2, args=(0.3,), gradient=gradient)
        of = [u0, matrix, rate.weight] if output else [u0]
        found.append(torch.autograd.grad(result[output].square().sum(), of))
    assert_equal(*found, 1e-12)


@every_method
def test_the_gradient_against_time_is_that_of_backprop(method):
    t = TIMES.flip(0)
    found, expected = (gradients(method, "affine", times=t, gradient=g)[1]
                       for g in ("discrete", "backprop"))
    assert_equal(found, expected, 1e-12)


@every_method
@pytest.mark.parametrize("solver", [solvers.GMRES(rtol=1e-14), solvers.Direct()],
                         ids=["gmres", "direct"])
def test_other_solvers_give_the_same_gradient(method, solver):
    found = gradients(method, solver=solver)
    assert_equal(found[1], gradients(method)[1], 1e-11)


def in_arguments(method, gradient="discrete"):
    """An integration as a function of everything."""
    def run(u0, weight, scale, matrix):
        return imex_odeint(lambda t, u, w, s: torch.sin(w * u.roll(1, -1) + t) - s * u * u,
                           operators.Dense(matrix), u0, TIMES[:5], method=method, step_size=0.2,
                           args=(weight, scale), gradient=gradient)

    torch.manual_seed(2)
    inputs = random(2), random(2), double(0.3), 0.5 * random(2, 2)
    return run, [x.requires_grad_() for x in inputs]


@every_method
@pytest.mark.parametrize("gradient", ["discrete", "backprop"])
def test_gradcheck_passes(method, gradient):
    run, inputs = in_arguments(method, gradient)
    assert gradcheck(run, inputs)


@pytest.mark.parametrize("method", ["sbdf2", "cnab2"])
def test_second_derivatives_of_backprop_pass_gradgradcheck(method):
    run, inputs = in_arguments(method, "backprop")
    assert gradgradcheck(run, inputs)


def test_a_second_derivative_of_the_discrete_mode_raises():
    run, inputs = in_arguments("sbdf2")
    (first,) = torch.autograd.grad(run(*inputs).square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match='use gradient="backprop" for second'):
        torch.autograd.grad(first.sum(), inputs[0])


@functools.cache
def without_checkpoints(method, kind):
    return gradients(method, kind)


@every_method
@pytest.mark.parametrize("kind", IMPLICIT)
@pytest.mark.parametrize("checkpoints", [1, 2, 3, "auto"])
def test_checkpoints_give_the_gradient_to_the_last_bit(method, kind, checkpoints):
    result, found, stats = gradients(method, kind, checkpoints=checkpoints)
    expected = without_checkpoints(method, kind)
    assert torch.equal(result, expected[0])
    assert all(map(torch.equal, found, expected[1]))
    assert stats.steps_recomputed > 0


@every_method
def test_checkpoints_repeat_the_random_numbers_of_the_explicit_term(method):
    class Dropout(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3, dtype=torch.float64)

        def forward(self, t, u):
            return nn.functional.dropout(torch.sin(self.linear(u)), 0.5)

    module, u0, found = Dropout(), random(4, 3), []
    for kwargs in ({"gradient": "backprop"}, {}, {"checkpoints": 2}):
        torch.manual_seed(3)
        result = imex_odeint(module, operators.ScaledIdentity(-0.5), u0, TIMES, method=method,
                             step_size=0.1, **kwargs)
        found.append(torch.autograd.grad(result.square().sum(), list(module.parameters())))
    assert_equal(found[1], found[0], 1e-12)
    assert all(map(torch.equal, found[2], found[1]))


@every_method
def test_what_needs_no_gradient_gets_none(method):
    u0, rate = random(2, 3).requires_grad_(), Rate().requires_grad_(False)
    matrix = -torch.eye(3, dtype=torch.float64)
    imex_odeint(rate, operators.Dense(matrix), u0, TIMES, method=method, step_size=0.2,
                args=(0.3,)).sum().backward()
    assert u0.grad is not None
    assert rate.weight.grad is None
    assert matrix.grad is None


@every_method
def test_gradients_in_float32_are_those_of_float64_to_rounding(method):
    run, inputs = in_arguments(method)
    expected = torch.autograd.grad(run(*inputs).square().sum(), inputs)
    low = [x.detach().float().requires_grad_() for x in inputs]
    result = run(*low)
    assert result.dtype == torch.float32
    found = torch.autograd.grad(result.square().sum(), low)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)


# With an affine part, and in a layer


@every_scheme
def test_a_stiff_forcing_in_an_affine_part_is_followed(scheme):
    part = terms.Affine(operators.ScaledIdentity(-1e6), lambda t: 1e6 * torch.cos(t))
    t = torch.linspace(0, 10, 101, dtype=torch.float64)
    result = imex_odeint(None, part, double([1.0]), t, method=scheme, step_size=0.1)
    torch.testing.assert_close(result[:, 0], torch.cos(t), rtol=0.0, atol=1e-2)


@every_scheme
def test_every_value_of_a_scale_is_a_set_up_and_a_constant_one_is_not(scheme):
    J = operators.Dense(Manufactured.J)
    found = []
    for scale in (lambda t: 2.0, lambda t: 1.0 + t):
        _, stats = imex_odeint(None, terms.Affine(J, scale=scale), double([1.0, 2.0, 3.0]),
                               times(0, 1), method=scheme, step_size=0.05, return_stats=True)
        found.append(stats.factorizations)
    assert found[0] == 2
    assert found[1] > 15


EDGES = torch.tensor([[0, 1, 2, 3, 0, 2, 1], [1, 2, 3, 0, 2, 0, 3]])


@every_method
@pytest.mark.parametrize("implicit", ["decay", "laplacian", "attention"])
def test_a_layer_runs_forward_and_backward_and_its_gradient_is_that_of_backprop(method, implicit):
    found = []
    for gradient in ("discrete", "backprop"):
        torch.manual_seed(4)
        layer = SINODEConv(3, 3, method=method, implicit=implicit, time=2.0, step_size=0.25,
                           gradient=gradient, solver=solvers.Direct()).double()
        x = random(4, 3).requires_grad_()
        out = layer(x, EDGES)
        assert out.shape == (4, 3)
        out.square().sum().backward()
        found.append([x.grad, *(p.grad for p in layer.parameters() if p.grad is not None)])
        assert layer.stats.steps_accepted == 8
    assert len(found[0]) > 3
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@every_method
def test_a_layer_in_float32_agrees_with_a_runge_kutta_scheme(method):
    results = []
    for chosen in (method, "ark436l2sa"):
        torch.manual_seed(4)
        layer = SINODEConv(3, 3, method=chosen, time=1.0, step_size=0.05)
        results.append(layer(torch.randn(4, 3), EDGES))
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)


def test_a_layer_refuses_a_method_that_is_none():
    with pytest.raises(ValueError, match=r"\(got 'sbdf7'\); use .*sbdf2, sbdf3, sbdf4, cnab2"):
        SINODEConv(3, 3, method="sbdf7")


# The object


@every_scheme
def test_coefficients_are_scaled_so_that_the_first_is_1(scheme):
    assert scheme.a[0] == 1.0
    assert len(scheme.a) == len(scheme.b) + 1 == scheme.steps + 1
    thrice = dataclasses.replace(scheme, **{
        field: [3 * x for x in getattr(scheme, field)] for field in "abc"})
    for field in "abc":
        assert isinstance(getattr(thrice, field), tuple)
        assert getattr(thrice, field) == pytest.approx(getattr(scheme, field), rel=1e-15)


def test_the_coefficients_are_the_published_ones():
    assert SBDF2.a == pytest.approx((1, -4 / 3, 1 / 3))
    assert SBDF2.b == pytest.approx((4 / 3, -2 / 3))
    assert SBDF2.c == pytest.approx((2 / 3, 0))
    assert (CNAB2.a, CNAB2.b, CNAB2.c) == ((1, -1, 0), (1.5, -0.5), (0.5, 0.5))
    assert [x * 25 / 12 for x in SBDF4.a] == pytest.approx([25 / 12, -4, 3, -4 / 3, 1 / 4])
    assert [x * 25 / 12 for x in SBDF4.b] == pytest.approx([4, -6, 4, -1])
    assert {name: (s.steps, s.order, s.start.name) for name, s in MULTISTEP.items()} == {
        "sbdf2": (2, 2, "ars222"), "sbdf3": (3, 3, "ars443"), "sbdf4": (4, 4, "ark436l2sa"),
        "cnab2": (2, 2, "ars222")}


@every_scheme
def test_a_scheme_cannot_be_changed_and_says_where_it_comes_from(scheme):
    for field in ("order", "a", "start"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(scheme, field, 7)
    assert "doi:10." in scheme.reference
    assert MULTISTEP[scheme.name] is scheme


@every_scheme
def test_a_copied_or_pickled_scheme_integrates_the_same(scheme):
    expected = Manufactured().run(scheme, times(0, 1), step_size=0.1)
    for twin in (copy.copy(scheme), copy.deepcopy(scheme), pickle.loads(pickle.dumps(scheme)),
                 dataclasses.replace(scheme, name="mine")):
        for field in ("order", "a", "b", "c", "reference"):
            assert getattr(twin, field) == getattr(scheme, field)
        assert torch.equal(Manufactured().run(twin, times(0, 1), step_size=0.1), expected)


@every_scheme
def test_a_name_is_as_good_as_the_scheme(scheme):
    expected = Manufactured().run(scheme, times(0, 1), step_size=0.1)
    assert torch.equal(Manufactured().run(scheme.name, times(0, 1), step_size=0.1), expected)


def test_get_scheme_finds_names_and_aliases_and_hands_schemes_back():
    for name, scheme in {**MULTISTEP, **RUNGE_KUTTA}.items():
        assert get_scheme(name) is scheme
        assert get_scheme(scheme) is scheme
    for alias, name in ALIASES.items():
        assert get_scheme(alias) is RUNGE_KUTTA[name]


def test_an_unknown_name_is_refused_with_all_known_ones():
    message = r"scheme's name, an IMEXTableau or an IMEXMultistep \(got 'bdf2'\); use imex_euler"
    with pytest.raises(ValueError, match=message) as raised:
        get_scheme("bdf2")
    assert all(name in str(raised.value) for name in (*RUNGE_KUTTA, *ALIASES, *MULTISTEP))


@pytest.mark.parametrize("method", [4, None, ["sbdf2"], IMEXMultistep])
def test_something_else_than_a_name_is_refused(method):
    with pytest.raises(TypeError, match="scheme's name, an IMEXTableau or an IMEXMultistep"):
        get_scheme(method)


# What is refused

GIVEN = {"name": "mine", "order": 2, "a": (3 / 2, -2, 1 / 2), "b": (2, -1), "c": (1, 0),
         "start": ARS222}
LENGTHS = r"s \+ 1 numbers a, s numbers b, 2 numbers c, and s of at least 2 "
LATE = IMEXTableau("late", 2, [[0, 0], [1, 0]], [[0.5, 0], [0, 0.5]], [0.5, 0.5], [0.5, 0.5])
IDLE = IMEXTableau("idle", 2, [[0, 0, 0], [0, 0, 0], [0, 1, 0]],
                   [[0, 0, 0], [0, 0.5, 0], [0, 0, 0.5]], [0, 0.5, 0.5], [0, 0.5, 0.5])


def test_the_scheme_that_the_wrong_ones_differ_from_is_right():
    scheme = IMEXMultistep(**GIVEN)
    assert (scheme.a, scheme.b, scheme.c) == (SBDF2.a, SBDF2.b, SBDF2.c)


@pytest.mark.parametrize(("wrong", "message"), [
    ({"a": (1, -1)}, LENGTHS + r"\(got 2, 2 and 2\)"),
    ({"a": (1, -1), "b": (1,)}, LENGTHS + r"\(got 2, 1 and 2\)"),
    ({"b": (2, -1, 0)}, LENGTHS + r"\(got 3, 3 and 2\)"),
    ({"c": (1,)}, LENGTHS + r"\(got 3, 2 and 1\)"),
    ({"c": (1, 0, 0)}, LENGTHS + r"\(got 3, 2 and 3\)"),
    ({"a": (0, -2, 1 / 2)}, r"positive a\[0\] and c\[0\] \(got 0 and 1\)"),
    ({"a": (-3 / 2, 2, -1 / 2), "b": (-2, 1), "c": (-1, 0)},
     r"positive a\[0\] and c\[0\] \(got -1.5 and -1\)"),
    ({"c": (0, 1)}, r"positive a\[0\] and c\[0\] \(got 1.5 and 0\)"),
    ({"a": (math.nan, -2, 1 / 2)}, r"positive a\[0\] and c\[0\] \(got nan and 1\)"),
    ({"a": (3 / 2, -2, 1)}, r"order 2 \(got defects of .* and .* for t\^0\); correct"),
    ({"a": (math.inf, -2, 1 / 2)}, r"order 2 \(got defects of nan and nan for t\^0\)"),
    ({"b": (1, 0)}, r"order 2 \(got defects of 1.3e\+00 and 0.0e\+00 for t\^2\); correct"),
    ({"c": (1 / 2, 1 / 2)}, r"order 2 \(got defects of .* for t\^2\)"),
    ({"b": (2, -1 + 1e-9)}, r"order 2 \(got defects of .* for t\^1\); .* state a lower order"),
    ({"c": (1, 1e-9)}, r"order 2 \(got defects of .* for t\^1\)"),
    ({"b": (2, math.nan)}, r"order 2 \(got defects of nan and .* for t\^1\)"),
    ({"c": (1, math.nan)}, r"order 2 \(got defects of .* and nan for t\^1\)"),
    ({"order": 3, "start": ARS443}, r"order 3 \(got defects of .* for t\^3\)"),
    ({"start": ARS443}, r"a start of order 2 whose first stage is the state itself \(got IMEXTabl"),
    ({"start": RUNGE_KUTTA["ssp222"]}, r"a start .* the state itself \(got IMEXTableau\(ssp222"),
    ({"start": LATE}, r"a start .* the state itself \(got IMEXTableau\(late"),
    ({"start": IDLE}, r"a start .* the state itself \(got IMEXTableau\(idle"),
])
def test_what_is_no_such_scheme_is_refused_with_its_name(wrong, message):
    with pytest.raises(ValueError, match="IMEXMultistep 'mine' expects " + message):
        IMEXMultistep(**{**GIVEN, **wrong})


@every_scheme
@pytest.mark.parametrize("field", ["a", "b", "c"])
def test_one_wrong_digit_in_any_coefficient_is_refused(scheme, field):
    for i in range(len(getattr(scheme, field))):
        values = list(getattr(scheme, field))
        values[i] += 1e-9
        with pytest.raises(ValueError, match=rf"{scheme.name!r} expects order {scheme.order} "):
            dataclasses.replace(scheme, **{field: values})


@every_scheme
def test_a_scheme_that_claims_one_order_more_is_refused(scheme):
    with pytest.raises(ValueError, match=f"expects order {scheme.order + 1} "):
        dataclasses.replace(scheme, order=scheme.order + 1)


# BDF2 and CNAB mixed half and half, and a scheme of order 5.
MIXED = IMEXMultistep("mixed", 2, (5 / 4, -3 / 2, 1 / 4), (7 / 4, -3 / 4), (3 / 4, 1 / 4),
                      RUNGE_KUTTA["ark232"])
SBDF5 = IMEXMultistep("sbdf5", 5, (137 / 60, -5, 5, -10 / 3, 5 / 4, -1 / 5), (5, -10, 10, -5, 1),
                      (1, 0), RUNGE_KUTTA["ark548l2sa"])


@pytest.mark.parametrize("scheme", [MIXED, SBDF5], ids=["mixed", "sbdf5"])
def test_a_scheme_of_ones_own_reaches_its_order_and_has_the_gradient_of_backprop(scheme):
    errors = [Manufactured().error(scheme, n) for n in (40, 80, 160)]
    assert slope([40, 80, 160], errors) == pytest.approx(scheme.order, abs=0.25)
    found, expected = (gradients(scheme, "affine", gradient=g)[1] for g in ("discrete", "backprop"))
    assert_equal(found, expected, 1e-12)
