"""Does a stencil on a periodic grid, or a symbol, act and invert as its matrix does?"""

import copy
import pickle

import numpy as np
import pytest
import torch
from cases import dense_matrix

from pyg_sinode import imex_odeint
from pyg_sinode.grid import PeriodicGrid
from pyg_sinode.operators import (
    Circulant,
    Diagonal,
    LinearSolveError,
    MatrixFree,
    ScaledIdentity,
    Shifted,
)
from pyg_sinode.operators.circulant import Resolvent
from pyg_sinode.solvers import CG, GMRES, Direct, default

F64 = torch.float64
SECOND = np.array([1.0, -2.0, 1.0])


def matrix_of(stencil, n):
    """The matrix written entry by entry."""
    matrix = torch.zeros(n, n, dtype=F64)
    for i in range(n):
        for at, value in enumerate(stencil):
            matrix[i, (i + at - len(stencil) // 2) % n] += value
    return matrix


def derivative(n):
    symbol = 1j * np.fft.fftfreq(n, 1 / n)
    if n % 2 == 0:
        symbol[n // 2] = 0
    return symbol


# The product


@pytest.mark.parametrize("n", [5, 6, 9, 16])
@pytest.mark.parametrize("kind", [list, np.array, lambda s: torch.tensor(s, dtype=F64)])
def test_the_entry_of_offset_o_multiplies_the_neighbour_at_i_plus_o(n, kind):
    stencil = [0.5, -1.0, 3.0, 0.25, 2.0]
    J, u = Circulant(kind(stencil)), torch.randn(3, n, dtype=F64)
    expected = matrix_of(stencil, n)
    torch.testing.assert_close(J.mv(u), u @ expected.t(), rtol=0, atol=1e-13)
    torch.testing.assert_close(J.T.mv(u), u @ expected, rtol=0, atol=1e-13)
    assert J.diagonal(u).item() == pytest.approx(3.0)


def test_a_stencil_in_two_dimensions_has_its_axes_in_the_order_of_the_state():
    stencil = torch.tensor([[0.0, 2.0, 0.0], [5.0, 1.0, 0.0], [0.0, 0.0, 3.0]], dtype=F64)
    u = torch.randn(4, 5, dtype=F64)
    expected = 2 * u.roll(1, 0) + 5 * u.roll(1, 1) + u + 3 * u.roll((-1, -1), (0, 1))
    torch.testing.assert_close(Circulant(stencil, dim=(-2, -1)).mv(u), expected)


@pytest.mark.parametrize("n", [15, 16])
def test_the_symbol_of_a_derivative_differentiates(n):
    x = 2 * torch.pi * torch.arange(n, dtype=F64) / n
    J = Circulant.from_symbol(derivative(n))
    torch.testing.assert_close(J.mv(torch.sin(3 * x)), 3 * torch.cos(3 * x), rtol=0, atol=1e-13)
    if n % 2 == 0:  # the Nyquist mode of an even grid has no derivative
        assert not J.mv(torch.cos(n // 2 * x)).abs().max() > 1e-13


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_fixed_coefficients_give_a_constant_no_derivative_at_all(dtype):
    h = 22 / 512
    J = Circulant(-SECOND / h**2) + Circulant(-np.array([1.0, -4.0, 6.0, -4.0, 1.0]) / h**4)
    assert J.terms[1].mv(torch.ones(512, dtype=dtype)).abs().max() == 0
    assert J.mv(torch.full((2, 512), 0.7, dtype=dtype)).abs().max() < 1e-9


def test_fixed_coefficients_serve_both_precisions_and_stay_as_they_were():
    stencil = np.array([1.0, -2.0, 1.0])
    J, u = Circulant(stencil), torch.randn(8, dtype=F64)
    before = J.mv(u)
    stencil[:] = 7.0
    assert torch.equal(J.mv(u), before)
    assert J.tensors == ()
    torch.testing.assert_close(J.mv(u.float()), before.float())


def test_a_symbol_that_is_trained_stays_one_of_a_real_operator():
    symbol = torch.tensor(derivative(6)).requires_grad_()
    u = torch.randn(6, dtype=F64)
    Circulant.from_symbol(symbol).mv(u).square().sum().backward()
    step = (symbol - 0.1 * symbol.grad).detach()
    Circulant.from_symbol(step)  # refuses what is not Hermitian
    half = Circulant.from_symbol(torch.tensor(derivative(6), dtype=torch.complex64))
    assert half.mv(u.float()).dtype == torch.float32


def test_pickles_and_deep_copies_hold_the_coefficients_only():
    J, u = Circulant(SECOND), torch.randn(5, dtype=F64)
    expected = J.mv(u)
    for other in (pickle.loads(pickle.dumps(J)), copy.deepcopy(J)):
        assert not other._kept
        assert torch.equal(other.mv(u), expected)


# What it knows of itself


def test_symmetry_is_read_off_the_coefficients():
    assert Circulant(SECOND).symmetric()
    assert not Circulant([0.0, -1.0, 1.0]).symmetric()
    assert not Circulant.from_symbol(derivative(5)).symmetric()
    assert Circulant.from_symbol(-(np.fft.fftfreq(8) ** 2)).symmetric()
    one = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert Circulant(one, dim=(-2, -1)).symmetric()


@pytest.mark.parametrize("J", [Circulant(SECOND), Circulant([0.2, 0.5, 0.2]),
                               Circulant.from_symbol([0.5, -1.0, -3.0, -1.0])])
def test_the_bound_of_the_eigenvalues_holds(J):
    n = 4 if J.sizes else 9
    assert torch.linalg.eigvalsh(dense_matrix(J, (n,))).max() <= J.largest_eigenvalue() + 1e-12


# The inverse


@pytest.mark.parametrize("c", [0.1, 1e4])
@pytest.mark.parametrize("transposed", [False, True])
def test_the_resolvent_inverts(c, transposed):
    stencil = [0.5, -1.5, 0.2]
    J = Circulant(stencil).T if transposed else Circulant(stencil)
    matrix = matrix_of(stencil, 7)
    matrix = matrix.t() if transposed else matrix
    u = torch.randn(7, dtype=F64)
    expected = torch.linalg.solve(torch.eye(7, dtype=F64) - c * matrix, u)
    torch.testing.assert_close(J.resolvent(c).mv(u), expected, rtol=1e-10, atol=1e-14)
    turned = torch.linalg.solve(torch.eye(7, dtype=F64) - c * matrix.t(), u)
    torch.testing.assert_close(J.resolvent(c).T.mv(u), turned, rtol=1e-10, atol=1e-14)


def test_one_resolvent_serves_grids_of_any_size_and_both_precisions():
    inverse = Circulant(SECOND).resolvent(0.7)
    for n, dtype in ((8, F64), (9, F64), (8, torch.float32)):
        u = torch.randn(2, n, dtype=dtype)
        back = Shifted(Circulant(SECOND), 0.7).mv(inverse.mv(u))
        torch.testing.assert_close(back, u)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_transposed_resolvent_shares_its_division(transposed):
    inverse = Circulant([0.0, -1.0, 1.0]).resolvent(0.5)
    inverse.T.mv(torch.randn(4)) if transposed else inverse.mv(torch.randn(4))
    assert inverse.T._kept is inverse._kept
    assert len(inverse._kept) == 1


def test_a_singular_shift_is_an_error_that_names_the_remedy():
    with pytest.raises(LinearSolveError, match=r"singular to rounding.*change the step size"):
        Circulant([0.0, 2.0, 0.0]).resolvent(0.5).mv(torch.ones(4, dtype=F64))


def test_the_solver_chosen_is_the_division_in_fourier_space():
    J = Circulant(SECOND)
    assert isinstance(default(J), Direct)
    assert isinstance(Direct().invert(Shifted(J, 0.1)).closed, Resolvent)
    assert isinstance((2.0 * J).resolvent(0.1), Resolvent)


@pytest.mark.parametrize("solver", [Direct(), Direct(dense=True), Direct(dense=False),
                                    GMRES(rtol=1e-12), CG(rtol=1e-12)])
@pytest.mark.parametrize("n", [12, 96])
def test_division_factorisations_and_iterations_agree(solver, n):
    J, u = Circulant(SECOND), torch.randn(3, n, dtype=F64)
    expected = torch.linalg.solve(torch.eye(n, dtype=F64) - 2.5 * matrix_of(SECOND, n), u.t()).t()
    inverse = solver.invert(Shifted(J, 2.5))
    torch.testing.assert_close(inverse.mv(u), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(inverse.T.mv(u), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("solver", [Direct(), Direct(dense=True), Direct(dense=False)])
def test_one_set_up_serves_all_steps_and_the_backward_pass(solver):
    J, u0 = Circulant(SECOND * 30), torch.randn(2, 80, dtype=F64, requires_grad=True)
    solution, stats = imex_odeint(lambda t, u: u.sin(), J, u0, torch.linspace(0, 1, 3),
                                  step_size=0.1, solver=solver, return_stats=True)
    solution.square().sum().backward()
    assert stats.factorizations == 1
    other = imex_odeint(lambda t, u: u.sin(), J, u0, torch.linspace(0, 1, 3), step_size=0.1)
    torch.testing.assert_close(solution, other)


# What is refused


@pytest.mark.parametrize(("make", "kind", "message"), [
    (lambda: Circulant([1.0, -1.0]), ValueError, "odd width.*pad it with a zero"),
    (lambda: Circulant(torch.ones(2, 3), dim=(-2, -1)), ValueError, "odd width"),
    (lambda: Circulant(torch.ones(3, 3)), ValueError, "one axis for each of the dimensions"),
    (lambda: Circulant([]), ValueError, "one axis for each"),
    (lambda: Circulant([1.0, float("nan"), 1.0]), ValueError, "finite numbers in the stencil"),
    (lambda: Circulant(["a", "b", "c"]), TypeError, "Expected numbers as the stencil"),
    (lambda: Circulant([1j, 0, 1j]), TypeError, "real stencil.*from_symbol"),
    (lambda: Circulant(torch.ones(3, dtype=torch.long)), TypeError, "real floating dtype"),
    (lambda: Circulant(torch.ones(3, 3), dim=(-1, -2)), ValueError, "increasing order"),
    (lambda: Circulant([1.0], dim=0), ValueError, "counted from the end"),
    (lambda: Circulant.from_symbol(1j * np.fft.fftfreq(8)), ValueError,
     "conjugate.*index \\(4,\\).*set it to zero"),
    (lambda: Circulant.from_symbol(torch.randn(6)), ValueError, "conjugate of that at k"),
    (lambda: Circulant.from_symbol(np.ones((3, 3))), ValueError, "symbol with one axis"),
    (lambda: Circulant.from_symbol(torch.ones(4, dtype=torch.int)), TypeError, "real floating"),
])
def test_bad_coefficients_are_refused(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


def test_a_grid_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="at least as many points as the stencil has, \\(5,\\)"):
        Circulant(np.ones(5)).check(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"at least as many points.*finer grid"):
        Circulant(np.ones(5), size=4)
    with pytest.raises(ValueError, match=r"with the dimensions \(-2, -1\).*got shape \(4,\)"):
        Circulant(np.ones((3, 3)), dim=(-2, -1)).check(torch.zeros(4))
    with pytest.raises(ValueError, match=r"size \(6,\) along dimensions"):
        Circulant(SECOND, size=6).check(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="a size with one axis for each"):
        Circulant(SECOND, size=(6, 6))
    with pytest.raises(ValueError, match=r"size \(6,\) along dimensions \(-1,\).*\(2, 5\)"):
        Circulant.from_symbol(np.zeros(6)).check(torch.zeros(2, 5))
    with pytest.raises(TypeError, match="dtype of the state"):
        Circulant(torch.ones(3)).check(torch.zeros(4, dtype=F64))


def test_a_dense_factorisation_of_a_grid_of_two_dimensions_is_refused():
    J = Circulant(np.ones((3, 3)), dim=(-2, -1))
    with pytest.raises(ValueError, match="Expected a closed inverse or an operator along one"):
        Direct(dense=True).invert(Shifted(J, 0.1))


def test_a_sum_of_convolutions_is_solved_as_one_and_keeps_the_mean():
    grid = PeriodicGrid((24, 20), (2.0, 1.0))
    apart = grid.derivative(2, 0) + grid.derivative(2, 1)
    whole, u = grid.laplacian(), torch.randn(3, 24, 20, dtype=F64)
    assert default(apart) == Direct()
    x = apart.resolvent(1.0).mv(u)
    torch.testing.assert_close(x, whole.resolvent(1.0).mv(u), rtol=0, atol=1e-12)
    mean = u.mean(dim=(-2, -1))
    torch.testing.assert_close(x.mean(dim=(-2, -1)), mean, rtol=0, atol=1e-15)
    single = apart.resolvent(1.0).mv(u.float())
    torch.testing.assert_close(single.double(), x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("n", [128, 255, 512])
def test_a_slow_decay_beside_a_stiff_sum_is_not_lost(n):
    grid = PeriodicGrid((n, n), 1.0)
    stiff = -1.0 * grid.derivative(4, 0) + (-1.0) * grid.derivative(4, 1)
    u = torch.ones(n, n, dtype=F64)
    u[0, 0] = 2.0
    for decay, c in ((0.02, 1.0), (0.1, 10.0), (1e-3, 100.0)):
        J = stiff - ScaledIdentity(decay)
        x = J.resolvent(c).mv(u)
        exact = float(u.mean()) / (1 + c * decay)
        assert float(x.mean()) == pytest.approx(exact, rel=1e-13)
        # Each mode by itself: the residual of all would be rounding of the largest eigenvalue.
        k = (2 * np.pi * np.fft.fftfreq(n, 1 / n)) ** 4
        symbol = torch.from_numpy(1 + c * (decay + k[:, None] + k[None, :]))
        expected = torch.fft.ifft2(torch.fft.fft2(u) / symbol).real
        torch.testing.assert_close(x, expected, rtol=1e-12, atol=0)


def test_a_sum_of_convolutions_that_is_singular_is_an_error():
    grid = PeriodicGrid((8, 8), 1.0)
    J = grid.derivative(2, 0) + grid.derivative(2, 1) + ScaledIdentity(2.0)
    with pytest.raises(LinearSolveError, match="singular to rounding"):
        J.resolvent(0.5).mv(torch.ones(8, 8, dtype=F64))


def test_a_convolution_beside_something_else_has_no_closed_inverse():
    J = Circulant([0.1, -0.2, 0.1]) + Circulant([0.1, -0.2, 0.1], dim=-2)
    assert J.has_closed_inverse()
    assert not (J + Diagonal(torch.ones(4, 3))).has_closed_inverse()
    assert not (J + MatrixFree(lambda u: -u)).has_closed_inverse()
