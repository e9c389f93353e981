"""Is every inverse of I - cJ made once, and are few of them kept?"""

import dataclasses
import weakref
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from cases import states, stepper_by

from pyg_sinode import Stats, imex_odeint, operators, solvers
from pyg_sinode.integrate.implicit import KEPT, Factorizations
from pyg_sinode.integrate.kept import kept_of
from pyg_sinode.schemes import RUNGE_KUTTA

J = np.array([[-3.0, 1.0], [0.5, -40.0]])
U0 = np.array([0.7, -1.3])


def test_one_inverse_serves_all_stages_and_steps():
    stats, operator = Stats(), operators.Dense(torch.as_tensor(J))
    setups = Factorizations(operator, solvers.Direct(), stats)
    for name in ("ssp222", "ark436l2sa"):
        before = stats.factorizations
        stepper = stepper_by(RUNGE_KUTTA[name], None, operator, setups.inverse, stats)
        states(stepper, [0.0, 1.0], 0.1, torch.as_tensor(U0))
        assert stats.factorizations == before + 1, name


def setups_of(operator):
    stats = Stats()
    return Factorizations(operator, solvers.Direct(), stats), stats


def test_the_inverse_is_that_of_the_scaled_operator():
    setups, stats = setups_of(operators.ScaledIdentity(-2.0))
    u = torch.ones(3)
    torch.testing.assert_close(setups.inverse(0.5).mv(u), u / 2)
    torch.testing.assert_close(setups.inverse(0.25, 2.0).mv(u), u / 2)
    torch.testing.assert_close(setups.inverse(0.5, torch.tensor(3.0)).mv(u), u / 4)
    assert stats.factorizations == 2


def test_of_many_step_sizes_the_last_ones_are_kept_in_a_call():
    trainable = torch.tensor(-2.0, requires_grad=True)
    setups, stats = setups_of(operators.ScaledIdentity(trainable))
    for c in range(1, 3 * KEPT):
        setups.inverse(float(c))
        setups.inverse(1.0)  # used again and again, so that it stays
    assert len(setups.made) == KEPT
    assert stats.factorizations == 3 * KEPT - 1
    setups.inverse(2.0)
    assert stats.factorizations == 3 * KEPT


def test_factorizations_kept_of_an_operator_are_of_what_it_was():
    matrix = torch.eye(3) * -2
    operator, ones = operators.Dense(matrix), torch.ones(3)
    first, stats = setups_of(operator)
    for c in (1.0, 2.0, 3.0):
        first.inverse(c)
    again, more = setups_of(operator)
    torch.testing.assert_close(again.inverse(2.0).mv(ones), ones / 5)
    assert (stats.factorizations, more.factorizations) == (3, 0)
    matrix *= 2
    again, more = setups_of(operator)
    torch.testing.assert_close(again.inverse(1.0).mv(ones), ones / 5)
    assert more.factorizations == 1


def test_a_number_of_an_operator_that_was_changed_makes_its_factors_anew():
    operator = 2.0 * operators.Dense(torch.eye(3) * -1.0) + operators.ScaledIdentity(-1.0)
    setups_of(operator)[0].inverse(1.0)
    operator.terms[0].factor = 5.0
    changed, stats = setups_of(operator)
    torch.testing.assert_close(changed.inverse(1.0).mv(torch.ones(3)), torch.ones(3) / 7)
    assert stats.factorizations == 1


@pytest.mark.parametrize("kind", [float, np.float32, np.int64, Fraction, Decimal])
def test_a_number_of_any_kind_of_an_operator_of_ones_own_too(kind):
    class Multiple(operators.LinearOperator):
        dims = (-1,)

        def __init__(self, factor):
            self.factor = factor

        def mv(self, u):
            return u * float(self.factor)

        def has_closed_inverse(self):
            return True

        def resolvent(self, c):
            return operators.ScaledIdentity(1.0 / (1.0 - c * float(self.factor)))

    operator = Multiple(kind(-1))
    setups_of(operator)[0].inverse(1.0)
    operator.factor = kind(-4)
    torch.testing.assert_close(setups_of(operator)[0].inverse(1.0).mv(torch.ones(3)),
                               torch.ones(3) / 5)


def test_an_operator_of_ones_own_need_not_be_hashable():
    @dataclasses.dataclass
    class Mine(operators.LinearOperator):
        matrix: torch.Tensor

        def __post_init__(self):
            self.tensors, self.dims = (self.matrix,), (-1,)

        def mv(self, u):
            return u @ self.tensors[0].T

    mine, u0, t = Mine(-torch.eye(3)), torch.ones(3), torch.tensor([0.0, 1.0])
    u = imex_odeint(None, mine, u0, t, step_size=0.1)
    assert torch.equal(imex_odeint(None, mine, u0, t, step_size=0.1), u)
    torch.testing.assert_close(u[-1], torch.exp(-u0), rtol=0, atol=1e-4)
    found = weakref.ref(kept_of(mine))
    assert found() is not None
    del mine
    assert found() is None


@pytest.mark.parametrize("terms", [
    [operators.ScaledIdentity(-1.0), operators.ScaledIdentity(-4.0)],
    [operators.Circulant([1.0, -2.0, 1.0]), operators.Circulant([2.0, -4.0, 2.0])]])
def test_a_term_that_was_replaced_makes_the_factors_of_a_sum_anew(terms):
    matrix, u = -torch.eye(4) - torch.ones(4, 4), torch.tensor([1.0, 2.0, 0.0, -1.0])
    operator = operators.Dense(matrix) + terms[0]
    setups_of(operator)[0].inverse(1.0).mv(u)
    operator.terms = (operator.terms[0], terms[1])
    fresh = operators.Dense(matrix) + terms[1]
    torch.testing.assert_close(setups_of(operator)[0].inverse(1.0).mv(u),
                               setups_of(fresh)[0].inverse(1.0).mv(u))


@pytest.mark.parametrize("gradient", ["discrete", "backprop"])
@pytest.mark.parametrize("kind", ["product", "solve"])
def test_an_inverse_of_ones_own_has_a_product_or_a_solve(kind, gradient):
    class Mine(operators.LinearOperator):
        def __init__(self, matrix):
            self.matrix, self.dims = matrix, (-1,)

        def transpose(self):
            return Mine(self.matrix.t())

    if kind == "product":
        Mine.mv = lambda self, b: torch.linalg.solve(self.matrix, b.T).T
    else:
        Mine.solve = lambda self, b, guess=None: operators.Solution(
            torch.linalg.solve(self.matrix, b.T).T)

    class Solver:
        def invert(self, operator):
            return Mine(torch.eye(2).double() - operator.c * torch.as_tensor(J))

    found = []
    for solver in (Solver(), None):
        u0 = torch.as_tensor(U0)[None].requires_grad_()
        u = imex_odeint(None, operators.Dense(torch.as_tensor(J)), u0, torch.tensor([0.0, 1.0]),
                        step_size=0.1, solver=solver, gradient=gradient)
        found.append((u, torch.autograd.grad(u.sum(), u0)[0]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-14)


class Watched:
    """A solver that notes the iterations from the guess it is given, and those from b."""

    def __init__(self):
        self.warm, self.cold = [], []

    def invert(self, operator):
        return WatchedInverse(self, solvers.GMRES().invert(operator))


class WatchedInverse(solvers.Inverse):
    iterative = True

    def __init__(self, notes, inner):
        super().__init__(inner.operator)
        self.notes, self.inner = notes, inner

    def solve(self, b, guess=None):
        found = self.inner.solve(b, guess)
        self.notes.warm.append(int(found.iterations.max()))
        self.notes.cold.append(int(self.inner.solve(b, b).iterations.max()))
        return found

    def transpose(self):
        return WatchedInverse(self.notes, self.inner.T)


@pytest.mark.parametrize("method", ["imex_rk2", "imex_rk4", "sbdf2"])
def test_solves_of_the_backward_pass_start_near_where_the_one_before_ended(method):
    torch.manual_seed(0)
    n, notes = 30, Watched()
    matrix = torch.randn(n, n).double() / n**0.5 - 2.0 * torch.eye(n).double()
    u0 = torch.randn(2, n).double().requires_grad_()
    u = imex_odeint(lambda t, u: 0.1 * u.sin(), operators.Dense(matrix), u0,
                    torch.tensor([0.0, 2.0]).double(), method=method, step_size=0.1, solver=notes)
    forward = len(notes.warm)
    u[-1].square().sum().backward()
    warm, cold = sum(notes.warm[forward:]), sum(notes.cold[forward:])
    assert warm < 0.95 * cold
