"""Are products of operators closed where they can be, with one inverse for each number?"""

import pytest
import torch
from cases import OPERATORS, dense_matrix

from pyg_sinode import imex_odeint, solvers
from pyg_sinode.grid import BoxGrid, PeriodicGrid
from pyg_sinode.operators import (
    Banded,
    BlockDiagonal,
    Circulant,
    Dense,
    Diagonal,
    Graph,
    LinearOperator,
    Product,
    ScaledIdentity,
    Shifted,
)
from pyg_sinode.solvers import GMRES, Direct, default

F64 = torch.float64
GRID = PeriodicGrid((6, 8), (3.0, 5.0))


def exact(J, c, b):
    matrix = dense_matrix(J, b.shape)
    return torch.linalg.solve(torch.eye(len(matrix), dtype=F64) - c * matrix,
                              b.reshape(-1)).view(b.shape)


CONVOLUTIONS = {
    "first derivatives": lambda: GRID.derivative(1, 0) @ GRID.derivative(1, 1),
    "a biharmonic term": lambda: -0.1 * (GRID.laplacian() @ GRID.laplacian()),
    "with numbers": lambda: ScaledIdentity(-0.3) @ GRID.laplacian() @ GRID.laplacian(),
    "in a sum": lambda: GRID.laplacian() - GRID.laplacian() @ GRID.laplacian() * 0.02 + (
        GRID.derivative(1, 0)) + ScaledIdentity(-0.4),
    "transposed": lambda: (GRID.derivative(1, 0) @ GRID.laplacian()).T,
}


@pytest.mark.parametrize("make", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
@pytest.mark.parametrize("transposed", [False, True])
def test_products_of_convolutions_stay_closed(make, transposed):
    J, b = make(), torch.randn(2, 6, 8, dtype=F64)
    J = J.T if transposed else J
    assert J.has_closed_inverse()
    assert default(J) == Direct()
    x = Direct().invert(Shifted(J, 0.3)).mv(b)
    torch.testing.assert_close(x, exact(J, 0.3, b), rtol=0, atol=1e-11)


DIFFUSIONS = {
    "circulant": (lambda: Circulant([1.0, -2.0, 1.0]), (2, 9)),
    "two dimensions": (lambda: GRID.laplacian(), (2, 6, 8)),
    "dense": (lambda: Dense(torch.randn(7, 7, dtype=F64)), (2, 7)),
    "banded": (lambda: Banded(torch.randn(3, 7, dtype=F64), (1, 0, -1)), (3, 2, 7)),
}


@pytest.mark.parametrize(("make", "shape"), DIFFUSIONS.values(), ids=DIFFUSIONS)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_diffusivity_of_each_species_keeps_the_closed_inverse(make, shape, transposed, side):
    inner = make()
    d = torch.tensor([0.1, 2.5], dtype=F64).view(2, *[1] * len(inner.dims))
    J = Diagonal(d) @ inner if side == "left" else inner @ Diagonal(d)
    J = (J + ScaledIdentity(-0.2)).T if transposed else J + ScaledIdentity(-0.2)
    assert default(J) == Direct()
    b = torch.randn(shape, dtype=F64)
    x = Direct().invert(Shifted(J, 0.2)).mv(b)
    torch.testing.assert_close(x, exact(J, 0.2, b), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", OPERATORS)
def test_a_python_number_beside_a_closed_inverse_is_in_double_precision(name):
    case = OPERATORS[name]
    J, b = ScaledIdentity(0.1) @ case.operator(), case.state()
    if not J.has_closed_inverse():
        assert default(J) != Direct()
        return
    with torch.no_grad():
        x = Direct().invert(Shifted(J, 0.5)).mv(b)
        torch.testing.assert_close(x, exact(J, 0.5, b), rtol=0, atol=1e-13)


FIXED = {"circulant": (lambda: Circulant([1.0, -2.0, 1.0], dim=-2), (6, 3)),
         "box": (lambda: BoxGrid(6, 1.0, "neumann").laplacian(), (3, 6)),
         "rows of a graph": (lambda: Graph(torch.tensor([[0, 1], [1, 0]]), torch.ones(2),
                                           num_nodes=6, dim=-2), (6, 3))}


@pytest.mark.parametrize(("make", "shape"), FIXED.values(), ids=FIXED)
def test_diagonals_and_blocks_of_products_have_the_dtype_of_the_state(make, shape):
    u = torch.randn(shape)
    fixed = Circulant([1.0, -2.0, 1.0], dim=make().dims[0])
    for J in (make() @ make(), make() @ fixed, make() @ make() + ScaledIdentity(-1.0)):
        assert J.diagonal(u).dtype == torch.float32
        assert J.blocks(u, (-1,)).dtype == torch.float32
        matrix = dense_matrix(J, u.shape, torch.float32)
        torch.testing.assert_close(J.diagonal(u).expand(shape).flatten(), matrix.diagonal())


def test_a_reaction_beside_a_biharmonic_term_in_single_precision():
    L, u0 = Circulant([1.0, -2.0, 1.0], dim=-2), torch.randn(8, 3)
    J = BlockDiagonal(-torch.rand(3, 3)) - L @ L
    u = imex_odeint(None, J, u0, torch.tensor([0.0, 1.0]), method="ark436l2sa", step_size=0.1)
    exact = torch.linalg.matrix_exp(dense_matrix(J, u0.shape, torch.float32)) @ u0.flatten()
    torch.testing.assert_close(u[-1].flatten(), exact, rtol=0, atol=2e-3)


def test_equal_numbers_share_an_inverse():
    made = []

    class Counted(Dense):
        def resolvent(self, c):
            made.append(c)
            return super().resolvent(c)

    d = torch.tensor([0.5, 2.0, 0.5, 0.5], dtype=F64).view(4, 1)
    J, b = Diagonal(d) @ Counted(torch.randn(5, 5, dtype=F64)), torch.randn(4, 5, dtype=F64)
    x = Direct().invert(Shifted(J, 0.1)).mv(b)
    assert made == [0.05, 0.2]
    torch.testing.assert_close(x, exact(J, 0.1, b), rtol=0, atol=1e-13)


@pytest.mark.parametrize("d", [torch.rand(5), torch.rand(4, 5), torch.rand(2, 4, 1)],
                         ids=["along J", "along both", "of two dimensions"])
def test_numbers_that_one_inverse_each_does_not_serve_are_iterated(d):
    J = Diagonal(d.double()) @ Dense(-torch.eye(5, dtype=F64) + 0.1)
    assert not J.has_closed_inverse()
    assert default(J) == GMRES()
    assert J.resolvent(0.1) is None
    b = torch.randn(2, 4, 5, dtype=F64)
    torch.testing.assert_close(GMRES(rtol=1e-13).invert(Shifted(J, 0.3)).mv(b), exact(J, 0.3, b),
                               rtol=0, atol=1e-11)


L = Circulant([1.0, -2.0, 1.0])
THREE = torch.tensor([[1.0], [2.0], [3.0]], dtype=F64)
NESTED = {
    "in a sum": (lambda: Diagonal(THREE) @ (Diagonal(THREE.flip(0)) @ L + ScaledIdentity(-1.0)),
                 (3, 8)),
    "scaled": (lambda: Diagonal(THREE) @ (2.0 * (Diagonal(THREE.flip(0)) @ L)), (3, 8)),
    "blocks": (lambda: Diagonal(torch.rand(5, 1, dtype=F64)) @ BlockDiagonal(
        -torch.rand(5, 3, 3, dtype=F64)), (5, 3)),
}


@pytest.mark.parametrize(("make", "shape"), NESTED.values(), ids=NESTED)
def test_an_inverse_that_differs_from_column_to_column_is_not_cut_into_slices(make, shape):
    torch.manual_seed(0)
    J, b = make(), torch.randn(shape, dtype=F64)
    assert not J.has_closed_inverse()
    x = GMRES(rtol=1e-13).invert(Shifted(J, 0.05)).mv(b)
    torch.testing.assert_close(x, exact(J, 0.05, b), rtol=0, atol=1e-11)


def test_a_state_of_another_length_is_refused_and_an_empty_one_is_not():
    inverse = Direct().invert(Shifted(Diagonal(THREE) @ L, 0.1))
    for shape in ((5, 8), (2, 8), (8,)):
        with pytest.raises(ValueError, match="length 3 along dimension -2"):
            inverse.mv(torch.ones(shape, dtype=F64))
    empty = Diagonal(torch.ones(0, 1, dtype=F64)) @ L
    assert Direct().invert(Shifted(empty, 0.1)).mv(torch.ones(0, 8, dtype=F64)).shape == (0, 8)


def test_numbers_that_are_not_finite_are_refused():
    J = Diagonal(torch.tensor([[1.0], [torch.nan]])) @ L
    with pytest.raises(ValueError, match="finite numbers in the diagonals of a product"):
        Direct().invert(Shifted(J, 0.1))


def test_two_species_are_integrated_and_their_diffusivities_trained():
    losses = []
    for solver in (None, solvers.GMRES(rtol=1e-14)):
        torch.manual_seed(0)
        d = torch.tensor([[0.1], [2.0]], dtype=F64, requires_grad=True)
        u0 = torch.randn(3, 2, 16, dtype=F64, requires_grad=True)
        J = Diagonal(d) @ Circulant([1.0, -2.0, 1.0])
        u = imex_odeint(lambda t, u: u - u**3, J, u0, torch.tensor([0.0, 0.4]), solver=solver,
                        step_size=0.1, method="ark324l2sa")
        u[-1].square().sum().backward()
        losses.append((u.detach(), d.grad, u0.grad))
    for one, other in zip(*losses, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


def test_products_are_taken_apart_and_written_as_they_are_made():
    J = Diagonal(torch.ones(3)) @ (ScaledIdentity(2.0) @ Dense(torch.eye(3)))
    assert [type(f) for f in J.factors] == [Diagonal, ScaledIdentity, Dense]
    assert repr(J).count(" @ ") == 2
    assert (ScaledIdentity(2.0) @ ScaledIdentity(-3.0)).as_diagonal() == -6.0


def test_what_is_no_operator_is_refused():
    with pytest.raises(ValueError, match="at least one operator in a product"):
        Product([])
    with pytest.raises(TypeError, match=r"linear operators in a product .*J\.mv\(u\) is"):
        ScaledIdentity(1.0) @ torch.ones(3)
    assert isinstance(Product([ScaledIdentity(1.0)]), LinearOperator)
