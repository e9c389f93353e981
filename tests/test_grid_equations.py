"""Are the equations on grids those that were published?"""

import math
import os
import pickle
from pathlib import Path

import pytest
import scipy.io
import torch
from cases import dense_matrix
from grid_cases import F64, KINDS, close, slope, wave
from torch_geometric.data import Data

from pyg_sinode import imex_odeint
from pyg_sinode.grid import (
    Advection,
    PeriodicGrid,
    kuramoto_sivashinsky,
    resample,
    viscous_burgers,
)
from pyg_sinode.schemes import RUNGE_KUTTA


@pytest.mark.parametrize("n", [16, 17])
def test_spectral_advection_of_resolved_waves_is_exact(n):
    grid = PeriodicGrid(n, 5.0)
    m = (n - 1) // 4  # whose square the grid holds as well
    k = 2 * math.pi * m / 5.0
    u = 0.4 + wave(grid, m)
    slope = -k * torch.sin(k * grid.points + 0.3)
    close(Advection(grid)(0.0, u), -u * slope)


@pytest.mark.parametrize("n", [15, 16, 64])
def test_spectral_advection_is_the_projection_of_the_exact_one(n):
    """Of waves whose square the grid does not hold, what it holds is right: nothing is aliased."""
    grid, fine = PeriodicGrid(n, 2.0), PeriodicGrid(4 * n, 2.0)
    u = torch.randn(3, n, dtype=F64)
    v = resample(u, 4 * n)
    close(Advection(grid)(0.0, u), resample(-v * fine.derivative(1).mv(v), n), 1e-12 * n**2)


@pytest.mark.parametrize("n", [15, 16])
def test_spectral_advection_conserves_mean_and_energy(n):
    u = torch.randn(4, n, dtype=F64)
    change = Advection(PeriodicGrid(n, 2.0))(0.0, u)
    close(change.sum(-1), torch.zeros(4, dtype=F64))
    close((u * change).sum(-1), torch.zeros(4, dtype=F64), 1e-11)


def test_finite_difference_advection_conserves_the_mean_and_is_of_second_order():
    sizes, errors = (64, 128, 256), []
    for n in sizes:
        grid = PeriodicGrid(n, 2 * math.pi)
        u = grid.points.sin().exp()
        got = Advection(grid, discretization="finite_difference")(0.0, u)
        assert abs(got.sum()) < 1e-11
        errors.append((got + u * u * grid.points.cos()).abs().max().item())
    assert slope(errors, sizes) == pytest.approx(2.0, abs=0.05)


def test_finite_difference_advection_is_the_central_difference_of_half_the_square():
    grid, u = PeriodicGrid(6, 3.0), torch.randn(2, 6, dtype=F64)
    expected = -(u.roll(-1, -1) ** 2 - u.roll(1, -1) ** 2) / (4 * 0.5)
    close(Advection(grid, discretization="finite_difference")(0.0, u), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_advection_serves_single_precision(kind):
    term, u = Advection(PeriodicGrid(32, 10.0), discretization=kind), torch.randn(2, 32, dtype=F64)
    got = term(torch.tensor(0.0), u.float())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, term(0.0, u).float(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [7, 8])
def test_advection_has_correct_gradients(kind, n):
    term = Advection(PeriodicGrid(n, 2.0), discretization=kind)
    u = torch.randn(2, n, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda u: term(0.0, u), (u,))
    assert torch.autograd.gradgradcheck(lambda u: term(0.0, u), (u,))


def of_symbol(grid, symbol):
    """The matrix of a real symbol, wave by wave."""
    x = grid.points[:, None] - grid.points
    return sum(s * torch.cos(k * x) for s, k in zip(symbol, grid.wavenumbers(), strict=True)
               ) / grid.num_nodes


@pytest.mark.parametrize("n", [15, 16])
def test_the_linear_terms_multiply_waves_by_their_symbols(n):
    grid = PeriodicGrid(n, 22.0)
    k = grid.wavenumbers()
    J = kuramoto_sivashinsky(grid).implicit
    close(dense_matrix(J, (n,)), of_symbol(grid, k**2 - k**4), 1e-11)
    J = viscous_burgers(grid, 0.3).implicit
    close(dense_matrix(J, (n,)), of_symbol(grid, -0.3 * k**2))


def test_the_linear_terms_by_differences_are_the_stencils_on_paper():
    grid, h, one = PeriodicGrid(9, 4.5), 0.5, torch.eye(9, dtype=F64)

    def banded(stencil):
        return sum(s * one.roll(len(stencil) // 2 - at, 1) for at, s in enumerate(stencil))

    second = banded((1, -2, 1)) / h**2
    fourth = banded((1, -4, 6, -4, 1)) / h**4
    J = kuramoto_sivashinsky(grid, discretization="finite_difference").implicit
    close(dense_matrix(J, (9,)), -second - fourth)
    J = viscous_burgers(grid, 0.3, discretization="finite_difference").implicit
    close(dense_matrix(J, (9,)), 0.3 * second)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_constants_are_at_rest(dtype, kind):
    grid = PeriodicGrid(512, 22.0)
    u = torch.full((512,), 0.7, dtype=dtype)
    for term, J, _ in (kuramoto_sivashinsky(grid, discretization=kind),
                       viscous_burgers(grid, 8e-4, discretization=kind)):
        assert J.mv(u).abs().max() == 0
        assert term(0.0, u).abs().max() < 1e-4 * (dtype == torch.float32) + 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_a_tiny_wave_grows_at_its_rate(kind):
    grid = PeriodicGrid(32, 22.0)
    equation = kuramoto_sivashinsky(grid, discretization=kind)
    t = torch.tensor([0.0, 2.0], dtype=F64)
    for m in (1, 2, 3, 5):
        k = 2 * math.pi * m / 22
        if kind == "spectral":
            rate = k**2 - k**4
        else:
            h = grid.spacing[0]
            rate = (2 - 2 * math.cos(k * h)) / h**2
            rate -= rate**2
        u = 1e-9 * wave(grid, m)
        after = imex_odeint(equation.explicit, equation.implicit, u, t, method="ark436l2sa",
                            step_size=0.05)[-1]
        torch.testing.assert_close(after, math.exp(2 * rate) * u, rtol=1e-6, atol=1e-16)


# Where 0.2 is too large.
STEPS = {"imex_euler": 0.1, "crank_nicolson": 0.02, "ark232": 0.05, "ars122": 0.02}


@pytest.mark.parametrize("name", RUNGE_KUTTA)
def test_the_steps_named_as_good_are_stable(name):
    equation = kuramoto_sivashinsky(PeriodicGrid(64, 22.0))
    u = equation.initial(4, torch.Generator().manual_seed(1))
    after = imex_odeint(equation.explicit, equation.implicit, u,
                        torch.tensor([0.0, 20.0], dtype=F64), method=name,
                        step_size=STEPS.get(name, 0.2))[-1]
    assert after.abs().max() < 4.0
    assert after.square().mean() > 0.5


def cole_hopf(grid, viscosity, u, t):
    """The exact solution -2 nu phi_x / phi for u of mean zero, with phi_t = nu phi_xx.

    phi(0) is exp of minus the integral of u over 2 nu; both steps are exact for resolved waves.
    """
    k = torch.tensor(grid.wavenumbers())
    k_or_one = torch.where(k == 0, torch.ones_like(k), k)
    integral = torch.fft.ifft(torch.fft.fft(u) / (1j * k_or_one)).real
    phi = torch.fft.fft(torch.exp(-integral / (2 * viscosity))) * torch.exp(-viscosity * k**2 * t)
    return -2 * viscosity * torch.fft.ifft(1j * k * phi).real / torch.fft.ifft(phi).real


def test_burgers_has_the_solution_of_cole_and_hopf_with_the_scheme_s_order():
    grid, viscosity, end = PeriodicGrid(128, 2 * math.pi), 0.2, 1.5
    equation = viscous_burgers(grid, viscosity)
    u = torch.sin(grid.points) + 0.5 * torch.cos(2 * grid.points)
    exact = cole_hopf(grid, viscosity, u, end)
    steps, errors = (40, 80, 160), []
    for count in steps:
        got = imex_odeint(equation.explicit, equation.implicit, u,
                          torch.tensor([0.0, end], dtype=F64), method="ark436l2sa",
                          step_size=end / count)[-1]
        errors.append((got - exact).abs().max().item())
    assert slope(errors, steps) == pytest.approx(4.0, abs=0.2)
    assert errors[-1] < 1e-8


def test_burgers_by_differences_converges_to_the_solution_of_cole_and_hopf():
    sizes, errors, viscosity = (64, 128, 256), [], 0.1
    for n in sizes:
        grid = PeriodicGrid(n, 2 * math.pi)
        equation = viscous_burgers(grid, viscosity, discretization="finite_difference")
        u = torch.sin(grid.points)
        got = imex_odeint(equation.explicit, equation.implicit, u,
                          torch.tensor([0.0, 1.0], dtype=F64), method="ark436l2sa",
                          step_size=0.02)[-1]
        errors.append((got - cole_hopf(grid, viscosity, u, 1.0)).abs().max().item())
    assert slope(errors, sizes) == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("n", [64, 65])
@pytest.mark.parametrize("make", [kuramoto_sivashinsky, lambda grid: viscous_burgers(grid, 1e-3)])
def test_initial_states_are_drawn_from_the_generator_and_have_no_mean(make, n):
    equation = make(PeriodicGrid(n, 22.0))
    first, again = (equation.initial(3, torch.Generator().manual_seed(s)) for s in (1, 1))
    assert torch.equal(first, again)
    assert first.shape == (3, n)
    assert first.dtype == F64
    assert not torch.equal(first, equation.initial(3))
    assert not torch.equal(first[0], first[1])
    close(first.mean(-1), torch.zeros(3, dtype=F64))


@pytest.mark.parametrize("make", [kuramoto_sivashinsky, lambda grid: viscous_burgers(grid, 1e-3)])
def test_an_equation_survives_pickling(make):
    equation = pickle.loads(pickle.dumps(make(PeriodicGrid(32, 22.0))))
    u = equation.initial(2, generator=torch.Generator().manual_seed(3))
    assert torch.equal(u, make(PeriodicGrid(32, 22.0)).initial(2, torch.Generator().manual_seed(3)))


@pytest.mark.parametrize(("n", "length", "waves"), [(64, 22.0, 5), (65, 100.0, 20), (32, 3.0, 1),
                                                    (6, 22.0, 2)])
def test_kuramoto_sivashinsky_starts_from_long_waves_of_unit_amplitude(n, length, waves):
    u = kuramoto_sivashinsky(PeriodicGrid(n, length)).initial(3)
    amplitude = 2 * torch.fft.rfft(u).abs() / n
    expected = torch.zeros_like(amplitude)
    expected[:, 1 : waves + 1] = 1.0
    close(amplitude, expected)


@pytest.mark.parametrize("length", [1.0, 2 * math.pi])
@pytest.mark.parametrize("n", [256, 255])
def test_burgers_starts_from_the_energy_spectrum(n, length):
    grid = PeriodicGrid(n, length)
    u = viscous_burgers(grid, 1e-3).initial(4)
    k = torch.tensor(grid.wavenumbers()[1 : (n + 1) // 2])
    energy = 2 * k**4 / (3 * math.sqrt(math.pi) * 10.0**5) * torch.exp(-((k / 10.0) ** 2))
    size = torch.fft.fft(u).abs()[:, 1 : (n + 1) // 2] / n
    close(size, (2 * energy).sqrt().expand_as(size), 1e-14)


def test_burgers_starts_with_the_strength_that_its_documentation_says():
    grid = PeriodicGrid(512, 1.0)
    equation = viscous_burgers(grid, 8e-4)
    u = equation.initial(8, torch.Generator().manual_seed(1))
    assert u.square().mean().sqrt().item() == pytest.approx(0.40, abs=0.005)
    t = torch.linspace(0, 0.4, 21, dtype=F64)
    after = imex_odeint(equation.explicit, equation.implicit, u, t, method="ark324l2sa",
                        step_size=2e-3)
    steepest = (-grid.derivative(1).mv(after)).amax(-1).argmax(0)
    assert t[steepest].mean().item() == pytest.approx(0.15, abs=0.03)


def published(name):
    place = os.environ.get("PYG_SINODE_DATA")
    path = Path(place or ".") / "pde" / f"{name}.mat"
    if place is None or not path.is_file():
        pytest.skip(f"{name} is not compared: set PYG_SINODE_DATA to a folder with pde/{name}.mat")
    content = scipy.io.loadmat(path)
    x, t = (torch.tensor(content[key].ravel()) for key in ("x", "t"))
    return x, t, torch.tensor(content["usol"]).t()


def fourier_sum(grid, u, x):
    """The trigonometric polynomial of each state at points x, which need not be the grid's."""
    half = grid.num_nodes // 2
    k = torch.tensor(grid.wavenumbers()[:half])
    factor = torch.full((half, 1), 2.0, dtype=F64)
    factor[0] = 1.0
    waves = torch.exp(1j * k[:, None] * x) * factor / grid.num_nodes
    return (torch.fft.rfft(u)[:, :half] @ waves).real


def test_burgers_agrees_with_the_published_shock():
    """Their points include both ends of [-1, 1], so none but the first is one of this grid."""
    x, t, expected = published("burgers_shock")
    grid = PeriodicGrid(1024, 2.0)
    equation = viscous_burgers(grid, 0.01 / math.pi)
    u = imex_odeint(equation.explicit, equation.implicit, -torch.sin(math.pi * (grid.points - 1)),
                    t, method="ark436l2sa", step_size=0.0025)
    got = fourier_sum(grid, u, x + 1)
    off = (got - expected).abs().amax(-1)
    assert off[t <= 0.1].max() < 1e-10
    assert off.max() < 1.2e-5
    assert (got - expected).norm() < 4e-7 * expected.norm()


def test_kuramoto_sivashinsky_agrees_with_the_published_solution():
    """The last of their points repeats the first; their solution stays odd, and so no chaos."""
    x, t, expected = published("KS")
    assert (x[1] - x[0]).item() == pytest.approx(20 / 511)
    grid = PeriodicGrid(511, 20.0)
    equation = kuramoto_sivashinsky(grid)
    u = imex_odeint(equation.explicit, equation.implicit, -torch.sin(math.pi * x[:-1] / 10), t,
                    method="ark436l2sa", step_size=0.05)
    off = (u - expected[:, :-1]).norm(dim=-1) / expected[:, :-1].norm(dim=-1)
    assert off.max() < 1.2e-5


LINE, SHEET = PeriodicGrid(8, 1.0), PeriodicGrid((6, 8), 1.0)


@pytest.mark.parametrize(("make", "kind", "message"), [
    (lambda: PeriodicGrid((2, 2, 2, 2), 1.0), ValueError, "one to three axes"),
    (lambda: PeriodicGrid((), 1.0), ValueError, r"one to three axes.*got shape \(\)"),
    (lambda: PeriodicGrid((4, 4), (1.0,)), ValueError, "each with a number of points and a length"),
    (lambda: PeriodicGrid(4, (1.0, 1.0)), ValueError, r"got shape \(4,\) and length \(1.0, 1.0\)"),
    (lambda: PeriodicGrid(0, 1.0), ValueError, "at least one point along each axis"),
    (lambda: PeriodicGrid((4, -1), 1.0), ValueError, r"at least one point.*\(4, -1\)"),
    (lambda: PeriodicGrid(4.5, 1.0), TypeError, "float"),
    (lambda: PeriodicGrid((4.0, 4), 1.0), TypeError, "float"),
    (lambda: PeriodicGrid(4, 0.0), ValueError, "positive, finite lengths"),
    (lambda: PeriodicGrid((4, 4), (1.0, -1.0)), ValueError, r"positive, finite.*\(1.0, -1.0\)"),
    (lambda: PeriodicGrid(4, math.inf), ValueError, "positive, finite lengths"),
    (lambda: PeriodicGrid(4, math.nan), ValueError, "positive, finite lengths"),
    (lambda: LINE.derivative(1, discretization="upwind"), ValueError,
     "one of spectral, finite_difference.*'upwind'"),
    (lambda: LINE.derivative(1, 1), ValueError, "axis from 0 to 0 .got 1"),
    (lambda: SHEET.derivative(1, -3), ValueError, "axis from 0 to 1 .got -3"),
    (lambda: LINE.derivative(0), ValueError, "order 1 or more .got 0"),
    (lambda: LINE.derivative(5, discretization="finite_difference"), ValueError,
     "order 1 to 4 for finite differences .got 5.*spectral"),
    (lambda: LINE.derivative(0, discretization="finite_difference"), ValueError, "order 1 to 4"),
    (lambda: PeriodicGrid(4, 1.0).derivative(4, discretization="finite_difference"), ValueError,
     "at least as many points as the stencil"),
    (lambda: LINE.edge_index(0), ValueError, "radius of at least 1"),
    (lambda: LINE.edge_index(4), ValueError, r"2 radius \+ 1 points.*got radius 4 and \(8,\)"),
    (lambda: SHEET.edge_offset(3), ValueError, r"got radius 3 and \(6, 8\)"),
    (lambda: LINE.to_data(torch.ones(9)), ValueError, r"those of the grid, \(8,\) \(got \(9,\)\)"),
    (lambda: SHEET.to_data(torch.ones(8)), ValueError, r"those of the grid, \(6, 8\)"),
    (lambda: SHEET.to_data(torch.ones(8, 6)), ValueError, r"got \(8, 6\)"),
    (lambda: LINE.to_data(torch.ones(2, 3, 8)), ValueError, "one state.*Batch of several"),
    (lambda: LINE.to_data(torch.ones(8, dtype=torch.long)), TypeError, "u of a real floating"),
    (lambda: LINE.to_data(torch.ones(8, dtype=torch.cfloat)), TypeError, "u of a real floating"),
    (lambda: LINE.to_state(Data(x=torch.ones(9, 1))), ValueError,
     r"\(graphs \* 8, channels\) \(got \(9, 1\)\); the graph belongs to another grid"),
    (lambda: LINE.to_state(Data(x=torch.ones(8))), ValueError, r"got \(8,\)"),
    (lambda: LINE.to_state(Data(x=torch.ones(0, 1))), ValueError, r"got \(0, 1\)"),
    (lambda: LINE.to_state(Data()), ValueError, "got None"),
    (lambda: Advection(LINE)(0.0, torch.ones(9)), ValueError, r"those of the grid, \(8,\)"),
    (lambda: Advection(LINE, discretization="finite_difference")(0.0, torch.ones(8, 9)),
     ValueError, r"got \(8, 9\)"),
    (lambda: Advection(PeriodicGrid(2, 1.0), discretization="finite_difference"), ValueError,
     "at least as many points as the stencil"),
    (lambda: Advection(8), TypeError, r"a PeriodicGrid \(got int\).*operators.Banded"),
    (lambda: Advection(SHEET), ValueError, r"grid of one dimension \(got shape \(6, 8\)\)"),
    (lambda: Advection(LINE, discretization=None), ValueError, "one of spectral"),
    (lambda: kuramoto_sivashinsky(torch.ones(8)), TypeError, r"a PeriodicGrid \(got Tensor\)"),
    (lambda: kuramoto_sivashinsky(SHEET), ValueError, "grid of one dimension"),
    (lambda: kuramoto_sivashinsky(LINE, discretization="fd"), ValueError, "one of spectral.*'fd'"),
    (lambda: kuramoto_sivashinsky(PeriodicGrid(4, 1.0), discretization="finite_difference"),
     ValueError, r"at least as many points as the stencil has, \(5,\)"),
    (lambda: viscous_burgers(8, 0.1), TypeError, "a PeriodicGrid"),
    (lambda: viscous_burgers(SHEET, 0.1), ValueError, "grid of one dimension"),
    (lambda: viscous_burgers(LINE, 0.0), ValueError, r"positive, finite viscosity \(got 0.0\)"),
    (lambda: viscous_burgers(LINE, -1.0), ValueError, "positive, finite viscosity"),
    (lambda: viscous_burgers(LINE, math.inf), ValueError, "positive, finite viscosity"),
    (lambda: viscous_burgers(LINE, 0.1, discretization="fd"), ValueError, "one of spectral"),
])
def test_what_does_not_fit_is_refused(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


def test_an_equation_refuses_the_state_of_another_grid():
    equation = kuramoto_sivashinsky(PeriodicGrid(16, 22.0))
    with pytest.raises(ValueError, match=r"state of size \(16,\).*got shape \(3, 17\)"):
        imex_odeint(equation.explicit, equation.implicit, torch.zeros(3, 17),
                    torch.linspace(0, 1, 2), step_size=0.1)
