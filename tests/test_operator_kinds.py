"""Does arithmetic of operators, and each kind, do what it should?"""

import math

import pytest
import torch
from cases import EDGES, NODES, OPERATORS, dense_matrix, graph, numbers, upwind
from operators_cases import EXACT, F64, every_case, shifted_matrix
from torch import nn

from pyg_sinode.operators import (
    Banded,
    Dense,
    Diagonal,
    Graph,
    LinearOperator,
    LinearSolveError,
    MatrixFree,
    Scaled,
    ScaledIdentity,
    Shifted,
    Sum,
    Transposed,
)


def test_operators_are_added_subtracted_negated_and_multiplied():
    A, B = Dense(numbers(4, 4)), Dense(numbers(4, 4))
    a, b = A.tensors[0], B.tensors[0]
    s = torch.tensor(0.7, dtype=F64)
    for operator, matrix in (
        (A + B, a + b),
        (A - B, a - b),
        (-A, -a),
        (2 * A, 2 * a),
        (A * 2, 2 * a),
        (s * A, s * a),
        (A * s, s * a),
        ((A + B) * 3 - A, 2 * a + 3 * b),
    ):
        torch.testing.assert_close(dense_matrix(operator, (4,)), matrix, **EXACT)


def test_sums_of_sums_are_flat_and_act_along_the_union_of_dimensions():
    total = (ScaledIdentity(1.0) + graph(numbers(9))) + (Dense(numbers(3, 3)) + Diagonal(numbers()))
    assert len(total.terms) == 4
    assert total.dims == (-2, -1)


def test_a_sum_whose_multiple_of_the_identity_cancels_has_no_resolvent():
    total = ScaledIdentity(2.0) + Dense(numbers(4, 4))
    assert total.resolvent(0.5) is None
    assert total.resolvent(0.4) is not None


def test_a_scaled_operator_by_zero_is_zero_and_has_zero_as_its_bound():
    zero = 0.0 * MatrixFree(upwind, numbers(5), numbers())
    assert not zero.mv(torch.ones(2, 5, dtype=F64)).any()
    assert zero.largest_eigenvalue() == 0
    assert (-1.0 * MatrixFree(lambda u: u)).largest_eigenvalue() == math.inf
    matrix = numbers(3, 3)
    assert (-1.0 * Dense(matrix)).largest_eigenvalue() == Dense(-matrix).largest_eigenvalue()


class Rotation(LinearOperator):
    """Gives the product and dims only, as the least that a new kind may."""

    dims = (-1,)

    def mv(self, u):
        return torch.stack([u[..., 1], -2 * u[..., 0]], dim=-1)


def test_a_new_kind_needs_its_product_only():
    J, u = Rotation(), torch.randn(3, 2, dtype=F64)
    J.check(u)
    matrix = torch.tensor([[0.0, 1.0], [-2.0, 0.0]], dtype=F64)
    assert torch.equal(J.T.mv(u), u @ matrix)
    assert J.T.T is J
    assert not hasattr(J, "solve")  # only inverses have one
    assert not J.symmetric()
    assert J.largest_eigenvalue() == math.inf
    assert J.as_diagonal() is J.diagonal(u) is J.to_coo(-1, 2) is J.resolvent(0.1) is None
    assert not J.has_closed_inverse()
    assert J.inverse() is None
    with pytest.raises(NotImplementedError):
        LinearOperator().mv(u)


@every_case
def test_the_shifted_operator_is_the_identity_less_c_times_the_operator(case):
    J = case.operator()
    shifted, u = Shifted(J, 0.4), case.state()
    matrix = shifted_matrix(case, 0.4)
    torch.testing.assert_close(shifted.mv(u).flatten(), matrix @ u.flatten(), **EXACT)
    torch.testing.assert_close(shifted.T.mv(u).flatten(), matrix.t() @ u.flatten(), **EXACT)
    inverse = shifted.inverse()
    assert (inverse is not None) == shifted.has_closed_inverse() == J.has_closed_inverse()
    if inverse is not None:
        torch.testing.assert_close(inverse.mv(shifted.mv(u)), u, **EXACT)
    other = shifted.with_tensors([t.detach() for t in J.tensors])
    torch.testing.assert_close(other.mv(u), shifted.mv(u), **EXACT)
    shifted.check(u)


@pytest.mark.parametrize(
    "operator",
    [
        ScaledIdentity(2.0),
        ScaledIdentity(torch.tensor(2.0, dtype=F64)),
        Diagonal(torch.tensor([-1.0, 2.0], dtype=F64)),
        ScaledIdentity(1.5) + ScaledIdentity(0.5),
        Scaled(ScaledIdentity(1.0), 2.0),
    ],
    ids=["float", "tensor", "diagonal", "sum", "scaled"],
)
def test_a_division_by_zero_is_an_error_that_names_the_remedy(operator):
    with pytest.raises(LinearSolveError, match=r"singular.*Keep J negative.*change the step size"):
        operator.resolvent(0.5)


def with_eigenvalue(eigenvalue, size, seed):
    """A symmetric matrix with that eigenvalue, exact in either dtype: its axes are Hadamard's."""
    axes = torch.ones(1, 1, dtype=F64)
    while axes.size(0) < size:
        axes = torch.cat([torch.cat([axes, axes], 1), torch.cat([axes, -axes], 1)])
    generator = torch.Generator().manual_seed(seed)
    eigenvalues = torch.randint(-128, -63, (size,), generator=generator).double() / 64
    eigenvalues[int(torch.randint(size, (), generator=generator))] = eigenvalue
    return axes @ eigenvalues.diag() @ axes.t() / size


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [2, 8, 64])
@pytest.mark.parametrize("seed", range(5))
def test_a_dense_matrix_with_eigenvalue_one_over_c_is_an_error(seed, size, dtype):
    J = Dense(with_eigenvalue(2.0, size, seed).to(dtype))
    with pytest.raises(LinearSolveError, match=r"singular.*Change the step size.*eigenvalues of J"):
        J.resolvent(0.5)
    J.resolvent(0.4)  # another step size is the remedy


def test_a_dense_matrix_that_is_not_finite_is_an_error_and_not_a_nan():
    matrix = torch.eye(3, dtype=F64)
    matrix[1, 2] = torch.nan
    with pytest.raises(LinearSolveError, match="singular"):
        Dense(matrix).resolvent(0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_stiff_matrix_is_not_taken_for_a_singular_one(dtype):
    d = torch.tensor([-1e12, -1.0, -1e6, 0.0], dtype=dtype)
    coupling = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 1.0, 0, 0]])
    J = d.diag() + coupling.to(dtype)
    x = Dense(J).resolvent(1.0).mv(torch.ones(1, 4, dtype=dtype))[0]
    expected = torch.tensor([1 / (1 + 1e12), 0.5, 1 / (1 + 1e6), 1.5], dtype=F64)
    torch.testing.assert_close(x.to(F64), expected, rtol=1e-6, atol=0)


def test_a_linear_solve_error_carries_what_the_solver_reached():
    error = LinearSolveError("no", iterations=3, residual=0.5, state=torch.ones(2))
    assert (error.iterations, error.residual, error.time, error.step) == (3, 0.5, None, None)
    assert torch.equal(error.state, torch.ones(2))
    assert isinstance(error, RuntimeError)
    assert math.isnan(LinearSolveError("no").residual)


def test_a_python_number_counts_in_full_precision():
    entries = (graph(numbers(9)) + ScaledIdentity(-0.3)).to_coo(-2, NODES)
    assert entries.value[-1].item() == -0.3


def test_a_graph_without_weights_has_ones_and_adds_up_duplicates():
    matrix = dense_matrix(Graph(EDGES, num_nodes=NODES), (NODES, 1), torch.float32)
    expected = torch.zeros(NODES, NODES)
    for source, target in EDGES.t().tolist():
        expected[target, source] += 1
    assert torch.equal(matrix, expected)
    assert matrix[1, 0] == 2
    assert Graph(EDGES).pattern.num_nodes == 5  # the last node has no edge


def test_a_graph_is_symmetric_where_its_duplicates_add_up_to_the_same():
    edges = torch.tensor([[0, 0, 1], [1, 1, 0]])
    weight = torch.tensor([0.5, 0.25, 0.75], dtype=F64)
    assert Graph(edges, weight).symmetric()
    assert not Graph(edges, weight.flip(0)).symmetric()
    assert not Graph(torch.tensor([[0, 1], [1, 2]])).symmetric()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_graph_normalised_by_degrees_is_symmetric_despite_rounding(dtype):
    pairs = torch.triu_indices(30, 30, 1)[:, torch.randperm(435)[:80]]
    edges = torch.cat([pairs, pairs.flip(0)], dim=1)
    scale = torch.rand(30, dtype=dtype) + 0.1
    weight = scale[edges[1]] * 0.3 * scale[edges[0]]
    assert not torch.equal(weight[:80], weight[80:])
    assert Graph(edges, weight).symmetric()
    weight[0] *= 1 + 1e-4
    assert not Graph(edges, weight).symmetric()


def test_a_dense_matrix_is_symmetric_to_the_last_bit_or_not_at_all():
    matrix = numbers(4, 4)
    matrix = matrix + matrix.t()
    assert Dense(matrix).symmetric()
    matrix[0, 1] = torch.nextafter(matrix[0, 1], matrix[0, 1] + 1)
    assert not Dense(matrix).symmetric()


def test_a_bound_that_the_caller_knows_is_kept():
    J = Graph(EDGES, numbers(9), NODES, largest=1.0)
    assert J.largest_eigenvalue() == 1.0
    assert J.T.largest_eigenvalue() == 1.0
    assert J.with_tensors([numbers(9)]).largest_eigenvalue() == 1.0
    assert Scaled(J + ScaledIdentity(-1.0), 0.5).largest_eigenvalue() == 0.0


def test_a_function_is_checked_once():
    calls = []

    def counted(u):
        calls.append(u)
        return -u

    J, u = MatrixFree(counted), torch.ones(2, 3)
    J.check(u)
    first = len(calls)
    J.check(u)
    J.with_tensors(()).check(u)
    assert len(calls) == first > 0


def test_a_function_may_be_pointwise_or_zero():
    pointwise = MatrixFree(lambda u: -2 * u, dim=())
    pointwise.check(torch.ones(3))
    assert pointwise.dims == ()
    zero, u = MatrixFree(torch.zeros_like), torch.ones(2, 3)
    zero.check(u)
    assert torch.equal(zero.T.mv(u), torch.zeros_like(u))


def test_a_module_is_called_with_the_tensors_in_its_place():
    module = nn.Linear(4, 4, bias=False, dtype=F64)
    J, u = MatrixFree(module), torch.randn(2, 4, dtype=F64)
    assert [t is p for t, p in zip(J.tensors, module.parameters(), strict=True)] == [True]
    weight = numbers(4, 4).requires_grad_()
    other = J.with_tensors([weight])
    torch.testing.assert_close(other.mv(u), u @ weight.t())
    (gradient,) = torch.autograd.grad(other.T.mv(u).sum(), weight)
    assert gradient.any()
    assert torch.equal(J.mv(u), module(u))
    assert module.weight.grad is None


def test_an_operator_without_nodes_acts_on_a_state_without_nodes():
    none = torch.empty(2, 0, dtype=torch.long)
    J = Graph(none, num_nodes=0)
    for operator, shape in (
        (J, (0, 3)),
        (J.T, (0, 3)),
        (Graph(none, num_nodes=0, dim=-1), (3, 0)),
        (J + ScaledIdentity(-1.0), (0, 3)),
        (Diagonal(torch.zeros(0, 1)), (0, 3)),
        (Dense(torch.zeros(0, 0)), (3, 0)),
        (Dense(torch.zeros(0, 0), dim=-2), (0, 3)),
        (Banded(torch.zeros(1, 0), (0,)), (3, 0)),
        (Banded(torch.zeros(1, 0), (0,), dim=-2).T, (0, 3)),
        (Banded(torch.zeros(3, 4), (0, 1, -2)), (0, 4)),
        (MatrixFree(lambda u: -u), (0, 3)),
    ):
        u = torch.zeros(shape)
        operator.check(u)
        assert operator.mv(u).shape == shape
        assert len(operator.vjp(u, u, (True,) * len(operator.tensors))) == len(operator.tensors)
        assert operator.symmetric() or isinstance(operator, MatrixFree)
        assert operator.largest_eigenvalue() <= 0 or isinstance(operator, MatrixFree)
        if operator.has_closed_inverse():
            assert operator.resolvent(0.5).mv(u).shape == shape


U = torch.ones(6, 3, dtype=F64)
NOT_REAL = {
    "integer": torch.ones(3, 3, dtype=torch.long),
    "complex": torch.ones(3, 3, dtype=torch.complex128),
    "bool": torch.ones(3, 3, dtype=torch.bool),
}


MAKERS = {
    "identity": lambda t: ScaledIdentity(t[0, 0]),
    "diagonal": Diagonal,
    "dense": Dense,
    "banded": lambda t: Banded(t, (-1, 0, 1)),
    "graph": lambda t: Graph(EDGES[:, :3], t[0]),
    "function": lambda t: MatrixFree(torch.mul, t),
    "scaled": lambda t: ScaledIdentity(1.0) * t[0, 0],
}


@pytest.mark.parametrize("tensor", NOT_REAL.values(), ids=NOT_REAL)
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_complex_and_integer_tensors_are_refused(make, tensor):
    with pytest.raises(TypeError, match=r"real floating dtype \(got torch\.\w+\); convert it"):
        make(tensor)


@pytest.mark.parametrize("make", [Diagonal, Dense, lambda x: Banded(x, (0,)),
                                  lambda x: MatrixFree(torch.mul, x)])  # fmt: skip
def test_what_is_not_a_tensor_is_refused(make):
    with pytest.raises(TypeError, match=r"as a tensor \(got list\); wrap it with torch.as_tensor"):
        make([[1.0]])


@every_case
def test_a_state_of_another_dtype_is_refused(case):
    J = case.operator()
    if J.tensors:
        with pytest.raises(TypeError, match=r"dtype of the state, torch.float32 \(got torch.floa"):
            J.check(case.state(torch.float32))
    else:
        J.check(case.state(torch.float32))  # a Python number has no dtype


@every_case
def test_a_state_on_another_device_is_refused(case):
    J = case.operator()
    if J.tensors:
        with pytest.raises(ValueError, match=r"device of the state, meta \(got cpu\)"):
            J.check(case.state().to("meta"))
    else:
        J.check(case.state().to("meta"))


@every_case
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_tensors_that_are_not_finite_are_refused(case, value):
    J = case.operator()
    for at in range(len(J.tensors)):
        tensors = [t.detach().contiguous().clone() for t in J.tensors]
        tensors[at].view(-1)[-1] = value
        for operator in (J.with_tensors(tensors), J.with_tensors(tensors).T):
            with pytest.raises(ValueError, match=r"finite tensors in \w+ \(got NaN or Inf in one"):
                operator.check(case.state())


SIZED = [name for name in OPERATORS if name.startswith(("dense", "banded", "graph", "transposed"))]


@pytest.mark.parametrize("name", SIZED)
def test_a_state_of_another_size_is_refused(name):
    case = OPERATORS[name]
    J = case.operator()
    longer = [n + (at - len(case.shape) in J.dims) for at, n in enumerate(case.shape)]
    for operator in (J, J.T, 2 * J, J + ScaledIdentity(1.0)):
        with pytest.raises(ValueError, match=r"a state of size \d along dimension -\d for"):
            operator.check(torch.ones(longer, dtype=F64))


def test_a_state_with_too_few_dimensions_is_refused():
    with pytest.raises(ValueError, match=r"size 6 along dimension -2 for Graph \(got shape \(6,\)"):
        graph(numbers(9)).check(U[:, 0])
    with pytest.raises(ValueError, match=r"dimensions \(-2, -1\) of MatrixFree \(got shape \(6,\)"):
        MatrixFree(lambda u: -u, dim=(-2, -1)).check(U[:, 0])


@pytest.mark.parametrize("shape", [(3, 6), (6,), (2, 6, 3), (6, 2)])
def test_a_diagonal_that_does_not_broadcast_is_refused(shape):
    with pytest.raises(ValueError, match=r"broadcasts against the state of shape \(6, 3\) \(got"):
        Diagonal(torch.ones(shape, dtype=F64)).check(U)


@pytest.mark.parametrize("shape", [(2, 3), (3,), (2, 3, 3)])
def test_a_dense_matrix_that_is_not_square_is_refused(shape):
    with pytest.raises(ValueError, match=r"square matrix \(got shape"):
        Dense(torch.ones(shape))


@pytest.mark.parametrize("dim", [0, 1])
def test_dimensions_counted_from_the_front_are_refused(dim):
    for make in (
        lambda: Dense(torch.eye(3), dim=dim),
        lambda: Banded(torch.ones(1, 3), (0,), dim=dim),
        lambda: Graph(EDGES, dim=dim),
        lambda: MatrixFree(lambda u: u, dim=dim),
        lambda: MatrixFree(lambda u: u, dim=(-1, dim)),
        lambda: MatrixFree(lambda u: u, dim=(-1, -1)),
    ):
        with pytest.raises(ValueError, match="counted from the end, such as -1"):
            make()


@pytest.mark.parametrize("make", [ScaledIdentity, lambda s: ScaledIdentity(1.0) * s])
def test_numbers_are_finite_real_and_single(make):
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="to be finite"):
            make(value)
    for value in ("1", 1j, [1.0], None):
        with pytest.raises(TypeError, match="as a real number or a 0-dim tensor"):
            make(value)
    with pytest.raises(ValueError, match=r"a 0-dim tensor.*\(got shape \(2,\)\); use"):
        make(torch.ones(2))


def test_sums_take_operators_only():
    with pytest.raises(TypeError, match=r"operators in a sum \(got float\); write ScaledIdentity"):
        ScaledIdentity(1.0) + 1.0
    with pytest.raises(ValueError, match="at least one operator in a sum"):
        Sum([])


def test_graphs_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="node indices from 0 to 3 in edge_index"):
        Graph(EDGES, num_nodes=4)
    with pytest.raises(ValueError, match=r"edge_weight of shape \(9,\)"):
        Graph(EDGES, torch.ones(8))


NOT_LINEAR = {
    "square": (lambda u: u * u, "a linear function in MatrixFree"),
    "tanh": (torch.tanh, "a linear function in MatrixFree"),
    "relu": (torch.relu, "a linear function in MatrixFree"),
    "nan": (lambda u: u / 0 * 0, r"fn\(0\) = 0 in MatrixFree"),
    "constant": (lambda u: u + 1, r"fn\(0\) = 0 .*1.0e\+00.*use bias=False"),
    "bias": (nn.Linear(3, 3, dtype=F64), r"fn\(0\) = 0 .*use bias=False"),
    "shape": (lambda u: u[:, :2], r"keeps the shape \(6, 3\).*\(got \(6, 2\)\)"),
    "mixing": (lambda u: u.roll(1, 0), r"mixes the dimensions \(-1,\) only.*name all of them"),
    "reaching_forward": (lambda u: u.cumsum(0), r"mixes the dimensions \(-1,\) only"),
    "last_from_first": (lambda u: torch.cat([u[:-1], u[-1:] + 0.1 * u[:1]]),
                        r"mixes the dimensions \(-1,\) only"),
    "first_from_last": (lambda u: torch.cat([u[:1] + 0.1 * u[-1:], u[1:]]),
                        r"mixes the dimensions \(-1,\) only"),
    "weakly_from_a_small_one": (lambda u: torch.cat([u[:-2], u[-2:-1] + u[:1], -2e4 * u[-1:]]),
                                r"mixes the dimensions \(-1,\) only"),
    "reaching_back": (lambda u: u.flip(0).cumsum(0), r"mixes the dimensions \(-1,\) only"),
    "averaging": (lambda u: u - u.mean(0), r"mixes the dimensions \(-1,\) only"),
}


@pytest.mark.parametrize(("fn", "match"), NOT_LINEAR.values(), ids=NOT_LINEAR)
def test_a_function_that_is_no_linear_map_of_its_dimensions_is_refused(fn, match):
    J = MatrixFree(fn)
    for operator in (J, J.T, 2 * J, J + ScaledIdentity(1.0)):
        with pytest.raises(ValueError, match=match):
            operator.check(U)


@pytest.mark.parametrize("columns", [(0, 1), (1, 0)])
def test_one_of_two_columns_may_not_need_the_other(columns):
    def needing(u):
        needy, needed = columns
        return u.index_add(0, torch.tensor([needy]), u[[needed]])

    with pytest.raises(ValueError, match=r"mixes the dimensions \(-1,\) only"):
        MatrixFree(needing).check(U[:2])


def test_a_function_that_mixes_the_dimensions_it_names_is_accepted():
    MatrixFree(lambda u: u.roll(1, 0), dim=-2).check(U)
    MatrixFree(lambda u: u - u.mean(), dim=(-2, -1)).check(U)


def test_a_function_that_gives_no_tensor_of_the_dtype_is_refused():
    with pytest.raises(TypeError, match=r"one tensor of the dtype of the state.*\(got tuple\)"):
        MatrixFree(lambda u: (u, u)).check(U)
    with pytest.raises(TypeError, match=r"dtype of the state, torch.float64.*got torch.float32"):
        MatrixFree(lambda u: u.float()).check(U)


def test_matrix_free_needs_a_function_and_takes_no_tensors_beside_a_module():
    with pytest.raises(TypeError, match=r"a function or module \(got Tensor\)"):
        MatrixFree(torch.eye(3))
    with pytest.raises(ValueError, match=r"no tensors beside a module \(got 1\)"):
        MatrixFree(nn.Linear(3, 3, bias=False), torch.ones(3))


def test_a_transpose_by_autograd_is_of_any_operator():
    J, u = graph(numbers(9)), U
    torch.testing.assert_close(Transposed(J).mv(u), J.T.mv(u), **EXACT)
    assert Transposed(J).T is J
