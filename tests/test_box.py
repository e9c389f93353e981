"""Are sine and cosine transforms, and the Laplacian of a box, right?"""

import itertools
import math
import pickle

import numpy as np
import pytest
import scipy.fft
import torch
from cases import dense_matrix
from grid_cases import F64, KINDS, close, slope
from torch.autograd import gradcheck

from pyg_sinode import imex_odeint
from pyg_sinode.grid import BoxGrid
from pyg_sinode.operators import LinearSolveError, ScaledIdentity, SineCosine, trigonometric
from pyg_sinode.solvers import Direct, default

BOUNDARIES = ("dirichlet", "neumann")
BOXES = [BoxGrid(6, 2.0), BoxGrid((5, 4), (1.0, 3.0), ("neumann", "dirichlet")),
         BoxGrid((3, 4, 2), 2.0, ("dirichlet", "neumann", "neumann"))]


def test_points_lie_inside_the_ends_and_in_the_middle_of_cells():
    close(BoxGrid(3, 2.0).points, torch.tensor([0.5, 1.0, 1.5], dtype=F64))
    close(BoxGrid(4, 2.0, "neumann").points, torch.tensor([0.25, 0.75, 1.25, 1.75], dtype=F64))
    grid = BOXES[1]
    assert (grid.shape, grid.length, grid.dims, grid.num_nodes) == ((5, 4), (1.0, 3.0), (-2, -1),
                                                                    20)
    assert grid.spacing == pytest.approx((0.2, 0.6))
    close(grid.points[0, 0], torch.tensor([0.1, 0.6], dtype=F64))


def test_equal_boxes_are_equal_and_differ_from_those_of_other_ends():
    assert BoxGrid(4, 1.0) == BoxGrid([4], [1.0], ["dirichlet"])
    assert len({BoxGrid(4, 1.0), BoxGrid(4, 1.0, "neumann"), BoxGrid(4, 1.0)}) == 2


# Sizes on both sides of the change from a matrix product to a Fourier transform.
SIZES = [1, 2, 5, trigonometric.LONGEST_PRODUCT, trigonometric.LONGEST_PRODUCT + 1, 150]


@pytest.mark.parametrize("kind", trigonometric.KINDS)
@pytest.mark.parametrize("n", SIZES)
def test_transforms_are_orthonormal_and_those_of_scipy(n, kind):
    u = torch.randn(2, n, 3, dtype=F64)
    c = trigonometric.forward(u, -2, kind)
    transform, number = {"sine": (scipy.fft.dst, 1), "cosine": (scipy.fft.dct, 2)}[kind]
    expected = transform(u.numpy(), number, axis=1, norm="ortho")
    close(c, torch.tensor(expected), 1e-13)
    close(trigonometric.backward(c, -2, kind), u, 1e-13)
    close(c.square().sum(), u.square().sum(), 1e-10)
    single = trigonometric.forward(u.float(), -2, kind)
    assert single.dtype == torch.float32
    close(single.double(), c, 2e-5)


@pytest.mark.parametrize("kind", trigonometric.KINDS)
def test_products_and_inverses_of_long_axes_are_those_of_the_matrix(kind):
    n = trigonometric.LONGEST_PRODUCT + 2
    J = SineCosine(-torch.rand(n, dtype=F64), kind)
    matrix, u = dense_matrix(J, (n,)), torch.randn(2, n, dtype=F64)
    e = J.to_coo(-1, n)
    close(e.value.view(n, n), matrix, 1e-13)
    close(J.diagonal(u), matrix.diagonal(), 1e-13)
    exact = torch.linalg.solve(torch.eye(n, dtype=F64) - 0.7 * matrix, u.T).T
    close(J.resolvent(0.7).mv(u), exact, 1e-13)


@pytest.mark.parametrize("kind", trigonometric.KINDS)
def test_long_transforms_have_correct_gradients(kind):
    n = trigonometric.LONGEST_PRODUCT + 1
    symbol = torch.rand(n, dtype=F64, requires_grad=True)
    u = torch.randn(1, n, dtype=F64, requires_grad=True)
    assert gradcheck(lambda symbol, u: SineCosine(symbol, kind).mv(u), (symbol, u),
                     fast_mode=True)


def waves(grid, numbers):
    """The eigenfunction with that many half waves along each axis, and its eigenvalue."""
    points = grid.points.unsqueeze(-1) if len(grid.shape) == 1 else grid.points
    u, eigenvalue = torch.ones(grid.shape, dtype=F64), 0.0
    for axis, m in enumerate(numbers):
        k = math.pi * m / grid.length[axis]
        function = torch.sin if grid.boundary[axis] == "dirichlet" else torch.cos
        u, eigenvalue = u * function(k * points[..., axis]), eigenvalue - k**2
    return u, eigenvalue


@pytest.mark.parametrize("grid", BOXES)
def test_the_spectral_laplacian_is_exact_for_all_waves_of_the_grid(grid):
    J = grid.laplacian()
    ranges = [range(1, n + 1) if name == "dirichlet" else range(n)
              for n, name in zip(grid.shape, grid.boundary, strict=True)]
    for numbers in itertools.product(*ranges):
        u, eigenvalue = waves(grid, numbers)
        close(J.mv(u), eigenvalue * u, 1e-11)


def stencil(n, h, boundary):
    """(1, -2, 1) / h^2 with ends, written out."""
    matrix = -2 * np.eye(n) + np.eye(n, k=1) + np.eye(n, k=-1)
    if boundary == "neumann":
        matrix[0, 0] += 1
        matrix[-1, -1] += 1
    return torch.tensor(matrix) / h**2


@pytest.mark.parametrize("grid", BOXES)
def test_the_laplacian_by_differences_is_the_stencil_with_its_ends(grid):
    expected = torch.zeros(grid.num_nodes, grid.num_nodes, dtype=F64)
    for axis, (n, h, name) in enumerate(zip(grid.shape, grid.spacing, grid.boundary, strict=True)):
        factors = [torch.eye(m, dtype=F64) for m in grid.shape]
        factors[axis] = stencil(n, h, name)
        whole = factors[0]
        for factor in factors[1:]:
            whole = torch.kron(whole, factor)
        expected += whole
    J = grid.laplacian(discretization="finite_difference")
    close(dense_matrix(J, grid.shape), expected, 1e-12)
    close(J.diagonal(torch.zeros(grid.shape, dtype=F64)).expand(grid.shape).reshape(-1),
          expected.diagonal(), 1e-12)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_differences_converge_with_second_order(boundary):
    sizes, errors = (32, 64, 128), []
    for n in sizes:
        grid = BoxGrid(n, 1.0, boundary)
        u, eigenvalue = waves(grid, (2,))
        u, exact = (u**3, 3 * u**2 * eigenvalue * u + 6 * u * (-eigenvalue) * (1 - u**2))
        got = grid.laplacian(discretization="finite_difference").mv(u)
        errors.append((got - exact).abs().max().item())
    assert slope(errors, sizes) == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grid", BOXES)
def test_the_laplacian_has_a_closed_inverse_a_disc_and_a_largest_eigenvalue(grid, kind):
    J = grid.laplacian(discretization=kind)
    eigenvalues = torch.linalg.eigvalsh(dense_matrix(J, grid.shape))
    assert default(J) == default(2.0 * J - ScaledIdentity(0.3)) == Direct()
    assert J.symmetric()
    assert J.largest_eigenvalue() == pytest.approx(float(eigenvalues[-1]), abs=1e-10)
    center, radius = J.disc()
    assert center - radius == pytest.approx(float(eigenvalues[0]))
    assert center + radius == pytest.approx(float(eigenvalues[-1]), abs=1e-10)
    u = torch.randn(2, *grid.shape, dtype=F64)
    for operator in (J, 2.0 * J - ScaledIdentity(0.3)):
        x = operator.resolvent(0.1).mv(u)
        close(x - 0.1 * operator.mv(x), u, 1e-13)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_diffusion_decays_at_the_rate_of_each_wave(axes, boundary):
    """In steps much larger than an explicit scheme bears, and to the order of the scheme."""
    grid = BoxGrid((9, 8, 7)[:axes], (1.0, 1.2, 0.8)[:axes], boundary)
    J, t, end = 0.1 * grid.laplacian(), torch.tensor([0.0, 1.0], dtype=F64), 0.0
    u, exact = 0.0, 0.0
    for amplitude, m in ((1.0, 1), (0.5, 2)):
        wave, eigenvalue = waves(grid, (m,) * axes)
        u, exact = u + amplitude * wave, exact + amplitude * math.exp(0.1 * eigenvalue) * wave
    for step in (0.1, 0.02):
        end = imex_odeint(None, J, u, t, method="ark436l2sa", step_size=step)[-1]
        close(end, exact, 50 * step**4)
    assert (exact - u).abs().max() > 0.3


def test_insulated_ends_keep_what_diffuses_and_fixed_ones_let_it_out():
    t = torch.linspace(0, 0.5, 6, dtype=F64)
    for kind in KINDS:
        sums = []
        for boundary in BOUNDARIES:
            grid = BoxGrid((8, 6), 1.0, boundary)
            u = torch.rand(2, 8, 6, dtype=F64)
            J = 0.1 * grid.laplacian(discretization=kind)
            sums.append(imex_odeint(None, J, u, t, step_size=0.02).sum((-2, -1)))
        lost, kept = sums
        close(kept, kept[0].expand_as(kept), 1e-12)
        assert bool((lost.diff(dim=0) < -0.1).all())


def test_the_waves_of_a_heated_rod_reach_its_stationary_profile():
    """u_t = u_xx + 1 with u = 0 at the ends: u = x (1 - x) / 2; differences are exact for it."""
    grid = BoxGrid(20, 1.0)
    J = grid.laplacian(discretization="finite_difference")
    u = imex_odeint(lambda t, u: torch.ones_like(u), J, torch.zeros(20, dtype=F64),
                    torch.tensor([0.0, 4.0], dtype=F64), step_size=0.1)[-1]
    close(u, grid.points * (1 - grid.points) / 2, 1e-12)


def test_functions_of_the_laplacian_multiply_by_the_function_of_the_eigenvalue():
    grid = BOXES[1]
    u, s = waves(grid, (2, 3))
    J = grid.function_of_laplacian(lambda s: 0.3 - (1 + s) ** 2)
    close(J.mv(u), (0.3 - (1 + s) ** 2) * u, 1e-9)
    assert J.has_closed_inverse()


def test_a_function_of_the_laplacian_passes_gradients_to_its_parameters():
    grid = BoxGrid(7, 1.0, "neumann")
    diffusivity = torch.tensor(0.1, dtype=F64, requires_grad=True)
    J = grid.function_of_laplacian(lambda s: diffusivity * torch.tensor(s))
    u, s = waves(grid, (2,))
    end = imex_odeint(None, J, u, torch.tensor([0.0, 0.4], dtype=F64), method="ark436l2sa",
                      step_size=0.02)[-1]
    end.square().sum().backward()
    exact = (u.square().sum() * math.exp(2 * 0.1 * s * 0.4) * 2 * s * 0.4).item()
    assert diffusivity.grad.item() == pytest.approx(exact, rel=1e-4)


def test_constant_eigenvalues_serve_every_dtype_and_copies():
    J = BOXES[1].laplacian()
    u = torch.randn(2, 5, 4, dtype=F64)
    with torch.inference_mode():
        J.mv(u.float())
    single = J.mv(u.float().requires_grad_())
    assert single.dtype == torch.float32
    close(single.detach().double(), J.mv(u), 1e-3)
    assert torch.equal(pickle.loads(pickle.dumps(J)).mv(u), J.mv(u))
    assert pickle.loads(pickle.dumps(BOXES[1])) == BOXES[1]


def test_a_shift_onto_an_eigenvalue_is_an_error():
    J = BoxGrid(4, math.pi).laplacian()
    with pytest.raises(LinearSolveError, match="singular to rounding: an eigenvalue is"):
        J.resolvent(-0.25).mv(torch.ones(4, dtype=F64))


@pytest.mark.parametrize(("make", "kind", "message"), [
    (lambda: BoxGrid(4, 1.0, "robin"), ValueError,
     "one of dirichlet, neumann, for all axes or for each of 1 .got 'robin'.; PeriodicGrid"),
    (lambda: BoxGrid((4, 4), 1.0, ("neumann",)), ValueError, "for each of 2"),
    (lambda: BoxGrid((4,) * 4, 1.0), ValueError, "one to three axes"),
    (lambda: BoxGrid(0, 1.0), ValueError, "at least one point"),
    (lambda: BoxGrid(4, -1.0), ValueError, "positive, finite lengths"),
    (lambda: BoxGrid(4, 1.0).laplacian(discretization="upwind"), ValueError, "one of spectral"),
    (lambda: BoxGrid((4, 3), 1.0).check(torch.ones(3, 4)), ValueError, "those of the grid"),
    (lambda: BoxGrid((4, 3), 1.0).laplacian().check(torch.ones(3, 4)), ValueError,
     r"size \(4, 3\) along dimensions \(-2, -1\) for this SineCosine \(got shape \(3, 4\)\)"),
    (lambda: BoxGrid((4, 3), 1.0).laplacian().check(torch.ones(3)), ValueError, r"shape \(3,\)"),
    (lambda: SineCosine([1.0], "tangent"), ValueError, "kind of SineCosine as sine or cosine.*tan"),
    (lambda: SineCosine([1.0], ("sine", "sine")), ValueError, "for each of the dimensions"),
    (lambda: SineCosine([[1.0]], "sine"), ValueError, "symbol of SineCosine with one axis for"),
    (lambda: SineCosine([], "sine"), ValueError, r"symbol of SineCosine.*got \(0,\)"),
    (lambda: SineCosine([[1.0]], "sine", dim=(-1, -2)), ValueError, "in increasing order"),
    (lambda: SineCosine([1.0], "sine", dim=0), ValueError, "counted from the end"),
    (lambda: SineCosine([1j], "sine"), TypeError, "real numbers as the symbol of SineCosine"),
    (lambda: SineCosine([math.nan], "sine"), ValueError, "finite numbers in the symbol"),
    (lambda: SineCosine(["a"], "sine"), TypeError, "numbers as the symbol"),
    (lambda: SineCosine(torch.ones(3, dtype=torch.long), "sine"), TypeError, "real floating"),
])
def test_what_does_not_fit_is_refused(make, kind, message):
    with pytest.raises(kind, match=message):
        make()
