"""Does everything die when it is let go of, without the garbage collector?"""

import contextlib
import gc

import pytest
import torch
from cases import OPERATORS, SOLVERS, fits, numbers
from torch import nn

from pyg_sinode import SINODE, GRANDAttention, SINODEConv, StepSizeError, imex_odeint
from pyg_sinode.grid import PeriodicGrid, kuramoto_sivashinsky, viscous_burgers
from pyg_sinode.operators import LinearSolveError, ScaledIdentity, Shifted
from pyg_sinode.schemes import RUNGE_KUTTA
from pyg_sinode.solvers import CG, GMRES, Jacobi, Newton, NewtonError
from pyg_sinode.terms import Affine, Nonlinear

EDGES = torch.tensor([[0, 1, 2, 3, 1], [1, 0, 1, 2, 2]])
T = torch.tensor([0.0, 0.1, 0.2], dtype=torch.float64)


@contextlib.contextmanager
def nothing_left():
    """Fails if a tensor made inside is still alive at the end, with the collector off."""
    gc.disable()
    gc.freeze()  # what is there already is not looked at
    try:
        yield
        left = sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects())
    finally:
        gc.unfreeze()
        gc.enable()
    assert left == 0, f"{left} tensors are held by a cycle"


def twice(run):
    """Runs once for what is made once in a process, then watches."""
    run()
    with nothing_left():
        run()


class Reaction(nn.Module):
    """An explicit term with a parameter."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, t, u):
        return self.weight * torch.sin(u)


def train(implicit, u0, **options):
    u = imex_odeint(Reaction(), implicit, u0.clone().requires_grad_(), T, **options)
    u[-1].square().sum().backward()


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "fixed"])
@pytest.mark.parametrize("gradient", ["discrete", "backprop"])
@pytest.mark.parametrize("name", OPERATORS)
def test_an_integration_with_every_operator_leaves_nothing(name, gradient, trained):
    case = OPERATORS[name]
    u0 = case.state()

    def run():
        J = case.operator()
        if not trained:  # its factors are kept for the next call
            J = J.with_tensors([x.detach() for x in J.tensors])
        train(J, u0, step_size=0.1, gradient=gradient)

    twice(run)


@pytest.mark.parametrize("solver", [*SOLVERS.values(), CG(preconditioner=Jacobi()),
                                    GMRES(preconditioner=Jacobi())], ids=repr)  # fmt: skip
def test_an_integration_with_every_solver_leaves_nothing(solver):
    case = OPERATORS["laplacian"]
    u0 = case.state()
    twice(lambda: train(case.operator(), u0, step_size=0.1, solver=solver))


@pytest.mark.parametrize("options", [
    *({"method": name, "step_size": 0.1} for name in RUNGE_KUTTA),
    *({"method": name, "step_size": 0.1} for name in ("sbdf2", "sbdf3", "sbdf4", "cnab2")),
    {"rtol": 1e-4}, {"rtol": 1e-4, "dense": True}, {"step_size": 0.05, "checkpoints": 2},
    {"rtol": 1e-4, "checkpoints": "auto"}], ids=str)  # fmt: skip
def test_an_integration_by_every_scheme_and_way_of_stepping_leaves_nothing(options):
    case = OPERATORS["graph_plus_identity"]
    u0 = case.state()
    twice(lambda: train(case.operator(), u0, **options))


@pytest.mark.parametrize("gradient", ["discrete", "backprop"])
@pytest.mark.parametrize("newton", [Newton(), Newton(solver=GMRES())], ids=repr)
@pytest.mark.parametrize("options", [{"step_size": 0.1}, {"rtol": 1e-4}], ids=str)
def test_a_nonlinear_term_leaves_nothing(options, newton, gradient):
    u0 = torch.rand(3, 2, dtype=torch.float64)

    def run():
        rate = torch.ones(2, dtype=torch.float64, requires_grad=True)
        part = Nonlinear(lambda t, u, rate: -rate * u**3, rate * 2, dims=-1, newton=newton)
        train(part, u0, gradient=gradient, **options)

    twice(run)


def test_a_solve_that_fails_leaves_nothing():
    def linear():
        case = OPERATORS["graph"]
        with pytest.raises(LinearSolveError):
            train(case.operator(), case.state(), step_size=0.1,
                  solver=GMRES(max_iter=1, rtol=1e-14))

    def newton():
        u0 = torch.ones(2, dtype=torch.float64)
        with pytest.raises(NewtonError):
            train(Nonlinear(lambda t, u: 9 * u**2 + 9), u0, step_size=1.0)

    twice(linear)
    twice(newton)


def test_a_forcing_and_a_failure_leave_nothing():
    def fail():
        u0 = torch.ones(2, dtype=torch.float64)
        part = Affine(ScaledIdentity(-1.0), lambda t: 1.0 / (t - t), scale=lambda t: 1.0 + t)
        with pytest.raises(RuntimeError, match="stopped being finite"):
            train(part, u0, step_size=0.1)

    def rejected():
        u0 = torch.ones(2, dtype=torch.float64)
        train(Affine(ScaledIdentity(-1e3), torch.cos), u0, rtol=1e-9, first_step=0.1)

    def unsolvable():
        case = OPERATORS["graph"]
        with pytest.raises(StepSizeError, match="a linear solve failed"):
            train(case.operator(), case.state(), rtol=1e-3, min_step=1e-3,
                  solver=GMRES(max_iter=1, rtol=1e-14))

    twice(fail)
    twice(rejected)
    twice(unsolvable)


LAYERS = {
    **{f"{implicit}-{heads}-{gradient}": lambda i=implicit, h=heads, g=gradient: SINODEConv(
        4, 4, heads=h, implicit=i, gradient=g)
       for implicit in ("decay", "laplacian", "attention") for heads in (1, 2)
       for gradient in ("discrete", "backprop")},
    "widened": lambda: SINODEConv(4, 8, heads=2),
    "operator": lambda: SINODEConv(4, 4, implicit=ScaledIdentity(nn.Parameter(-torch.ones(())))),
    "network": lambda: SINODE(4, 6, 3, dropout=0.1, batch_norm=True),
    "attention": lambda: GRANDAttention(4, heads=2),
    "attention-plain": lambda: GRANDAttention(4, heads=2, fused=False),
    "attention-column": lambda: GRANDAttention(4, heads=2, stochastic="column"),
}  # fmt: skip


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_a_pass_through_every_layer_leaves_nothing(make):
    layer = make()
    x = torch.randn(4, 4)

    def run():
        layer.zero_grad()
        layer(x.clone().requires_grad_(), EDGES).square().sum().backward()
        layer.zero_grad()

    twice(run)


@pytest.mark.parametrize("equation", [kuramoto_sivashinsky,
                                      lambda grid: viscous_burgers(grid, 0.01)],
                         ids=["kuramoto_sivashinsky", "viscous_burgers"])  # fmt: skip
def test_a_gradient_on_a_grid_leaves_nothing(equation):
    def run():
        G, J, initial = equation(PeriodicGrid(32, 22.0))
        u0 = initial(2).double().requires_grad_()
        imex_odeint(G, J, u0, T, step_size=0.1)[-1].sum().backward()

    twice(run)


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_its_transpose_and_its_inverses_leave_nothing(name):
    case = OPERATORS[name]
    u = case.state()

    def run():
        J = case.operator()
        (J.mv(u) + J.T.mv(u)).sum().backward() if J.tensors else J.T.mv(u)
        J.symmetric()
        J.largest_eigenvalue()
        for key, solver in SOLVERS.items():
            if fits(key, case):
                inverse = solver.invert(Shifted(J, 0.4))
                inverse.solve(u)
                inverse.T.solve(u)

    numbers(1)
    twice(run)
