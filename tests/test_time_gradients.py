"""Do output times receive the gradient of the steps that were made, and only where there is one?"""

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

from pyg_sinode import imex_odeint, operators, schemes, terms

T = torch.tensor([0.1, 0.5, 1.3, 1.7], dtype=torch.float64)
U0 = torch.tensor([1.0, 0.5, -0.3], dtype=torch.float64)
J = operators.Dense(torch.tensor([[-2.0, 0.3, 0.1], [0.2, -1.0, 0.4], [0.0, -0.5, -3.0]],
                                 dtype=torch.float64))


class G(nn.Module):
    """Depends on time, on a parameter and on an argument."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 9, dtype=torch.float64).view(3, 3))

    def forward(self, t, u, a):
        return a * torch.tanh(self.weight @ u) * torch.cos(t)


class Forcing(nn.Module):
    """A forcing with a parameter."""

    def __init__(self):
        super().__init__()
        self.rates = nn.Parameter(torch.tensor([3.0, 1.0, 0.5], dtype=torch.float64))

    def forward(self, t):
        return torch.cos(self.rates * t)


IMPLICIT = {
    "none": None, "operator": J, "forced": terms.Affine(J, Forcing()),
    "constant": terms.Affine(J, U0), "scaled": terms.Affine(J, scale=lambda t: 1 + t),
    "both": terms.Affine(J, lambda t: U0 * t.sin(), scale=lambda t: 1 + t * t)}


@pytest.mark.parametrize("gradient", ["discrete", "backprop"])
@pytest.mark.parametrize("implicit", IMPLICIT)
def test_the_gradient_at_the_times_is_that_of_finite_differences(implicit, gradient):
    g, a = G(), torch.tensor(0.7, dtype=torch.float64)

    def solution(t):
        return imex_odeint(g, IMPLICIT[implicit], U0, t, step_size=0.3, args=(a,),
                           gradient=gradient)

    assert gradcheck(solution, (T.clone().requires_grad_(),), fast_mode=True)


@pytest.mark.parametrize("method", schemes.SCHEMES)
def test_every_runge_kutta_scheme_differentiates_its_times_and_changes_no_value(method):
    if schemes.get_scheme(method).equal_steps:
        pytest.skip("multistep schemes refuse it, see below")
    t = T.clone().requires_grad_()

    def solution(t):
        return imex_odeint(None, J, U0, t, method=method, step_size=0.3)

    torch.testing.assert_close(solution(t), solution(T), rtol=1e-12, atol=1e-13)
    assert gradcheck(solution, (t,))
    back = t.detach().flip(0).requires_grad_()
    assert gradcheck(solution, (back,))


def test_the_other_gradients_and_the_statistics_are_those_without_one():
    found = []
    for t in (T, T.clone().requires_grad_()):
        g, a, u0 = G(), torch.tensor(0.7, dtype=torch.float64, requires_grad=True), U0.clone()
        part = terms.Affine(operators.Dense(J.tensors[0].clone().requires_grad_()), Forcing())
        inputs = [u0.requires_grad_(), a, *g.parameters(), *part.tensors]
        u, stats = imex_odeint(g, part, u0, t, step_size=0.3, args=(a,), return_stats=True)
        found.append(torch.autograd.grad(u.square().sum(), inputs))
        assert (stats.steps_accepted, stats.explicit_vjps) == (7, 28)
        assert stats.forward.explicit_evaluations == 28
        assert stats.backward.explicit_vjps == 28
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


def test_float32_times_and_states_have_one_too():
    t = T.float().requires_grad_()
    u = imex_odeint(lambda t, u: torch.sin(t) * u, operators.ScaledIdentity(-1.0), U0.float(), t,
                    step_size=0.3)
    (found,) = torch.autograd.grad(u[-1].sum(), t)
    exact = T.clone().requires_grad_()
    u = imex_odeint(lambda t, u: torch.sin(t) * u, operators.ScaledIdentity(-1.0), U0, exact,
                    step_size=0.3)
    (expected,) = torch.autograd.grad(u[-1].sum(), exact)
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("options", "implicit", "why"), [
    ({}, J, "steps are adaptive"),
    ({"step_size": 0.1, "dense": True}, J, "outputs are interpolated by dense=True"),
    ({"step_size": 0.1, "method": "sbdf2"}, J, "a multistep scheme takes one step size"),
    ({"step_size": 0.1}, terms.Nonlinear(lambda t, u: -u**3), "a Nonlinear is integrated"),
    ({"step_size": 0.1, "callback": lambda t, u: False}, J, "a callback may end"),
])
def test_times_whose_gradient_has_no_meaning_are_refused(options, implicit, why):
    t = T.clone().requires_grad_()
    with pytest.raises(ValueError, match=rf"no gradient reaches the times where {why}.*t\.detach"):
        imex_odeint(None, implicit, U0, t, **options)
    with torch.no_grad():
        assert imex_odeint(None, implicit, U0, t, **options).shape == (4, 3)


def test_times_that_do_not_fit_are_refused_as_without_a_gradient():
    for t, message in ((T[None], "t as a 1-D tensor"), (T.flip(0)[[0, 0, 1]], "strictly")):
        with pytest.raises(ValueError, match=message):
            imex_odeint(None, J, U0, t.clone().requires_grad_(), step_size=0.1)
