"""Do all linear solvers keep their laws, column by column?"""

import copy
import inspect
from typing import NamedTuple

import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch
from on_device import WaitsForDevice
from solvers_cases import (
    F32,
    F64,
    RTOL,
    N,
    as_matrix,
    both_sides,
    directed,
    dtypes,
    krylov,
    laplacian,
    normalised,
    norms,
    randn,
    spd,
    stochastic,
    wave,
)

from pyg_sinode.operators import (
    Banded,
    Dense,
    Diagonal,
    Graph,
    LinearSolveError,
    ScaledIdentity,
    Shifted,
)
from pyg_sinode.solvers import CG, GMRES, BiCGStab, Chebyshev, Direct, Inverse, Jacobi

pytestmark = pytest.mark.usefixtures("one_thread")


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
    "row-stochastic graph": Case(
        lambda t: Shifted(0.9 * stochastic(t) + ScaledIdentity(-0.9), 1.5), (2, N, 3)),
    "normalised graph of a known radius": Case(
        lambda t: Shifted(Graph(*normalised(N, t), N, radius=1.0) + ScaledIdentity(-1.0), 3.0),
        (N, 3), True),
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
    "Chebyshev": (Chebyshev(), "disc"),
    "Direct": (Direct(), "one_matrix"),
}


def _fits(needs, case):
    knows_diagonal = case.build(F64).diagonal(torch.zeros(case.shape, dtype=F64)) is not None
    has = {"definite": case.definite, "one_matrix": case.one_matrix, "diagonal": knows_diagonal,
           "disc": case.build(F64).disc() is not None}
    return all(has[need] for need in needs.split())


laws = pytest.mark.parametrize(
    ("solver", "case"),
    [pytest.param(solver, case, id=f"{name}: {system}") for name, (solver, needs) in SOLVERS.items()
     for system, case in SYSTEMS.items() if _fits(needs, case)])


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
def test_a_product_with_an_inverse_has_the_gradient_of_the_transpose(solver, case):
    operator = case.build(F64)
    b, w = randn(*case.shape).requires_grad_(), randn(*case.shape, seed=10)
    inverse = solver.invert(operator)
    for one, other in ((inverse, inverse.T), (inverse.T, inverse)):
        (found,) = torch.autograd.grad(one.mv(b), b, w)
        torch.testing.assert_close(found, other.mv(w), rtol=0, atol=1e-9 * float(found.abs().max()))
    assert not inverse.solve(b).x.requires_grad
    trained = [tensor.requires_grad_() for tensor in operator.tensors]
    if trained:  # no gradient would reach them
        for each in (inverse, inverse.T):
            with pytest.raises(ValueError, match="an operator through which gradients flow"):
                each.mv(b)
            with torch.no_grad():
                each.mv(b)


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
    graph = stochastic() if nodes else Graph(torch.zeros(2, 0, dtype=torch.long), torch.zeros(0), 0,
                                             radius=0.0)
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
    assert repr(Direct().invert(directed())) == (
        "FactoredInverse(Graph(num_nodes=12, num_edges=50))")


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


@krylov
def test_the_host_looks_once_per_iteration(solver):
    inverse = solver.invert(laplacian(5.0, 60))
    with WaitsForDevice() as syncs:
        iterations = int(inverse.solve(randn(60, 3)).iterations.max())
    cycles = -(-iterations // solver.restart) if isinstance(solver, GMRES) else 1
    assert iterations > 10
    assert iterations <= syncs.count <= iterations + 6 * cycles


def cora(root, device):
    from torch_geometric.datasets import Planetoid
    from torch_geometric.nn.conv.gcn_conv import gcn_norm

    data = Planetoid(str(root), "Cora")[0].to(device)
    edge_index, weight = gcn_norm(data.edge_index, None, data.num_nodes, dtype=F64)
    return edge_index, weight, data.num_nodes


@pytest.fixture(scope="module", params=["ring with chords", "Cora"])
def adjacency(request, device):
    if request.param == "Cora":
        return cora(request.getfixturevalue("planetoid"), device)
    return (*normalised(500), 500)


def pair(adjacency, c):
    """I - c (A_hat - I) as an operator and for SciPy."""
    edge_index, weight, n = adjacency
    operator = Shifted(Graph(edge_index, weight, n, largest=1.0) + ScaledIdentity(-1.0), c)
    row, col = edge_index.flip(0).numpy()
    matrix = scipy.sparse.csr_matrix((weight.numpy(), (row, col)), shape=(n, n))
    return operator, ((1 + c) * scipy.sparse.eye(n) - c * matrix).tocsr()


# SciPy's name of the tolerance before 1.12 was tol.
TOLERANCE = "rtol" if "rtol" in inspect.signature(scipy.sparse.linalg.cg).parameters else "tol"
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
        expected, info = reference(matrix, b[:, at].numpy(), **{TOLERANCE: 1e-10}, atol=0.0,
                                   callback=counts.append, **options)
        assert info == 0
        assert abs(int(iterations[0, at]) - len(counts)) <= slack
        scale = float(b[:, at].abs().max())
        torch.testing.assert_close(x[:, at] / scale, torch.from_numpy(expected) / scale,
                                   rtol=0, atol=1e-8)


@pytest.mark.usefixtures("on_the_cpu")
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
