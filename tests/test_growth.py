"""Is a user told that an operator on a graph makes the state grow?"""

import warnings

import pytest
import torch

from pyg_sinode import NonFiniteStateError, imex_odeint
from pyg_sinode.operators import Dense, Graph, ScaledIdentity
from pyg_sinode.terms import Affine

EDGES = torch.tensor([[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]])
DEGREE = torch.tensor([1.0, 2.0, 2.0, 1.0])
U0, T = torch.tensor([[1.0], [0.0], [0.0], [-1.0]]), torch.tensor([0.0, 5.0])


def laplacian():
    """D - A, of which the diagonal are self-loops."""
    loops = torch.arange(4).expand(2, -1)
    return Graph(torch.cat([EDGES, loops], dim=1), torch.cat([-torch.ones(6), DEGREE]))


def test_a_laplacian_of_the_wrong_sign_is_named():
    with pytest.warns(UserWarning, match=r"J makes it grow at a rate of .*diffuses as J = -L"
                      ) as caught:
        imex_odeint(None, laplacian(), U0, T, step_size=0.1)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(("implicit", "explicit"), [
    (lambda: -laplacian(), None),  # it decays
    (lambda: Dense(3.0 * torch.eye(4), dim=-2), None),  # no graph: growth may be meant
    (lambda: Graph(EDGES, num_nodes=4, radius=2.0) + ScaledIdentity(2.0), None),  # it is known
    (lambda: -laplacian(), lambda t, u: 4.0 * u),  # G does it
    (lambda: Affine(laplacian(), scale=lambda t: -1.0), lambda t, u: 4.0 * u),
])
def test_nobody_else_is_warned(implicit, explicit):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        imex_odeint(explicit, implicit(), U0, T, step_size=0.1)


def test_a_state_that_starts_from_zero_is_not_said_to_have_grown():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        imex_odeint(lambda t, u: torch.ones_like(u), laplacian(), 0 * U0, T, step_size=0.1)


@pytest.mark.parametrize(("times", "sign"), [(4 * T, 1.0), (T.flip(0), -1.0)],
                         ids=["large", "backwards"])
def test_growth_to_large_numbers_and_backwards_in_time_is_seen_too(times, sign):
    with pytest.warns(UserWarning, match="Is its sign right"):
        imex_odeint(None, sign * laplacian(), U0, times, step_size=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        imex_odeint(None, -sign * laplacian(), U0, times, step_size=0.1)


def test_a_state_that_overflows_says_where_to_look():
    with pytest.raises(NonFiniteStateError, match="a Laplacian D - A enters as A - D"):
        imex_odeint(lambda t, u: 60.0 * u, -laplacian(), U0, 10 * T, step_size=1.0)


def test_the_disc_of_a_trained_operator_is_asked_for_without_a_gradient():
    class Own(Graph):
        def disc(self):
            return 0.0, float(abs(self.tensors[0].numpy()).sum())

    weight = torch.ones(6, requires_grad=True)
    u = imex_odeint(None, Own(EDGES, weight, 4), U0, T, step_size=0.1)
    assert u.requires_grad
