"""Is everything public copied, pickled and saved, before and after it was used?"""

import copy
import io
import multiprocessing
import pickle

import pytest
import torch
from cases import OPERATORS, SOLVERS, double, fits, upwind
from torch import nn

import pyg_sinode
from pyg_sinode import (
    SINODE,
    ExplicitTermError,
    GRANDAttention,
    LinearSolveError,
    NewtonError,
    NonFiniteStateError,
    SINODEConv,
    StepSizeError,
    controllers,
    imex_odeint,
    norms,
)
from pyg_sinode.grid import PeriodicGrid, kuramoto_sivashinsky, viscous_burgers
from pyg_sinode.operators import Circulant, Graph, MatrixFree, ScaledIdentity, Shifted
from pyg_sinode.schemes import SCHEMES
from pyg_sinode.solvers import CG, GMRES, BiCGStab, Direct, Jacobi
from pyg_sinode.terms import Affine, Nonlinear

T = double([0.0, 0.5])
EDGES = torch.tensor([[0, 1, 2, 3, 1], [1, 0, 1, 2, 2]])


def saved(thing):
    """What torch.save and torch.load make of it."""
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
    "save": saved,
}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def picklable(name):
    """Not a function of these cases, which are lambdas."""
    return not any(isinstance(term, MatrixFree) and not isinstance(term.fn, nn.Module)
                   and term.fn is not upwind for term in (OPERATORS[name].operator(),))


@every_way
@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
@pytest.mark.parametrize("name", [name for name in OPERATORS if picklable(name)])
def test_operators(name, used, way):
    case = OPERATORS[name]
    J = case.operator()
    J = J.with_tensors([x.detach().requires_grad_(x.requires_grad) for x in J.tensors])
    u = case.state()
    if used:
        fixed = J.with_tensors([x.detach() for x in J.tensors])
        for operator in (J, fixed):
            imex_odeint(lambda t, u: torch.sin(u), operator, u, T, step_size=0.25)[-1].sum()
        J.T.mv(u).sum()
        J.vjp(u, u, (True,) * len(J.tensors))
        J = fixed
    other = way(J)
    assert torch.equal(other.mv(u), J.mv(u))
    assert torch.equal(other.T.mv(u), J.T.mv(u))
    assert other.symmetric() == J.symmetric()
    assert [x.requires_grad for x in other.tensors] == [x.requires_grad for x in J.tensors]
    solve = [imex_odeint(None, each, u, T, step_size=0.25) for each in (J, other)]
    assert torch.equal(solve[0].detach(), solve[1].detach())


@every_way
@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
@pytest.mark.parametrize("solver", [*SOLVERS.values(), Direct(dense=False), Direct(dense=True),
                                    CG(preconditioner=Jacobi())], ids=repr)  # fmt: skip
def test_solvers_and_their_inverses(solver, used, way):
    case = OPERATORS["graph_symmetric"]
    J, b = case.operator(), case.state()
    J = J.with_tensors([x.detach() for x in J.tensors])
    inverse = solver.invert(Shifted(J, 0.2))
    if used:
        inverse.solve(b)
        inverse.T.solve(b)
    assert way(solver) == solver
    other = way(inverse)
    assert torch.equal(other.solve(b).x, inverse.solve(b).x)
    assert torch.equal(other.T.solve(b).x, inverse.T.solve(b).x)


def test_every_solver_of_the_cases_fits_that_operator():
    assert all(fits(name, OPERATORS["graph_symmetric"]) for name in SOLVERS)


@every_way
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_schemes(scheme, way):
    def run(method):
        return imex_odeint(lambda t, u: torch.sin(u), ScaledIdentity(-1.0), double([1.0, 2.0]),
                           T, method=method, step_size=0.1)

    expected = run(scheme)  # it derives what it needs, once
    assert torch.equal(run(way(scheme)), expected)


@every_way
@pytest.mark.parametrize("thing", [
    controllers.I(), controllers.PI(safety=0.8), controllers.PID(), norms.maximum, norms.rms],
    ids=["I", "PI", "PID", "maximum", "rms"])
def test_controllers_and_norms(thing, way):
    assert way(thing) == thing


@every_way
def test_stats_and_the_statistics_of_a_run(way):
    _, stats = imex_odeint(None, ScaledIdentity(-1.0), double([1.0]), T, step_size=0.1,
                           return_stats=True)
    assert way(stats) == stats


@every_way
@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
def test_an_implicit_part_that_depends_on_time(used, way):
    part = Affine(ScaledIdentity(-2.0), torch.cos, scale=torch.exp)
    u0 = double([1.0, 2.0])
    if used:
        imex_odeint(None, part, u0, T, step_size=0.1)
    other = way(part)
    assert torch.equal(imex_odeint(None, other, u0, T, step_size=0.1),
                       imex_odeint(None, part, u0, T, step_size=0.1))


LAYERS = {
    **{implicit: lambda i=implicit: SINODEConv(4, 4, heads=2, implicit=i)
       for implicit in ("decay", "laplacian", "attention")},
    "options": lambda: SINODEConv(-1, 6, method="sbdf2", time=2.0, step_size=0.5, solver=GMRES(),
                                  separate_alpha=True, attention="exp_kernel"),
    "operator": lambda: SINODEConv(4, 4, implicit=Graph(EDGES, torch.full((5,), -0.1), 4)),
    "parameter": lambda: SINODEConv(4, 4, implicit=ScaledIdentity(nn.Parameter(-torch.ones(())))),
    "network": lambda: SINODE(4, 6, 3, heads=2, batch_norm=True),
    "attention_layer": lambda: GRANDAttention(4, heads=2),
    "attention_plain": lambda: GRANDAttention(4, heads=2, fused=False),
}  # fmt: skip


@every_way
@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_layers(make, used, way):
    layer, x = make(), torch.randn(4, 4)
    if used or any(isinstance(p, nn.UninitializedParameter) for p in layer.parameters()):
        layer(x, EDGES).sum().backward()
        layer.zero_grad()
    layer.eval()
    other = way(layer)
    assert torch.equal(other(x, EDGES), layer(x, EDGES))
    other(x, EDGES).sum().backward()
    assert all(p.grad is None for p in layer.parameters())


@every_way
def test_grids_and_their_equations(way):
    grid = PeriodicGrid(16, 22.0)
    assert way(grid) == grid
    for G, J, initial in (kuramoto_sivashinsky(grid), viscous_burgers(grid, 0.01)):
        u0 = initial(2)
        expected = imex_odeint(G, J, u0, T, step_size=0.25)
        assert torch.equal(imex_odeint(way(G), way(J), u0, T, step_size=0.25), expected)


@every_way
def test_a_symbol_of_tensors(way):
    J = Circulant.from_symbol(torch.randn(1).expand(6).contiguous())
    u = torch.randn(6)
    assert torch.equal(way(J).mv(u), J.mv(u))


# Failures


def blow_up():
    imex_odeint(lambda t, u: u * u, None, double([1.0]), double([0.0, 50.0]), step_size=1.0)


def too_small():
    imex_odeint(lambda t, u: u * u, None, double([1.0]), double([0.0, 2.0]), rtol=1e-6)


def too_many():
    imex_odeint(lambda t, u: -1e3 * u, None, double([1.0]), double([0.0, 9.0]), max_steps=5)


def unsolved():
    J = OPERATORS["graph"].operator()
    imex_odeint(None, J, OPERATORS["graph"].state(), double([0.0, 1.0]), step_size=0.5,
                solver=BiCGStab(max_iter=1))


def wrong_value():
    imex_odeint(lambda t, u: 1.0, None, double([1.0]), double([0.0, 1.0]), step_size=0.5)


def rootless():
    imex_odeint(None, Nonlinear(lambda t, u: 9 + 9 * u**2), double([1.0]), double([0.0, 1.0]),
                step_size=1.0)


FAILURES = {
    NonFiniteStateError: [blow_up],
    StepSizeError: [too_small, too_many],
    LinearSolveError: [unsolved],
    NewtonError: [rootless],
    ExplicitTermError: [wrong_value],
}
every_failure = pytest.mark.parametrize(
    ("error", "fail"), [(e, f) for e, fs in FAILURES.items() for f in fs],
    ids=lambda x: x.__name__)


def attributes(error):
    return {name: value.tolist() if isinstance(value, torch.Tensor) else value
            for name, value in vars(error).items()}


@every_way
@every_failure
def test_failures_keep_what_they_carry(error, fail, way):
    with pytest.raises(error) as caught:
        fail()
    other = way(caught.value)
    assert type(other) is error
    assert str(other) == str(caught.value)
    assert attributes(other) == attributes(caught.value)
    assert other.time is not None
    assert other.step is not None


def test_every_failure_that_is_public_is_among_these():
    public = {x for x in vars(pyg_sinode).values()
              if isinstance(x, type) and issubclass(x, Exception)}
    assert public <= set(FAILURES)


def test_a_worker_process_hands_its_failure_to_the_parent():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for error, fails in FAILURES.items():
            for fail in fails:
                with pytest.raises(error):
                    pool.apply_async(fail).get(timeout=120)
