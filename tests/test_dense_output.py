"""Are interpolated outputs accurate, bounded where they should be, and differentiable?"""

import numpy as np
import pytest
import torch
from cases import double, slope

from pyg_sinode import imex_odeint, operators
from pyg_sinode.schemes import RUNGE_KUTTA

INTERPOLATING = {name: s for name, s in RUNGE_KUTTA.items() if s.interpolant is not None}
HERMITE = [name for name, s in INTERPOLATING.items() if s.dense_output is None]
ORDERS = {"imex_euler": 1, "ars222": 2, "ars443": 3, "ark324l2sa": 3, "ark436l2sa": 4,
          "ark548l2sa": 4}
every_interpolant = pytest.mark.parametrize("name", INTERPOLATING)


# The polynomials


def test_which_schemes_have_an_interpolant():
    assert list(INTERPOLATING) == list(ORDERS)
    assert HERMITE == ["imex_euler", "ars222", "ars443"]
    for name, scheme in RUNGE_KUTTA.items():
        assert (name in HERMITE) <= scheme.globally_stiffly_accurate


@every_interpolant
def test_at_the_end_of_a_step_the_interpolant_is_its_result(name):
    scheme = RUNGE_KUTTA[name]
    explicit, implicit = scheme.interpolant
    np.testing.assert_allclose(explicit.sum(axis=1), scheme.b_explicit, rtol=0, atol=2e-15)
    np.testing.assert_allclose(implicit.sum(axis=1), scheme.b_implicit, rtol=0, atol=2e-15)


@pytest.mark.parametrize("name", HERMITE)
def test_hermite_polynomials_have_the_slopes_of_both_ends(name):
    scheme = RUNGE_KUTTA[name]
    for weights, b in zip(scheme.interpolant, (scheme.b_explicit, scheme.b_implicit), strict=True):
        at_start, at_end = weights[:, 0], weights @ np.array([1.0, 2.0, 3.0])
        first, last = np.eye(scheme.stages)[0], np.eye(scheme.stages)[-1]
        np.testing.assert_allclose(at_start, first, atol=1e-15)
        np.testing.assert_allclose(at_end, last, atol=1e-14)
        assert weights.shape == (len(b), 3)


# Accuracy


class Known:
    """u' = G(t, u) + J u, nonlinear and coupled, with a known solution."""

    J = double([[-2.0, 1.0], [0.4, -1.0]])

    def solution(self, t):
        return torch.stack([torch.sin(2 * t), torch.exp(-t)], dim=-1)

    def __call__(self, t, u):
        s = self.solution(t)
        rate = torch.stack([2 * torch.cos(2 * t), -torch.exp(-t)])
        return rate - s @ self.J.T + torch.sin(u[0] * u[1]) - torch.sin(s[0] * s[1])

    def error(self, name, steps, start=0.0, end=1.0):
        t = torch.linspace(start, end, 38, dtype=torch.float64)
        u = imex_odeint(self, operators.Dense(self.J), self.solution(t[0]), t, method=name,
                        step_size=abs(end - start) / steps, dense=True)
        return float((u - self.solution(t)).abs().max())


@every_interpolant
@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 0.0)], ids=["onwards", "backwards"])
def test_interpolated_outputs_reach_the_order_of_the_interpolant(name, start, end):
    steps = [16, 32, 64]
    errors = [Known().error(name, n, start, end) for n in steps]
    assert slope(steps, errors) == pytest.approx(ORDERS[name], abs=0.3), errors


@every_interpolant
def test_outputs_do_not_change_the_steps_and_ends_of_steps_are_exact(name):
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    problem = Known()
    dense, stats = imex_odeint(problem, operators.Dense(problem.J), problem.solution(t[0]), t,
                               method=name, step_size=0.2, dense=True, return_stats=True)
    landed = imex_odeint(problem, operators.Dense(problem.J), problem.solution(t[0]), t[::2],
                         method=name, step_size=0.2)
    assert stats.steps_accepted == 5
    torch.testing.assert_close(dense[::2], landed, rtol=0, atol=1e-14)


@every_interpolant
@pytest.mark.parametrize("stiffness", [1e2, 1e4, 1e6])
def test_interpolation_on_a_stiff_component_is_bounded_once_it_has_decayed(name, stiffness):
    # From the slow manifold; off it, Hermite's polynomial has the slope of the fast decay.
    t = torch.linspace(0, 1, 41, dtype=torch.float64)

    def exact(t):
        return ((stiffness * torch.cos(t) + torch.sin(t)) / (stiffness**2 + 1))[:, None]

    u = imex_odeint(lambda t, u: torch.cos(t) + 0 * u, operators.ScaledIdentity(-stiffness),
                    exact(t[:1])[0], t, method=name, step_size=0.1, dense=True)
    assert float((u - exact(t)).abs().max()) < 0.05


@every_interpolant
def test_adaptive_steps_with_interpolation_are_accurate_between_steps(name):
    if RUNGE_KUTTA[name].embedded_order == 0:
        with pytest.raises(ValueError, match="embedded pair"):
            imex_odeint(None, None, double([1.0]), double([0.0, 1.0]), method=name, dense=True)
        return
    t = torch.linspace(0, 3, 50, dtype=torch.float64)
    problem = Known()
    u, stats = imex_odeint(problem, operators.Dense(problem.J), problem.solution(t[0]), t,
                           method=name, rtol=1e-6, atol=1e-6, dense=True, return_stats=True)
    _, more = imex_odeint(problem, operators.Dense(problem.J), problem.solution(t[0]), t,
                               method=name, rtol=1e-6, atol=1e-6, return_stats=True)
    assert float((u - problem.solution(t)).abs().max()) < 1e-4
    assert stats.steps_accepted <= more.steps_accepted


# Gradients


@every_interpolant
def test_gradients_through_interpolated_outputs_equal_autograd(name):
    torch.manual_seed(0)
    weight = torch.randn(3, 3).double().requires_grad_()
    matrix = (torch.randn(3, 3).double() - 4 * torch.eye(3).double()).requires_grad_()
    u0 = torch.randn(2, 3).double().requires_grad_()
    t = torch.linspace(0, 1, 8, dtype=torch.float64)
    loss_weight = torch.randn(8, 2, 3).double()

    def gradients(gradient):
        u = imex_odeint(lambda t, u, w: torch.tanh(u @ w) + torch.sin(t), operators.Dense(matrix),
                        u0, t, method=name, step_size=0.3, args=(weight,), gradient=gradient,
                        dense=True)
        return torch.autograd.grad((loss_weight * u).sum(), [u0, weight, matrix])

    for a, b in zip(gradients("discrete"), gradients("backprop"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_a_loss_on_one_output_inside_a_step_passes_gradcheck():
    matrix = double([[-2.0, 0.5], [0.3, -1.0]]).requires_grad_()
    u0 = double([0.7, -0.2]).requires_grad_()

    def output(u0, matrix):
        return imex_odeint(lambda t, u: torch.sin(u), operators.Dense(matrix), u0,
                           double([0.0, 0.37, 1.0]), step_size=0.5, dense=True)[1]

    assert torch.autograd.gradcheck(output, (u0, matrix))


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("options", [{}, {"step_size": 0.1}], ids=["adaptive", "equal"])
def test_a_single_time_gives_the_initial_state(options, dense):
    u0, J = double([1.0, 2.0]), operators.ScaledIdentity(-1.0)
    assert torch.equal(imex_odeint(None, J, u0, double([0.3]), dense=dense, **options), u0[None])
