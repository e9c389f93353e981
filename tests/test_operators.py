"""Do all operators keep their laws?"""

import copy
import math
import pickle

import pytest
import torch
from cases import OPERATORS, graph, numbers, symmetric_graph
from operators_cases import EXACT, F64, every_case, matrix_of, shifted_matrix
from torch.autograd import gradcheck, gradgradcheck

from pyg_sinode.operators import (
    MatrixFree,
    Shifted,
)

every_name = pytest.mark.parametrize("name", OPERATORS)
closed = {n: c for n, c in OPERATORS.items() if c.operator().has_closed_inverse()}
every_closed = pytest.mark.parametrize("case", closed.values(), ids=closed)


def of_function(name):
    return name.startswith("function")


@every_case
def test_the_product_equals_that_of_the_dense_matrix(case):
    u = case.state()
    product = case.operator().mv(u)
    assert product.shape == u.shape
    torch.testing.assert_close(product.flatten(), matrix_of(case) @ u.flatten(), **EXACT)


@every_case
def test_the_product_is_linear(case):
    J, u, w = case.operator(), case.state(), case.state()
    torch.testing.assert_close(J.mv(2 * u - 3 * w), 2 * J.mv(u) - 3 * J.mv(w), **EXACT)
    assert not J.mv(torch.zeros_like(u)).any()


@every_case
def test_the_transpose_moves_to_the_other_side_of_the_inner_product(case):
    J, u, w = case.operator(), case.state(), case.state()
    torch.testing.assert_close((w * J.mv(u)).sum(), (J.T.mv(w) * u).sum(), **EXACT)
    torch.testing.assert_close(matrix_of(case, J.T), matrix_of(case).t(), **EXACT)
    assert J.T.dims == J.dims


@every_case
def test_the_transpose_of_the_transpose_is_the_operator(case):
    J, u = case.operator(), case.state()
    assert torch.equal(J.T.T.mv(u), J.mv(u))


@every_case
def test_every_dimension_outside_dims_is_a_right_hand_side_of_its_own(case):
    J, shape = case.operator(), case.shape
    places = torch.cartesian_prod(*map(torch.arange, shape)).view(-1, len(shape))
    outside = [at for at in range(len(shape)) if at - len(shape) not in J.dims]
    other_column = (places.unsqueeze(0) != places.unsqueeze(1))[..., outside].any(dim=-1)
    assert bool(other_column.any()) == bool(outside)
    assert not matrix_of(case, J)[other_column].any()
    assert not matrix_of(case, J.T)[other_column].any()


@every_case
def test_float32_is_kept(case):
    J, u = case.operator(torch.float32), case.state(torch.float32)
    J.check(u)
    for product in (J.mv(u), J.T.mv(u), Shifted(J, 0.3).mv(u)):
        assert product.dtype == torch.float32
    if J.has_closed_inverse():
        assert J.resolvent(0.3).mv(u).dtype == torch.float32
    matrix = matrix_of(case)
    exact = matrix @ u.flatten().double()
    size = matrix.abs().sum(dim=1).max() * u.abs().max()
    slack = 4 * torch.finfo(torch.float32).eps * u.numel() * float(size)
    torch.testing.assert_close(J.mv(u).flatten().double(), exact, rtol=0, atol=slack)


@every_case
def test_products_work_under_inference_mode(case):
    J, u = case.operator(), case.state()
    with torch.inference_mode():
        v = u.clone()
        product, transposed = J.mv(v), J.T.mv(v)
    torch.testing.assert_close(product, J.mv(u), **EXACT)
    torch.testing.assert_close(transposed, J.T.mv(u), **EXACT)


@every_case
def test_products_without_gradients_build_no_graph(case):
    J, u = case.operator(), case.state()
    with torch.no_grad():
        assert not J.mv(u).requires_grad
        assert not J.T.mv(u).requires_grad


@every_case
@pytest.mark.parametrize("turned", [False, True], ids=["itself", "transposed"])
def test_gradients_of_both_orders_reach_the_state_and_every_tensor(case, turned):
    def product(u, *leaves):
        J = case.build(*leaves)
        return (J.T if turned else J).mv(u)

    inputs = (case.state().requires_grad_(), *case.leaves())
    assert gradcheck(product, inputs)
    assert gradgradcheck(product, inputs, fast_mode=True)


@every_case
@pytest.mark.parametrize("turned", [False, True], ids=["itself", "transposed"])
def test_the_gradients_of_an_inner_product_are_those_of_autograd(case, turned):
    leaves = case.leaves()
    J, u, w = case.build(*leaves), case.state(), case.state()
    J = J.T if turned else J
    tensors = J.tensors
    for wanted in {(True,) * len(tensors), (False,) * len(tensors),
                   tuple(at % 2 == 0 for at in range(len(tensors)))}:
        found = J.vjp(u, w, wanted)
        assert [g is not None for g in found] == list(wanted)
        chosen = [t for t, want in zip(tensors, wanted, strict=True) if want]
        if not chosen:
            continue
        expected = torch.autograd.grad((w * J.mv(u)).sum(), chosen)
        for got, exact in zip((g for g in found if g is not None), expected, strict=True):
            assert got.shape == exact.shape
            torch.testing.assert_close(got, exact, **EXACT)
            assert not got.requires_grad


def test_tensors_that_a_function_does_not_use_have_no_gradient():
    J, u = MatrixFree(lambda u, a: -u, torch.ones(2)), torch.ones(3, 2)
    assert J.vjp(u, u, (True,)) == [None]


@every_case
def test_an_operator_works_on_the_tensors_it_is_given(case):
    J, u = case.operator(), case.state()
    copies = [t.detach().clone() for t in J.tensors]
    same = J.with_tensors(copies)
    assert all(a is b for a, b in zip(same.tensors, copies, strict=True))
    assert not same.mv(u).requires_grad
    torch.testing.assert_close(same.mv(u), J.mv(u), **EXACT)
    torch.testing.assert_close(same.T.mv(u), J.T.mv(u), **EXACT)
    before = J.mv(u)
    doubled = J.with_tensors([t.detach() * 2 for t in J.tensors])
    assert torch.equal(doubled.mv(u), before) == (not J.tensors)
    assert torch.equal(J.mv(u), before)


@every_case
def test_the_transpose_works_on_the_tensors_it_is_given(case):
    J, u = case.operator().T, case.state()
    same = J.with_tensors([t.detach().clone() for t in J.tensors])
    torch.testing.assert_close(same.mv(u), J.mv(u), **EXACT)
    assert len(same.tensors) == len(case.operator().tensors)


@every_case
@pytest.mark.parametrize("c", [0.0, 0.1, 0.5, -0.3])
def test_the_closed_inverse_equals_the_dense_one(case, c):
    J, u = case.operator(), case.state()
    resolvent = J.resolvent(c)
    assert (resolvent is not None) == J.has_closed_inverse()
    if resolvent is not None:
        matrix, flat = shifted_matrix(case, c), u.flatten()
        for inverse, dense in ((resolvent, matrix), (resolvent.T, matrix.t())):
            exact = torch.linalg.solve(dense, flat)
            torch.testing.assert_close(inverse.mv(u).flatten(), exact, **EXACT)
        assert torch.equal(resolvent.T.T.mv(u), resolvent.mv(u))


def test_the_operators_with_a_closed_inverse_are_those_of_the_design():
    iterated = {n for n in OPERATORS if n.startswith(("graph", "function", "transposed_graph"))}
    iterated |= {"scaled_by_a_float", "transposed_scaled", "laplacian", "stencil_plus_diagonal"}
    iterated |= {"product_of_dense_and_graph", "product_on_two_dimensions",
                 "product_with_a_varying_diagonal", "product_of_numbers_and_a_graph"}
    assert set(OPERATORS) - set(closed) == iterated


@every_closed
def test_a_closed_inverse_passes_no_gradient(case):
    assert not case.operator().resolvent(0.5).mv(case.state()).requires_grad


def one_matrix_along(dense, shape, dim):
    """The matrix that acts on every column along dim if one does for all, else None."""
    at, size = dim + len(shape), shape[dim]
    rest = dense.numel() // dense.size(0) // size
    blocks = dense.view(*shape, *shape).movedim((at, at + len(shape)), (0, len(shape)))
    blocks = blocks.reshape(size, rest, size, rest)
    first = blocks[:, 0, :, 0]
    identity = torch.eye(rest, dtype=dense.dtype)
    same = torch.einsum("ij,ab->iajb", first, identity)
    return first if torch.allclose(blocks, same, rtol=0, atol=1e-14) else None


@every_name
def test_entries_are_known_exactly_where_one_matrix_serves_all_columns(name):
    case = OPERATORS[name]
    for operator in (case.operator(), case.operator().T, Shifted(case.operator(), 0.4)):
        dense = matrix_of(case, operator)
        for dim in range(-len(case.shape), 0):
            size = case.shape[dim]
            entries, exact = operator.to_coo(dim, size), one_matrix_along(dense, case.shape, dim)
            if of_function(name) or exact is None:
                assert entries is None
                continue
            assert entries is not None
            got = torch.zeros(size, size, dtype=F64)
            got = got.index_put((entries.row, entries.col), entries.value, accumulate=True)
            torch.testing.assert_close(got, exact, **EXACT)
            assert not entries.value.requires_grad


@every_name
def test_the_diagonal_is_known_except_of_functions(name):
    case = OPERATORS[name]
    u = case.state()
    for operator in (case.operator(), case.operator().T, Shifted(case.operator(), 0.4)):
        diagonal = operator.diagonal(u)
        assert (diagonal is None) == of_function(name)
        if diagonal is not None:
            got, exact = diagonal.expand(u.shape), matrix_of(case, operator).diagonal()
            torch.testing.assert_close(got.flatten(), exact, **EXACT)


@every_case
def test_pointwise_operators_multiply_by_their_numbers(case):
    J, u = case.operator(), case.state()
    d = J.as_diagonal()
    assert (d is not None) == (J.dims == ())
    if d is not None:
        torch.testing.assert_close(J.mv(u), u * d, **EXACT)


@every_name
def test_symmetry_is_said_exactly_where_it_is(name):
    J = OPERATORS[name].operator()
    matrix = matrix_of(OPERATORS[name])
    assert J.symmetric() == torch.allclose(matrix, matrix.t(), rtol=0, atol=1e-15)
    assert J.T.symmetric() == J.symmetric()
    assert Shifted(J, 0.3).symmetric() == J.symmetric()


def test_some_operators_are_symmetric_and_some_are_not():
    found = {name for name, case in OPERATORS.items() if case.operator().symmetric()}
    assert {"identity", "diagonal", "dense_symmetric", "banded_symmetric", "graph_symmetric",
            "laplacian"} <= found
    assert not {"dense", "banded", "graph", "function", "graph_plus_dense"} & found


@every_case
def test_no_eigenvalue_of_a_symmetric_operator_exceeds_the_bound(case):
    J, matrix = case.operator(), matrix_of(case)
    if J.symmetric():
        largest = float(torch.linalg.eigvalsh(matrix).max())
        for operator, factor in ((J, 1.0), (J.T, 1.0), (J + J, 2.0), (0.5 * J, 0.5)):
            assert operator.largest_eigenvalue() >= factor * largest - 1e-12
    else:
        assert not Shifted(J, 1e-9).positive_definite()


@pytest.mark.parametrize("name", ["identity", "diagonal", "dense_symmetric", "banded_symmetric",
                                  "graph_symmetric", "laplacian",
                                  "diagonal_plus_identity"])  # fmt: skip
def test_bounds_are_finite_where_gershgorin_gives_one(name):
    bound = OPERATORS[name].operator().largest_eigenvalue()
    assert math.isfinite(bound)
    assert abs(bound) < 3


@every_case
@pytest.mark.parametrize("c", [-0.5, 0.0, 0.5, 5.0])
def test_what_is_said_to_be_positive_definite_is(case, c):
    if Shifted(case.operator(), c).positive_definite():
        assert float(torch.linalg.eigvalsh(shifted_matrix(case, c)).min()) > 0


def test_positive_definiteness_is_found_where_the_step_allows_it():
    laplacian = OPERATORS["laplacian"].operator()
    assert Shifted(laplacian, 0.5).positive_definite()
    assert not Shifted(laplacian, -5.0).positive_definite()
    assert Shifted(-laplacian, -5.0).positive_definite()
    growing = symmetric_graph(torch.ones(6, dtype=F64))
    assert Shifted(growing, 0.1).positive_definite()
    assert not Shifted(growing, 1.0).positive_definite()
    assert not Shifted(graph(numbers(9)), 0.1).positive_definite()


@every_case
def test_operators_are_copied_and_pickled(case):
    J, u = case.operator(), case.state()
    J = J.with_tensors([t.detach() for t in J.tensors])
    for other in (copy.deepcopy(J), pickle.loads(pickle.dumps(J)), copy.copy(J)):
        assert torch.equal(other.mv(u), J.mv(u))
        assert torch.equal(other.T.mv(u), J.T.mv(u))
        assert other.symmetric() == J.symmetric()


REPRESENTATIONS = {
    "identity": "ScaledIdentity(())",
    "diagonal_of_rows": "Diagonal((6, 1))",
    "dense": "Dense((5, 5))",
    "banded": "Banded((3, 5))",
    "graph": "Graph(num_nodes=6, num_edges=9)",
    "function": "MatrixFree((5,), ())",
    "transposed_graph": "TransposedGraph((9,))",
    "scaled_by_a_tensor": "Scaled((), (5, 5))",
    "graph_plus_dense": "Graph(num_nodes=6, num_edges=9) + Dense((6, 6))",
}


@pytest.mark.parametrize(("name", "text"), REPRESENTATIONS.items(), ids=REPRESENTATIONS)
def test_operators_show_their_kind_and_the_shapes_of_their_tensors(name, text):
    assert repr(OPERATORS[name].operator()) == text


@every_case
def test_an_operator_is_divided_by_a_number_or_a_tensor_with_its_gradient(case):
    J, u = case.operator(), case.state()
    torch.testing.assert_close((J / 4).mv(u), J.mv(u) / 4, rtol=1e-14, atol=0.0)
    divisor = torch.tensor(3.0, dtype=F64, requires_grad=True)
    (J / divisor).mv(u).sum().backward()
    expected = -float(J.mv(u).detach().sum()) / 9
    assert float(divisor.grad) == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(("divisor", "error", "message"), [
    (0, ValueError, "a divisor of an operator other than 0"),
    (torch.tensor(0.0), ValueError, "a divisor of an operator other than 0"),
    (math.nan, ValueError, "the divisor of an operator to be finite"),
    ("2", TypeError, "the divisor of an operator as a real number"),
    (torch.ones(3), ValueError, "a number or a 0-dim tensor"),
])
def test_what_does_not_divide_an_operator_is_refused(divisor, error, message):
    with pytest.raises(error, match=message):
        OPERATORS["dense"].operator() / divisor
