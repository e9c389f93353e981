"""Which steps are made, and which outputs fall into each?"""

import pytest
import torch

from pyg_sinode.integrate.clock import Clock, plan, steps_across_outputs, steps_to_outputs
from pyg_sinode.integrate.steps import Step, Steps, take_outputs

EPS32, EPS64 = torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps


# The plan


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_interval_of_one_step_size_is_one_step(dtype):
    t = torch.tensor([0.0, 0.2], dtype=dtype)
    (interval,) = plan(t.tolist(), 0.2, Clock(torch.finfo(dtype).eps))
    assert interval.steps == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fifty_intervals_of_one_step_size_are_fifty_steps_of_one_size(dtype):
    t = torch.linspace(0, 10, 51, dtype=dtype)
    intervals = plan(t.tolist(), 0.2, Clock(torch.finfo(dtype).eps))
    assert sum(i.steps for i in intervals) == 50
    assert len({i.h for i in intervals}) == 1


def test_an_interval_over_a_whole_number_of_steps_by_rounding_takes_that_number():
    assert plan([0.0, 1.0 + 4e-16], 0.2, Clock(EPS64))[0].steps == 5
    assert plan([0.0, 1.0 + 1e-9], 0.2, Clock(EPS64))[0].steps == 6
    assert plan([0.0, 1.0 + 1e-7], 0.2, Clock(EPS32))[0].steps == 5


def test_a_float32_rounding_is_not_forgiven_in_float64():
    rounded = torch.tensor(1000.2, dtype=torch.float32).item()
    assert plan([1000.0, rounded], 0.2, Clock(EPS32))[0].steps == 1
    assert plan([1000.0, rounded], 0.2, Clock(EPS64))[0].steps == 2


def test_steps_within_an_interval_are_equal_and_none_exceeds_the_step_size():
    times = [0.0, 1.0, 1.15, 3.0]
    intervals = plan(times, 0.4, Clock(EPS64))
    assert [i.steps for i in intervals] == [3, 1, 5]
    assert [i.h for i in intervals] == pytest.approx([1 / 3, 0.15, 0.37])
    assert all(abs(i.h) <= 0.4 for i in intervals)


def test_every_interval_starts_at_its_output_time_and_ends_at_the_next():
    torch.manual_seed(0)
    times = (torch.rand(40, dtype=torch.float64) + 1e-3).cumsum(0).tolist()
    for sign in (1.0, -1.0):
        intervals = plan([sign * t for t in times], 0.17, Clock(EPS64))
        assert [i.start for i in intervals] == [sign * t for t in times[:-1]]
        for interval, end in zip(intervals, times[1:], strict=True):
            assert interval.start + interval.steps * interval.h == pytest.approx(sign * end)


def test_steps_are_negative_where_time_decreases():
    intervals = plan([1.0, 0.5, 0.0], 0.25, Clock(EPS64))
    assert [(i.h, i.steps) for i in intervals] == [(-0.25, 2), (-0.25, 2)]


def test_a_step_within_rounding_of_one_used_before_is_that_step():
    near, far = 1.0 + 4e-16, 1.0 + 1e-14
    assert plan([0.0, 1.0, 1.0 + near, 5.0], 2.0, Clock(EPS64))[1].h == 1.0
    assert plan([0.0, 1.0, 1.0 + far, 5.0], 2.0, Clock(EPS64))[1].h == pytest.approx(far, rel=1e-15)


# Steps and outputs


def test_steps_that_cover_the_outputs_hold_them_as_fractions():
    steps = steps_across_outputs([0.0, 0.1, 0.25, 0.5, 0.6, 1.0], 0.5, Clock(EPS64))
    assert len(steps) == 2
    assert steps[0] == Step(0.0, 0.5, (0.2, 0.5, 1.0))
    assert steps[1].t == 0.5
    assert steps[1].outputs == pytest.approx((0.2, 1.0))
    assert steps[1].outputs[-1] == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_output_at_the_end_of_a_step_to_rounding_is_that_end(dtype):
    t = torch.linspace(0, 10, 51, dtype=dtype)
    steps = steps_across_outputs(t.tolist(), 0.2, Clock(torch.finfo(dtype).eps))
    assert len(steps) == 50
    assert all(steps[n].outputs == (1.0,) for n in range(50))


def test_decreasing_times_fall_into_steps_as_well():
    steps = steps_across_outputs([1.0, 0.9, 0.2, 0.0], 0.5, Clock(EPS64))
    assert steps[0].h == -0.5
    assert [steps[n].outputs for n in range(2)] == [pytest.approx((0.2,)), pytest.approx((0.6, 1))]


def test_outputs_are_taken_once():
    rest = [0.1, 0.2, 0.3]
    assert take_outputs(rest, 0.0, 0.2, last=False) == pytest.approx((0.5, 1.0))
    assert rest == [0.3]
    assert take_outputs(rest, 0.2, 0.05, last=False) == ()


def test_one_time_makes_no_step():
    for steps in (steps_across_outputs, steps_to_outputs):
        assert len(steps([1.0], 0.5, Clock(EPS64))) == 0


def test_a_list_of_steps_can_be_ended_early_and_knows_where_each_ends():
    steps = steps_to_outputs([0.0, 0.2, 0.4], 0.1, Clock(EPS64))
    assert [steps.end(n) for n in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert steps.end(3) == 0.4
    steps.end_with(2, (0.5, 1.0))
    assert len(steps) == 3
    assert [steps[n].outputs for n in range(3)] == [(), (1.0,), (0.5, 1.0)]
    steps.append(Step(9.0, 1.0, ()))
    assert isinstance(steps, Steps)
    assert steps[3] == Step(9.0, 1.0, ())
