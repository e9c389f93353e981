"""Do multistep schemes have their order, their cost and their stability?"""

import math

import numpy as np
import pytest
import torch
from cases import double, slope, times
from multistep_cases import Manufactured, every_method, every_scheme

from pyg_sinode import imex_odeint, operators
from pyg_sinode.schemes import EXPONENTIAL, MULTISTEP, RUNGE_KUTTA, IMEXMultistep
from pyg_sinode.schemes.multistep import SBDF2

every_part = pytest.mark.parametrize("parts", ["both", "explicit", "implicit"])
both_directions = pytest.mark.parametrize(
    ("start", "end"), [(0.0, 1.0), (1.0, 0.0)], ids=["onwards", "backwards"])


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
    having = ", ".join(name for name, s in {**RUNGE_KUTTA, **EXPONENTIAL}.items()
                       if s.embedded_order > 0)
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
