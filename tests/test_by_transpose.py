"""Is a product with an inverse differentiated, and a product that autograd does not see refused?"""

import pytest
import torch
from operators_cases import F64
from torch.autograd import gradcheck, gradgradcheck

from pyg_sinode import imex_odeint, operators, solvers

MATRIX = torch.tensor([[2.0, 1.0, 0.0], [1.0, 3.0, -0.5], [0.2, 0.0, 2.0]], dtype=F64)
A = operators.Dense(MATRIX)
BAND = operators.Banded(torch.tensor([[0.0, 0.3, -0.2], [1.0, 1.5, 2.0], [0.5, 0.1, 0.0]],
                                     dtype=F64), (-1, 0, 1))
INVERSES = {
    "cg": lambda: solvers.CG(rtol=1e-13).invert(operators.Dense(MATRIX + MATRIX.T)),
    "gmres": lambda: solvers.GMRES(rtol=1e-13).invert(A),
    "bicgstab": lambda: solvers.BiCGStab(rtol=1e-13).invert(A),
    "dense_lu": lambda: solvers.Direct(dense=True).invert(A),
    "sparse_lu": lambda: solvers.Direct(dense=False).invert(A),
    "closed": lambda: solvers.Direct().invert(operators.Shifted(A, -0.4)),
    "jacobi": lambda: solvers.Jacobi().invert(A),
    "banded": lambda: BAND.resolvent(-0.4),
    "dense": lambda: A.resolvent(-0.4),
    "diagonal": lambda: operators.Diagonal(MATRIX.diagonal()).resolvent(-0.5),
}
every_inverse = pytest.mark.parametrize("make", INVERSES.values(), ids=INVERSES)


AROUND = torch.tensor([[0.0, -0.2], [0.1, 0.0]], dtype=F64)


def matrix_of(operator):
    return operator.mv(torch.eye(3, dtype=F64)).T


@every_inverse
def test_a_product_with_an_inverse_has_a_gradient(make):
    inverse = make()
    u = torch.rand(2, 3, dtype=F64, requires_grad=True)
    assert gradcheck(inverse.mv, u)
    assert gradgradcheck(inverse.mv, u)
    w = torch.tensor([[1.0, -2.0, 0.5]], dtype=F64)
    expected = w @ matrix_of(inverse)
    for turned in (inverse.T, operators.Transposed(inverse)):
        torch.testing.assert_close(turned.mv(w), expected, rtol=1e-9, atol=1e-12)


@every_inverse
@pytest.mark.parametrize("gradient", ["discrete", "backprop"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_the_gradient_of_an_integration_with_an_inverse_in_j(make, gradient, wrapped):
    inverse = make()
    J = operators.MatrixFree(lambda u: -inverse.mv(u)) if wrapped else -1.0 * inverse
    t = torch.tensor([0.0, 0.5, 1.0], dtype=F64)

    def gradient_of(operator, mode):
        u0 = torch.tensor([1.0, -0.5, 2.0], dtype=F64, requires_grad=True)
        u = imex_odeint(lambda t, u: torch.sin(u), operator, u0, t, step_size=0.25, gradient=mode,
                        solver=solvers.GMRES(rtol=1e-13))
        return torch.autograd.grad(u.square().sum(), u0)[0]

    expected = gradient_of(operators.Dense(-matrix_of(inverse)), "backprop")
    torch.testing.assert_close(gradient_of(J, gradient), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("fn", [
    lambda u: -u.detach(), lambda u: -u + (u @ AROUND).detach(),
    lambda u: -torch.from_numpy(u.detach().numpy()),
    torch.no_grad()(lambda u: -u)], ids=["detach", "a_part", "numpy", "no_grad"])
@pytest.mark.parametrize("gradient", ["discrete", "backprop"])
def test_a_function_that_autograd_does_not_see_is_refused_for_a_gradient(fn, gradient):
    u0, t = torch.ones(2, dtype=F64, requires_grad=True), torch.tensor([0.0, 1.0], dtype=F64)
    J = operators.MatrixFree(fn)
    with torch.no_grad():
        end = imex_odeint(None, J, u0, t, step_size=0.1)[-1]  # needs no transpose
    assert 0.2 < float(end[0]) < 0.5
    with pytest.raises(ValueError, match=r"Expected products of .* that autograd can differ"):
        imex_odeint(None, J, u0, t, step_size=0.1, gradient=gradient)[-1].sum().backward()


def test_a_function_that_does_not_use_its_argument_is_zero():
    J = operators.MatrixFree(torch.zeros_like)
    assert not bool(J.T.mv(torch.ones(3)).any())


def test_a_shifted_operator_as_j_has_the_inverse_of_what_it_shifts():
    grid = torch.tensor([[0.0, 0.5, 0.0], [1.0, -2.0, 0.3], [0.0, 0.2, 0.0]], dtype=F64)
    for inner, shape in ((operators.Diagonal(torch.tensor([1.0, -3.0], dtype=F64)), (5, 2)),
                         (operators.Circulant(grid, dim=(-2, -1)), (4, 5)), (BAND, (2, 3)),
                         (operators.ScaledIdentity(-2.0), (3,))):
        J, u = operators.Shifted(inner, 0.5), torch.rand(*shape, dtype=F64)
        for c in (0.1, -0.7, 3.0):
            b = u - c * J.mv(u)
            found = solvers.default(J, c).invert(operators.Shifted(J, c)).mv(b)
            torch.testing.assert_close(found, u, rtol=1e-10, atol=1e-12)
            turned = solvers.default(J, c).invert(operators.Shifted(J, c)).T
            w = torch.rand(*shape, dtype=F64)
            assert float((turned.mv(w) * b).sum()) == pytest.approx(float((w * u).sum()), rel=1e-9)


# Arguments


@pytest.mark.parametrize("make", [
    lambda dim: operators.Dense(torch.eye(2), dim=dim),
    lambda dim: operators.Banded(torch.ones(1, 2), (0,), dim=dim),
    lambda dim: operators.Graph(torch.tensor([[0], [1]]), None, 2, dim=dim),
    lambda dim: operators.Dissipative(2, dim=dim),
    lambda dim: operators.DissipativeGraph(torch.tensor([[0], [1]]), torch.ones(1), 2, dim=dim)],
    ids=["Dense", "Banded", "Graph", "Dissipative", "DissipativeGraph"])
@pytest.mark.parametrize("dim", [(-2, -1), -1.0, None, "a", True])
def test_an_operator_along_one_dimension_takes_one_number(make, dim):
    with pytest.raises(TypeError, match=r"Expected the dimension of .* as an int"):
        make(dim)


@pytest.mark.parametrize("dim", [-1.0, None, "ab", (-1.0,)])
def test_dimensions_are_numbers(dim):
    with pytest.raises(TypeError, match="Expected the dimensions of MatrixFree as an int or sev"):
        operators.MatrixFree(lambda u: u, dim=dim)


def test_python_adds_operators_up():
    u = torch.ones(2, 3, dtype=F64)
    torch.testing.assert_close(sum([A, BAND]).mv(u), A.mv(u) + BAND.mv(u))
    assert sum([A]) is A
    for number in (2.0, True, "a"):
        with pytest.raises(TypeError, match="Expected linear operators in a sum"):
            number + A
