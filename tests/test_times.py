"""Is a time the number it is, whatever its dtype, its offset and the way of stepping?"""

from fractions import Fraction

import pytest
import torch
from cases import double

from pyg_sinode import imex_odeint
from pyg_sinode.integrate.clock import (
    Clock,
    plan,
    steps_across_outputs,
    steps_to_outputs,
    whole_steps,
)
from pyg_sinode.integrate.steps import EXCESS
from pyg_sinode.operators import ScaledIdentity

EPS32, EPS64 = torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps
ROTATION = double([[0.0, 1.0], [-1.0, 0.0]])
EAST = double([1.0, 0.0])


def rotate(t, speed=1.0, **options):
    """The unit vector that turns at a constant speed, and the stats."""
    return imex_odeint(lambda t, u: speed * (u @ ROTATION), None, EAST, t, return_stats=True,
                       **options)


def angles(t, speed=1.0):
    turned = speed * (t.double() - t.double()[0])
    return torch.stack([turned.cos(), turned.sin()], dim=-1)


def integrated_times(steps):
    """The exact sum of the steps up to each output that ends one."""
    total, found = Fraction(steps.t[0]), []
    for number in range(len(steps)):
        total += Fraction(steps.h[number])
        if steps[number].outputs:
            found.append(total)
    return found


def assert_exact(times, steps):
    for time, found in zip(times[1:], integrated_times(steps), strict=True):
        assert abs(found - Fraction(time)) <= 2 * EPS64 * abs(time)


# Clocks that are not regular


def test_times_in_float32_give_the_states_of_the_same_times_in_float64():
    t = torch.cat([torch.zeros(1), torch.cumsum(0.5 + torch.rand(100), 0)])
    short, _ = rotate(t, speed=5.0, step_size=0.01)
    exact, _ = rotate(t.double(), speed=5.0, step_size=0.01)
    assert float((short - exact).abs().max()) < 1e-7


def test_a_clock_that_runs_slow_against_its_first_interval_does_not_slip():
    late = 0.1 + 0.1 * (1 + 9e-7) * torch.arange(1000, dtype=torch.float64)
    slow, _ = rotate(torch.cat([torch.zeros(1).double(), late]), method="ark548l2sa", step_size=0.1)
    regular, _ = rotate(0.1 * torch.arange(1001).double(), method="ark548l2sa", step_size=0.1)
    off = [float((u - angles(t)).abs().max()) for u, t in (
        (slow, torch.cat([torch.zeros(1).double(), late])),
        (regular, 0.1 * torch.arange(1001).double()))]
    assert off[0] < 1.1 * off[1] + 1e-9


def test_the_last_output_is_the_value_at_its_own_time():
    t = double([0.0, 1.0, 2.0 + 1e-6])
    found = imex_odeint(lambda t, u: torch.ones_like(u), None, double([0.0]), t, step_size=1.0)
    assert float(found[-1]) - 2.0 == pytest.approx(1e-6, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [0.0, -3.0, 1e3])
def test_every_interval_is_integrated_exactly(dtype, offset):
    for spread in (1.0, 1e-6):
        rises = 0.1 * (1 + spread * torch.rand(300, dtype=torch.float64))
        times = (offset + rises.cumsum(0)).to(dtype).tolist()
        for sign in (1.0, -1.0):
            signed = [sign * t for t in times]
            clock = Clock(EPS64, torch.finfo(dtype).eps)
            assert_exact(signed, steps_to_outputs(signed, 0.03, clock))


def test_a_slip_of_many_intervals_does_not_add_up():
    # Each interval is a fraction of a rounding longer than the first.
    times = [0.0, 1.0]
    while len(times) < 2000:
        times.append(times[-1] + 1.0 + 4e-16 * times[-1])
    assert_exact(times, steps_to_outputs(times, 0.5, Clock(EPS64)))


# Grids


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ends", [(0.0, 10.0), (-1.0, 1.0), (1000.0, 1010.0), (5.0, -5.0)])
def test_equally_spaced_times_are_one_step_size_to_the_rounding_of_their_dtype(dtype, ends):
    t = torch.linspace(*ends, 101, dtype=dtype)
    eps = torch.finfo(dtype).eps
    step = abs(ends[1] - ends[0]) / 100
    for step_size, count in ((step, 1), (step / 4, 4), (0.3 * step, 4), (7 * step, 1)):
        steps = steps_to_outputs(t.tolist(), step_size, Clock(eps))
        assert len(set(steps.h)) == 1
        assert len(steps) == 100 * count
    assert all(steps[n].outputs == (1.0,) for n in range(100))


def integral(t, method):
    """Of 1 up to each time, in one step each."""
    return imex_odeint(lambda t, u: torch.ones_like(u), None, double([0.0]), t, method=method,
                       step_size=10.0)[:, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("clock", [
    lambda e, n, dtype: torch.linspace(0.0, e, n, dtype=dtype),
    lambda e, n, dtype: torch.linspace(-0.37 * e, e, n, dtype=dtype),
    lambda e, n, dtype: torch.linspace(e, 0.1 * e, n, dtype=dtype),
    lambda e, n, dtype: torch.arange(0.3 * e, e, e / n, dtype=dtype),
    lambda e, n, dtype: torch.tensor(e, dtype=dtype) + (e / n) * torch.arange(n).to(dtype),
])
def test_what_torch_makes_as_a_grid_is_one(clock, dtype):
    for n in (3, 10, 77, 130):
        for e in (0.1 + 10 * torch.rand(40, dtype=torch.float64)).tolist():
            t = clock(e, n, dtype)
            steps = steps_to_outputs(t.tolist(), 1e3, Clock(torch.finfo(dtype).eps))
            assert len(set(steps.h)) == 1
            moved = max(abs(float(found) - time) for found, time in zip(
                integrated_times(steps), t.tolist()[1:], strict=True))
            assert moved <= 2.01 * torch.finfo(dtype).eps * float(t.abs().max())


def test_a_grid_is_moved_by_no_more_than_its_acceptance_allows():
    t = torch.tensor([0.0, 1.0, 2.0 + 2**-21])  # two units of the last place more than a grid
    for dense in (False, True):
        u = imex_odeint(lambda t, u: torch.ones_like(u), None, double([0.0]), t, step_size=1.0,
                        dense=dense, method="ark324l2sa")[:, 0]
        assert float((u - t.double()).abs().max()) <= 2.0**-22


def test_whole_numbers_far_from_zero_are_no_rounded_grid():
    t = double([1e7 + k for k in (0, 1, 3, 4, 6)])  # 1.5 apart if they were of float32
    with pytest.raises(ValueError, match="whole multiples"):
        integral(t, "sbdf2")
    assert float((integral(t, "imex_rk2") - (t - 1e7)).abs().max()) <= 1e-8


@pytest.mark.parametrize("rest", [(1.0, 4.0), (1.0, 4.0, 5.0, 9.0), (0.5, 1.0, 1.625)])
@pytest.mark.parametrize("offset", [1e6, 2.0**23, 1e7])
@pytest.mark.parametrize("method", ["imex_rk2", "sbdf2"])
def test_what_no_clock_is_rounded_to_is_taken_for_no_grid(rest, offset, method):
    t = torch.tensor([offset, *(offset + x for x in rest)])
    if len(set(t.tolist())) == len(t):
        for dtype in (torch.float32, torch.float64):
            if method == "sbdf2":
                with pytest.raises(ValueError, match="whole multiples"):
                    integral(t.to(dtype), method)
                continue
            u = integral(t.to(dtype), method)
            moved = (u - (t.double() - t.double()[0])).abs().max()
            spacing = 2.0 ** (torch.frexp(torch.tensor(offset)).exponent - 24)
            assert float(moved) <= (1e-9 if dtype == torch.float64 and method == "imex_rk2"
                                    else 0.75 * spacing)


def test_missing_outputs_of_a_grid_leave_its_steps_equal():
    t = torch.linspace(0, 1, 11)[torch.tensor([0, 1, 3, 4, 10])]
    steps = steps_to_outputs(t.tolist(), 0.1, Clock(EPS32))
    assert len(set(steps.h)) == 1
    assert [n for n in range(10) if steps[n].outputs] == [0, 2, 3, 9]


@pytest.mark.parametrize("method", ["sbdf2", "sbdf4", "cnab2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_multistep_scheme_takes_a_grid_of_float32_in_either_dtype(method, dtype):
    t = torch.linspace(0, 10, 101)
    found, stats = rotate(t.to(dtype), method=method, step_size=0.1)
    exact, _ = rotate(torch.linspace(0, 10, 101, dtype=torch.float64), method=method, step_size=0.1)
    assert stats.steps_accepted == 100
    assert float((found - exact).abs().max()) < 1e-5


def test_a_multistep_scheme_refuses_times_that_are_no_grid():
    with pytest.raises(ValueError, match="whole multiples of one step size"):
        rotate(double([0.0, 0.1, 0.2 + 1e-9]), method="sbdf2", step_size=0.1)


def test_one_factorization_serves_a_grid_in_float32():
    t = torch.linspace(0, 10, 101)
    for options in ({"step_size": 0.1}, {"step_size": 0.04}, {"step_size": 0.1, "dense": True}):
        _, stats = imex_odeint(None, ScaledIdentity(-1.0), torch.ones(1), t, return_stats=True,
                               **options)
        assert stats.factorizations == 1


def test_times_converted_from_float32_take_as_many_steps_but_are_not_moved():
    t = torch.linspace(0, 10, 101)
    for step_size in (0.1, 0.025):
        _, short = rotate(t, step_size=step_size)
        _, exact = rotate(t.double(), step_size=step_size)
        assert short.steps_accepted == exact.steps_accepted == round(10 / step_size)
    assert_exact(t.tolist(), steps_to_outputs(t.tolist(), 0.1, Clock(EPS64, EPS32)))


@pytest.mark.parametrize("options", [
    {"step_size": 0.1 / 16}, {"step_size": 0.1 / 16, "dense": True}, {"rtol": 1e-9, "atol": 1e-11},
    {"step_size": 0.1 / 64, "method": "sbdf4"}], ids=str)  # fmt: skip
def test_the_times_that_g_sees_lie_on_the_grid_too(options):
    def run(t):
        return imex_odeint(lambda t, u: 50 * torch.cos(50 * t) * torch.ones_like(u), None,
                           double([0.0]), t, **{"method": "ark548l2sa", **options})

    t, exact = torch.linspace(0, 10, 101), torch.linspace(0, 10, 101, dtype=torch.float64)
    torch.testing.assert_close(run(t), run(exact), rtol=0.0, atol=1e-9)


def test_a_callback_sees_the_times_that_were_given():
    t = torch.linspace(0, 1, 11)
    for options in ({"step_size": 0.05}, {"rtol": 1e-3}):
        seen = []
        rotate(t, callback=lambda t, u: seen.append(t), **options)  # noqa: B023
        assert set(t.tolist()[1:]) <= set(seen)


def test_an_interval_of_one_rounding_is_one_step():
    t = double([1.0, 1.0 + 2.0**-52])
    for options in STEPPING.values():
        u, stats = rotate(t, **options)
        assert stats.steps_accepted == 1
        assert u.isfinite().all()


# How many steps


def test_a_step_exceeds_the_step_size_by_rounding_only():
    assert whole_steps(1.0, 0.1) == 10
    assert whole_steps(0.1 + 0.2, 0.1) == 3  # 0.30000000000000004
    assert whole_steps(1.0 + 1e-9, 0.1) == 11
    assert whole_steps(1.0 + 1e-9, 0.1, rounding=1e-8) == 10
    assert whole_steps(-1.0, 0.3) == 4
    assert whole_steps(1e-300, 1.0) == 1
    # However large the rounding, by a hundredth at most.
    for interval in (0.95, 1.0, 1.005, 1.02, 17.3):
        count = whole_steps(interval, 0.1, rounding=1e9)
        assert interval / count <= 0.1 * (1 + EXCESS) * (1 + 1e-12)
        assert count == 1 or interval / (count - 1) > 0.1 * (1 + EXCESS)


def test_equal_intervals_have_equal_counts():
    for offset in (0.0, 7.7, 1e4):
        t = (offset + 0.1 * torch.arange(50, dtype=torch.float64)).float()
        counts = {interval.steps for interval in plan(t.tolist(), 0.05, Clock(EPS32))}
        assert counts == {2}


# Large offsets

OFFSETS = [1e3, 1e5, 1e7]
STEPPING = {
    "equal": {"step_size": 0.05},
    "equal_dense": {"step_size": 0.05, "dense": True},
    "adaptive": {"rtol": 1e-6, "atol": 1e-8},
    "adaptive_dense": {"rtol": 1e-6, "atol": 1e-8, "dense": True},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", STEPPING.values(), ids=STEPPING)
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["forwards", "backwards"])
def test_far_from_zero_an_integration_is_what_it_is_at_zero(dtype, options, offset, sign):
    # Numbers that float32 holds at every offset, so that only the offset differs.
    outputs = [0.0, 1.0] if dtype == torch.float32 else [0.0, 0.25, 0.75, 1.0]
    if dtype == torch.float32 and offset < 1e5:
        outputs = [0.0, 0.25, 0.75, 1.0]
    far = torch.tensor([offset + sign * x for x in outputs], dtype=dtype)
    near = torch.tensor([sign * x for x in outputs], dtype=dtype)
    found, stats = rotate(far, **options)
    expected, same = rotate(near, **options)
    assert stats.steps_accepted == same.steps_accepted
    assert stats.steps_rejected == same.steps_rejected
    # The steps' ends are rounded where the time is large: an interpolated output notices.
    slack = 1e-12 + 8 * EPS64 * offset
    torch.testing.assert_close(found, expected, rtol=0.0, atol=slack)


@pytest.mark.parametrize("state", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", STEPPING.values(), ids=STEPPING)
def test_a_stiff_problem_far_from_zero_comes_to_its_end(state, options):
    t = torch.tensor([1e7, 1e7 + 1.0, 1e7 + 2.0])
    u, stats = imex_odeint(lambda t, u: torch.sin(u), ScaledIdentity(-50.0),
                           torch.ones(2, dtype=state), t, return_stats=True,
                           **{**options, **({"rtol": 1e-4, "atol": 1e-5} if "rtol" in options
                                            else {})})  # fmt: skip
    assert u.isfinite().all()
    assert stats.steps_rejected < 20
    assert stats.steps_accepted < 200


# Interpolated outputs


def test_an_output_is_moved_to_the_end_of_a_step_by_rounding_only():
    for off in (1e-7, 1e-10, -1e-10):
        times = [0.0, 0.2 + off, 1.0]
        steps = steps_across_outputs(times, 0.1, Clock(EPS64))
        (theta,) = next(s.outputs for s in (steps[n] for n in range(10)) if s.outputs)
        assert theta != 1.0
    assert steps_across_outputs([0.0, 0.1 + 0.2, 1.0], 0.1, Clock(EPS64))[2].outputs == (1.0,)


def test_adaptive_outputs_close_to_a_step_are_interpolated_where_they_are():
    ends = []
    t = double([0.0, 2.0])
    imex_odeint(lambda t, u: torch.cos(t).expand(1), None, double([0.0]), t, rtol=1e-8, atol=1e-10,
                dense=True, callback=lambda t, u: ends.append(t))
    near = [end + off for end in ends[:-1] for off in (-1e-9, 1e-9)]
    u = imex_odeint(lambda t, u: torch.cos(t).expand(1), None, double([0.0]),
                    double([0.0, *near, 2.0]), rtol=1e-8, atol=1e-10, dense=True)
    rises = u[2:-1:2] - u[1:-1:2]
    torch.testing.assert_close(rises[:, 0], 2e-9 * torch.cos(double(ends[:-1])), rtol=1e-3,
                               atol=1e-12)
