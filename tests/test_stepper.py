"""Does one step do what its scheme says, is its transpose exact, and does time march as planned?"""

import math

import numpy as np
import pytest
import torch

from pyg_sinode import LinearSolveError, NonFiniteStateError, Stats, operators, solvers
from pyg_sinode.march import LOOK_EVERY, march
from pyg_sinode.operators import Shifted
from pyg_sinode.schemes import SCHEMES
from pyg_sinode.setups import Setups
from pyg_sinode.stepper import RungeKutta, Solves, combine
from pyg_sinode.steps import landing, plan

every_scheme = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
EPS32, EPS64 = torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps
GAMMA = 1 - 1 / math.sqrt(2)
J = np.array([[-3.0, 1.0], [0.5, -40.0]])
U0 = np.array([0.7, -1.3])


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def stepper_of(scheme, explicit, matrix, inverse=None, stats=None):
    implicit = None if matrix is None else operators.Dense(torch.as_tensor(matrix))

    def direct(c, scale):
        return solvers.Direct().invert(Shifted(implicit, c))

    return stepper_by(scheme, explicit, implicit, inverse or direct, stats or Stats())


def stepper_by(scheme, explicit, operator, inverse, stats):
    part = None if operator is None else operators.Affine(operator)
    return RungeKutta(scheme, explicit, Solves(part, inverse, stats), stats)


def result_of(stepper, t, h, u):
    return stepper.step(0, t, h, (u,)).state[0]


def states(stepper, times, step_size, u):
    return [m.made.state[0] for m in march(stepper, landing(times, step_size, EPS64), u)]


# A step


def G(t, u):
    """A coupled, nonlinear, time-dependent term, for numpy arrays."""
    return np.array([np.sin(3 * t) + u[0] * u[1], np.cos(u[0]) - t * u[1]])


def G_of_tensors(t, u):
    return torch.as_tensor(G(t, u.numpy()))


def by_hand_imex_euler(t, h, u):
    return np.linalg.solve(np.eye(2) - h * J, u + h * G(t, u))


def by_hand_ssp222(t, h, u):
    A = np.eye(2) - h * GAMMA * J
    U1 = np.linalg.solve(A, u)
    G1 = G(t, U1)
    U2 = np.linalg.solve(A, u + h * G1 + h * (1 - 2 * GAMMA) * J @ U1)
    G2 = G(t + h, U2)
    return u + h / 2 * (G1 + G2) + h / 2 * (J @ U1 + J @ U2)


def by_hand_ars222(t, h, u):
    A, delta = np.eye(2) - h * GAMMA * J, 1 - 1 / (2 * GAMMA)
    G1 = G(t, u)
    U2 = np.linalg.solve(A, u + h * GAMMA * G1)
    G2 = G(t + GAMMA * h, U2)
    U3 = np.linalg.solve(A, u + h * (delta * G1 + (1 - delta) * G2) + h * (1 - GAMMA) * J @ U2)
    return u + h * (delta * G1 + (1 - delta) * G2) + h * J @ ((1 - GAMMA) * U2 + GAMMA * U3)


@pytest.mark.parametrize("h", [0.1, -0.05])
@pytest.mark.parametrize("by_hand", [by_hand_imex_euler, by_hand_ssp222, by_hand_ars222])
def test_a_step_equals_one_written_out_by_hand(by_hand, h):
    scheme = SCHEMES[by_hand.__name__.removeprefix("by_hand_")]
    result = result_of(stepper_of(scheme, G_of_tensors, J), 0.3, h, torch.as_tensor(U0))
    np.testing.assert_allclose(result.numpy(), by_hand(0.3, h, U0), rtol=1e-14, atol=1e-14)


@every_scheme
def test_a_step_of_a_linear_equation_is_its_stability_function(scheme):
    # One eigenvalue at a time: the scheme is 1 + z b^T (I - z A)^-1 1 with the implicit tableau.
    z = -1.7
    A, b = scheme.a_implicit, scheme.b_implicit
    expected = 1 + z * b @ np.linalg.solve(np.eye(len(b)) - z * A, np.ones(len(b)))
    result = result_of(stepper_of(scheme, None, double([[z / 0.5]])), 0.0, 0.5, double([1.0]))
    assert float(result) == pytest.approx(expected, rel=1e-13)


@every_scheme
def test_the_explicit_part_alone_is_its_own_runge_kutta_scheme(scheme):
    def rate(t, u):
        return torch.cos(u) * (1 + t)

    u, h, k = double([0.2]), 0.3, []
    for row, c in zip(scheme.a_explicit, scheme.c_explicit, strict=True):
        k.append(rate(1.0 + c * h, u + h * sum(a * x for a, x in zip(row, k, strict=False))))
    expected = u + h * sum(b * x for b, x in zip(scheme.b_explicit, k, strict=True))
    result = result_of(stepper_of(scheme, rate, None), 1.0, h, u)
    torch.testing.assert_close(result, expected, rtol=1e-13, atol=0.0)


@every_scheme
def test_a_step_leaves_the_state_it_starts_from_as_it_was(scheme):
    u = torch.as_tensor(U0).clone()
    result_of(stepper_of(scheme, lambda t, x: x, J), 0.0, 0.1, u)
    assert torch.equal(u, torch.as_tensor(U0))


@pytest.mark.parametrize(
    ("name", "count"),
    [("imex_euler", 1), ("ars122", 2), ("ars222", 2), ("ssp222", 2), ("ark232", 3), ("ars443", 4),
     ("ark324l2sa", 4), ("ark436l2sa", 6), ("ark548l2sa", 8)],
)
def test_evaluations_that_nothing_uses_are_not_made(name, count):
    times, stats = [], Stats()

    def rate(t, u):
        times.append(t)
        return u

    result_of(stepper_of(SCHEMES[name], rate, J, stats=stats), 0.0, 0.1, torch.as_tensor(U0))
    assert len(times) == stats.explicit_evaluations == count


@every_scheme
def test_stages_are_evaluated_at_the_explicit_abscissae(scheme):
    times = []

    def rate(t, u):
        times.append(t)
        return u

    result_of(stepper_of(scheme, rate, J), 2.0, 0.5, torch.as_tensor(U0))
    used = [c for c, needed in zip(scheme.c_explicit, scheme.needs_explicit, strict=True) if needed]
    assert times == pytest.approx([2.0 + 0.5 * c for c in used], rel=1e-15)


def test_zero_weights_are_skipped_and_neither_the_state_nor_the_terms_are_overwritten():
    u, g, k = double([1.0]), double([2.0]), double([4.0])
    assert combine(u, 0.5, [0.0], [g], [0.0], [k]) is u
    assert combine(u, 0.5, [3.0, 1.0], [g, None], [1.0], [k]).item() == 1 + 0.5 * (6 + 4)
    assert (u.item(), g.item(), k.item()) == (1.0, 2.0, 4.0)


# Its transpose


def matrix_of_step(stepper, B, t, h):
    columns = [result_of(stepper, t, h, e) for e in torch.eye(B.size(0), dtype=B.dtype)]
    return torch.stack(columns, dim=1)


def matrix_of_transposed_step(stepper, B, t, h):
    tape = stepper.step(0, t, h, (torch.ones(B.size(0), dtype=B.dtype),)).tape

    class Reverse:
        def explicit(self, place, time, u, v):
            return (1 + time) * (v @ B)

        def implicit(self, time, u, w):
            pass

    rows = [stepper.transposed(0, t, h, tape, [e], [], Reverse())[0]
            for e in torch.eye(B.size(0), dtype=B.dtype)]
    return torch.stack(rows, dim=1)


@every_scheme
@pytest.mark.parametrize("h", [0.2, -0.03])
def test_the_transposed_step_is_the_exact_adjoint(scheme, h):
    torch.manual_seed(0)
    B, M = torch.randn(2, 3, 3, dtype=torch.float64)
    M = M - 5 * torch.eye(3, dtype=torch.float64)
    stepper = stepper_of(scheme, lambda t, u: (1 + t) * (B @ u), M)
    S = matrix_of_step(stepper, B, 0.4, h)
    assert not torch.allclose(S, S.T, atol=1e-3)
    torch.testing.assert_close(matrix_of_transposed_step(stepper, B, 0.4, h), S.T,
                               rtol=1e-13, atol=1e-13)


@every_scheme
@pytest.mark.parametrize("part", ["explicit", "implicit"])
def test_the_transposed_step_is_exact_with_one_part_only(scheme, part):
    torch.manual_seed(1)
    B = torch.randn(3, 3, dtype=torch.float64)
    if part == "explicit":
        stepper = stepper_of(scheme, lambda t, u: (1 + t) * (B @ u), None)
    else:
        stepper = stepper_of(scheme, None, B - 5 * torch.eye(3, dtype=torch.float64))
    S = matrix_of_step(stepper, B, 0.4, 0.2)
    torch.testing.assert_close(matrix_of_transposed_step(stepper, B, 0.4, 0.2), S.T,
                               rtol=1e-13, atol=1e-13)


# The plan


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_interval_of_one_step_size_is_one_step(dtype):
    t = torch.tensor([0.0, 0.2], dtype=dtype)
    (interval,) = plan(t.tolist(), 0.2, torch.finfo(dtype).eps)
    assert interval.steps == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fifty_intervals_of_one_step_size_are_fifty_steps_of_one_size(dtype):
    t = torch.linspace(0, 10, 51, dtype=dtype)
    intervals = plan(t.tolist(), 0.2, torch.finfo(dtype).eps)
    assert sum(i.steps for i in intervals) == 50
    assert len({i.h for i in intervals}) == 1


def test_an_interval_just_over_a_whole_number_of_steps_takes_that_number():
    assert plan([0.0, 1.0 + 1e-7], 0.2, EPS64)[0].steps == 5
    assert plan([0.0, 1.0 + 1e-4], 0.2, EPS64)[0].steps == 6


def test_a_float32_rounding_is_not_forgiven_in_float64():
    rounded = torch.tensor(1000.2, dtype=torch.float32).item()
    assert plan([1000.0, rounded], 0.2, EPS32)[0].steps == 1
    assert plan([1000.0, rounded], 0.2, EPS64)[0].steps == 2


def test_steps_within_an_interval_are_equal_and_none_exceeds_the_step_size():
    times = [0.0, 1.0, 1.15, 3.0]
    intervals = plan(times, 0.4, EPS64)
    assert [i.steps for i in intervals] == [3, 1, 5]
    assert [i.h for i in intervals] == pytest.approx([1 / 3, 0.15, 0.37])
    assert all(abs(i.h) <= 0.4 for i in intervals)


def test_every_interval_starts_at_its_output_time_and_ends_at_the_next():
    torch.manual_seed(0)
    times = (torch.rand(40, dtype=torch.float64) + 1e-3).cumsum(0).tolist()
    for sign in (1.0, -1.0):
        intervals = plan([sign * t for t in times], 0.17, EPS64)
        assert [i.start for i in intervals] == [sign * t for t in times[:-1]]
        for interval, end in zip(intervals, times[1:], strict=True):
            assert interval.start + interval.steps * interval.h == pytest.approx(sign * end)


def test_steps_are_negative_where_time_decreases():
    intervals = plan([1.0, 0.5, 0.0], 0.25, EPS64)
    assert [(i.h, i.steps) for i in intervals] == [(-0.25, 2), (-0.25, 2)]


def test_a_step_within_1e_6_of_one_used_before_is_that_step():
    near, far = 1.0 + 1e-7, 1.0 + 1e-5
    assert plan([0.0, 1.0, 1.0 + near], 2.0, EPS64)[1].h == 1.0
    assert plan([0.0, 1.0, 1.0 + far], 2.0, EPS64)[1].h == pytest.approx(far, rel=1e-9)


def test_times_are_not_accumulated():
    times = []

    def rate(t, u):
        times.append(t)
        return u * 0

    states(stepper_of(SCHEMES["imex_euler"], rate, None), [0.0, 100.0], 0.1, double([1.0]))
    assert times == [k * 0.1 for k in range(1000)]


def test_a_march_says_where_each_step_began_and_which_ones_land_on_an_output():
    stepper = stepper_of(SCHEMES["ssp222"], None, J)
    steps = list(march(stepper, landing([0.0, 0.2, 0.3], 0.1, EPS64), torch.as_tensor(U0)))
    assert [s.step.t for s in steps] == pytest.approx([0.0, 0.1, 0.2])
    assert [s.step.outputs for s in steps] == [(), (1.0,), (1.0,)]
    assert stepper.stats.steps_accepted == 3


# Set-ups


def test_one_inverse_serves_all_stages_and_steps():
    stats, operator = Stats(), operators.Dense(torch.as_tensor(J))
    setups = Setups(operator, solvers.Direct().invert, None, stats)
    for name in ("ssp222", "ark436l2sa"):
        before = stats.setups
        stepper = stepper_by(SCHEMES[name], None, operator, setups.inverse, stats)
        states(stepper, [0.0, 1.0], 0.1, torch.as_tensor(U0))
        assert stats.setups == before + 1, name


# What stops a march


def becomes_nan(at, value=math.nan):
    return lambda t, u: torch.full_like(u, value) if t >= at else u * 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_state_that_stops_being_finite_stops_the_march_with_time_step_and_last_good_state(value):
    stepper = stepper_of(SCHEMES["imex_euler"], becomes_nan(0.45, value), None)
    with pytest.raises(NonFiniteStateError, match=r"step 5, which starts at time 0\.5\.") as caught:
        states(stepper, [0.0, 1.0], 0.1, double([3.0, 4.0]))
    assert (caught.value.step, caught.value.time) == (5, pytest.approx(0.5))
    assert caught.value.state.tolist() == [3.0, 4.0]
    assert stepper.stats.explicit_evaluations == 6


def test_a_march_that_fails_says_so_before_it_hands_out_the_state():
    stepper = stepper_of(SCHEMES["imex_euler"], becomes_nan(0.15), None)
    steps = march(stepper, landing([0.0, 1.0], 0.1, EPS64), double([3.0]))
    assert next(steps).made.state[0].isfinite()
    assert next(steps).made.state[0].isfinite()
    with pytest.raises(NonFiniteStateError):
        next(steps)


def test_a_large_finite_state_whose_sum_overflows_goes_on():
    u = torch.full((4,), 1e308, dtype=torch.float64)
    assert not u.sum().isfinite()
    stepper = stepper_of(SCHEMES["imex_euler"], None, double([[-1.0]]))
    (result,) = states(stepper, [0.0, 0.1], 0.1, u[:, None])
    assert result.isfinite().all()


class FailsAtSolve(operators.LinearOperator):
    """An inverse of I that gives up at its n-th solve."""

    def __init__(self, n):
        self.left = n

    def solve(self, b, guess=None):
        self.left -= 1
        if self.left < 0:
            raise LinearSolveError("The solve failed.", iterations=7, residual=0.5)
        return operators.Solution(b)


def test_a_linear_solve_that_fails_says_at_which_time_and_step():
    inverse = FailsAtSolve(5)
    stepper = stepper_of(SCHEMES["ssp222"], None, J, lambda c, scale: inverse)
    with pytest.raises(LinearSolveError, match=r"failed\. \(In step 2, .* time 1\.2\.") as caught:
        states(stepper, [1.0, 2.0], 0.1, torch.as_tensor(U0))
    assert (caught.value.step, caught.value.time) == (2, pytest.approx(1.2))
    assert (caught.value.iterations, caught.value.residual) == (7, 0.5)


def test_a_krylov_solver_given_nan_by_the_explicit_term_does_not_take_the_blame():
    operator = operators.Dense(torch.as_tensor(J))
    stepper = stepper_by(SCHEMES["ars222"], becomes_nan(0.21), operator,
                         lambda c, scale: solvers.GMRES().invert(Shifted(operator, c)), Stats())
    with pytest.raises(NonFiniteStateError) as caught:
        states(stepper, [0.0, 1.0], 0.1, torch.as_tensor(U0))
    assert caught.value.step == 2
    assert caught.value.state.isfinite().all()


# On an accelerator the flags stay on the device; a tensor that says it is not on the CPU takes
# that road on any machine.


class Elsewhere(torch.Tensor):
    is_cpu = False


def elsewhere(values):
    return double(values).as_subclass(Elsewhere)


def test_on_an_accelerator_the_flags_are_read_at_the_end():
    stepper = stepper_of(SCHEMES["imex_euler"], becomes_nan(0.45), None)
    with pytest.raises(NonFiniteStateError, match=r"step 5, which starts at time 0\.5\.") as caught:
        states(stepper, [0.0, 0.2, 1.0], 0.1, elsewhere([3.0]))
    assert (caught.value.step, caught.value.time) == (5, pytest.approx(0.5))
    assert caught.value.state.tolist() == [3.0]
    assert stepper.stats.steps_accepted == 10


def test_on_an_accelerator_a_long_march_does_not_run_on_with_nan():
    stepper = stepper_of(SCHEMES["imex_euler"], becomes_nan(10.05), None)
    with pytest.raises(NonFiniteStateError) as caught:
        states(stepper, [0.0, 100.0], 0.1, elsewhere([3.0]))
    assert caught.value.step == 101
    assert caught.value.state.tolist() == [3.0]
    assert stepper.stats.steps_accepted == 2 * LOOK_EVERY


def test_on_an_accelerator_a_march_that_stays_finite_goes_through():
    stepper = stepper_of(SCHEMES["imex_euler"], lambda t, u: u * 0, None)
    assert len(states(stepper, [0.0, 1.0], 0.1, elsewhere([3.0]))) == 10


def test_on_an_accelerator_a_solve_that_fails_later_names_the_step_that_failed_first():
    # A direct solve of the NaN goes through, and two steps later the linear solver stumbles.
    inverse = FailsAtSolve(4)
    stepper = stepper_of(SCHEMES["imex_euler"], becomes_nan(0.15), J, lambda c, scale: inverse)
    with pytest.raises(NonFiniteStateError) as caught:
        states(stepper, [0.0, 1.0], 0.1, elsewhere([3.0, 4.0]))
    assert (caught.value.step, caught.value.time) == (2, pytest.approx(0.2))
