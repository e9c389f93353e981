"""Does a matrix at every node keep its promises, and does block Jacobi?"""

import pytest
import torch
from cases import OPERATORS, dense_matrix, graph, numbers
from nonlinear_cases import F64

from pyg_sinode import imex_odeint
from pyg_sinode.operators import (
    Banded,
    BlockDiagonal,
    Dense,
    Diagonal,
    LinearSolveError,
    MatrixFree,
    ScaledIdentity,
    Shifted,
)
from pyg_sinode.solvers import CG, GMRES, BiCGStab, BlockJacobi, Direct, default


def species(u):
    x, y, z = u.unbind(-1)
    return torch.stack([x * y, y.sin() - z, x + y * z**2], dim=-1)


def test_the_derivative_of_a_function_is_its_blocks():
    u = torch.randn(5, 3, dtype=F64)
    J = BlockDiagonal.jacobian(species, u)
    for n in range(5):
        exact = torch.autograd.functional.jacobian(species, u[n])
        torch.testing.assert_close(J.tensors[0][n], exact, rtol=0, atol=1e-15)
    J.check(u)


@pytest.mark.parametrize("dims", [-2, (-2, -1), (-3, -1)])
@pytest.mark.parametrize("width", [3, 12])
def test_the_derivative_along_other_dimensions(dims, width):
    shape = (2, width, 2)
    u = torch.randn(shape, dtype=F64)
    axes = (dims,) if isinstance(dims, int) else dims

    def fn(u):
        return torch.sin(u) * u.roll(1, axes[0]).sum(dim=axes, keepdim=True) + u**2

    J = BlockDiagonal.jacobian(fn, u, dim=dims)
    exact = torch.autograd.functional.jacobian(fn, u).reshape(u.numel(), u.numel())
    torch.testing.assert_close(dense_matrix(J, shape), exact, rtol=0, atol=1e-13)


def test_a_function_without_a_rule_for_batches_is_differentiated_row_by_row():
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, u):
            return 2 * u

        @staticmethod
        def backward(ctx, g):
            assert float(g.sum()) == 1.0  # refused under a batch
            return 2 * g

    J = BlockDiagonal.jacobian(Twice.apply, torch.randn(12, dtype=F64))
    assert torch.equal(J.tensors[0], 2 * torch.eye(12, dtype=F64))


def test_a_function_that_does_not_depend_on_the_state_has_no_derivative():
    u = torch.randn(4, 3, dtype=F64)
    assert not BlockDiagonal.jacobian(torch.ones_like, u).tensors[0].any()
    assert BlockDiagonal.jacobian(lambda x: -x, u[:0]).tensors[0].shape == (0, 3, 3)


@pytest.mark.parametrize(("shape", "dim", "message"), [
    ((3,), -1, r"square blocks of shape \(\*, n, n\) .*got shape \(3,\)"),
    ((2, 3, 4), -1, "square blocks"),
    ((2, 3, 3), 1, "dimensions of BlockDiagonal counted from the end"),
    ((2, 3, 3), (), "a dimension for BlockDiagonal"),
])
def test_a_constructor_refuses_what_are_no_blocks(shape, dim, message):
    with pytest.raises(ValueError, match=message):
        BlockDiagonal(torch.zeros(shape), dim=dim)
    with pytest.raises(TypeError, match="real floating dtype"):
        BlockDiagonal(torch.zeros(3, 3, dtype=torch.long))


@pytest.mark.parametrize(("blocks", "state", "message"), [
    ((5, 3, 3), (5, 4), r"size 3 along dimension \(-1,\)"),
    ((5, 3, 3), (4, 3), r"broadcast against the dimensions \(4,\) .*got \(5,\)"),
    ((2, 5, 3, 3), (5, 3), r"broadcast against the dimensions \(5,\) .*got \(2, 5\)"),
])
def test_a_state_that_does_not_fit_is_refused(blocks, state, message):
    with pytest.raises(ValueError, match=message):
        BlockDiagonal(torch.zeros(blocks)).check(torch.zeros(state))


def test_a_singular_block_among_good_ones_is_an_error():
    blocks = torch.zeros(4, 2, 2, dtype=F64)
    blocks[2] = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    BlockDiagonal(blocks).resolvent(0.4)
    with pytest.raises(LinearSolveError, match="singular to rounding"):
        BlockDiagonal(blocks).resolvent(0.5)


# Blocks of other operators, and block Jacobi


@pytest.mark.parametrize("name", OPERATORS)
def test_the_blocks_of_an_operator_are_those_of_its_matrix(name):
    case = OPERATORS[name]
    J, shape = case.operator(), case.shape
    matrix, last = dense_matrix(J, shape).detach(), shape[-1]
    u, known = torch.zeros(shape, dtype=F64), 0
    for operator, whole in ((J, matrix), (J.T, matrix.T),
                            (Shifted(J, 0.3), torch.eye(len(matrix)) - 0.3 * matrix)):
        blocks = operator.blocks(u, (-1,))
        if blocks is None:
            continue
        known += 1
        others = shape[:-1].numel() if isinstance(shape, torch.Size) else len(matrix) // last
        expected = torch.stack([whole[i * last:(i + 1) * last, i * last:(i + 1) * last]
                                for i in range(others)])
        found = blocks.expand(*shape[:-1], last, last).reshape(-1, last, last)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    # A function has no entries; several dimensions at once are no block of one.
    unknown = ("function", "stencil_in", "symbol_", "stencil_on", "block_of", "blocks_of",
               "blocks_on", "sines_on", "cosines_in", "box_")
    assert known == 3 or name.startswith(unknown)


def stiff_sum():
    J = graph(torch.rand(9, dtype=F64)) + BlockDiagonal(1e4 * numbers(6, 3, 3))
    return J - ScaledIdentity(1e4)


@pytest.mark.parametrize("solver", [GMRES, BiCGStab])
@pytest.mark.parametrize("turned", [False, True], ids=["A", "A^T"])
def test_block_jacobi_makes_a_stiff_reaction_beside_a_graph_easy(solver, turned):
    A, b = Shifted(stiff_sum(), 0.1), torch.randn(6, 3, dtype=F64)
    inverse = solver(preconditioner=BlockJacobi()).invert(A)
    x, iterations, _ = (inverse.T if turned else inverse).solve(b)
    matrix = dense_matrix(A.T if turned else A, (6, 3))
    exact = torch.linalg.solve(matrix, b.flatten()).view(6, 3)
    torch.testing.assert_close(x, exact, rtol=0, atol=1e-8 * float(exact.abs().max()))
    assert int(iterations.max()) <= 4


def test_the_default_solver_of_a_sum_with_blocks_is_preconditioned_by_them():
    assert default(stiff_sum()) == GMRES(preconditioner=BlockJacobi((-1,), optional=True))
    stencil = torch.tensor([[1.0], [-2.0], [1.0]], dtype=F64)
    symmetric = Banded(stencil.repeat(1, 6), (-1, 0, 1), dim=-2)
    assert default(symmetric + BlockDiagonal(-torch.eye(3, dtype=F64))) == CG(
        preconditioner=BlockJacobi((-1,), optional=True))
    assert default(BlockDiagonal(torch.eye(3))) == Direct()


@pytest.mark.parametrize("other", [
    MatrixFree(lambda u: torch.roll(u, 1, -2) - u, dim=-2), BlockDiagonal(-torch.eye(6), dim=-2),
], ids=["MatrixFree", "blocks along another dimension"])
def test_a_sum_whose_blocks_are_not_known_is_solved_without_a_preconditioner(other):
    torch.manual_seed(0)
    J, u0 = BlockDiagonal(-torch.rand(3, 3)) + other, torch.randn(6, 3)
    u = imex_odeint(None, J, u0, torch.tensor([0.0, 1.0]), step_size=0.1)[-1]
    exact = torch.linalg.matrix_exp(dense_matrix(J, u0.shape, torch.float32)) @ u0.flatten()
    torch.testing.assert_close(u.flatten(), exact, rtol=0, atol=1e-3)
    inverse = default(J).invert(Shifted(J, 0.1)).T
    torch.testing.assert_close(Shifted(J, 0.1).T.mv(inverse.mv(u0)), u0, rtol=0, atol=1e-4)


def test_block_jacobi_refuses_an_operator_without_blocks():
    A = Shifted(MatrixFree(lambda u: -u), 0.1)
    with pytest.raises(ValueError, match=r"knows its blocks along \(-1,\) for BlockJacobi"):
        GMRES(preconditioner=BlockJacobi()).invert(A).solve(torch.ones(3, dtype=F64))
    with pytest.raises(ValueError, match="counted from the end"):
        BlockJacobi(dim=0)


def test_block_jacobi_of_a_diagonal_or_a_dense_matrix_is_its_inverse():
    b = torch.randn(4, 3, dtype=F64)
    for J in (Diagonal(-torch.rand(4, 3, dtype=F64)), Dense(-torch.eye(3, dtype=F64))):
        x, iterations, _ = GMRES(preconditioner=BlockJacobi()).invert(Shifted(J, 0.5)).solve(b)
        torch.testing.assert_close(x, J.resolvent(0.5).mv(b), rtol=0, atol=1e-12)
        assert int(iterations.max()) <= 1
