"""Does the loop tell, stop and fail as it should?"""

import math

import numpy as np
import pytest
import torch
from cases import accepted, double, states, stepper_by, stepper_of, times

from pyg_sinode import (
    LinearSolveError,
    NonFiniteStateError,
    Stats,
    StepSizeError,
    controllers,
    imex_odeint,
    operators,
    solvers,
)
from pyg_sinode.integrate.step_sizes import LOOK_EVERY
from pyg_sinode.operators import Shifted
from pyg_sinode.schemes import RUNGE_KUTTA


@pytest.mark.parametrize("options", [{"step_size": 0.1}, {"rtol": 1e-3}], ids=["equal", "adaptive"])
def test_a_callback_sees_every_accepted_step_in_order(options):
    seen = []
    u, stats = imex_odeint(
        None, operators.ScaledIdentity(-1.0), double([1.0]).requires_grad_(), times(0, 0.5, 1),
        callback=lambda t, u: seen.append((t, float(u), u.requires_grad)), return_stats=True,
        **options)
    assert len(seen) == stats.steps_accepted
    assert [t for t, _, _ in seen] == sorted(t for t, _, _ in seen)
    assert seen[-1][:2] == (pytest.approx(1.0), float(u[-1].detach()))
    assert not any(grad for _, _, grad in seen)
    assert stats.stopped_at is None


@pytest.mark.parametrize("gradient", ["discrete", "backprop"])
@pytest.mark.parametrize("options", [
    {"step_size": 0.1}, {"rtol": 1e-6}, {"rtol": 1e-6, "dense": True},
    {"step_size": 0.1, "method": "sbdf2"}])
def test_a_callback_that_returns_true_ends_the_run_with_the_state_there(options, gradient):
    u0 = double([1.0]).requires_grad_()
    u, stats = imex_odeint(None, operators.ScaledIdentity(-1.0), u0, times(0, 0.5, 1, 9),
                           callback=lambda t, u: t > 0.72, gradient=gradient, return_stats=True,
                           **options)
    assert 0.72 < stats.stopped_at < 1.0
    assert u.shape == (3, 1)
    (grad,) = torch.autograd.grad(u[-1].sum(), u0)
    assert float(grad) == pytest.approx(float(u[-1].detach()))  # linear, from 1
    assert float(u[-1].detach()) == pytest.approx(math.exp(-stats.stopped_at), rel=5e-3)


def test_a_stop_on_an_output_time_gives_it_once():
    u, stats = imex_odeint(None, operators.ScaledIdentity(-1.0), double([1.0]), times(0, 0.5, 1),
                           step_size=0.1, callback=lambda t, u: t > 0.45, return_stats=True)
    assert u.shape == (2, 1)
    assert stats.stopped_at == pytest.approx(0.5)


@pytest.mark.parametrize("options", [{"step_size": 0.1}, {"rtol": 1e-3}])
def test_progress_is_shown_on_stderr_only_if_asked_for(options, capsys):
    arguments = (None, operators.ScaledIdentity(-1.0), double([1.0]), times(0, 1))
    imex_odeint(*arguments, **options)
    assert capsys.readouterr().err == ""
    imex_odeint(*arguments, progress=True, **options)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "time 1 of 1" in shown.err
    assert "100%" in shown.err


def test_a_step_below_min_step_says_when_and_why():
    def singular(t, u):
        return u * u

    with pytest.raises(StepSizeError, match=r"at time 0\.99.*below min_step=1e-06") as caught:
        imex_odeint(singular, None, double([1.0]), times(0, 2), min_step=1e-6, rtol=1e-6)
    error = caught.value
    for word in ("stiff", "discontinuity", "NaN"):
        assert word in str(error)
    assert error.time == pytest.approx(1.0, abs=1e-2)
    assert error.step_size < 1e-6
    assert float(error.state) > 100
    assert error.step > 10


def test_a_singularity_without_min_step_stops_where_rounding_of_time_does():
    with pytest.raises(StepSizeError, match="rounding of time"):
        imex_odeint(lambda t, u: u * u, None, double([1.0]), times(0, 2), rtol=1e-4)


def test_nan_in_the_explicit_term_is_named_with_the_last_good_state():
    def rate(t, u):
        return torch.full_like(u, math.nan) if t > 0.5 else -u

    with pytest.raises(StepSizeError, match="its result was not finite") as caught:
        imex_odeint(rate, operators.ScaledIdentity(-1.0), double([1.0]), times(0, 1))
    assert caught.value.time == pytest.approx(0.5, abs=1e-2)
    assert caught.value.state.isfinite().all()


def test_max_steps_says_how_far_it_came():
    with pytest.raises(StepSizeError, match=r"max_steps=20 steps \(came to 0\.\d+ in \d+ acc") as c:
        imex_odeint(lambda t, u: -1e5 * u, None, double([1.0]), times(0, 1), max_steps=20)
    assert 0 < c.value.time < 0.1
    assert c.value.step <= 20
    assert c.value.state.isfinite().all()
    imex_odeint(None, operators.ScaledIdentity(-1.0), double([1.0]), times(0, 1), max_steps=20)


def test_a_linear_solve_that_fails_makes_the_step_smaller_first():
    # CG stops after two iterations: enough for small steps only.
    n = 16
    off = torch.ones(n - 1).double()
    laplacian = operators.Dense((off.diag(1) + off.diag(-1) - 2 * torch.eye(n).double()) * 10)
    u, stats = imex_odeint(None, laplacian, torch.randn(n).double(), times(0, 0.1),
                           first_step=0.1, rtol=1e-1, atol=1e-1, return_stats=True,
                           solver=solvers.CG(max_iter=4, rtol=1e-8))
    assert stats.steps_rejected > 0
    assert u.isfinite().all()
    with pytest.raises(StepSizeError, match="a linear solve failed") as caught:
        imex_odeint(None, laplacian, torch.randn(n).double(), times(0, 1), rtol=1e-1,
                    min_step=1e-2, first_step=0.5, solver=solvers.CG(max_iter=1, rtol=1e-12))
    assert isinstance(caught.value.__cause__, LinearSolveError)


def test_equal_steps_that_blow_up_stop_with_time_step_and_state():
    with pytest.raises(NonFiniteStateError) as caught:
        imex_odeint(lambda t, u: u**3, None, double([2.0]), times(0, 5), step_size=0.1)
    assert caught.value.state.isfinite().all()


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"rtol": 0.0}, ValueError, r"positive, finite rtol \(got 0.0\)"),
    ({"rtol": -1e-3}, ValueError, "positive, finite rtol"),
    ({"atol": 0.0}, ValueError, "positive, finite atol"),
    ({"atol": math.nan}, ValueError, "positive, finite atol"),
    ({"atol": "1e-3"}, TypeError, r"Expected atol as a number \(got str\)"),
    ({"rtol": double([1e-3, 0.0])}, ValueError, r"positive, finite rtol \(got one with entries"),
    ({"rtol": double([1e-3] * 3)}, ValueError, r"rtol to broadcast .* \(2,\) \(got \(3,\)\)"),
    ({"rtol": torch.tensor([1, 1])}, TypeError, "rtol of a real floating dtype"),
    ({"atol": torch.ones(2, device="meta")}, ValueError, r"atol on the device .*\(got meta\)"),
    ({"first_step": 0.0}, ValueError, "positive, finite first_step"),
    ({"min_step": -1.0}, ValueError, "positive, finite min_step"),
    ({"max_steps": 0}, ValueError, r"max_steps as a positive int \(got 0\)"),
    ({"max_steps": 2.5}, ValueError, "max_steps as a positive int"),
    ({"controller": "PI"}, TypeError, r"a controller such as .*PI\(\) \(got 'PI'\)"),
    ({"controller": controllers.PI}, TypeError, "a controller such as"),
    ({"callback": 3}, TypeError, r"callback as a function of \(t, u\) \(got int\)"),
    ({"step_size": 0.1, "rtol": 1e-3}, ValueError, "no rtol with a step_size"),
    ({"step_size": 0.1, "atol": 1e-3, "max_steps": 5}, ValueError, "no atol or max_steps with a"),
    ({"method": "ars222"}, ValueError, "embedded pair .*got ars222.*ars122, ssp222, ark232, ark32"),
    ({"method": "imex_euler"}, ValueError, "these have one: ars122"),
    ({"method": "sbdf2"}, ValueError, r"embedded pair .*\(got sbdf2\)"),
    ({"method": "ssp222", "dense": True}, ValueError,
     r"interpolant .*\(got ssp222\); these have one: imex_euler, ars222, ars443, ark324l2sa"),
    ({"method": "sbdf2", "step_size": 0.1, "dense": True}, ValueError, "these have one: imex_eul"),
])
def test_what_does_not_fit_is_refused_before_any_work(options, error, message):
    def never(t, u):
        raise AssertionError("evaluated")

    with pytest.raises(error, match=message):
        imex_odeint(never, operators.ScaledIdentity(-1.0), double([1.0, 2.0]), times(0, 1),
                    **options)


MATRIX, U0 = np.array([[-3.0, 1.0], [0.5, -40.0]]), np.array([0.7, -1.3])


def test_times_are_not_accumulated():
    times = []

    def rate(t, u):
        times.append(t)
        return u * 0

    states(stepper_of(RUNGE_KUTTA["imex_euler"], rate, None), [0.0, 100.0], 0.1, double([1.0]))
    assert times == [k * 0.1 for k in range(1000)]


def test_a_march_says_where_each_step_began_and_which_ones_land_on_an_output():
    stepper = stepper_of(RUNGE_KUTTA["ssp222"], None, MATRIX)
    steps = list(accepted(stepper, [0.0, 0.2, 0.3], 0.1, torch.as_tensor(U0)))
    assert [s.step.t for s in steps] == pytest.approx([0.0, 0.1, 0.2])
    assert [s.step.outputs for s in steps] == [(), (1.0,), (1.0,)]
    assert stepper.stats.steps_accepted == 3


def becomes_nan(at, value=math.nan):
    return lambda t, u: torch.full_like(u, value) if t >= at else u * 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_state_that_stops_being_finite_stops_the_march_with_time_step_and_last_good_state(value):
    stepper = stepper_of(RUNGE_KUTTA["imex_euler"], becomes_nan(0.45, value), None)
    with pytest.raises(NonFiniteStateError, match=r"step 5, which starts at time 0\.5\.") as caught:
        states(stepper, [0.0, 1.0], 0.1, double([3.0, 4.0]))
    assert (caught.value.step, caught.value.time) == (5, pytest.approx(0.5))
    assert caught.value.state.tolist() == [3.0, 4.0]
    assert stepper.stats.explicit_evaluations == 6


def test_a_march_that_fails_says_so_before_it_hands_out_the_state():
    stepper = stepper_of(RUNGE_KUTTA["imex_euler"], becomes_nan(0.15), None)
    steps = accepted(stepper, [0.0, 1.0], 0.1, double([3.0]))
    assert next(steps).result.state.u.isfinite()
    assert next(steps).result.state.u.isfinite()
    with pytest.raises(NonFiniteStateError):
        next(steps)


def test_a_large_finite_state_whose_sum_overflows_goes_on():
    u = torch.full((4,), 1e308, dtype=torch.float64)
    assert not u.sum().isfinite()
    stepper = stepper_of(RUNGE_KUTTA["imex_euler"], None, double([[-1.0]]))
    (result,) = states(stepper, [0.0, 0.1], 0.1, u[:, None])
    assert result.isfinite().all()


class FailsAtSolve(solvers.Inverse):
    """An inverse of I that gives up at its n-th solve."""

    def __init__(self, n):
        super().__init__(operators.ScaledIdentity(1.0))
        self.left = n

    def solve(self, b, guess=None):
        self.left -= 1
        if self.left < 0:
            raise LinearSolveError("The solve failed.", iterations=7, residual=0.5)
        return operators.Solution(b)


def test_a_linear_solve_that_fails_says_at_which_time_and_step():
    inverse = FailsAtSolve(5)
    stepper = stepper_of(RUNGE_KUTTA["ssp222"], None, MATRIX, lambda c, scale: inverse)
    with pytest.raises(LinearSolveError, match=r"failed\. \(In step 2, .* time 1\.2\.") as caught:
        states(stepper, [1.0, 2.0], 0.1, torch.as_tensor(U0))
    assert (caught.value.step, caught.value.time) == (2, pytest.approx(1.2))
    assert (caught.value.iterations, caught.value.residual) == (7, 0.5)


def test_a_krylov_solver_given_nan_by_the_explicit_term_does_not_take_the_blame():
    operator = operators.Dense(torch.as_tensor(MATRIX))
    stepper = stepper_by(RUNGE_KUTTA["ars222"], becomes_nan(0.21), operator,
                         lambda c, scale: solvers.GMRES().invert(Shifted(operator, c)), Stats())
    with pytest.raises(NonFiniteStateError) as caught:
        states(stepper, [0.0, 1.0], 0.1, torch.as_tensor(U0))
    assert caught.value.step == 2
    assert caught.value.state.isfinite().all()


class Elsewhere(torch.Tensor):
    is_cpu = False


def elsewhere(values):
    return double(values).as_subclass(Elsewhere)


def test_on_an_accelerator_the_flags_are_read_at_the_end():
    stepper = stepper_of(RUNGE_KUTTA["imex_euler"], becomes_nan(0.45), None)
    with pytest.raises(NonFiniteStateError, match=r"step 5, which starts at time 0\.5\.") as caught:
        states(stepper, [0.0, 0.2, 1.0], 0.1, elsewhere([3.0]))
    assert (caught.value.step, caught.value.time) == (5, pytest.approx(0.5))
    assert caught.value.state.tolist() == [3.0]
    assert stepper.stats.steps_accepted == 10


def test_on_an_accelerator_a_long_march_does_not_run_on_with_nan():
    stepper = stepper_of(RUNGE_KUTTA["imex_euler"], becomes_nan(10.05), None)
    with pytest.raises(NonFiniteStateError) as caught:
        states(stepper, [0.0, 100.0], 0.1, elsewhere([3.0]))
    assert caught.value.step == 101
    assert caught.value.state.tolist() == [3.0]
    assert stepper.stats.steps_accepted == 2 * LOOK_EVERY - 1  # the last one is looked at before


def test_on_an_accelerator_a_march_that_stays_finite_goes_through():
    stepper = stepper_of(RUNGE_KUTTA["imex_euler"], lambda t, u: u * 0, None)
    assert len(states(stepper, [0.0, 1.0], 0.1, elsewhere([3.0]))) == 10


def test_on_an_accelerator_a_solve_that_fails_later_names_the_step_that_failed_first():
    # A direct solve of the NaN goes through, and two steps later the linear solver stumbles.
    inverse = FailsAtSolve(4)
    stepper = stepper_of(RUNGE_KUTTA["imex_euler"], becomes_nan(0.15), MATRIX,
                         lambda c, scale: inverse)
    with pytest.raises(NonFiniteStateError) as caught:
        states(stepper, [0.0, 1.0], 0.1, elsewhere([3.0, 4.0]))
    assert (caught.value.step, caught.value.time) == (2, pytest.approx(0.2))
