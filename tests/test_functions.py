"""Are the functions f(J) of operators right: the phi functions, and every operator's?"""

import math
import pickle

import mpmath
import numpy as np
import pytest
import scipy.linalg
import torch
from cases import EDGES, NODES, OPERATORS
from operators_cases import F64, every_case, matrix_of
from torch.autograd import gradcheck, gradgradcheck

from pyg_sinode import operators
from pyg_sinode.operators.phi import PhiSums, phi_functions, phi_matrices

SUMS = [{(0, 1.0): 1.0}, {(1, 0.5): 0.5, (2, 1.0): -2.0}, {(3, 1.0): 4.0}]


def several(h):
    return PhiSums(SUMS, h, [1.0, h, h])


def exact_phi(k, z):
    """The k-th phi function by 60 digits."""
    with mpmath.workdps(60):
        z = mpmath.mpc(z)
        if abs(z) < 1e-2:
            return sum(z**m / mpmath.factorial(m + k) for m in range(30))
        value = mpmath.e**z
        for j in range(k):
            value = (value - 1 / mpmath.factorial(j)) / z
        return value


def matrix_phi(k, matrix):
    """The k-th phi function of a matrix, a block of the exponential of a larger one."""
    n = len(matrix)
    large = np.zeros((n * (k + 1),) * 2)
    large[:n, :n] = matrix
    for j in range(k):
        large[n * j:n * (j + 1), n * (j + 1):n * (j + 2)] = np.eye(n)
    return scipy.linalg.expm(large)[:n, n * k:]


def reference(matrix, h):
    """The functions of SUMS, of a dense matrix."""
    factors = [1.0, h, h]
    return [f * sum(w * matrix_phi(k, c * h * matrix) for (k, c), w in each.items())
            for each, f in zip(SUMS, factors, strict=True)]


# Numbers


POINTS = [0, 1e-12, -1e-5, 1e-3j, -0.5, 1.9j, -2, -2.0001, 2.0001j, 1.4 - 1.4j, -3 + 4j, 5, -30,
          -1e4, 1e3j]


@pytest.mark.parametrize("k", range(5))
def test_no_digits_cancel_in_the_phi_functions(k):
    found = phi_functions(torch.tensor(POINTS, dtype=torch.complex128), 5)[k]
    for z, value in zip(POINTS, found.tolist(), strict=True):
        expected = complex(exact_phi(k, z))
        # e^z of a large imaginary z has the rounding error of z, times the size of z.
        assert abs(value - expected) <= 4e-15 * max(1.0, abs(z) if k == 0 else 1.0) * abs(expected)


def test_the_derivative_of_a_phi_function_is_a_difference_of_two():
    z = torch.tensor([-20.0, -2.0, -1.0, 0.0, 1e-9, 0.3, 2.5], dtype=F64, requires_grad=True)
    found = phi_functions(z, 5)
    for k in range(4):
        (slope,) = torch.autograd.grad(found[k].sum(), z, retain_graph=True)
        torch.testing.assert_close(slope, (found[k] - k * found[k + 1]).detach(), rtol=1e-12,
                                   atol=1e-14)


def test_phi_functions_of_matrices_are_blocks_of_an_exponential():
    generator = np.random.default_rng(0)
    stiff = generator.normal(size=(6, 6)) - 30 * np.diag(np.arange(6.0))
    for matrix in (np.zeros((3, 3)), np.diag([1.0, 1.0], 1), 0.1 * stiff, stiff):
        for k, found in enumerate(phi_matrices(torch.as_tensor(matrix), 4)):
            np.testing.assert_allclose(found.numpy(), matrix_phi(k, matrix), rtol=0, atol=2e-13)


def test_the_derivative_of_functions_of_a_matrix_with_equal_eigenvalues_is_finite_and_right():
    matrix = (-3 * torch.eye(3, dtype=F64)).requires_grad_()
    assert gradcheck(lambda m: several(0.5).of_matrix(m), (matrix,), fast_mode=True)


# Operators


def knows_functions(case):
    return case.operator().functions(several(0.5), case.state()) is not None


# Functions of unknown linear maps, and products and blocks for which nothing holds as a whole.
UNKNOWN = {"function", "function_linear", "function_conv", "function_transposed",
           "product_of_dense_and_graph", "product_on_two_dimensions",
           "product_with_a_varying_diagonal", "product_of_numbers_and_a_graph",
           "diffusivity_of_each_column", "diffusivity_of_each_species", "blocks_on_rows",
           "blocks_of_two_dimensions", "block_of_the_whole_state"}
known = {name: case for name, case in OPERATORS.items() if knows_functions(case)}


def test_only_operators_without_known_eigenvalues_have_no_functions():
    unknown = set(OPERATORS) - set(known)
    assert unknown == UNKNOWN
    for name in unknown:
        with pytest.raises(ValueError, match=r"Expected an operator whose functions f\(J\) are"):
            OPERATORS[name].operator().function(torch.exp).mv(OPERATORS[name].state())


@pytest.mark.parametrize("case", known.values(), ids=known)
def test_functions_are_those_of_the_dense_matrix_and_of_its_transpose(case):
    h, u, J = 0.7, case.state(), case.operator()
    for matrix, functions in ((matrix_of(case), J.functions(several(h), u)),
                              (matrix_of(case).t(), J.functions(several(h), u).transposed()),
                              (matrix_of(case).t(), J.T.functions(several(h), u))):
        sums = [None, None, None]
        functions.add(sums, functions.enter(u), [(k, k) for k in range(3)])
        functions.add(sums, functions.enter(u), [(0, 2)])
        expected = reference(matrix.numpy(), h)
        expected[0] = expected[0] + expected[2]
        for found, dense in zip(sums, expected, strict=True):
            torch.testing.assert_close(functions.leave(found).flatten(),
                                       torch.as_tensor(dense) @ u.flatten(), rtol=0, atol=4e-14)


@pytest.mark.parametrize("case", known.values(), ids=known)
def test_gradients_of_functions_pass_gradcheck_and_those_added_up_are_the_same(case):
    u, leaves = case.state().requires_grad_(), case.leaves()

    def run(u, *leaves):
        functions = case.build(*leaves).functions(several(0.7), u)
        sums = [None, None, None]
        functions.add(sums, functions.enter(u), [(k, k) for k in range(3)])
        return torch.stack([functions.leave(each) for each in sums])

    assert gradcheck(run, (u, *leaves), fast_mode=True)
    if not leaves:
        return
    w = [torch.randn_like(u) for _ in range(3)]
    expected = torch.autograd.grad(run(u, *leaves), leaves, torch.stack(w))
    J = case.build(*leaves)
    functions = J.functions(several(0.7), u)
    grads = [None] * len(functions.leaves)
    with torch.no_grad():
        functions.add_vjp(grads, functions.enter(u.detach()), [functions.enter(x) for x in w],
                          [(k, k) for k in range(3)])
    found = torch.autograd.grad(functions.leaves, leaves, grads)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@every_case
def test_an_empty_state_has_functions(case):
    u = case.state()[:0]
    functions = case.operator().functions(several(0.5), u)
    sums = [None]
    functions.add(sums, functions.enter(u), [(0, 0)])
    assert functions.leave(sums[0]).shape == u.shape


@pytest.mark.parametrize("name", ["identity", "dense", "dense_symmetric", "graph_symmetric",
                                  "stencil", "graph"])
def test_a_function_of_an_operator_is_an_operator(name):
    case = OPERATORS[name]
    J, u = case.operator(), case.state()
    f = J.function(lambda z: 1 / (1 - 0.3 * z))
    solved = torch.linalg.solve(torch.eye(u.numel(), dtype=F64) - 0.3 * matrix_of(case),
                                u.flatten())
    torch.testing.assert_close(f.mv(u).flatten(), solved, rtol=0, atol=1e-12)
    torch.testing.assert_close((f.T.mv(u) * u).sum(), (u * f.mv(u)).sum(), rtol=1e-12, atol=1e-12)
    assert f.tensors == J.tensors
    assert (f.dims, f.symmetric()) == (J.dims, J.symmetric())
    exponential = J.function(torch.exp)
    assert torch.equal(pickle.loads(pickle.dumps(exponential)).mv(u), exponential.mv(u))
    with pytest.raises(TypeError, match="dtype of the state"):
        f.check(u.float())


def test_second_derivatives_of_functions_are_right():
    matrix = (torch.randn(3, 3, dtype=F64) / 2).requires_grad_()
    u = torch.randn(2, 3, dtype=F64, requires_grad=True)
    assert gradgradcheck(lambda m, u: operators.Dense(m).function(Exponential()).mv(u), (matrix, u))


class Exponential:
    """The exponential, of numbers and of matrices."""

    def __call__(self, z):
        return z.exp()

    def of_matrix(self, matrix):
        return torch.linalg.matrix_exp(matrix)


def test_a_function_by_eigenvectors_is_refused_where_these_are_nearly_parallel():
    J = operators.Dense(torch.tensor([[1.0, 1.0], [0.0, 1.0 + 1e-12]], dtype=F64))
    u = torch.ones(1, 2, dtype=F64)
    with pytest.raises(operators.LinearSolveError, match="cannot be computed by its eigenvectors"):
        J.function(torch.exp).mv(u)
    expected = torch.linalg.matrix_exp(J.tensors[0]) @ u[0]
    torch.testing.assert_close(J.function(Exponential()).mv(u)[0], expected)


# Polynomials


def path(count, weight=1.0):
    """The graph Laplacian of a path, as a graph and as a matrix."""
    at = torch.arange(count - 1)
    edges = torch.cat([torch.stack([at, at + 1]), torch.stack([at + 1, at])], dim=1)
    J = operators.Graph(edges, torch.full((2 * count - 2,), weight, dtype=F64), count, dim=-1)
    degree = torch.full((count,), 2 * weight, dtype=F64)
    degree[[0, -1]] = weight
    return J - operators.Diagonal(degree)


@pytest.mark.parametrize(("weight", "chebyshev"), [(0.5, False), (60.0, True)])
def test_a_symmetric_graph_takes_chebyshev_series_where_they_save_products(weight, chebyshev):
    J, u = path(20, weight), torch.randn(2, 20, dtype=F64)
    functions = J.functions(several(1.0), u)
    assert functions.chebyshev == chebyshev
    sums = [None, None, None]
    functions.add(sums, u, [(k, k) for k in range(3)])
    matrix = J.mv(torch.eye(20, dtype=F64)).numpy()
    for found, dense in zip(sums, reference(matrix, 1.0), strict=True):
        torch.testing.assert_close(found, u @ torch.as_tensor(dense).t(), rtol=0, atol=1e-13)
    assert len(functions.series) < (40 if not chebyshev else 130)


def test_float32_takes_fewer_products_and_keeps_its_precision():
    J, u = path(20), torch.randn(2, 20, dtype=F64)
    short = operators.Graph(J.terms[0].pattern.edge_index(), None, 20, dim=-1) - operators.Diagonal(
        -J.terms[1].diagonal(u).float())
    wide, narrow = J.functions(several(1.0), u), short.functions(several(1.0), u.float())
    assert len(narrow.series) < 0.7 * len(wide.series)
    found, expected = [None], [None]
    narrow.add(found, u.float(), [(0, 1)])
    wide.add(expected, u, [(0, 1)])
    torch.testing.assert_close(found[0].double(), expected[0], rtol=0, atol=3e-7)


def ring(count, weight):
    """A directed ring less the identity, times a weight: a normal matrix that is not symmetric."""
    at = torch.arange(count)
    edges = torch.stack([at, (at + 1) % count])
    return operators.Graph(edges, torch.full((count,), weight, dtype=F64), count,
                           dim=-1) - weight * operators.ScaledIdentity(1.0)


def test_the_degree_is_limited_by_what_the_message_says():
    u = torch.zeros(1, 8, dtype=F64)
    near = ring(8, 1500.0).functions(several(1.0), u)
    assert 1500 < near.products < 2048
    for J in (ring(8, 3000.0), path(8, 1e6), -1e4 * path(8)):
        with pytest.raises(ValueError, match=r"degree 2048 at most .* take smaller steps, or an"):
            J.functions(several(1.0), u)


def test_the_degree_grows_with_the_root_of_the_disc_if_j_is_symmetric():
    u = torch.zeros(1, 20, dtype=F64)
    counts = [path(20, weight).functions(several(1.0), u).products for weight in (50.0, 5000.0)]
    assert 6 < counts[1] / counts[0] < 11


def chain(count, weight, **options):
    """A nilpotent matrix: all its eigenvalues are zero, its powers are not."""
    edges = torch.stack([torch.arange(count - 1), torch.arange(1, count)])
    return operators.Graph(edges, torch.full((count - 1,), weight, dtype=F64), count, dim=-1,
                           **options)


@pytest.mark.parametrize("options", [{}, {"radius": 0.01}, {"radius": 0.5}, {"radius": 0.0}])
def test_a_radius_of_the_eigenvalues_of_a_matrix_that_is_not_normal_is_not_relied_on(options):
    J, u = chain(20, 10.0, **options), torch.ones(1, 20, dtype=F64)
    matrix = J.mv(torch.eye(20, dtype=F64)).t()
    expected = (torch.linalg.matrix_exp(matrix) @ u[0]).unsqueeze(0)
    for K, dense in ((J, expected), (J.T, torch.linalg.matrix_exp(matrix.t()) @ u[0])):
        torch.testing.assert_close(K.function(torch.exp).mv(u), dense.view(1, -1), rtol=1e-12,
                                   atol=1e-12)


def test_the_smaller_disc_of_a_symmetric_operator_is_used():
    star = torch.tensor([[0, 0, 0, 1, 2, 3], [1, 2, 3, 0, 0, 0]])
    weight = torch.full((6,), 3**-0.5, dtype=F64)  # eigenvalues from -1 to 1, row sums to 1.7
    J = operators.Graph(star, weight, 4, dim=-1, radius=1.0)
    u = torch.randn(2, 4, dtype=F64)
    functions = J.functions(several(1.0), u)
    assert functions.disc == (0.0, 1.0)
    skewed = operators.Graph(star, weight * torch.tensor([1, 1, 1, 1, 1, 0.9]), 4, dim=-1,
                             radius=1.0)
    assert skewed.functions(several(1.0), u).disc[1] > 1.5


@pytest.mark.parametrize("build", [
    lambda w: operators.Graph(EDGES, w, NODES, dim=-1),
    lambda w: operators.Graph(EDGES, w, NODES, dim=-1) - operators.ScaledIdentity(1.0),
    lambda w: operators.Graph(EDGES, None, NODES, dim=-1).with_tensors(
        [torch.ones(9, dtype=F64)]) * w[0],
    lambda w: operators.Banded(w[:NODES].unsqueeze(0), (1,))])
@pytest.mark.parametrize("size", [0.0, 1e-17, 1e-9])
def test_the_gradient_of_a_polynomial_of_a_tiny_operator_is_not_lost(build, size):
    w = torch.full((9,), size, dtype=F64, requires_grad=True)
    u = torch.randn(2, NODES, dtype=F64)
    functions = build(w).functions(several(0.5), u)
    sums = [None]
    functions.add(sums, u, [(0, 0)])  # the exponential
    (found,) = torch.autograd.grad(sums[0].square().sum(), w)
    matrix = build(w).mv(torch.eye(NODES, dtype=F64)).t()
    exact = u @ torch.linalg.matrix_exp(0.5 * matrix).t()
    (expected,) = torch.autograd.grad(exact.square().sum(), w)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


# Functions of a user


@pytest.mark.parametrize("matrix", [
    -torch.eye(3), torch.zeros(3, 3), torch.ones(3, 3), torch.diag(torch.tensor([1.0, 2.0, 5.0])),
    torch.tensor([[0.0, 2.0, 0.0], [-2.0, 0.0, 0.0], [0.0, 1.0, 1.0]]),
    torch.tensor([[1.0, 3.0], [0.0, 1.1]])], ids=str)
def test_the_gradient_of_a_function_by_eigenvectors_is_that_of_the_matrix_function(matrix):
    matrix = matrix.double().requires_grad_()
    u = torch.randn(2, len(matrix), dtype=F64)
    found = torch.autograd.grad(
        operators.Dense(matrix).function(torch.exp).mv(u).square().sum(), matrix)[0]
    expected = torch.autograd.grad(
        (u @ torch.linalg.matrix_exp(matrix).t()).square().sum(), matrix)[0]
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


CIRCULANT = operators.Circulant([1.0, -2.5, 1.0])
EVERY_KIND = [CIRCULANT, operators.Dense(torch.diag(torch.arange(-5.0, 0.0).double())), path(5),
              operators.ScaledIdentity(-1.0)]
PARAMETER = torch.tensor(0.5, dtype=F64, requires_grad=True)


@pytest.mark.parametrize("J", EVERY_KIND, ids=repr)
@pytest.mark.parametrize(("f", "message"), [
    (lambda z: z.sum().view(1, 1), "maps a tensor to one of its shape"),
    (lambda z: torch.stack([z, z]), "maps a tensor to one of its shape"),
    (lambda z: 1.0, r"maps a tensor to one of its shape, .* \(got float\)"),
    (lambda z: z * math.nan, "Expected finite values of f at the eigenvalues"),
    (lambda z: torch.exp(1j * z), "whose value at the conjugate of z is the conjugate"),
    (lambda z: PARAMETER * z, r"the function f\(J\) to use only its argument"),
])
def test_a_function_that_is_none_of_numbers_is_refused(J, f, message):
    with pytest.raises(ValueError, match=message):
        J.function(f).mv(torch.ones(2, 5, dtype=F64))


def test_something_that_is_no_function_is_refused():
    with pytest.raises(TypeError, match=r"Expected a function of a tensor of numbers \(got int"):
        CIRCULANT.function(3)


def test_a_function_of_an_operator_has_functions_itself():
    u = torch.randn(2, 5, dtype=F64)
    for J in (CIRCULANT, EVERY_KIND[1], EVERY_KIND[3]):
        twice = J.function(lambda z: 2 * z).function(torch.exp)
        torch.testing.assert_close(twice.mv(u), (2.0 * J).function(torch.exp).mv(u))
    assert repr(CIRCULANT.function(torch.exp)) == f"f({CIRCULANT!r})"


class Known(operators.LinearOperator):
    """A decay of whose eigenvalues only Gershgorin's discs are known, without a transpose."""

    dims = (-1,)

    def __init__(self, rate):
        self.tensors = (rate,)

    def mv(self, u):
        return -self.tensors[0] * u

    def gershgorin(self):
        return -self.tensors[0].detach(), 0.0


def test_an_operator_of_a_user_s_has_functions_and_so_has_its_transpose():
    J, u = Known(torch.tensor(0.7, dtype=F64)), torch.randn(2, 5, dtype=F64)
    for K in (J, J.T, J.T.T):
        torch.testing.assert_close(K.function(torch.exp).mv(u), math.exp(-0.7) * u)


# Sums and products


def test_a_diffusivity_per_species_keeps_the_fourier_transform():
    d, J = torch.tensor([[0.5], [2.0]], dtype=F64), operators.Circulant([1.0, -2.0, 1.0])
    u = torch.randn(2, 8, dtype=F64)
    whole = (operators.Diagonal(d) @ J).function(torch.exp).mv(u)
    for own, species, row in zip(d.flatten(), whole, u, strict=True):
        torch.testing.assert_close(species, (float(own) * J).function(torch.exp).mv(row))


def test_convolutions_along_different_axes_are_one_transform():
    line = [1.0, -2.0, 1.0]
    cross = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=float)
    apart = operators.Circulant(line, dim=-1) + operators.Circulant(line, dim=-2)
    u = torch.randn(2, 6, 7, dtype=F64)
    torch.testing.assert_close(
        apart.function(torch.exp).mv(u),
        operators.Circulant(cross, dim=(-2, -1)).function(torch.exp).mv(u))
    assert math.isclose(float(apart.function(torch.exp).mv(torch.ones_like(u)).mean()), 1.0)
