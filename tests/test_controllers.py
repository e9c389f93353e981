"""Do controllers choose sensible steps, and does the first step fit the problem?"""

import math

import pytest
import torch

from pyg_sinode import imex_odeint, norms, operators
from pyg_sinode.controllers import PI, PID, Adaptive, Controller, I

CONTROLLERS = {"I": I(), "PI": PI(), "PID": PID()}
every_controller = pytest.mark.parametrize("controller", CONTROLLERS.values(), ids=CONTROLLERS)


def adaptive(rtol=1e-3, atol=1e-6, first_step=None, measure=norms.maximum):
    return Adaptive(rtol, atol, I(), first_step, 0.0, 1000, measure)


# The factor


@every_controller
def test_an_error_at_its_target_keeps_the_step(controller):
    target = controller.safety**4
    assert controller.factor([target] * 3, 3) == pytest.approx(1.0)


@every_controller
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_factor_falls_with_the_error_and_stays_in_its_range(controller, order):
    factors = [controller.factor([1e-2, 1e-2, e], order) for e in (0.0, 1e-6, 1e-3, 0.1, 0.9)]
    assert factors == sorted(factors, reverse=True)
    assert all(controller.min_factor <= f <= controller.max_factor for f in factors)
    assert controller.factor([0.0, 0.0, 0.0], order) > 3.0
    assert controller.factor([1.0, 1.0, 0.0], order) == controller.max_factor


@every_controller
def test_a_rejected_step_shrinks_by_its_own_error_alone(controller):
    factor = controller.factor([1e-9, 1e-9, 16.0], 3)
    assert factor == pytest.approx(0.9 * 16.0 ** (-1 / 4))
    assert controller.factor([16.0], 3) == pytest.approx(factor)
    assert controller.factor([1.0001], 3) < 1.0
    assert controller.factor([1e30], 3) == controller.min_factor


@every_controller
@pytest.mark.parametrize("error", [math.nan, math.inf])
def test_an_error_that_is_not_finite_gives_the_smallest_factor(controller, error):
    assert controller.factor([0.1, error], 3) == controller.min_factor


def test_the_exponents_are_those_of_the_literature():
    errors = [0.2, 0.5, 0.1]
    for controller, beta in ((PI(), (0.7, -0.4, 0.0)), (PID(), (0.49, -0.34, 0.10))):
        gains = [0.9 * e ** (-1 / 4) for e in reversed(errors)]
        expected = math.prod(g**b for g, b in zip(gains, beta, strict=True))
        assert controller.factor(errors, 3) == pytest.approx(expected)


@pytest.mark.parametrize(("options", "message"), [
    ({"beta": (1.0, 0.0)}, "three finite exponents beta"),
    ({"beta": (0.0, 1.0, 0.0)}, "the first positive"),
    ({"beta": (math.nan, 0.0, 0.0)}, "three finite exponents beta"),
    ({"safety": 0.0}, r"safety in \(0, 1\] \(got 0.0\)"),
    ({"safety": 1.1}, "safety in"),
    ({"min_factor": 1.0}, "min_factor in"),
    ({"max_factor": 1.0}, "max_factor above 1"),
    ({"deadband": 0.9}, "deadband of at least 1"),
])
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Controller(**{"beta": (1.0, 0.0, 0.0), **options})


# The norm


def test_the_norm_is_one_of_quotients_by_the_tolerances():
    control = adaptive(rtol=0.1, atol=torch.tensor([1.0, 2.0]))
    u, following = torch.tensor([10.0, -30.0]), torch.tensor([-20.0, 5.0])
    error = torch.tensor([6.0, 10.0])
    assert control.norm(error, u, following) == pytest.approx(10 / (2 + 3))
    control = adaptive(rtol=0.1, atol=torch.tensor([1.0, 2.0]), measure=norms.rms)
    assert control.norm(error, u, following) == pytest.approx(
        math.sqrt(((6 / (1 + 2)) ** 2 + (10 / (2 + 3)) ** 2) / 2))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_norm_of_what_is_not_finite_is_not_finite(bad):
    u = torch.ones(3)
    error = torch.tensor([0.0, bad, 0.0])
    assert not math.isfinite(adaptive().norm(error, u, u))
    assert not adaptive().norm(torch.zeros(3), u, torch.tensor([1.0, math.nan, 1.0])) <= 1.0


# The first step


def rate_of(value):
    return lambda t, u: value * u


@pytest.mark.parametrize("speed", [1.0, 1e3, 1e6])
def test_the_first_step_resolves_the_fastest_rate_at_the_start(speed):
    h = adaptive().choose_first(0.0, torch.ones(3), 1.0, 1e9, 3, rate_of(-speed))
    assert 1e-3 / speed < h < 1.5 / speed


def test_the_first_step_is_no_longer_than_the_interval_and_works_at_rest():
    u = torch.ones(3)
    assert adaptive().choose_first(0.0, u, 1.0, 0.25, 3, rate_of(0.0)) == pytest.approx(1e-6)
    assert adaptive().choose_first(0.0, u, 1.0, 1e-8, 3, rate_of(1.0)) <= 1e-8
    assert adaptive(first_step=5.0).choose_first(0.0, u, 1.0, 2.0, 3, rate_of(1.0)) == 2.0
    assert adaptive(first_step=0.1).choose_first(0.0, u, 1.0, 2.0, 3, rate_of(1.0)) == 0.1


def test_the_second_evaluation_is_on_the_side_that_time_goes_to():
    seen = []

    def rate(t, u):
        seen.append(t)
        return torch.ones_like(u)

    adaptive().choose_first(3.0, torch.ones(2), -1.0, 1.0, 3, rate)
    assert seen[0] == 3.0
    assert seen[1] < 3.0


# In an integration


def pendulum(**options):
    return imex_odeint(lambda t, u: torch.cos(t) - torch.sin(u), operators.ScaledIdentity(-20.0),
                       torch.ones(1).double(), torch.linspace(0, 3, 4).double(), **options)


@pytest.fixture(scope="module")
def accurate_pendulum():
    return pendulum(method="ark548l2sa", step_size=5e-3)


@every_controller
@pytest.mark.parametrize("method", ["ark324l2sa", "ark436l2sa", "ark548l2sa"])
def test_every_controller_keeps_the_error_near_the_tolerance(controller, method, accurate_pendulum):
    u = pendulum(method=method, rtol=1e-6, atol=1e-6, controller=controller)
    assert float((u - accurate_pendulum).abs().max()) < 1e-5


def test_a_smaller_safety_factor_makes_more_steps():
    counts = []
    for safety in (0.95, 0.5):
        _, stats = imex_odeint(
            lambda t, u: torch.cos(5 * t) - torch.sin(u), operators.ScaledIdentity(-1.0),
            torch.ones(1).double(), torch.tensor([0.0, 5.0]), controller=I(safety=safety),
            return_stats=True)
        counts.append(stats.steps_accepted)
    assert counts[1] > 1.3 * counts[0]
