"""Does each linear solver do what it alone promises?"""

import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch
from solvers_cases import (
    F32,
    F64,
    KRYLOV,
    RTOL,
    N,
    as_matrix,
    both_sides,
    directed,
    dtypes,
    laplacian,
    normalised,
    norms,
    randn,
    spd,
    wave,
)

from pyg_sinode.operators import (
    Banded,
    Dense,
    Diagonal,
    Graph,
    LinearOperator,
    LinearSolveError,
    MatrixFree,
    ScaledIdentity,
    Shifted,
)
from pyg_sinode.solvers import CG, GMRES, BiCGStab, Direct, Jacobi, default

pytestmark = pytest.mark.usefixtures("one_thread")


@dtypes
def test_cg_on_an_indefinite_operator_says_so_and_names_gmres(dtype):
    matrix = torch.diag(torch.tensor([1.0, 2.0, 3.0, -0.5], dtype=dtype))
    b = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 1]], dtype=dtype)
    with pytest.raises(LinearSolveError, match=(
            r"CG expects a symmetric positive-definite operator \(got p\^T A p = -5\.0e-01 at "
            r"iteration 1\); use GMRES\.")):
        CG().invert(Dense(matrix)).solve(b)
    assert float(GMRES().invert(Dense(matrix)).solve(b).residual.max()) <= 1e-4
    CG().invert(Dense(matrix)).solve(b[:1])  # the column that never meets the negative eigenvalue


def test_cg_stops_a_column_at_its_first_negative_curvature():
    # Left to itself, CG would converge here, by way of one negative curvature of four.
    matrix = torch.diag(torch.tensor([-0.5, 1.0, 2.0, 3.0], dtype=F64))
    with pytest.raises(LinearSolveError, match=r"p\^T A p = -\d\.\de.\d\d at iteration [1-3]\)"):
        CG().invert(Dense(matrix)).solve(torch.ones(1, 4, dtype=F64))


def test_cg_names_the_iteration_and_the_unscaled_curvature():
    matrix = torch.diag(torch.tensor([4.0, -1.0, 3.0], dtype=F64))
    b = 100.0 * torch.tensor([[1.0, 0.5, 0.0]], dtype=F64)
    # p = r at first: p^T A p = 1e4 (4 - 0.25) > 0, then the second direction has all of the rest.
    with pytest.raises(LinearSolveError, match=r"p\^T A p = -\d\.\de\+0\d at iteration 2"):
        CG().invert(Dense(matrix)).solve(b)


@pytest.mark.parametrize("solver", [CG(), GMRES(), BiCGStab()], ids=repr)
@dtypes
def test_a_singular_operator_is_an_error(solver, dtype):
    # Numbers that no step of a method rounds. The second column is in the range, and solved.
    matrix = torch.diag(torch.tensor([2.0, 2.0, 0.0, 0.0], dtype=dtype))
    b = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]], dtype=dtype)
    with pytest.raises(LinearSolveError) as error:
        solver.invert(Dense(matrix)).solve(b)
    # GMRES and BiCGStab come to the least residual in their first steps, and keep it.
    best = 2.0 if isinstance(solver, CG) else 2.0**0.5
    assert error.value.residual == pytest.approx(best, rel=1e-5)
    left = (b - error.value.state @ matrix).norm(dim=1).max()
    assert float(left) == pytest.approx(error.value.residual, rel=1e-5)
    solver.invert(Dense(matrix)).solve(b[1:])


@pytest.mark.parametrize("solver", [GMRES(), BiCGStab()], ids=repr)
@pytest.mark.parametrize("matrix", [[[0.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
def test_no_progress_on_a_singular_operator_is_an_error(solver, matrix):
    with pytest.raises(LinearSolveError, match=(
            r"makes no progress after \d iterations \(expected a residual of at most 1\.0e-10, got "
            r"1\.0e\+00\); the operator is singular, or breaks the method down: use GMRES wi")):
        solver.invert(Dense(torch.tensor(matrix, dtype=F64))).solve(torch.eye(2, dtype=F64))


def test_cg_on_an_operator_of_zeros_is_an_error():
    with pytest.raises(LinearSolveError, match=r"p\^T A p = 0\.0e\+00 at iteration 1"):
        CG().invert(Dense(torch.zeros(2, 2))).solve(torch.ones(1, 2))


@pytest.mark.parametrize("solver", KRYLOV, ids=repr)
def test_the_identity_takes_one_iteration_even_if_it_returns_its_argument(solver):
    x, iterations, residual = solver.invert(MatrixFree(lambda u: u)).solve(randn(3, 7))
    torch.testing.assert_close(x, randn(3, 7), rtol=1e-15, atol=1e-15)
    assert bool((iterations == 1).all())
    assert bool((residual <= 1e-14).all())


@dtypes
@pytest.mark.parametrize("restart", [30, 5])
def test_gmres_breaks_down_luckily_in_some_columns(dtype, restart):
    values = torch.arange(1, 11, dtype=dtype)
    matrix = torch.diag(values) + torch.diag(torch.ones(2, dtype=dtype), 8).triu()
    b = torch.zeros(4, 10, dtype=dtype)
    b[0, 3] = 2.0           # an eigenvector
    b[1, 2], b[1, 5] = 1, 1  # two of them: an invariant space of dimension 2
    b[2] = randn(10, dtype=dtype)
    b[3, 9] = 1.0           # in a space of dimension 2 that holds no eigenvector basis of b
    x, iterations, _ = GMRES(restart=restart).invert(Dense(matrix)).solve(b)
    expected = torch.linalg.solve(matrix, b.t()).t()
    torch.testing.assert_close(x, expected, rtol=0, atol=20 * RTOL[dtype])
    assert iterations.view(-1).tolist()[:2] == [1, 2]
    assert iterations[3] == 2
    assert iterations[2] >= 8


def test_columns_may_finish_before_during_and_after_a_restart():
    operator = laplacian(20.0, 60)
    _, vectors = torch.linalg.eigh(as_matrix(operator, (60, 1)))
    b = torch.stack([vectors[:, 0], vectors[:, :3].sum(dim=1), vectors[:, 10:14].sum(dim=1),
                     randn(60)], dim=1)
    x, iterations, _ = GMRES(restart=4).invert(operator).solve(b)
    found = iterations.view(-1).tolist()
    assert found[:3] == [1, 3, 4]
    assert found[3] > 8
    assert x.isfinite().all()
    torch.testing.assert_close(operator.mv(x), b, rtol=0, atol=1e-9)


def test_gmres_without_restart_needs_no_more_iterations_than_unknowns():
    shift = torch.roll(torch.eye(8, dtype=F64), 1, 0)  # the slowest operator there is for GMRES
    b = torch.eye(8, dtype=F64)[:2]
    x, iterations, _ = GMRES().invert(Dense(shift)).solve(b)
    assert bool((iterations == 8).all())
    torch.testing.assert_close(x, b @ shift, rtol=0, atol=1e-14)
    with pytest.raises(LinearSolveError, match=r"GMRES\(restart=3\) makes no progress after 6 i"):
        GMRES(restart=3).invert(Dense(shift)).solve(b)


@dtypes
@both_sides
def test_bicgstab_gets_over_the_breakdown_of_alpha_on_a_permutation(dtype, transposed):
    shift = torch.roll(torch.eye(8, dtype=dtype), 1, 0)  # (A b, b) = 0 for a unit vector b
    inverse = BiCGStab(max_iter=1000).invert(Dense(shift))
    b = torch.stack([torch.eye(8, dtype=dtype)[0], torch.arange(8, dtype=dtype)])
    x, _, _ = (inverse.T if transposed else inverse).solve(b)
    torch.testing.assert_close(x, b @ (shift.t() if transposed else shift), rtol=0,
                               atol=30 * RTOL[dtype])


@dtypes
def test_bicgstab_gets_over_omega_zero_with_the_half_step_kept(dtype):
    # From e1 the half step leaves s = -e2, and (A s, s) = 0.
    matrix = torch.tensor([[1.0, 1.0], [1.0, 0.0]], dtype=dtype)
    b = torch.tensor([[1.0, 0.0], [1.0, 2.0]], dtype=dtype)
    x, iterations, _ = BiCGStab().invert(Dense(matrix)).solve(b)
    torch.testing.assert_close(x, b @ torch.linalg.inv(matrix).t(), rtol=0, atol=1e-4)
    with pytest.raises(LinearSolveError) as error:
        BiCGStab(max_iter=1).invert(Dense(matrix)).solve(b[:1])
    assert error.value.residual == pytest.approx(1.0)
    assert iterations[0] == 3


@dtypes
def test_bicgstab_gets_over_rho_zero(dtype):
    # From e1 both steps succeed, and leave a residual that is orthogonal to e1 but not zero.
    matrix = torch.tensor([[2.0, 0.0, 0.0], [1.0, 2.0, 1.0], [0.0, 1.0, 3.0]], dtype=dtype)
    b = torch.tensor([[1.0, 0.0, 0.0], [1.0, -2.0, 0.5]], dtype=dtype)
    x, iterations, _ = BiCGStab().invert(Dense(matrix)).solve(b)
    torch.testing.assert_close(x, b @ torch.linalg.inv(matrix).t(), rtol=0, atol=1e-4)
    assert iterations.view(-1).tolist() == [3, 3]


def test_bicgstab_gives_up_on_a_skew_operator_within_max_iter():
    g = randn(8, 8)
    b = randn(2, 8, seed=13)
    with pytest.raises(LinearSolveError, match=r"BiCGStab\(\) did not converge in 80 iter") as e:
        BiCGStab().invert(Dense(g - g.t())).solve(b)
    assert e.value.iterations == 80
    assert e.value.residual <= float(norms(b, -1).max()) * (1 + 1e-12)  # the best state's
    left = norms(b - Dense(g - g.t()).mv(e.value.state), -1)
    assert e.value.residual == pytest.approx(float(left.max()), rel=1e-9)


@pytest.fixture
def factorisations(monkeypatch):
    """Names of the factorisations that are made, in order."""
    made = []
    splu, lu = scipy.sparse.linalg.splu, torch.linalg.lu_factor_ex
    monkeypatch.setattr(scipy.sparse.linalg, "splu", lambda *a: made.append("sparse") or splu(*a))
    monkeypatch.setattr(torch.linalg, "lu_factor_ex", lambda *a: made.append("dense") or lu(*a))
    return made


@pytest.mark.parametrize(("n", "per_node", "kind"), [
    (64, 4, "dense"), (65, 2, "sparse"), (200, 30, "dense"), (200, 4, "sparse")])
@pytest.mark.parametrize("first", ["A", "A^T"])
def test_one_factorisation_serves_all_solves_and_the_transpose(n, per_node, kind, first,
                                                               factorisations):
    generator = torch.Generator().manual_seed(14)
    ends = torch.randint(0, n, (2, n * per_node), generator=generator)
    graph = Graph(ends, randn(n * per_node) / per_node, n)
    operator = Shifted(graph, 0.5)
    inverse = Direct().invert(operator)
    assert factorisations == []
    other, b = inverse.T, randn(2, n, 3)
    solves = [(inverse, operator), (other, operator.T)]
    for solve, back in solves if first == "A" else solves[::-1]:
        torch.testing.assert_close(back.mv(solve.mv(b)), b, rtol=0, atol=1e-12)
        torch.testing.assert_close(back.T.mv(solve.T.mv(b)), b, rtol=0, atol=1e-12)
    assert factorisations == [kind]


def test_direct_takes_the_closed_form_where_there_is_one(factorisations):
    b = randn(3, 9)
    inverse = Direct().invert(Shifted(ScaledIdentity(-2.0), 0.5))
    torch.testing.assert_close(inverse.mv(b), b / 2.0)
    inverse = Direct().invert(Diagonal(torch.full((9,), 4.0, dtype=F64)))
    torch.testing.assert_close(inverse.T.mv(b), b / 4.0)
    assert factorisations == []
    operator = Shifted(Dense(randn(9, 9)), 0.1)
    inverse = Direct().invert(operator)
    torch.testing.assert_close(operator.mv(inverse.mv(b)), b)
    torch.testing.assert_close(operator.T.mv(inverse.T.mv(b)), b)
    assert factorisations == ["dense"]


@pytest.mark.parametrize("operator", [
    Shifted(MatrixFree(lambda u: -u), 1.0),
    Shifted(directed() + Diagonal(randn(N, 3)), 0.1),
], ids=["MatrixFree", "a diagonal along columns"])
def test_direct_refuses_what_is_not_one_matrix_and_names_cg_and_gmres(operator):
    with pytest.raises(ValueError, match=(
            r"Expected an operator that knows its entries for Direct \(got .*one matrix for all of "
            r"them\); use CG or GMRES\.")):
        Direct().invert(operator).mv(randn(N, 3))


def test_direct_refuses_several_dimensions():
    with pytest.raises(ValueError, match=(
            r"an operator along one dimension for Direct \(got .* along \(-2, -1\)\); use CG, ")):
        Direct().invert(wave(F64))
    with pytest.raises(ValueError, match=r"along \(-2, -1\)"):
        Direct().invert(Shifted(directed() + Dense(randn(3, 3)), 0.1))


def test_the_sparse_lu_is_refused_on_a_device_that_is_not_the_cpu():
    with pytest.raises(ValueError, match=r"on the CPU for a sparse LU \(got meta\); use CG or GM"):
        Direct().invert(laplacian(1.0, 100)).mv(torch.zeros(100, 2, dtype=F64, device="meta"))


def loops(values):
    n = values.numel()
    return Graph(torch.arange(n).repeat(2, 1), values, n)


@dtypes
def test_a_singular_sparse_matrix_is_an_error(dtype):
    values = torch.linspace(-1.0, 0.0, 100, dtype=dtype)
    values[17] = 2.0  # I - cJ has a zero row for c = 1/2
    with pytest.raises(LinearSolveError, match="singular to rounding: a pivot of its LU is zero"):
        Direct().invert(Shifted(loops(values), 0.5)).mv(randn(100, 1, dtype=dtype))


@dtypes
def test_a_sparse_matrix_singular_to_rounding_is_an_error(dtype):
    # A path of weight 2: all pivots of I - J are 1, and its inverse has entries up to 2^99.
    ends = torch.stack([torch.arange(99), torch.arange(99) + 1])
    path = Graph(ends, torch.full((99,), 2.0, dtype=dtype), 100)
    with pytest.raises(LinearSolveError, match=r"rounding: its condition is \d\.\de\+\d\d or more"):
        Direct().invert(Shifted(path, 1.0)).mv(randn(100, 1, dtype=dtype))


def test_stiff_rows_are_no_singularity():
    values = -torch.logspace(0, 12, 100)  # a condition of 1e12 in float32, all of it in the rows
    b = randn(100, 2, dtype=F32)
    x = Direct().invert(Shifted(loops(values), 1.0)).mv(b)
    torch.testing.assert_close(x, b / (1 - values).unsqueeze(1))


def test_jacobi_divides_by_the_diagonal_and_is_its_own_transpose():
    operator = Shifted(directed(), 0.7)
    matrix = as_matrix(operator, (N, 1))
    M, b = Jacobi().invert(operator), randn(2, N, 3)
    torch.testing.assert_close(M.mv(b), b / matrix.diagonal().view(N, 1))
    torch.testing.assert_close(M.T.mv(b[0]), b[0] / matrix.diagonal().view(N, 1))
    assert M.dims == (-2,)


@pytest.mark.parametrize("kind", [GMRES, BiCGStab])
def test_any_solver_preconditions_and_is_transposed_for_the_transpose(kind, factorisations):
    solver = kind(preconditioner=Direct())
    inverse, b = solver.invert(Shifted(directed() * 2.0, 0.7)), randn(N, 3)
    assert bool((inverse.solve(b).iterations == 1).all())
    assert bool((inverse.T.solve(b).iterations == 1).all())
    assert int(kind().invert(Shifted(directed() * 2.0, 0.7)).solve(b).iterations.min()) > 5
    assert factorisations == ["dense"]


@pytest.mark.parametrize("kind", [CG, GMRES, BiCGStab])
def test_jacobi_pays_where_the_diagonal_varies(kind):
    edge_index, weight = normalised(60)
    d = Diagonal(-1 - torch.logspace(0, 4, 60, dtype=F64).unsqueeze(1))
    stiff = Graph(edge_index, weight, 60) + d
    b = randn(60, 3)
    solvers = kind(max_iter=10**4), kind(max_iter=10**4, preconditioner=Jacobi())
    plain, preconditioned = (s.invert(Shifted(stiff, 1.0)).solve(b) for s in solvers)
    assert int(preconditioned.iterations.max()) * 3 < int(plain.iterations.max())
    torch.testing.assert_close(preconditioned.x, plain.x, rtol=0, atol=1e-9)


def test_jacobi_computes_the_diagonal_once_per_shape():
    calls = []

    class Counted(Dense):
        def diagonal(self, u):
            calls.append(u.shape)
            return super().diagonal(u)

    GMRES(preconditioner=Jacobi()).invert(Counted(spd(9, F64))).solve(randn(2, 9))
    assert len(calls) == 1


def test_jacobi_refuses_an_unknown_diagonal_and_one_with_zeros():
    with pytest.raises(ValueError, match=r"Expected an operator that knows its diagonal for"):
        CG(preconditioner=Jacobi()).invert(wave(F64)).solve(randn(5, 6))
    shift = Dense(torch.roll(torch.eye(4, dtype=F64), 1, 0))
    with pytest.raises(ValueError, match=r"diagonal without zeros for Jacobi \(got 4 of 4 "):
        GMRES(preconditioner=Jacobi()).invert(shift).solve(randn(2, 4))


@pytest.mark.parametrize(("operator", "c", "solver"), [
    (ScaledIdentity(-1.0), 1.0, Direct()),
    (Diagonal(torch.ones(3)), 1.0, Direct()),
    (Dense(torch.eye(3)) + ScaledIdentity(-1.0), 1.0, Direct()),
    (Banded(torch.ones(2, 3), (0, 1)) * 2.0 + ScaledIdentity(-1.0), 1.0, Direct()),
    (Graph(*normalised(N), N, largest=1.0) + ScaledIdentity(-1.0), 100.0, CG()),
    (Graph(*normalised(N), N, largest=1.0), 0.5, CG()),
    (Graph(*normalised(N), N, largest=1.0), 1.5, GMRES()),
    (directed(), 0.1, GMRES()),
    (MatrixFree(lambda u: -u), 0.1, GMRES()),
], ids=str)
def test_the_default_solver_follows_what_the_operator_knows(operator, c, solver):
    assert default(operator, c) == solver


def test_the_default_solver_takes_c_as_one():
    graph = Graph(*normalised(N), N, largest=1.0)
    assert default(graph * 0.5) == CG()
    assert default(graph * 2.0) == GMRES()


def test_any_operator_can_be_inverted_and_an_inverse_is_an_operator():
    class Twice(LinearOperator):
        dims = (-1,)

        def mv(self, u):
            return 2.0 * u

    inverse = GMRES().invert(Twice())
    b = randn(2, 5)
    torch.testing.assert_close((inverse + ScaledIdentity(1.0)).mv(b), 1.5 * b)
    torch.testing.assert_close(inverse.T.mv(b), 0.5 * b)
