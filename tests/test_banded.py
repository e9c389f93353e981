"""Is a banded operator the matrix of its diagonals, and is its LU that of LAPACK?"""

import inspect
import math
import textwrap

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse
import torch
from cases import dense_matrix, numbers

from pyg_sinode import imex_odeint, solvers
from pyg_sinode.operators import Banded, LinearSolveError, MatrixFree, ScaledIdentity, Sum, banded
from pyg_sinode.operators.banded import BandedInverse
from pyg_sinode.operators.dense import DenseInverse

F32, F64 = torch.float32, torch.float64
N = 9
OFFSETS = {
    "tridiagonal": (-1, 0, 1),
    "any order": (2, -3, 0, 1),
    "main": (0,),
    "above": (1, 4),
    "below": (-2,),
    "corners": (N - 1, 0, 1 - N),
    "all": tuple(range(1 - N, N)),
}
every_band = pytest.mark.parametrize("offsets", OFFSETS.values(), ids=OFFSETS)
both_sides = pytest.mark.parametrize("turned", [False, True], ids=["J", "J^T"])
dtypes = pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])
EXACT = {"rtol": 0, "atol": 1e-14}


def by_scipy(diagonals, offsets):
    """The dense matrix; scipy.sparse.diags wants of every diagonal only what is in the matrix."""
    n = diagonals.size(1)
    inside = [d[max(0, -o):n - max(0, o)].numpy() for d, o in zip(diagonals, offsets, strict=True)]
    return torch.from_numpy(scipy.sparse.diags(inside, offsets, shape=(n, n)).toarray())


def heat(n, dtype=F64):
    """The two operators of the example in the docstring."""
    code = inspect.getdoc(Banded).split("code-block:: python\n\n")[1].split("\n\n")[0]
    names = {"torch": torch, "Banded": Banded, "n": n}
    exec(textwrap.dedent(code), names)
    pair = names["dirichlet"], names["neumann"]
    return [J.with_tensors([J.tensors[0].to(dtype)]) for J in pair]


# The matrix


@every_band
@both_sides
def test_the_matrix_is_that_of_scipy(offsets, turned):
    diagonals = numbers(len(offsets), N)
    J, exact = Banded(diagonals, offsets), by_scipy(diagonals, offsets)
    J, exact = (J.T, exact.t()) if turned else (J, exact)
    assert torch.equal(dense_matrix(J, (N,)), exact)
    entries = J.to_coo(-1, N)
    assert torch.equal(torch.zeros(N, N, dtype=F64).index_put(entries[:2], entries.value), exact)
    assert torch.equal(J.diagonal(torch.ones(N)), exact.diagonal())
    rows = exact.abs().sum(dim=1) + exact.diagonal() - exact.diagonal().abs()
    assert J.largest_eigenvalue() == pytest.approx(float(rows.max()), rel=1e-14)


@every_band
def test_diagonals_are_indexed_by_row_and_those_of_a_dia_matrix_by_column(offsets):
    diagonals = numbers(len(offsets), N)
    other = scipy.sparse.dia_matrix((diagonals.numpy(), offsets), shape=(N, N)).toarray()
    rolled = torch.stack([d.roll(-o) for d, o in zip(diagonals, offsets, strict=True)])
    assert torch.equal(dense_matrix(Banded(diagonals, offsets), (N,)), by_scipy(diagonals, offsets))
    assert torch.equal(dense_matrix(Banded(rolled, offsets), (N,)), torch.from_numpy(other))


def test_entries_outside_the_matrix_change_nothing_and_have_no_gradient():
    diagonals, u = numbers(3, N).requires_grad_(), torch.randn(2, N, dtype=F64)
    changed = diagonals.detach().clone()
    changed[0, :2], changed[2, -1] = 1e3, -1e3
    J, other = Banded(diagonals, (-2, 0, 1)), Banded(changed, (-2, 0, 1))
    for a, b in ((J, other), (J.T, other.T)):
        assert torch.equal(a.mv(u), b.mv(u))
        assert torch.equal(a.resolvent(0.5).mv(u), b.resolvent(0.5).mv(u))
        assert a.largest_eigenvalue() == b.largest_eigenvalue()
        for gradient in (*torch.autograd.grad(a.mv(u).sum(), diagonals), *a.vjp(u, u, (True,))):
            outside = torch.zeros(3, N, dtype=torch.bool)
            outside[0, :2] = outside[2, -1] = True
            assert torch.equal(gradient == 0, outside)


def test_the_transpose_holds_the_same_tensor_and_follows_it():
    diagonals, u = numbers(2, N), torch.randn(N, dtype=F64)
    J = Banded(diagonals, (-1, 2))
    T = J.T
    assert isinstance(T, Banded)
    assert T.tensors[0] is diagonals
    assert T.offsets == (1, -2)
    diagonals.mul_(2.0)
    torch.testing.assert_close(T.mv(u), dense_matrix(J, (N,)).t() @ u, **EXACT)


def test_symmetry_is_of_the_values_to_the_last_bit():
    off = numbers(N - 2)
    diagonals = torch.zeros(4, N, dtype=F64)
    diagonals[0, 2:], diagonals[1], diagonals[3, :-2] = off, numbers(N), off
    J = Banded(diagonals, (-2, 0, 1, 2))  # the diagonal of offset 1 is zero, and -1 is not there
    assert J.symmetric()
    assert J.T.symmetric()
    diagonals[0, :2] = 7.0  # outside
    assert J.symmetric()
    for at in ((0, 4), (2, 0)):
        changed = diagonals.clone()
        changed[at] = torch.nextafter(changed[at], changed[at] + 1)
        assert not J.with_tensors([changed]).symmetric()
        assert not J.with_tensors([changed]).T.symmetric()


@pytest.mark.parametrize("offsets", [
    [-1, 0], (-1, 0), np.array([-1, 0]), range(-1, 1), torch.tensor([-1, 0]),
], ids=lambda o: type(o).__name__)  # fmt: skip
def test_offsets_are_any_sequence_of_integers(offsets):
    J = Banded(numbers(2, N), offsets)
    assert J.offsets == (-1, 0)
    assert all(type(o) is int for o in J.offsets)


def test_products_record_no_loop_longer_than_the_diagonals():
    def nodes(n):
        seen, left = set(), [Banded(numbers(3, n).requires_grad_(), (-1, 0, 1)).mv(
            torch.ones(n, dtype=F64)).grad_fn]
        while left:
            node = left.pop()
            if node is not None and node not in seen:
                seen.add(node)
                left += [f for f, _ in node.next_functions]
        return len(seen)

    assert nodes(10) == nodes(1000)


# The heat equation


@pytest.mark.parametrize("n", [3, 40])
def test_the_stencils_of_the_docstring_have_the_eigenvalues_of_the_heat_equation(n):
    dirichlet, neumann = heat(n)
    k = torch.arange(n, dtype=F64)
    for J, exact in (
        (dirichlet, -((2 * (n + 1) * torch.sin((k + 1) * math.pi / 2 / (n + 1))) ** 2)),
        (neumann, -((2 * n * torch.sin(k * math.pi / 2 / n)) ** 2)),
    ):
        assert J.symmetric()
        assert J.largest_eigenvalue() <= 1e-15 * 4 * n**2
        found = torch.linalg.eigvalsh(dense_matrix(J, (n,)))
        torch.testing.assert_close(found.flip(0), exact, rtol=1e-12, atol=1e-9)
    assert not neumann.mv(torch.ones(n, dtype=F64)).any()


@dtypes
def test_a_mode_of_the_heat_equation_decays_as_the_stencil_says(dtype):
    n = 40
    i = torch.arange(n, dtype=F64)
    modes = (torch.sin(3 * math.pi * (i + 1) / (n + 1)), torch.cos(3 * math.pi * (i + 0.5) / n))
    rates = (-((2 * (n + 1) * math.sin(1.5 * math.pi / (n + 1))) ** 2),
             -((2 * n * math.sin(1.5 * math.pi / n)) ** 2))
    t = torch.tensor([0.0, 0.01, 0.02], dtype=F64)
    for J, mode, rate in zip(heat(n, dtype), modes, rates, strict=True):
        result, stats = imex_odeint(None, J, mode.to(dtype), t, step_size=1e-3, return_stats=True)
        exact = torch.exp(rate * t).unsqueeze(1) * mode
        torch.testing.assert_close(result.double(), exact, rtol=0, atol=1e-5)
        assert (stats.factorizations, stats.linear_iterations) == (1, 0)


# The inverse


@every_band
@both_sides
@dtypes
def test_the_inverse_is_that_of_scipys_banded_solver(offsets, turned, dtype):
    diagonals, u = numbers(len(offsets), N), torch.randn(3, N, dtype=F64)
    J = Banded(diagonals.to(dtype), offsets)
    matrix = torch.eye(N, dtype=F64) - 0.4 * by_scipy(diagonals, offsets)
    J, matrix = (J.T, matrix.t()) if turned else (J, matrix)
    below, above = N - 1, N - 1
    ab = np.zeros((2 * N - 1, N))
    for o in range(-below, above + 1):
        ab[above - o, max(0, o):N + min(0, o)] = matrix.diagonal(o).numpy()
    exact = scipy.linalg.solve_banded((below, above), ab, u.t().numpy()).T
    inverse = J.resolvent(0.4)
    assert isinstance(inverse, BandedInverse)
    x = inverse.mv(u.to(dtype))
    assert x.dtype == dtype
    torch.testing.assert_close(x.double(), torch.from_numpy(exact), rtol=0,
                               atol=200 * torch.finfo(dtype).eps)


@pytest.mark.parametrize(("dim", "shape"), [(-1, (N,)), (-1, (2, 0, N)), (-2, (N, 3)), (-2, (N, 0)),
                                            (-3, (2, N, 3, 2)), (-1, (2, 3, N))])  # fmt: skip
def test_solves_keep_every_shape_and_leave_the_right_hand_side_as_it_is(dim, shape):
    J, u = Banded(numbers(3, N), (-1, 0, 2), dim=dim), torch.randn(shape, dtype=F64)
    kept = u.clone()
    inverse = J.resolvent(0.5)
    for solve, operator in ((inverse, J), (inverse.T, J.T)):
        x = solve.mv(u)
        assert x.shape == shape
        torch.testing.assert_close(x - 0.5 * operator.mv(x), u, **EXACT)
    assert torch.equal(u, kept)


@pytest.fixture
def factorisations(monkeypatch):
    """The sizes of the matrices that LAPACK factorises, in order."""
    made = []
    factorise, solve = banded.lapack(F64)

    def counted(ab, below, above, overwrite_ab):
        made.append(ab.shape[1])
        return factorise(ab, below, above, overwrite_ab=overwrite_ab)

    monkeypatch.setattr(banded, "lapack", lambda dtype: (counted, solve))
    return made


def test_rows_are_exchanged_where_the_pivot_is_small(factorisations):
    # I - J has a zero diagonal: without pivoting it has no LU.
    stencil, u = torch.tensor([[1.0], [2.0], [3.0]], dtype=F64), numbers(8)
    J = Banded(stencil.repeat(1, 8), (0, 1, -1))
    x = J.resolvent(1.0).mv(u)
    torch.testing.assert_close(x - J.mv(x), u, **EXACT)
    assert factorisations == [8]


def test_the_transposed_solve_uses_the_same_factors(factorisations):
    J, u = Banded(numbers(3, N), (-1, 0, 2)), torch.randn(4, N, dtype=F64)
    inverse = J.resolvent(0.5)
    turned = inverse.T
    assert turned.lu is inverse.lu
    torch.testing.assert_close(turned.mv(u), J.T.resolvent(0.5).mv(u), **EXACT)
    assert torch.equal(turned.T.mv(u), inverse.mv(u))
    assert factorisations == [N, N]


@pytest.mark.parametrize("gradient", ["discrete", "backprop"])
def test_one_set_up_serves_all_steps_and_the_backward_pass(gradient, factorisations):
    diagonals = numbers(3, N).requires_grad_()
    u0 = torch.randn(2, N, dtype=F64, requires_grad=True)
    t = torch.linspace(0, 1, 3, dtype=F64)
    result, stats = imex_odeint(lambda t, u: -u, Banded(diagonals, (-1, 0, 2)), u0, t,
                                method="ssp222", step_size=0.1, gradient=gradient,
                                return_stats=True)
    assert (stats.steps_accepted, stats.factorizations, stats.linear_solves) == (10, 1, 20)
    result.square().sum().backward()
    assert (stats.factorizations, stats.linear_iterations) == (1, 0)
    assert factorisations == [N]
    assert diagonals.grad.any()
    assert u0.grad.any()


def test_the_gradient_of_an_integration_is_that_of_the_dense_matrix():
    diagonals, u0 = numbers(3, N).requires_grad_(), torch.randn(2, N, dtype=F64)
    J, t = Banded(diagonals, (-1, 0, 2)), torch.tensor([0.0, 1.0], dtype=F64)
    gradients = []
    for operator in (J, MatrixFree(lambda u, d: J.with_tensors([d]).mv(u), diagonals)):
        result = imex_odeint(None, operator, u0, t, step_size=0.25,
                             solver=None if operator is J else solvers.GMRES(rtol=1e-13))
        gradients += torch.autograd.grad(result.square().sum(), diagonals)
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-11)


def test_kept_factors_belong_to_the_values_of_the_diagonals(factorisations):
    J, u0 = Banded(-torch.ones(1, N, dtype=F64), (0,)), torch.ones(N, dtype=F64)

    def run():
        return imex_odeint(None, J, u0, torch.tensor([0.0, 1.0], dtype=F64), step_size=0.1)

    assert torch.equal(run(), run())
    assert factorisations == [N]
    J.tensors[0].mul_(2.0)
    torch.testing.assert_close(run()[-1], math.exp(-2.0) * u0, rtol=1e-3, atol=0)
    assert factorisations == [N, N]


def test_the_multiple_of_the_identity_in_a_sum_keeps_the_banded_lu():
    J = Banded(numbers(3, N), (-1, 0, 2))
    assert solvers.default(J + ScaledIdentity(-1.0)) == solvers.Direct()
    assert not Sum([J, J.T]).has_closed_inverse()


@both_sides
def test_the_dense_lu_stands_in_where_lapack_has_no_banded_one(turned, monkeypatch):
    J, u = Banded(numbers(4, N), (1, -3, 0, 2), dim=-2), torch.randn(N, 3, dtype=F64)
    J = J.T if turned else J
    exact = J.resolvent(0.5).mv(u)
    monkeypatch.setattr(banded, "LAPACK", {})  # as on another device
    inverse = J.resolvent(0.5)
    assert isinstance(inverse, DenseInverse)
    torch.testing.assert_close(inverse.mv(u), exact, **EXACT)


def test_the_gradient_of_the_inverse_is_the_transposed_one():
    inverse = Banded(numbers(3, N), (-1, 0, 2)).resolvent(0.5)
    u, w = torch.ones(N, dtype=F64, requires_grad=True), numbers(N)
    (found,) = torch.autograd.grad(inverse.mv(u), u, w)
    torch.testing.assert_close(found, inverse.T.mv(w), **EXACT)


def test_a_narrow_band_of_a_large_matrix_is_not_made_dense():
    n = 50_000  # 20 GB if dense
    J, u = Banded(numbers(3, n), (-1, 0, 1)), torch.ones(n, dtype=F64)
    x = J.resolvent(0.5).mv(u)
    torch.testing.assert_close(x - 0.5 * J.mv(x), u, **EXACT)


# Singular matrices


@dtypes
@pytest.mark.parametrize("n", [1, 2, 40])
def test_an_eigenvalue_of_one_over_c_is_an_error(dtype, n):
    diagonals = heat(n + 1, dtype)[1].tensors[0] / n**2
    diagonals[1] += 2.0  # on an eigenvalue of zero
    growing = Banded(diagonals, (-1, 0, 1))
    match = r"singular to rounding: its condition is .* or more\. Change the step size.*use float64"
    with pytest.raises(LinearSolveError, match=match) as error:
        growing.resolvent(0.5)
    assert error.value.residual == math.inf
    growing.resolvent(0.3)  # another step size is the remedy


@dtypes
def test_a_pivot_of_zero_is_an_infinite_condition(dtype):
    d = torch.zeros(1, 5, dtype=dtype)
    d[0, 2] = 2.0
    with pytest.raises(LinearSolveError, match="its condition is inf or more"):
        Banded(d, (0,)).resolvent(0.5)


@dtypes
def test_a_matrix_whose_pivots_are_all_one_may_be_singular_to_rounding(dtype):
    J = Banded(torch.full((1, 100), 2.0, dtype=dtype), (1,))  # its inverse has entries up to 2^99
    with pytest.raises(LinearSolveError, match=r"its condition is \d\.\de\+\d\d or more"):
        J.resolvent(1.0)


def test_diagonals_that_are_not_finite_give_an_error_and_not_a_nan():
    diagonals = torch.ones(2, 5, dtype=F64)
    diagonals[1, 2] = torch.nan
    with pytest.raises(LinearSolveError, match="singular"):
        Banded(diagonals, (0, 1)).resolvent(0.5)


@dtypes
def test_stiff_rows_are_no_singularity(dtype):
    d = -torch.logspace(0, 12, 100, dtype=dtype).unsqueeze(0)
    b = torch.randn(2, 100, dtype=dtype)
    torch.testing.assert_close(Banded(d, (0,)).resolvent(1.0).mv(b), b / (1 - d))


# Bad input


@pytest.mark.parametrize("shape", [(3,), (0, 3), (1, 3, 3)])
def test_diagonals_that_are_no_rows_are_refused(shape):
    match = r"diagonals of shape \(k, n\), one row for each offset.*\(got shape .*\); stack them"
    with pytest.raises(ValueError, match=match):
        Banded(torch.ones(shape), (0,))


def test_diagonals_of_no_real_floating_dtype_are_refused():
    with pytest.raises(TypeError, match=r"diagonals of a real floating dtype \(got torch.int64\)"):
        Banded(torch.ones(1, 3, dtype=torch.long), (0,))
    with pytest.raises(TypeError, match=r"diagonals of a real .*got torch.complex64\); convert it"):
        Banded(torch.ones(1, 3, dtype=torch.complex64), (0,))
    with pytest.raises(TypeError, match=r"diagonals as a tensor \(got list\); wrap it"):
        Banded([[1.0]], (0,))


@pytest.mark.parametrize("offsets", [0, (0.0,), ("0",), None, torch.zeros(1)], ids=repr)
def test_offsets_that_are_no_integers_are_refused(offsets):
    with pytest.raises(TypeError, match=r"offsets of Banded as a sequence of integers \(got .*\)"):
        Banded(torch.ones(1, 3), offsets)


def test_offsets_that_do_not_fit_the_diagonals_are_refused():
    with pytest.raises(ValueError, match=r"2 offsets, one for each row.*\(got 3: \(0, 1, 2\)\); "):
        Banded(torch.ones(2, 5), (0, 1, 2))
    with pytest.raises(ValueError, match=r"distinct offsets in Banded \(got \(1, 0, 1\)\); add up"):
        Banded(torch.ones(3, 5), (1, 0, 1))
    for o in (5, -5):
        match = r"smaller in magnitude than the size 5 of the matrix \(got \(0, -?5\)\); leave out"
        with pytest.raises(ValueError, match=match):
            Banded(torch.ones(2, 5), (0, o))
    Banded(torch.ones(2, 5), (4, -4))


def test_dimensions_from_the_front_and_states_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"dimensions of Banded counted from the end.*\(got 0\)"):
        Banded(torch.ones(1, 3), (0,), dim=0)
    J = Banded(torch.ones(1, 3), (0,))
    for operator in (J, J.T):
        for shape in ((2, 4), (2, 1), ()):
            for use in (operator.check, operator.mv):
                with pytest.raises(ValueError, match="size 3 along dimension -1 for Banded"):
                    use(torch.ones(shape))
            with pytest.raises(ValueError, match="size 3 along dimension -1 for the inverse of Ba"):
                operator.resolvent(0.5).mv(torch.ones(shape))


def test_entries_that_are_not_finite_are_refused_outside_the_matrix_too():
    diagonals = torch.ones(1, 3)
    diagonals[0, -1] = torch.nan
    with pytest.raises(ValueError, match=r"finite tensors in Banded \(got NaN or Inf"):
        Banded(diagonals, (1,)).check(torch.ones(3))
