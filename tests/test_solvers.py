"""Laws of all linear solvers on all operators, and what each solver promises of its own.

A new solver is one line in SOLVERS, a new kind of system one line in SYSTEMS.
"""

import copy
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch
from torch.utils._python_dispatch import TorchDispatchMode

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
from pyg_sinode.solvers import CG, GMRES, BiCGStab, Direct, Inverse, Jacobi, default

F32, F64 = torch.float32, torch.float64
RTOL = {F32: 1e-5, F64: 1e-10}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def randn(*shape, dtype=F64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=F64, generator=generator).to(dtype)


# Systems: A, the shape of a state, and what A is --------------------------------------------------

N = 12


def directed(dtype=F64, n=N):
    """A directed, weighted graph with a duplicate edge, a self-loop and an isolated last node."""
    generator = torch.Generator().manual_seed(1)
    ends = torch.randint(0, n - 1, (2, 4 * n), generator=generator)
    edge_index = torch.cat([ends, ends[:, :1], torch.tensor([[3], [3]])], dim=1)
    weight = 0.5 * randn(edge_index.size(1), seed=2, dtype=dtype)
    return Graph(edge_index, weight, n)


def normalised(n, dtype=F64, seed=3):
    """The normalised adjacency of a ring with chords, as edge_index and weight."""
    generator = torch.Generator().manual_seed(seed)
    ring = torch.stack([torch.arange(n), (torch.arange(n) + 1) % n])
    chords = torch.randint(0, n, (2, n), generator=generator)
    a = torch.zeros(n, n, dtype=F64)
    for row, col in torch.cat([ring, chords], dim=1).t().tolist():
        a[row, col] = a[col, row] = 1.0
    a += torch.eye(n, dtype=F64)
    root = a.sum(dim=1).rsqrt()
    edge_index = a.nonzero().t()
    return edge_index, (root[edge_index[0]] * root[edge_index[1]]).to(dtype)


def laplacian(c, n=N, dtype=F64):
    """I - c (A_hat - I), symmetric and positive definite for c > 0."""
    graph = Graph(*normalised(n, dtype), n, largest=1.0)
    return Shifted(graph + ScaledIdentity(-1.0), c)


def wave(dtype, skew=0.0):
    """Diffusion, and transport if skew, on a periodic grid that mixes two dimensions."""
    def rate(u):
        total = -4.0 * u
        for dim in (-1, -2):
            total = total + (1 + skew) * u.roll(1, dim) + (1 - skew) * u.roll(-1, dim)
        return total

    return Shifted(MatrixFree(rate, dim=(-2, -1)), 0.3)


def spd(n, dtype, condition=20.0, seed=4):
    q = torch.linalg.qr(randn(n, n, seed=seed)).Q
    values = torch.logspace(0, torch.log10(torch.tensor(condition)).item(), n, dtype=F64)
    matrix = q * values @ q.t()
    return (0.5 * (matrix + matrix.t())).to(dtype)


class Case(NamedTuple):
    build: object  # dtype -> LinearOperator
    shape: tuple
    definite: bool = False
    one_matrix: bool = True  # whether Direct can have its entries or a closed inverse


SYSTEMS = {
    "directed graph": Case(
        lambda t: Shifted(directed(t) * 0.4 + ScaledIdentity(-1.0), 0.9), (N, 3)),
    "reversed graph": Case(lambda t: Shifted(directed(t).T, 0.3), (2, N, 1)),
    "normalised graph": Case(lambda t: laplacian(2.0, dtype=t), (N, 3), True),
    "batches of graphs": Case(lambda t: laplacian(0.7, dtype=t), (2, 2, N, 2), True),
    "graph plus diagonal": Case(
        lambda t: Shifted(directed(t) + Diagonal(-randn(N, 3, dtype=t).abs()), 0.3), (N, 3),
        one_matrix=False),
    "dense": Case(lambda t: Shifted(Dense(randn(9, 9, dtype=t, seed=6)), 0.2), (3, 9)),
    "dense, definite": Case(lambda t: Dense(spd(9, t)), (2, 3, 9), True),
    "dense along -2": Case(lambda t: Dense(spd(6, t) + 1.5, dim=-2), (2, 6, 3)),
    "banded": Case(
        lambda t: Shifted(Banded(randn(3, 9, dtype=t, seed=15), (1, 0, -2)), 0.2), (3, 9)),
    "pointwise": Case(
        lambda t: Diagonal(randn(4, 5, dtype=t, seed=7).abs() + 0.5), (3, 4, 5), True),
    "two dimensions": Case(lambda t: wave(t), (2, 5, 6), True, one_matrix=False),
    "two dimensions, transport": Case(lambda t: wave(t, 0.7), (5, 6), one_matrix=False),
}
SOLVERS = {
    "CG": (CG(), "definite"),
    "CG with Jacobi": (CG(preconditioner=Jacobi()), "definite diagonal"),
    "GMRES": (GMRES(), ""),
    "GMRES restarted": (GMRES(restart=6), ""),
    "GMRES with Jacobi": (GMRES(preconditioner=Jacobi()), "diagonal"),
    "BiCGStab": (BiCGStab(), ""),
    "BiCGStab with Jacobi": (BiCGStab(preconditioner=Jacobi()), "diagonal"),
    "Direct": (Direct(), "one_matrix"),
}
KRYLOV = [CG(), GMRES(), GMRES(restart=4), BiCGStab()]


def _fits(needs, case):
    knows_diagonal = case.build(F64).diagonal(torch.zeros(case.shape, dtype=F64)) is not None
    has = {"definite": case.definite, "one_matrix": case.one_matrix, "diagonal": knows_diagonal}
    return all(has[need] for need in needs.split())


laws = pytest.mark.parametrize(
    ("solver", "case"),
    [pytest.param(solver, case, id=f"{name}: {system}") for name, (solver, needs) in SOLVERS.items()
     for system, case in SYSTEMS.items() if _fits(needs, case)])
dtypes = pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])
both_sides = pytest.mark.parametrize("transposed", [False, True], ids=["A", "A^T"])
krylov = pytest.mark.parametrize("solver", KRYLOV, ids=repr)


def as_matrix(operator, shape):
    """The whole map as one matrix in float64, with no notion of dims."""
    size = torch.Size(shape).numel()
    basis = torch.eye(size, dtype=F64).view(size, *shape)
    return torch.stack([operator.mv(e).reshape(-1) for e in basis], dim=1)


def norms(a, dims):
    a = a.double()
    return torch.linalg.vector_norm(a, dim=dims, keepdim=True) if dims else a.abs()


# Laws of all solvers ------------------------------------------------------------------------------

@laws
@dtypes
@both_sides
def test_each_column_meets_its_tolerance(solver, case, dtype, transposed):
    operator, b = case.build(dtype), randn(*case.shape, dtype=dtype)
    inverse = solver.invert(operator)
    matrix = as_matrix(case.build(F64), case.shape)
    if transposed:
        inverse, matrix = inverse.T, matrix.t()
    x, iterations, residual = inverse.solve(b)
    assert isinstance(inverse, Inverse)
    assert inverse.dims == operator.dims
    assert x.dtype == dtype
    assert x.shape == b.shape
    expected = torch.linalg.solve(matrix, b.double().flatten()).view(b.shape)
    torch.testing.assert_close(x.double(), expected, rtol=0, atol=300 * RTOL[dtype])
    left = norms(b.double() - (matrix @ x.double().flatten()).view(b.shape), operator.dims)
    assert bool((left <= 1.2 * RTOL[dtype] * norms(b, operator.dims)).all())
    if isinstance(solver, Direct):
        assert iterations is None
        assert residual is None
    else:
        assert inverse.iterative
        assert iterations.dtype == torch.int64
        assert iterations.shape == residual.shape == left.shape
        assert bool((iterations >= 1).all())
        torch.testing.assert_close(residual.double(), left, rtol=0.01,
                                   atol=30 * torch.finfo(dtype).eps)


@laws
def test_the_transposed_inverse_is_the_adjoint_and_its_transpose_the_inverse(solver, case):
    inverse = solver.invert(case.build(F64))
    a, b = randn(*case.shape, seed=8), randn(*case.shape, seed=9)
    torch.testing.assert_close((inverse.mv(a) * b).sum(), (a * inverse.T.mv(b)).sum(),
                               rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(inverse.T.T.mv(a), inverse.mv(a), rtol=0, atol=1e-8)


@laws
def test_no_gradient_flows_through_an_inverse(solver, case):
    operator = case.build(F64)
    b = randn(*case.shape).requires_grad_()
    for tensor in operator.tensors:
        tensor.requires_grad_()
    inverse = solver.invert(operator)
    assert not inverse.mv(b).requires_grad
    assert not inverse.T.mv(b).requires_grad


@laws
def test_the_arguments_of_a_solve_stay_as_they_are(solver, case):
    b, guess = randn(*case.shape), randn(*case.shape, seed=10)
    kept = b.clone(), guess.clone()
    solver.invert(case.build(F64)).solve(b, guess)
    assert torch.equal(b, kept[0])
    assert torch.equal(guess, kept[1])


@laws
def test_strides_of_the_right_hand_side_do_not_matter(solver, case):
    inverse = solver.invert(case.build(F64))
    b = randn(*case.shape)
    strided = b.repeat_interleave(2, dim=-1)[..., ::2]
    turned = b.movedim(0, -1).contiguous().movedim(-1, 0)
    repeated = b[:1].expand_as(b) if b.dim() > len(inverse.dims) else b
    for same in (strided, turned, repeated):
        x = inverse.mv(same.clone(memory_format=torch.contiguous_format))
        torch.testing.assert_close(inverse.mv(same), x, rtol=0, atol=1e-8)
    assert not turned.is_contiguous()
    assert not strided.is_contiguous() or b.numel() == 0


@pytest.mark.parametrize("solver", [s for s, _ in SOLVERS.values()], ids=SOLVERS)
@pytest.mark.parametrize(("nodes", "shape"), [(N, (N, 0)), (N, (0, N, 3)), (0, (0, 3))])
def test_empty_states_have_empty_solutions(solver, nodes, shape):
    graph = directed() if nodes else Graph(torch.zeros(2, 0, dtype=torch.long), torch.zeros(0), 0)
    for inverse in (solver.invert(Shifted(graph, 0.1)), solver.invert(Shifted(graph, 0.1)).T):
        solution = inverse.solve(torch.zeros(shape, dtype=F64))
        assert solution.x.shape == shape
        if not isinstance(solver, Direct):
            columns = (*shape[:-2], 1, shape[-1])
            assert solution.iterations.shape == solution.residual.shape == columns


@pytest.mark.parametrize("solver", [s for s, _ in SOLVERS.values()], ids=SOLVERS)
def test_solvers_are_values(solver):
    same = copy.deepcopy(solver)
    assert same == solver
    assert hash(same) == hash(solver)
    assert eval(repr(solver)) == solver
    with pytest.raises(AttributeError):
        solver.rtol = 1.0


def test_the_repr_of_a_solver_shows_what_was_given():
    assert repr(CG()) == "CG()"
    assert repr(GMRES(rtol=1e-3, restart=7, preconditioner=Jacobi())) == (
        "GMRES(rtol=0.001, restart=7, preconditioner=Jacobi())")
    assert repr(BiCGStab(max_iter=4).invert(Dense(torch.eye(2)))) == (
        "BiCGStab(max_iter=4).invert(Dense((2, 2)))")
    assert repr(Direct().invert(directed())) == "FactoredInverse(Graph((50,)))"


# Columns ------------------------------------------------------------------------------------------

@krylov
@dtypes
@both_sides
def test_badly_scaled_columns_are_solved_like_the_others(solver, dtype, transposed):
    operator = laplacian(2.0, dtype=dtype)
    scale = torch.logspace(-8, 8, 17, dtype=dtype)
    b = randn(N, 1, dtype=dtype) * scale
    inverse = solver.invert(operator).T if transposed else solver.invert(operator)
    x, iterations, residual = inverse.solve(b)
    assert bool((residual <= RTOL[dtype] * norms(b, -2)).all())
    left = norms(b.double() - as_matrix(laplacian(2.0), (N, 1)) @ x.double(), -2)
    assert bool((left <= 1.2 * RTOL[dtype] * norms(b, -2)).all())
    assert int(iterations.max() - iterations.min()) <= 1


@krylov
@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e30])
def test_norms_neither_underflow_nor_overflow_in_float32(solver, size):
    # |b|^2 is zero or infinite in float32; gradients of a mean are that small.
    b = randn(N, 2, dtype=F32) * size
    x = solver.invert(laplacian(2.0, dtype=F32)).mv(b)
    expected = torch.linalg.solve(as_matrix(laplacian(2.0), (N, 1)), b.double())
    torch.testing.assert_close(x.double() / size, expected / size, rtol=0, atol=1e-4)
    assert bool((x != 0).all())


@krylov
def test_a_zero_column_has_the_zero_solution_whatever_the_guess(solver):
    b = randn(N, 3)
    b[:, 1] = 0.0
    inverse = solver.invert(laplacian(2.0))
    x, iterations, residual = inverse.solve(b, randn(N, 3, seed=11))
    assert bool((x[:, 1] == 0).all())
    assert iterations[0, 1] == 0
    assert residual[0, 1] == 0
    assert bool((iterations[0, [0, 2]] > 0).all())
    x, iterations, _ = inverse.solve(torch.zeros(N, 3, dtype=F64))
    assert bool((x == 0).all())
    assert bool((iterations == 0).all())


def test_a_guess_in_the_null_space_does_not_count_as_the_solution_of_zero():
    operator = Dense(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
    assert bool((CG().invert(operator).solve(torch.zeros(2), torch.ones(2)).x == 0).all())


@krylov
@dtypes
def test_an_exact_guess_takes_no_iteration(solver, dtype):
    inverse = solver.invert(laplacian(2.0, dtype=dtype))
    b = randn(N, 3, dtype=dtype)
    exact = Direct().invert(laplacian(2.0, dtype=dtype)).mv(b)
    x, iterations, residual = inverse.solve(b, exact)
    assert bool((iterations == 0).all())
    assert bool((residual <= RTOL[dtype] * norms(b, -2)).all())
    torch.testing.assert_close(x, exact, rtol=0, atol=0)


@krylov
def test_a_warm_start_takes_fewer_iterations(solver):
    inverse = solver.invert(laplacian(5.0, 60))
    b = randn(60, 3)
    x, cold, _ = inverse.solve(b)
    near = x + 1e-6 * randn(60, 3, seed=12)
    warm = inverse.solve(b, near).iterations
    assert bool((warm < cold).all())
    assert bool((warm > 0).all())


@krylov
@pytest.mark.parametrize("bad", [1e6, float("nan"), float("inf")])
def test_a_guess_worse_than_zero_is_not_used(solver, bad):
    inverse = solver.invert(laplacian(2.0))
    b = randn(N, 2)
    guess = torch.zeros_like(b)
    guess[0, 0] = bad
    x, iterations, _ = inverse.solve(b, guess)
    cold = inverse.solve(b)
    assert torch.equal(x, cold.x)
    assert torch.equal(iterations, cold.iterations)


@krylov
def test_finished_columns_no_longer_change(solver):
    operator = laplacian(5.0, 60)
    values, vectors = torch.linalg.eigh(as_matrix(operator, (60, 1)))
    # One, two and all eigenvectors: the columns finish one after the other.
    b = torch.stack([vectors[:, 5], vectors[:, 5] + vectors[:, 40], randn(60)], dim=1)
    x, iterations, _ = solver.invert(operator).solve(b)
    first, second, third = iterations.view(-1).tolist()
    assert first == 1
    assert first < second < third
    cut = type(solver)(max_iter=second + 1)  # stops while the third is under way
    with pytest.raises(LinearSolveError) as error:
        cut.invert(operator).solve(b)
    torch.testing.assert_close(error.value.state[:, :2], x[:, :2], rtol=1e-14, atol=1e-14)
    assert bool((error.value.state[:, 2] - x[:, 2]).abs().max() > 1e-9)
    torch.testing.assert_close(x[:, 0], b[:, 0] / values[5], rtol=0, atol=1e-12)


@krylov
@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_atol_is_a_bound_in_the_unit_of_the_right_hand_side(solver, scale):
    b = randn(60, 2) * torch.tensor([scale, 1e-7 * scale])
    tight = type(solver)(rtol=0.0, atol=1e-6 * scale)
    x, iterations, residual = tight.invert(laplacian(5.0, 60)).solve(b)
    assert 1e-9 * scale < float(residual[0, 0]) <= 1e-6 * scale
    assert iterations[0, 1] == 0  # zero is within the tolerance there
    assert bool((x[:, 1] == 0).all())
    # The larger of the two bounds holds.
    loose = type(solver)(rtol=1e-2, atol=1e-6 * scale).invert(laplacian(5.0, 60)).solve(b)
    assert int(loose.iterations[0, 0]) < int(iterations[0, 0])
    assert float(loose.residual[0, 0]) <= 1e-2 * float(b[:, 0].norm())


class _Syncs(TorchDispatchMode):
    """Counts what makes the host wait for a device: reading a number from a tensor."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@krylov
def test_the_host_looks_once_per_iteration(solver):
    inverse = solver.invert(laplacian(5.0, 60))
    with _Syncs() as syncs:
        iterations = int(inverse.solve(randn(60, 3)).iterations.max())
    cycles = -(-iterations // solver.restart) if isinstance(solver, GMRES) else 1
    assert iterations > 10
    assert iterations <= syncs.count <= iterations + 6 * cycles


# Against SciPy ------------------------------------------------------------------------------------

def cora(folder):
    place = os.environ.get("PYG_SINODE_DATA")
    if place is None or not (Path(place) / "planetoid/Cora/raw").is_dir():
        pytest.skip("Cora is not compared: set PYG_SINODE_DATA to a folder with planetoid/Cora/raw")
    from torch_geometric.datasets import Planetoid
    from torch_geometric.nn.conv.gcn_conv import gcn_norm

    root = folder / "planetoid"
    shutil.copytree(Path(place) / "planetoid/Cora/raw", root / "Cora/raw",
                    copy_function=shutil.copyfile)
    data = Planetoid(str(root), "Cora")[0]
    edge_index, weight = gcn_norm(data.edge_index, None, data.num_nodes, dtype=F64)
    return edge_index, weight, data.num_nodes


@pytest.fixture(scope="module", params=["ring with chords", "Cora"])
def adjacency(request, tmp_path_factory):
    if request.param == "Cora":
        return cora(tmp_path_factory.mktemp("cora"))
    return (*normalised(500), 500)


def pair(adjacency, c):
    """I - c (A_hat - I) as an operator and for SciPy."""
    edge_index, weight, n = adjacency
    operator = Shifted(Graph(edge_index, weight, n, largest=1.0) + ScaledIdentity(-1.0), c)
    row, col = edge_index.flip(0).numpy()
    matrix = scipy.sparse.csr_matrix((weight.numpy(), (row, col)), shape=(n, n))
    return operator, ((1 + c) * scipy.sparse.eye(n) - c * matrix).tocsr()


SCIPY = {
    "CG": (CG(), scipy.sparse.linalg.cg, {}, 2),
    "GMRES": (GMRES(), scipy.sparse.linalg.gmres, {"restart": 30, "callback_type": "pr_norm"}, 2),
    "BiCGStab": (BiCGStab(), scipy.sparse.linalg.bicgstab, {}, 4),
}


@pytest.mark.parametrize("name", SCIPY)
@pytest.mark.parametrize("c", [0.4, 5.0])
def test_iterations_and_solutions_agree_with_scipy_on_every_column(adjacency, name, c):
    solver, reference, options, slack = SCIPY[name]
    operator, matrix = pair(adjacency, c)
    b = randn(operator.operator.terms[0].pattern.num_nodes, 4)
    b[:, 1] *= 1e6
    b[:, 2] = torch.from_numpy(matrix.toarray()[:, 7])
    x, iterations, _ = solver.invert(operator).solve(b)
    for at in range(4):
        counts = []
        expected, info = reference(matrix, b[:, at].numpy(), rtol=1e-10, atol=0.0,
                                   callback=counts.append, **options)
        assert info == 0
        assert abs(int(iterations[0, at]) - len(counts)) <= slack
        scale = float(b[:, at].abs().max())
        torch.testing.assert_close(x[:, at] / scale, torch.from_numpy(expected) / scale,
                                   rtol=0, atol=1e-8)


@both_sides
@dtypes
def test_the_sparse_lu_agrees_with_spsolve(adjacency, dtype, transposed):
    edge_index, weight, n = adjacency
    weight = weight * (1 + 0.3 * randn(weight.numel(), seed=5).tanh())  # no longer symmetric
    operator, matrix = pair((edge_index, weight, n), 0.4)
    operator = Shifted(Graph(edge_index, weight.to(dtype), n) + ScaledIdentity(-1.0), 0.4)
    b = randn(n, 3, dtype=dtype)
    inverse = Direct().invert(operator)
    x = (inverse.T if transposed else inverse).mv(b)
    expected = scipy.sparse.linalg.spsolve(
        (matrix.T if transposed else matrix).tocsc(), b.double().numpy())
    assert x.dtype == dtype
    torch.testing.assert_close(x.double(), torch.from_numpy(expected), rtol=0,
                               atol=1e-11 if dtype == F64 else 1e-5)


# Failures -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", [CG, GMRES, BiCGStab])
@pytest.mark.parametrize(("wrong", "message"), [
    ({"rtol": -1e-3}, r"Expected rtol from 0 up \(got -0.001\)"),
    ({"rtol": float("nan")}, "Expected rtol from 0 up"),
    ({"atol": -1.0}, r"Expected atol from 0 up \(got -1.0\)"),
    ({"atol": float("inf")}, "Expected atol from 0 up"),
    ({"rtol": 0.0}, r"Expected rtol or atol above 0 \(got 0 for both\)"),
    ({"max_iter": 0}, r"Expected max_iter from 1 up \(got 0\)"),
])
def test_arguments_out_of_range_are_refused(kind, wrong, message):
    with pytest.raises(ValueError, match=message):
        kind(**wrong)


def test_a_restart_below_one_and_a_preconditioner_that_is_no_solver_are_refused():
    with pytest.raises(ValueError, match=r"Expected restart from 1 up \(got 0\)"):
        GMRES(restart=0)
    with pytest.raises(TypeError, match=r"Expected a solver such as Jacobi\(\) as the p"):
        CG(preconditioner="jacobi")


@krylov
@pytest.mark.parametrize(("b", "guess", "kind", "message"), [
    (torch.ones(N, 2, dtype=torch.long), None, TypeError, "Expected a right-hand side of a real"),
    (torch.ones(N), None, ValueError, r"with the dimensions \(-2,\) \(got shape \(12,\)\)"),
    (torch.ones(N, 2), torch.ones(N), ValueError, r"Expected a guess of the shape .*\(12, 2\) "),
])
def test_right_hand_sides_that_do_not_fit_are_refused(solver, b, guess, kind, message):
    with pytest.raises(kind, match=message):
        solver.invert(laplacian(1.0, dtype=F32)).solve(b, guess)


@krylov
@dtypes
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_right_hand_side_that_is_not_finite_is_an_error(solver, dtype, bad):
    b = randn(N, 3, dtype=dtype)
    b[4, 1] = bad
    with pytest.raises(LinearSolveError, match=r"Expected a finite right-hand side \(got NaN o"):
        solver.invert(laplacian(1.0, dtype=dtype)).solve(b)


@krylov
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("good", [0, 1, 3, 8])
def test_an_operator_that_gives_nan_or_inf_is_an_error(solver, bad, good):
    calls = []

    def rate(u):
        calls.append(1)
        return 3.0 * u - u.roll(1, -1) - u.roll(-1, -1) + (bad if len(calls) > good else 0.0)

    with pytest.raises(LinearSolveError, match=r"Expected finite products in .* \(got NaN or Inf"):
        solver.invert(MatrixFree(rate)).solve(randn(2, 40))
    assert len(calls) > good


@krylov
def test_running_out_of_iterations_is_an_error_that_carries_the_best_state(solver):
    short = type(solver)(max_iter=5)
    b = randn(60, 3)
    operator = laplacian(50.0, 60)
    with pytest.raises(LinearSolveError, match=(
            r"\(max_iter=5\) did not converge in 5 iterations \(expected a residual of at most "
            r"\d\.\de-\d\d, got .*use a preconditioner .* a larger max_iter or another sol")) as e:
        short.invert(operator).solve(b)
    assert e.value.iterations == 5
    left = norms(b - operator.mv(e.value.state), -2)
    assert e.value.residual == pytest.approx(float(left.max()), rel=1e-9)
    assert e.value.residual < float(norms(b, -2).max())


def test_max_iter_is_ten_times_the_unknowns_by_default():
    # The residual of a rotation by almost 180 degrees hardly shrinks under GMRES(1).
    angle = torch.tensor(1.4)
    rotation = torch.stack([torch.stack([angle.cos(), -angle.sin()]),
                            torch.stack([angle.sin(), angle.cos()])])
    with pytest.raises(LinearSolveError, match="did not converge in 20 iterations"):
        GMRES(restart=1).invert(Dense(rotation)).solve(torch.ones(3, 2))


@pytest.mark.parametrize(("kind", "condition"), [
    (CG, 1e3), (CG, 1e4), (BiCGStab, 1e3), (GMRES, 1e3), (GMRES, 1e4)])
def test_the_floor_of_float32_is_named_and_float64_goes_below_it(kind, condition):
    solver = kind(rtol=1e-8, max_iter=5000)
    b = torch.ones(1, 40)
    with pytest.raises(LinearSolveError, match=(
            r"reached the floor of rounding in torch.float32 \(expected a residual of at most "
            r"6\.3e-08, got \d.*\); use a larger rtol or atol, or float64")) as error:
        solver.invert(Dense(spd(40, F32, condition))).solve(b)
    # Rounding leaves at most about n eps |A| |x|, and |A| |x| is at most the condition times |b|.
    floor = 40 * torch.finfo(F32).eps * condition * 40**0.5
    assert 6.3e-8 < error.value.residual < floor
    left = norms(b.double() - error.value.state.double() @ spd(40, F32, condition).double(), -1)
    assert float(left) < 2 * floor
    fine = solver.invert(Dense(spd(40, F64, condition))).solve(b.double())
    assert float(fine.residual) <= 6.4e-8


def test_the_floor_in_float64_does_not_advise_float64():
    with pytest.raises(LinearSolveError, match=r"floor of rounding in torch.float64 .* or atol\.$"):
        CG(rtol=1e-17, max_iter=10**4).invert(Dense(spd(40, F64, 1e4))).solve(randn(1, 40))


class _Falsified(LinearOperator):
    """A diagonal operator whose product is off by a factor, except in the calls named."""

    dims = (-1,)

    def __init__(self, exact):
        self.exact, self.calls = exact, 0

    def mv(self, u):
        self.calls += 1
        right = u * torch.tensor([1.0, 2.0, 3.0], dtype=u.dtype)
        return right if self.calls in self.exact else right * 1.01


@pytest.mark.parametrize(("solver", "per_cycle"), [(CG(), 3), (GMRES(), 3), (BiCGStab(), 6)],
                         ids=repr)
def test_a_true_residual_above_the_recurrence_is_met_by_one_restart(solver, per_cycle):
    # The first cycle solves 1.01 A x = b; its true residual of 1 % is found by an exact product.
    operator = _Falsified(range(per_cycle + 1, 100))
    x, iterations, residual = solver.invert(operator).solve(torch.ones(1, 3, dtype=F64))
    torch.testing.assert_close(x, 1 / torch.tensor([[1.0, 2.0, 3.0]], dtype=F64))
    assert iterations == 6
    assert float(residual) <= 1.8e-10


@pytest.mark.parametrize(("solver", "per_cycle"), [(CG(), 3), (GMRES(), 3)], ids=repr)
def test_a_second_false_claim_is_the_floor(solver, per_cycle):
    operator = _Falsified((per_cycle + 1, 2 * per_cycle + 2))
    with pytest.raises(LinearSolveError, match=r"floor of rounding in torch\.float64") as error:
        solver.invert(operator).solve(torch.ones(1, 3, dtype=F64))
    assert operator.calls == 8
    assert error.value.iterations == 6
    assert error.value.residual == pytest.approx(1e-4 * 3**0.5, rel=0.05)  # 1 % of 1 %


# CG -----------------------------------------------------------------------------------------------

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


# GMRES and BiCGStab -------------------------------------------------------------------------------

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


# Direct -------------------------------------------------------------------------------------------

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


# Jacobi and the default ---------------------------------------------------------------------------

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
