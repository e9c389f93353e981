"""When does Newton's method count a stage as solved, what does it cost, and how does it fail?"""

import math
import pickle
from typing import NamedTuple

import pytest
import torch
from cases import double, times
from nonlinear_cases import F64, RATES, Reaction, Wave, robertson

from pyg_sinode import NonFiniteStateError, StepSizeError, imex_odeint
from pyg_sinode.operators import Dense, Diagonal, LinearSolveError, ScaledIdentity
from pyg_sinode.solvers import CG, GMRES, BiCGStab, Direct, Newton, NewtonError
from pyg_sinode.terms import Nonlinear


def one_step(fn, u0, h=1.0, **options):
    """One step of implicit Euler, and what it took."""
    u, stats = imex_odeint(None, Nonlinear(fn, **options), u0, times(0, h), step_size=h,
                           method="implicit_euler", return_stats=True)
    return u[-1], stats


def cubic(t, u):
    return -u**3


# What counts as solved


@pytest.mark.parametrize("newton", [Newton(), Newton(solver=GMRES())], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_equal_steps_are_solved_to_the_rounding_of_the_state(newton, dtype):
    u0 = torch.linspace(0.1, 3.0, 6, dtype=dtype)
    u, _ = one_step(cubic, u0, newton=newton, dims=-1)
    left = u.double() + u.double() ** 3 - u0.double()
    assert float(left.abs().max()) <= 100 * torch.finfo(dtype).eps * 3.0 * 28


@pytest.mark.parametrize("rtol", [1e-2, 1e-4, 1e-8])
@pytest.mark.parametrize("solver", [None, GMRES()], ids=repr)
def test_the_error_is_within_the_tolerance_and_each_system_has_its_own(rtol, solver):
    u0 = 10.0 ** torch.arange(-6, 5, dtype=F64).unsqueeze(1)
    u, _ = one_step(cubic, u0, dims=-1, newton=Newton(rtol=rtol, solver=solver))
    exact, _ = one_step(cubic, u0, dims=-1)
    assert float(((u - exact) / (u0 if solver else exact)).abs().max()) <= rtol


def test_an_absolute_tolerance_spares_what_is_small():
    u0 = double([1e-3, 2e-3])

    def fn(t, u):
        return -u - 1e3 * u**3

    assert one_step(fn, u0, newton=Newton(atol=1.0))[1].newton_iterations <= 1
    u, stats = one_step(fn, u0, newton=Newton(rtol=0.0, atol=1e-12))
    assert stats.newton_iterations >= 2
    assert float((u + u + 1e3 * u**3 - u0).abs().max()) <= 1e-11


def test_adaptive_steps_solve_to_a_hundredth_of_their_tolerance():
    u0, t = double([1.0, 0.0, 0.0]), times(0, 40)
    iterations, found = [], []
    for newton in (Newton(), Newton(rtol=1e-14, atol=1e-18)):
        u, stats = imex_odeint(None, Nonlinear(robertson, RATES, newton=newton), u0, t, rtol=1e-5,
                               atol=1e-10, return_stats=True)
        iterations.append(stats.newton_iterations / stats.steps_accepted)
        found.append(u[-1])
    assert iterations[0] < 0.7 * iterations[1]
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=0)


def test_systems_stop_by_themselves():
    calls = []

    def counted(t, u):
        calls.append(u.detach().clone())
        return -u**3

    u0 = double([[1e-8], [30.0]])
    one_step(counted, u0, dims=-1)
    states = torch.stack(calls[4:])[:, :, 0]  # the first ones check the term
    assert len({float(x) for x in states[:, 0]}) < len({float(x) for x in states[:, 1]})


def test_a_system_at_rest_changes_nothing_for_the_others():
    u0 = double([[1.0, 0.0, 0.0]] * 2 + [[0.0, 0.0, 0.0]] * 2)
    made = []
    for states in (u0[:2], u0):
        _, stats = imex_odeint(None, Nonlinear(robertson, RATES, dims=-1), states, times(0, 1e3),
                               rtol=1e-6, atol=1e-11, return_stats=True)
        made.append((stats.factorizations, stats.newton_iterations, stats.implicit_evaluations))
    assert all(b <= 1.1 * a for a, b in zip(*made, strict=True)), made


def test_a_system_that_is_done_gets_its_last_update_beside_one_at_its_rounding():
    second = 15049156.857860394
    slopes = double([0.03453296561691699, 0.001920090147019579 / second])
    u0 = double([1.0, second])
    u, _ = one_step(lambda t, u: -u - slopes * u**2, u0, dims=(), newton=Newton(rtol=0, atol=1e-12))
    exact = (-2 + math.sqrt(4 + 4 * slopes[0])) / (2 * slopes[0])
    assert float(u[0]) == pytest.approx(float(exact), rel=0, abs=1e-13)


class Roots:
    """Functions of one unknown each, as systems of Newton's method."""

    dims, inverse, exact = (), None, True

    def __init__(self, f, slope):
        self.f, self.slope = f, slope

    def at(self, U):
        return Evaluated(U, self.f(U))

    def linearize(self, point, rtol):
        return Diagonal(1 / self.slope(point.U))

    def solve(self, inverse, b):
        return inverse.mv(b)

    def magnitude(self, U):
        return U.abs()

    rounded = magnitude

    def count(self):
        pass


class Evaluated(NamedTuple):
    U: torch.Tensor
    residual: torch.Tensor


@pytest.mark.parametrize("start", [1.5, 3.0, 10.0, 25.0])
@pytest.mark.parametrize("off", [0.0, 4.4e-16])
def test_a_system_at_its_rounding_beside_one_whose_updates_have_to_be_halved(start, off):
    def f(U):
        return torch.stack([torch.atan(U[0]), 1e7 * (U[1] ** 2 - 5) + 3e-9])

    def slope(U):
        return torch.stack([1 / (1 + U[0] ** 2), 2e7 * U[1]])

    allowed = double([1e-10, 1e-17])  # less than the rounding of the second
    U = Newton().solve(Roots(f, slope), double([start, 5**0.5 + off]), lambda U: allowed)
    assert abs(float(U[0])) <= 1e-10
    assert float(U[1]) == pytest.approx(5**0.5, rel=1e-15)


def test_many_systems_take_little_more_than_one():
    spread = 10 ** (torch.rand(256, 3, dtype=F64, generator=torch.Generator().manual_seed(0)) - 0.5)
    found = []
    for rates in (RATES.unsqueeze(0), RATES * spread):
        u0 = double([1.0, 0.0, 0.0]).repeat(len(rates), 1)
        _, stats = imex_odeint(None, Nonlinear(robertson, rates, dims=-1), u0, times(0, 1e5),
                               method="ark436l2sa", rtol=1e-7, atol=1e-12, return_stats=True)
        steps = stats.steps_accepted + stats.steps_rejected
        found.append((steps, stats.implicit_evaluations / steps, stats.factorizations / steps))
    assert found[1][0] < 2 * found[0][0]
    assert found[1][1] < 1.5 * found[0][1]
    assert found[1][2] < 1.5 * found[0][2]


@pytest.mark.parametrize("fn", [
    lambda u: -10 * (torch.exp(u) - 1), lambda u: -1e3 * (torch.exp(u) - 1),
    lambda u: torch.tanh(0.3 - u) - math.tanh(0.3), lambda u: (1 - u) ** 3 - (1 + u) ** 2])
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("newton", [Newton(), Newton(solver=GMRES())], ids=repr)
def test_a_state_that_decays_below_the_rounding_of_h_is_solved(fn, dtype, newton):
    u0 = torch.linspace(0.5, 1.0, 5, dtype=dtype)
    u = imex_odeint(None, Nonlinear(lambda t, u: fn(u), newton=newton), u0,
                    torch.tensor([0.0, 60.0], dtype=F64), step_size=0.5)[-1]
    assert float(u.abs().max()) < 1e3 * torch.finfo(dtype).eps


def test_one_lucky_update_with_an_approximate_derivative_does_not_count_as_convergence():
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for coupling in (1e-5, 1e-3, 0.1):
        matrix = double([[-1.0, 0.3], [coupling, -1.0]])
        part = Nonlinear(lambda t, u, A=matrix: u @ A.T, dims=-1, newton=Newton(rtol=1e-9),
                         jacobian=lambda t, u: ScaledIdentity(-1.0))
        u0 = torch.cat([double([[0.0, 1.0]]), torch.rand(20, 2, dtype=F64, generator=generator)])
        u = imex_odeint(None, part, u0, times(0, 1), method="implicit_euler", step_size=1.0)[-1]
        exact = torch.linalg.solve(torch.eye(2, dtype=F64) - matrix, u0.T).T
        error = (u - exact).abs().amax(dim=1) / exact.abs().amax(dim=1)
        worst = max(worst, float(error.max()))
    assert worst <= 1e-9


def test_a_stage_starts_from_the_state_where_the_guess_has_no_value():
    part = Nonlinear(lambda t, u: -100 * torch.log(u), dims=())
    u = imex_odeint(None, part, double([2.0]), times(0, 1), step_size=0.1)[-1]
    assert float(u) == pytest.approx(1.0, abs=1e-6)


# What it costs


def test_factors_serve_all_stages_of_a_step_where_the_term_is_nearly_linear():
    def fn(t, u):
        return -5 * u + 0.01 * torch.sin(u)

    u0 = torch.randn(4, 3, dtype=F64)
    _, stats = imex_odeint(None, Nonlinear(fn, dims=-1), u0, times(0, 1), method="ark548l2sa",
                           step_size=0.1, return_stats=True)
    assert stats.factorizations == stats.steps_accepted == 10
    assert stats.implicit_vjps == 3 * stats.factorizations


def test_factors_are_made_anew_where_convergence_is_slow():
    u0 = torch.linspace(1.0, 4.0, 5, dtype=F64)
    _, stats = one_step(lambda t, u: -u**5, u0)
    assert stats.factorizations > 3
    assert stats.newton_iterations < 25


def test_a_continued_step_evaluates_its_first_h_once():
    u0 = torch.linspace(1.0, 2.0, 5, dtype=F64)
    for method in ("crank_nicolson", "ark436l2sa"):
        _, stats = imex_odeint(None, Nonlinear(lambda t, u: -2 * u), u0, times(0, 1), method=method,
                               step_size=0.1, return_stats=True)
        implicit = 1 if method == "crank_nicolson" else 5
        # One evaluation before and one after the update of each stage, and one at the start.
        assert stats.implicit_evaluations == 1 + 2 * implicit * 10


def test_the_forcing_terms_spare_linear_iterations():
    n = 100
    matrix = -torch.diag(torch.linspace(1, 300, n, dtype=F64))

    def fn(t, u):
        return u @ matrix - 20 * u**3

    u0 = torch.rand(n, dtype=F64)
    found = {}
    for name, solver in (("chosen", GMRES()), ("tight", GMRES(rtol=1e-10))):
        u, stats = one_step(fn, u0, newton=Newton(rtol=1e-9, solver=solver))
        found[name] = u, stats.linear_iterations
    torch.testing.assert_close(found["chosen"][0], found["tight"][0], rtol=0, atol=1e-9)
    assert found["chosen"][1] < 0.7 * found["tight"][1]


def test_statistics_tell_forward_and_backward_apart():
    reaction, wave = Reaction(), Wave()
    u0 = torch.randn(4, 3, dtype=F64).requires_grad_()
    part = Nonlinear(reaction, torch.rand(3, dtype=F64), dims=-1, newton=Newton(solver=GMRES()))
    u, stats = imex_odeint(wave, part, u0, times(0, 1), step_size=0.25, return_stats=True)
    forward = stats.forward
    assert forward.newton_iterations > 0
    assert forward.implicit_jvps > 0
    assert forward.implicit_vjps == 1  # a check of the products with the derivative
    assert forward.linear_iterations > 0
    assert (stats.backward.implicit_evaluations, stats.backward.linear_iterations) == (0, 0)
    u.sum().backward()
    assert stats.forward == forward
    assert stats.backward.newton_iterations == 0
    assert stats.backward.explicit_vjps == stats.explicit_vjps > 0
    assert stats.backward.implicit_vjps > 0
    # The derivative at each stage, which the solve and the gradients of H's tensors share.
    assert stats.backward.implicit_evaluations == forward.steps_accepted * 4
    for name in ("implicit_evaluations", "linear_solves", "linear_iterations", "implicit_vjps"):
        assert getattr(stats, name) == getattr(forward, name) + getattr(stats.backward, name)


def test_checkpoints_do_not_evaluate_g_or_h_more_often_than_needed():
    reaction, u0 = Reaction(), torch.randn(4, 3, dtype=F64).requires_grad_()
    part = Nonlinear(reaction, torch.rand(3, dtype=F64), dims=-1)
    u, stats = imex_odeint(None, part, u0, times(0, 1), step_size=0.25, checkpoints=4,
                           return_stats=True)
    u.sum().backward()
    assert stats.steps_recomputed == 3  # all but the last, once


# The line search


def test_updates_that_overshoot_are_halved():
    def fn(t, u):  # Newton's method runs away on atan from beyond 1.39
        return -torch.atan(10 * (u - 3)) * 1e3

    u0 = double([30.0])
    u, _ = one_step(fn, u0)
    assert float((u - u0 - fn(0, u)).abs()) < 1e-9 * 1e3
    with pytest.raises(NewtonError):
        one_step(fn, u0, newton=Newton(line_search=False))


def test_a_trial_that_gives_nan_is_drawn_back():
    trials = []

    def fn(t, u):  # the first update goes below zero
        trials.append(u.detach().clone())
        return -20 * u.sqrt()

    u0 = double([1.0])
    for newton in (Newton(), Newton(line_search=False), Newton(solver=GMRES())):
        trials.clear()
        u, _ = one_step(fn, u0, newton=newton)
        assert float((u + 20 * u.sqrt() - u0).abs()) < 1e-11
        assert float(torch.stack(trials).min()) < 0


# How it fails


def rootless(t, u):
    """U = 1 + U^2 + 1 has no real solution."""
    return u**2 + 1


@pytest.mark.parametrize("newton", [Newton(), Newton(solver=GMRES()), Newton(line_search=False),
                                    Newton(max_iter=3)], ids=repr)
def test_a_stage_without_a_solution_is_an_error_with_time_step_and_state(newton):
    with pytest.raises(NewtonError, match=(
            r"Newton's method did not solve an implicit stage: .* \(expected an error within the "
            r"tolerance, got .*Take a smaller step_size.*In step 1, which starts at time 1\.")
            ) as caught:
        imex_odeint(None, Nonlinear(lambda t, u: rootless(t, u) * (t > 1.5), newton=newton),
                    double([1.0]), times(0, 3), step_size=1.0, method="implicit_euler")
    error = caught.value
    assert (error.time, error.step) == (1.0, 1)
    assert 0 < error.iterations <= newton.max_iter
    assert math.isfinite(error.residual)
    assert error.state.shape == (1,)
    other = pickle.loads(pickle.dumps(error))
    assert (str(other), other.time, other.step, other.iterations) == (
        str(error), error.time, error.step, error.iterations)
    assert torch.equal(other.state, error.state)


def test_a_failed_newton_makes_an_adaptive_step_smaller():
    def fn(t, u):
        return u**2 + 1

    t = times(0, 1.2)
    u, stats = imex_odeint(None, Nonlinear(fn), double([0.0]), t, rtol=1e-8, first_step=1.2,
                           return_stats=True)
    assert stats.steps_rejected >= 1
    torch.testing.assert_close(u[-1], torch.tan(t[-1:]), rtol=1e-4, atol=0)


def test_steps_that_become_too_small_name_newton():
    with pytest.raises(StepSizeError, match="an implicit stage was not solved: Newton's") as caught:
        imex_odeint(None, Nonlinear(lambda t, u: torch.where(t > 0.5, torch.nan, -u)),
                    double([1.0]), times(0, 1), rtol=1e-3)
    assert isinstance(caught.value.__cause__, NewtonError)
    assert caught.value.time == pytest.approx(0.5, abs=0.01)


def test_a_state_that_is_not_finite_is_named_as_such():
    with pytest.raises(NonFiniteStateError, match="step 0"):
        imex_odeint(lambda t, u: u / 0.0, Nonlinear(cubic), double([1.0]), times(0, 1),
                    step_size=0.5)


def test_an_h_that_is_not_finite_at_the_start_of_a_stage_is_an_error():
    def fn(t, u):
        return torch.where(t > 0.2, torch.nan, -u)

    with pytest.raises(NewtonError, match="H is not finite at the state to start from"):
        imex_odeint(None, Nonlinear(fn), double([1.0]), times(0, 1), step_size=0.25)


def test_a_linear_solve_that_fails_is_named_with_its_own_words():
    matrix = torch.randn(100, 100, dtype=F64) * 10

    def fn(t, u):
        return u @ matrix

    with pytest.raises(NewtonError, match=r"a linear solve failed: GMRES\(.*max_iter=2\) did not"):
        one_step(fn, torch.ones(100, dtype=F64), newton=Newton(solver=GMRES(max_iter=2)))


def test_a_singular_derivative_is_an_error():
    with pytest.raises(NewtonError, match="derivative of U - c H is singular to rounding"):
        one_step(lambda t, u: u + 1, double([1.0, 2.0]))
    with pytest.raises(NewtonError, match=r"a linear solve failed: I - cJ is singular"):
        one_step(lambda t, u: u + 1, double([1.0, 2.0]), dims=())
    # U = r + U - U^3 at U = 0: the derivative of the left side vanishes there.
    u0, part = double([0.0]).requires_grad_(), Nonlinear(lambda t, u: u - u**3)
    part.jacobian = lambda t, u: Diagonal(-torch.ones_like(u))  # finds the root nevertheless
    with pytest.warns(UserWarning, match=r"off by .* where the derivative of H is"):
        u = imex_odeint(None, part, u0, times(0, 1), step_size=1.0, method="implicit_euler")[-1]
    with pytest.raises(LinearSolveError, match="singular to rounding"):
        u.sum().backward()


@pytest.mark.parametrize("solver", [CG(), GMRES(), BiCGStab(), Direct()], ids=repr)
def test_any_linear_solver_may_be_used(solver):
    u0 = torch.linspace(0.5, 2.0, 80, dtype=F64)
    u, _ = one_step(cubic, u0, newton=Newton(solver=solver))
    exact, _ = one_step(cubic, u0, dims=())
    torch.testing.assert_close(u, exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("operator", [lambda u: Diagonal(-3 * u**2),
                                      lambda u: Dense(torch.diag(-3 * u**2))])
def test_a_jacobian_with_a_closed_inverse_takes_no_iterations(operator):
    u0 = torch.linspace(0.5, 2.0, 80, dtype=F64)
    u, stats = one_step(cubic, u0, jacobian=lambda t, u: operator(u))
    exact, _ = one_step(cubic, u0, dims=())
    torch.testing.assert_close(u, exact, rtol=0, atol=1e-12)
    assert (stats.linear_iterations, stats.implicit_jvps) == (0, 0)


@pytest.mark.parametrize(("options", "kind", "message"), [
    ({"rtol": -1.0}, ValueError, "rtol of Newton from 0 up"),
    ({"atol": math.inf}, ValueError, "atol of Newton from 0 up"),
    ({"rtol": 0}, ValueError, "rtol or atol of Newton above 0"),
    ({"max_iter": 0}, ValueError, "max_iter of Newton as a positive int"),
    ({"max_iter": True}, ValueError, "max_iter of Newton as a positive int"),
    ({"solver": "gmres"}, TypeError, r"solver of Newton as a linear solver .*'gmres'"),
    ({"solver": GMRES}, TypeError, "solver of Newton as a linear solver"),
])
def test_newton_refuses_bad_options(options, kind, message):
    with pytest.raises(kind, match=message):
        Newton(**options)
