"""Does a V-cycle keep the iterations of CG few on graphs of any size, and stay what CG expects?"""

import pickle
import sys

import numpy as np
import pytest
import torch

from pyg_sinode import imex_odeint
from pyg_sinode.operators import Graph, MatrixFree, ScaledIdentity, Shifted
from pyg_sinode.solvers import CG, BlockJacobi, Direct, Jacobi, Multigrid

pytest.importorskip("pyamg", reason="pyamg is not installed")
pytestmark = pytest.mark.usefixtures("one_thread")
F64 = torch.float64


def grid(side, dtype=F64, weight=None):
    """The Laplacian of a square grid with closed ends."""
    at = torch.arange(side * side).view(side, side)
    pairs = torch.cat([torch.stack([at[1:].flatten(), at[:-1].flatten()]),
                       torch.stack([at[:, 1:].flatten(), at[:, :-1].flatten()])], dim=1)
    own = torch.ones(pairs.size(1), dtype=dtype) if weight is None else weight
    pairs, own = torch.cat([pairs, pairs.flip(0)], dim=1), own.repeat(2)
    degree = torch.zeros(side * side, dtype=dtype).index_add(0, pairs[1], own)
    edge_index = torch.cat([pairs, at.flatten().repeat(2, 1)], dim=1)
    return Graph(edge_index, torch.cat([own, -degree]), side * side, largest=0.0)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-3), (F64, 1e-10)], ids=str)
@pytest.mark.parametrize("shape", [(), (3,)], ids=["one", "batch"])
def test_iterations_do_not_grow_with_the_grid(dtype, rtol, shape):
    counts = {}
    for side in (20, 80):
        system = Shifted(grid(side, dtype), 1e4)
        b = torch.randn(*shape, side * side, 2, dtype=dtype)
        for label, solver in (("plain", CG(rtol=rtol)),
                              ("multigrid", CG(rtol=rtol, preconditioner=Multigrid()))):
            _, iterations, residual = solver.invert(system).solve(b)
            assert bool((residual <= rtol * torch.linalg.vector_norm(b, dim=-2, keepdim=True)
                         ).all())
            counts[label, side] = int(iterations.max())
    assert counts["plain", 80] > 2.5 * counts["plain", 20]
    assert counts["multigrid", 80] <= min(25, counts["multigrid", 20] + 8)


@pytest.mark.parametrize("c", [0.1, 100.0])
def test_a_cycle_is_symmetric_and_positive_definite(c):
    side = 12
    weight = torch.linspace(0.1, 10.0, 2 * side * (side - 1), dtype=F64)
    cycle = Multigrid(max_coarse=10).invert(Shifted(grid(side, weight=weight), c))
    matrix = cycle.mv(torch.eye(side * side, dtype=F64))
    torch.testing.assert_close(matrix, matrix.t(), rtol=0, atol=1e-14)
    assert float(torch.linalg.eigvalsh(matrix).min()) > 0
    assert cycle.T is cycle


def test_a_small_matrix_is_inverted():
    system = Shifted(grid(5), 2.0)
    b = torch.randn(25, 3, dtype=F64)
    torch.testing.assert_close(Multigrid().invert(system).mv(b), Direct().invert(system).mv(b),
                               rtol=0, atol=1e-12)


def test_cycles_are_the_same_each_time_and_leave_numpys_numbers_alone():
    b = torch.randn(900, 1, dtype=F64)
    np.random.seed(7)
    expected = np.random.rand()
    np.random.seed(7)
    first = Multigrid().invert(Shifted(grid(30), 50.0)).mv(b)
    assert np.random.rand() == expected
    inverse = Multigrid().invert(Shifted(grid(30), 50.0))
    assert torch.equal(inverse.mv(b), first)
    assert torch.equal(pickle.loads(pickle.dumps(inverse)).mv(b), first)


def test_gradients_are_those_of_a_direct_solve():
    grads = []
    for solver in (CG(rtol=1e-13, preconditioner=Multigrid(max_coarse=10)), Direct()):
        torch.manual_seed(0)
        weight = torch.rand(2 * 12 * 11, dtype=F64, requires_grad=True)
        u0 = torch.randn(144, 2, dtype=F64, requires_grad=True)
        u = imex_odeint(lambda t, u: u.sin(), grid(12, weight=weight), u0,
                        torch.tensor([0.0, 20.0], dtype=F64), step_size=10.0, solver=solver)
        u[-1].square().sum().backward()
        grads.append((u.detach(), u0.grad, weight.grad))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_an_empty_state_has_an_empty_solution():
    assert Multigrid().invert(Shifted(grid(4), 1.0)).mv(torch.zeros(16, 0)).shape == (16, 0)


@pytest.mark.parametrize("operator", [
    Graph(torch.tensor([[0, 1], [1, 2]]), num_nodes=3),
    MatrixFree(lambda u: -u)],
    ids=str)
def test_what_is_not_known_to_be_symmetric_is_refused(operator):
    with pytest.raises(ValueError, match="symmetric along one dimension for Multigrid"):
        Multigrid().invert(Shifted(operator, 0.1))


def test_what_has_no_entries_is_refused():
    class Twice(ScaledIdentity):
        dims = (-1,)

        def to_coo(self, dim, size):
            return None

    with pytest.raises(ValueError, match="knows its entries for Multigrid"):
        Multigrid().invert(Twice(2.0)).mv(torch.ones(3))


@pytest.mark.parametrize("solver", [Multigrid(), Jacobi(), BlockJacobi()], ids=repr)
def test_a_preconditioner_is_refused_as_the_solver(solver):
    with pytest.raises(ValueError, match=r"solver that meets a tolerance .*preconditioner"):
        imex_odeint(None, grid(4), torch.ones(16, 1, dtype=F64), torch.tensor([0.0, 1.0]),
                    step_size=1.0, solver=solver)


@pytest.mark.parametrize("number", [0.1, 0.3])
def test_a_diagonal_that_is_not_positive_is_refused(number):
    at = torch.arange(200)
    graph = Graph(torch.stack([torch.cat([at, (at + 1) % 200]), torch.cat([(at + 1) % 200, at])]),
                  torch.full((400,), 1.0, dtype=F64), 200)
    system = Shifted(graph + ScaledIdentity(number), 10.0)
    with pytest.raises(ValueError, match="positive diagonal for Multigrid"):
        Multigrid(max_coarse=10).invert(system).mv(torch.ones(200, 1, dtype=F64))


def test_a_diagonal_matrix_is_divided_by():
    b = torch.randn(900, 2, dtype=F64)
    assert torch.equal(Multigrid(max_coarse=10).invert(Shifted(grid(30), 0.0)).mv(b), b)


@pytest.mark.parametrize("most", [0, -1, 2.5, "a"])
def test_max_coarse_is_at_least_one(most):
    with pytest.raises(ValueError, match="max_coarse from 1 up"):
        Multigrid(max_coarse=most)


def test_without_pyamg_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyamg", None)
    with pytest.raises(ImportError, match=r"pip install 'pyg_sinode\[amg\]'"):
        Multigrid().invert(Shifted(grid(4), 1.0)).mv(torch.ones(16, 1, dtype=F64))
