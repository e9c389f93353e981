"""Do adaptive steps keep to their tolerance, with exact gradients?"""

import math

import numpy as np
import pytest
import torch
from cases import KnownSolution, double, times

from pyg_sinode import (
    controllers,
    imex_odeint,
    operators,
    terms,
)
from pyg_sinode.schemes import RUNGE_KUTTA

EMBEDDED = [name for name, scheme in RUNGE_KUTTA.items() if scheme.embedded_order > 0]
STIFFLY_ACCURATE = ["ark324l2sa", "ark436l2sa", "ark548l2sa"]
every_pair = pytest.mark.parametrize("method", EMBEDDED)


class Stiff(KnownSolution):
    """u' = J (u - s) + s' + N(u) - N(s) with eigenvalues -1e4, -1e2, -1 of J and a known s.

    The forcing -J s is stiff and belongs to the implicit part.
    """

    def __init__(self):
        axes, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0),
                                              dtype=torch.float64))
        self.J = axes @ torch.diag(double([-1e4, -1e2, -1.0])) @ axes.T

    def nonlinear(self, u):
        x, y, z = u.unbind(-1)
        return torch.stack([y * z, x * x - z, torch.sin(x * y)], dim=-1)

    def __call__(self, t, u):
        return self.rate(t) + self.nonlinear(u) - self.nonlinear(self.solution(t))

    def solve(self, t, **options):
        part = terms.Affine(operators.Dense(self.J), lambda t: -(self.J @ self.solution(t)))
        return imex_odeint(self, part, self.solution(t[0]), t, return_stats=True, **options)


@pytest.mark.parametrize("method", STIFFLY_ACCURATE)
def test_the_error_is_proportional_to_the_tolerance_and_never_above_100_of_it(method):
    problem, t = Stiff(), torch.linspace(0, 1, 6).double()
    tolerances, errors = 10.0 ** -np.arange(3.0, 9.0), []
    for tolerance in tolerances:
        u, _ = problem.solve(t, method=method, rtol=tolerance, atol=tolerance)
        errors.append(float((u - problem.solution(t)).abs().max()))
    slope = np.polyfit(np.log(tolerances), np.log(errors), 1)[0]
    assert 0.7 <= slope <= 1.4, errors
    assert all(e <= 100 * tol for e, tol in zip(errors, tolerances, strict=True)), errors


def test_unequal_intervals_are_not_taken_for_equal_ones_at_a_tight_tolerance():
    # Float32 rounds these times by 1e-7, which is more than the tolerance.
    problem, t = Stiff(), torch.linspace(0, 2, 11).double()
    u, _ = problem.solve(t, rtol=1e-8, atol=1e-8)
    assert float((u - problem.solution(t)).abs().max()) < 4e-8


@every_pair
def test_schemes_with_an_embedded_pair_meet_a_tolerance_on_a_mild_problem(method):
    def rate(t, u):
        return torch.stack([u[1], -torch.sin(u[0]) + 0.1 * torch.cos(t)])

    J = operators.ScaledIdentity(-0.5)
    t, u0 = times(0, 2, 5), double([1.0, 0.0])
    u = imex_odeint(rate, J, u0, t, method=method, rtol=1e-5, atol=1e-5)
    reference = imex_odeint(rate, J, u0, t, method="ark548l2sa", step_size=0.05)
    assert float((u - reference).abs().max()) < 1e-3


def test_the_default_scheme_of_adaptive_steps_is_ark436l2sa():
    problem, t = Stiff(), times(0, 1)
    default, _ = problem.solve(t, rtol=1e-4)
    named, _ = problem.solve(t, rtol=1e-4, method="ark436l2sa")
    assert torch.equal(default, named)


def test_tolerances_for_each_component_hold_for_each():
    def solve(**options):
        return imex_odeint(lambda t, u: torch.stack([torch.cos(40 * t), torch.cos(t)]),
                           operators.ScaledIdentity(-1.0), double([0.0, 0.0]), times(0, 3),
                           return_stats=True, **options)

    reference, _ = solve(rtol=1e-10, atol=1e-10)
    loose, few = solve(rtol=1e-6, atol=double([1e9, 1e-6]))
    tight, many = solve(rtol=double([1e-6, 1e-6]), atol=double([1e-6, 1e9]))
    assert float((loose - reference)[-1, 1].abs()) < 1e-5
    assert float((tight - reference)[-1, 0].abs()) < 1e-5
    assert few.steps_accepted < many.steps_accepted / 3


def test_batches_of_float32_work_too():
    t = torch.tensor([0.0, 1.0, 3.0])
    u0 = torch.linspace(-1, 1, 8).view(2, 4)
    u = imex_odeint(lambda t, u: torch.sin(u), operators.ScaledIdentity(-5.0), u0, t, rtol=1e-4)
    double_u = imex_odeint(lambda t, u: torch.sin(u), operators.ScaledIdentity(-5.0), u0.double(),
                           t, rtol=1e-9)
    assert u.dtype == torch.float32
    torch.testing.assert_close(u.double(), double_u, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("method", ["ssp222", "ars122"])
def test_the_filtered_estimate_of_pairs_that_are_not_stiffly_accurate_lets_steps_grow(method):
    # Unfiltered, ars122 takes 46 steps at 1e2, 690 at 1e6 and 7032 at 1e8.
    def steps(stiff):
        u, stats = imex_odeint(
            None, operators.Diagonal(double([-stiff, -1.0])), double([1e-3, 1.0]), times(0, 1),
            method=method, return_stats=True)
        assert float(u[-1, 1]) == pytest.approx(math.exp(-1.0), rel=1e-3)
        return stats.steps_accepted + stats.steps_rejected

    assert steps(1e8) < 1.5 * steps(1e2)


def test_outputs_are_landed_on_and_equal_intervals_share_a_step_size():
    seen = []
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    _, stats = imex_odeint(lambda t, u: 0 * u, operators.ScaledIdentity(-1.0), double([1.0]), t,
                           rtol=1e-3, callback=lambda t, u: seen.append(t), return_stats=True)
    assert set(t.tolist()[1:]) <= set(seen)
    late = np.diff([s for s in seen if s > 0.45])
    assert np.ptp(late) < 1e-12
    assert stats.steps_accepted == len(seen)


def test_a_gain_below_20_percent_saves_a_set_up_and_is_counted():
    problem, t = Stiff(), times(0, 2)
    _, stats = problem.solve(t, rtol=1e-6, atol=1e-6)
    _, eager = problem.solve(t, rtol=1e-6, atol=1e-6, controller=controllers.I(deadband=1.0))
    assert eager.factorizations_reused == 0
    assert stats.factorizations_reused > 0.5 * stats.steps_accepted
    assert stats.factorizations < 0.5 * eager.factorizations
    # What was not saved was made, once for each step of another size.
    attempts = stats.steps_accepted + stats.steps_rejected
    assert stats.factorizations <= attempts - stats.factorizations_reused


def test_without_an_implicit_part_no_set_up_is_saved():
    _, stats = imex_odeint(lambda t, u: -u, None, double([1.0]), times(0, 5), return_stats=True)
    assert (stats.factorizations, stats.factorizations_reused) == (0, 0)
    assert stats.steps_accepted > 5


def test_rejected_steps_are_counted_and_cost_evaluations():
    def kick(t, u):
        return torch.where(t > 1.0, 50.0, 0.0) - u * 0

    _, stats = imex_odeint(kick, operators.ScaledIdentity(-1.0), double([1.0]), times(0, 2),
                           rtol=1e-4, return_stats=True)
    assert stats.steps_rejected > 0
    # Six stages; an accepted step also gives the first of the next one, which its trials share.
    accepted, rejected = 6 * stats.steps_accepted, stats.steps_rejected
    assert accepted + 5 * rejected + 3 <= stats.explicit_evaluations <= accepted + 6 * rejected + 3


def test_a_first_step_that_is_too_long_is_rejected_and_one_that_is_given_is_taken():
    seen = []

    def solve(first_step):
        seen.clear()
        return imex_odeint(lambda t, u: torch.cos(20 * t) - u, operators.ScaledIdentity(-1.0),
                           double([1.0]), times(0, 2), first_step=first_step, rtol=1e-6,
                           callback=lambda t, u: seen.append(t), return_stats=True)[1]

    solve(1e-3)
    assert seen[0] == pytest.approx(1e-3, rel=1e-2)
    assert solve(2.0).steps_rejected > 0
    assert seen[0] < 0.5


@pytest.mark.parametrize("dense", [False, True])
def test_decreasing_times_are_adapted_to_as_well(dense):
    def rate(t, u):
        return torch.cos(t) * u

    J = operators.ScaledIdentity(0.3)
    t = times(2, 1.3, 0.1, 0)
    u = imex_odeint(rate, J, double([1.0]), t, rtol=1e-8, atol=1e-10, dense=dense)
    exact = torch.exp(torch.sin(t) - math.sin(2.0) + 0.3 * (t - 2.0))
    torch.testing.assert_close(u[:, 0], exact, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("dense", [False, True])
@every_pair
def test_gradients_of_adaptive_steps_are_those_of_the_steps_made(method, dense):
    if dense and RUNGE_KUTTA[method].interpolant is None:
        return
    weight = double([[0.3, -0.2], [0.5, 0.1]]).requires_grad_()
    matrix = double([[-3.0, 1.0], [0.5, -4.0]]).requires_grad_()
    u0, t = double([1.0, -1.0]).requires_grad_(), torch.linspace(0, 1.5, 7).double()

    def solve(gradient):
        u, stats = imex_odeint(
            lambda t, u, w: torch.tanh(u @ w) * torch.cos(t), operators.Dense(matrix), u0, t,
            args=(weight,), method=method, rtol=1e-4, atol=1e-4, gradient=gradient, dense=dense,
            return_stats=True)
        loss = (u * torch.arange(1.0, 15.0).view(7, 2)).sum()
        return u, torch.autograd.grad(loss, [u0, weight, matrix]), stats

    u, found, stats = solve("discrete")
    v, expected, _ = solve("backprop")
    assert torch.equal(u, v)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
    assert stats.explicit_vjps == RUNGE_KUTTA[method].stages * stats.steps_accepted


def test_a_rejected_step_leaves_no_trace_in_the_gradient():
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5)).double()

    class Term(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, t, u):
            return torch.where(t > 0.5, 3.0, 0.0) * self.layer(u)

    def gradient(mode):
        torch.manual_seed(3)
        term = Term()
        u, stats = imex_odeint(term, operators.ScaledIdentity(-1.0), double([1.0, 2.0]),
                               times(0, 1), rtol=1e-3, atol=1e-3, first_step=1.0,
                               gradient=mode, return_stats=True)
        return torch.autograd.grad(u[-1].sum(), list(term.parameters())), stats

    found, stats = gradient("discrete")
    expected, _ = gradient("backprop")
    assert stats.steps_rejected > 0
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("options", [
    {"rtol": 1e-3}, {"rtol": 1e-3, "dense": True}, {"step_size": 0.2, "dense": True},
    {"step_size": 0.25, "method": "sbdf2"}], ids=["adaptive", "dense", "fixed_dense", "sbdf2"])
def test_second_derivatives_pass_gradgradcheck(options):
    matrix = double([[-2.0, 0.5], [0.3, -1.0]]).requires_grad_()
    weight = double([0.4, -0.3]).requires_grad_()
    u0 = double([0.7, -0.2]).requires_grad_()

    def solve(u0, weight, matrix):
        return imex_odeint(lambda t, u, w: torch.sin(w * u) * (1 + t), operators.Dense(matrix),
                           u0, times(0, 0.5, 1.0), args=(weight,), gradient="backprop", **options)

    if "step_size" in options:
        assert torch.autograd.gradcheck(solve, (u0, weight, matrix))
        assert torch.autograd.gradgradcheck(solve, (u0, weight, matrix))
    else:
        # The step sizes are constants of the derivative but follow the perturbed input of a
        # finite difference, so that derivatives of the replayed steps are compared instead.
        first = torch.autograd.grad(solve(u0, weight, matrix)[-1].sum(), [u0, weight],
                                    create_graph=True)
        second = torch.autograd.grad(first[0].sum(), weight, retain_graph=True)[0]
        mixed = torch.stack([torch.autograd.grad(first[1][i], u0, retain_graph=True)[0].sum()
                             for i in range(2)])
        torch.testing.assert_close(second, mixed, rtol=1e-12, atol=1e-14)
        assert float(second.detach().abs().max()) > 1e-3


def test_a_hessian_vector_product_of_a_training_loss():
    torch.manual_seed(0)
    term = torch.nn.Linear(3, 3).double()

    class Term(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = term

        def forward(self, t, u):
            return torch.tanh(self.layer(u))

    net, J = Term(), operators.ScaledIdentity(-2.0)
    u0, target = torch.randn(5, 3).double(), torch.randn(5, 3).double()
    direction = torch.randn(3, 3).double()

    def gradient():
        u = imex_odeint(net, J, u0, times(0, 1), step_size=0.25, gradient="backprop")
        loss = (u[-1] - target).square().mean()
        return torch.autograd.grad(loss, term.weight, create_graph=True)[0]

    (product,) = torch.autograd.grad((gradient() * direction).sum(), term.weight)
    epsilon, around = 1e-5, []
    for sign in (1, -1):
        with torch.no_grad():
            term.weight += sign * epsilon * direction
        around.append(gradient().detach())
        with torch.no_grad():
            term.weight -= sign * epsilon * direction
    difference = (around[0] - around[1]) / (2 * epsilon)
    torch.testing.assert_close(product, difference, rtol=1e-6, atol=1e-9)
