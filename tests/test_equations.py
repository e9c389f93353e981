"""Do all equations on grids have the right-hand side, the precision and the states they promise?

One line of EQUATIONS puts a new equation under these laws.
"""

import math
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from equations_cases import d, integrate, laplacian, smooth, total_rate
from grid_cases import F64, close
from torch.autograd import gradcheck, gradgradcheck

from pyg_sinode.grid import (
    PeriodicGrid,
    Polynomial,
    allen_cahn,
    cahn_hilliard,
    fisher_kpp,
    gray_scott,
    korteweg_de_vries,
    kuramoto_sivashinsky,
    kuramoto_sivashinsky_height,
    navier_stokes,
    resample,
    swift_hohenberg,
    vector_burgers,
    viscous_burgers,
)


def gray_scott_rate(grid, state):
    u, v = state.unbind(1)
    made = u * v**2
    return torch.stack([0.3 * laplacian(grid, u) - made + 0.04 * (1 - u),
                        0.1 * laplacian(grid, v) + made - (0.04 + 0.06) * v], 1)


def burgers_rate(grid, u):
    axes = range(len(grid.shape))
    return torch.stack([0.2 * laplacian(grid, u[:, c]) - sum(
        u[:, a] * d(grid, u[:, c], a) for a in axes) for c in axes], 1)


def navier_stokes_rate(grid, w):
    """With the velocity from the stream function, and w advected as it stands."""
    psi = torch.fft.fft2(w) / torch.tensor(grid.squared_wavenumbers()).clamp_min(1e-9)
    psi[..., 0, 0] = 0.0
    psi = torch.fft.ifft2(psi).real
    k = 2 * math.pi * 3 / grid.length[1]
    forcing = -0.7 * k * torch.cos(k * grid.points[..., 1])
    return (-d(grid, psi, 1) * d(grid, w, 0) + d(grid, psi, 0) * d(grid, w, 1)
            + 0.2 * laplacian(grid, w) - 0.1 * w + forcing)


def swift_hohenberg_rate(grid, u):
    inner = u + laplacian(grid, u)
    return 0.3 * u - inner - laplacian(grid, inner) + 0.7 * u**2 - u**3


# Name: how it is made, the axes of its grid, its fields, its rate of change by hand.
EQUATIONS = {
    "kuramoto_sivashinsky": (kuramoto_sivashinsky, 1, (), lambda g, u: (
        -u * d(g, u) - d(g, u, order=2) - d(g, u, order=4))),
    "viscous_burgers": (partial(viscous_burgers, viscosity=0.2), 1, (), lambda g, u: (
        -u * d(g, u) + 0.2 * d(g, u, order=2))),
    "korteweg_de_vries": (korteweg_de_vries, 1, (), lambda g, u: (
        -6 * u * d(g, u) - d(g, u, order=3))),
    "allen_cahn": (partial(allen_cahn, width=0.3), 2, (), lambda g, u: (
        0.09 * laplacian(g, u) + u - u**3)),
    "fisher_kpp": (partial(fisher_kpp, diffusivity=0.3, rate=1.7), 2, (), lambda g, u: (
        0.3 * laplacian(g, u) + 1.7 * u * (1 - u))),
    "swift_hohenberg": (partial(swift_hohenberg, quadratic=0.7), 2, (), swift_hohenberg_rate),
    "cahn_hilliard": (partial(cahn_hilliard, width=0.3), 2, (), lambda g, u: (
        laplacian(g, u**3 - u - 0.09 * laplacian(g, u)))),
    "kuramoto_sivashinsky_height": (kuramoto_sivashinsky_height, 2, (), lambda g, u: (
        -(d(g, u, 0) ** 2 + d(g, u, 1) ** 2) / 2 - laplacian(g, u)
        - laplacian(g, laplacian(g, u)))),
    "vector_burgers": (partial(vector_burgers, viscosity=0.2), 2, (2,), burgers_rate),
    "vector_burgers_in_space": (partial(vector_burgers, viscosity=0.2), 3, (3,), burgers_rate),
    "gray_scott": (partial(gray_scott, diffusivity=(0.3, 0.1)), 2, (2,), gray_scott_rate),
    "navier_stokes": (partial(navier_stokes, viscosity=0.2, drag=0.1, forcing=0.7,
                              forcing_waves=3), 2, (), navier_stokes_rate),
}
every_equation = pytest.mark.parametrize("name", EQUATIONS)
SIZES = {1: (36,), 2: (24, 27), 3: (12, 13, 12)}
LENGTHS = {1: (7.0,), 2: (7.0, 5.0), 3: (7.0, 5.0, 6.0)}


def made(name, sizes=None):
    make, axes, fields, rate = EQUATIONS[name]
    grid = PeriodicGrid(sizes or SIZES[axes], LENGTHS[axes])
    return grid, make(grid), fields, rate


@every_equation
def test_the_two_parts_add_up_to_the_published_equation(name):
    """For waves whose products the grid holds."""
    grid, equation, fields, rate = made(name)
    u = smooth(grid, 7, 2, *fields)
    expected = rate(grid, u)
    close(total_rate(equation, u), expected, 1e-12 * float(expected.abs().max()))


@every_equation
def test_nonlinear_terms_are_free_of_aliasing(name):
    """Of waves whose products the grid does not hold, what it holds is right."""
    axes = EQUATIONS[name][1]
    sizes = (8, 9, 6)[:axes]
    grid, equation, fields, _ = made(name, sizes)
    u = resample(torch.randn(2, *fields, *[5] * axes, dtype=F64), sizes)
    more = tuple(4 * n for n in sizes)
    fine = EQUATIONS[name][0](PeriodicGrid(more, grid.length))
    expected = resample(fine.explicit(0.0, resample(u, more)), sizes)
    close(equation.explicit(0.0, u), expected, 1e-11 * float(1 + expected.abs().max()))


@every_equation
def test_nonlinear_terms_have_correct_gradients_of_both_orders(name):
    axes = EQUATIONS[name][1]
    _, equation, fields, _ = made(name, (3, 8, 3)[:axes])  # eight points hold the forcing
    u = torch.randn(1, *fields, *(3, 8, 3)[:axes], dtype=F64, requires_grad=True)
    assert gradcheck(partial(equation.explicit, 0.0), (u,), fast_mode=True)
    assert gradgradcheck(partial(equation.explicit, 0.0), (u,), fast_mode=True)


@every_equation
def test_single_precision_is_kept(name):
    grid, equation, fields, _ = made(name)
    u = smooth(grid, 7, 2, *fields)
    exact = total_rate(equation, u)
    if name == "gray_scott":  # its diffusivities are a tensor, of the dtype of the state
        equation = gray_scott(grid, diffusivity=torch.tensor([0.3, 0.1]))
    found = total_rate(equation, u.float())
    assert found.dtype == torch.float32
    close(found.double(), exact, 3e-4 * float(exact.abs().max()))
    assert equation.implicit.resolvent(0.1).mv(u.float()).dtype == torch.float32


@every_equation
def test_constants_kept_under_inference_mode_serve_training(name):
    grid, equation, fields, _ = made(name)
    u = smooth(grid, 7, 1, *fields)
    with torch.inference_mode():
        total_rate(equation, u)
    total_rate(equation, u.requires_grad_()).sum().backward()
    assert u.grad is not None


@every_equation
def test_initial_states_have_the_shape_that_the_equation_takes(name):
    grid, equation, fields, _ = made(name)
    u, again = (equation.initial(3, torch.Generator().manual_seed(4)) for _ in range(2))
    assert u.shape == (3, *fields, *grid.shape)
    assert u.dtype == F64
    assert torch.equal(u, again)
    assert not torch.equal(u, equation.initial(3))
    assert total_rate(equation, u).shape == u.shape


@every_equation
def test_equations_survive_pickling_and_keep_closed_inverses(name):
    grid, equation, fields, _ = made(name)
    u = smooth(grid, 7, 1, *fields)
    expected = total_rate(equation, u)
    copied = pickle.loads(pickle.dumps(equation))
    assert torch.equal(total_rate(copied, u), expected)
    assert equation.implicit.has_closed_inverse()


# The values named as good, at the length of the step named there; the largest state that is sane.
GOOD = {
    "korteweg_de_vries": (korteweg_de_vries, (128,), 30.0, 0.005, 0.2, 2.0),
    "allen_cahn": (allen_cahn, (64, 64), 1.0, 0.2, 5.0, 1.01),
    "fisher_kpp": (fisher_kpp, (256,), 100.0, 0.2, 10.0, 1.01),
    "swift_hohenberg": (swift_hohenberg, (48, 48), 12 * math.pi, 0.5, 20.0, 1.2),
    "cahn_hilliard": (cahn_hilliard, (128,), 2.0, 0.001, 0.2, 1.1),
    "kuramoto_sivashinsky_height": (kuramoto_sivashinsky_height, (48, 48), 24.0, 0.2, 10.0, 25.0),
    "vector_burgers": (partial(vector_burgers, viscosity=0.005), (128, 128), 1.0, 0.005, 0.03,
                       2.0),
    "gray_scott": (gray_scott, (64, 64), 0.625, 2.0, 60.0, 1.05),
    "navier_stokes": (partial(navier_stokes, viscosity=0.01, drag=0.1, forcing=1.0), (64, 64),
                      2 * math.pi, 0.015, 0.3, 12.0),
}


@pytest.mark.parametrize("name", GOOD)
def test_steps_named_as_good_are_stable_and_accurate(name):
    make, shape, length, step, end, largest = GOOD[name]
    equation = make(PeriodicGrid(shape, length))
    u0 = equation.initial(1, torch.Generator().manual_seed(0))
    u, half = (integrate(equation, u0, end, h, "ark324l2sa") for h in (step, step / 2))
    assert u.abs().max() < largest
    assert (u - half).norm() < 2e-3 * half.norm()


def test_smooth_noise_has_the_mean_and_strength_that_are_promised():
    for equation, mean, rms in ((allen_cahn(PeriodicGrid((32, 30), 2.0)), 0.0, 0.5),
                                (fisher_kpp(PeriodicGrid(64, 50.0)), 0.5, 0.1),
                                (cahn_hilliard(PeriodicGrid(64, 2.0)), 0.0, 0.1)):
        u = equation.initial(4)
        inner = tuple(range(1, u.dim()))
        close(u.mean(inner), torch.full((4,), mean, dtype=F64))
        close(u.std(inner, correction=0), torch.full((4,), rms, dtype=F64))
        spectrum = torch.fft.fft(u - mean, dim=-1).abs()
        assert spectrum[..., u.size(-1) // 2].max() < 1e-2 * spectrum.max()


def test_gray_scott_starts_from_a_seed_in_the_middle():
    u, v = gray_scott(PeriodicGrid((64, 32), 2.5)).initial(1)[0]
    inside = torch.zeros(64, 32, dtype=torch.bool)
    inside[28:36, 14:18] = True
    close(u[inside], torch.full((32,), 0.5, dtype=F64), 0.005001)
    close(v[inside], torch.full((32,), 0.25, dtype=F64), 0.002501)
    assert v[~inside].abs().max() == 0
    close(u[~inside], torch.ones(64 * 32 - 32, dtype=F64), 0.010001)


def test_wave_vectors_have_the_squares_of_their_components():
    grid = PeriodicGrid((4, 5, 6), (1.0, 2.0, 3.0))
    k2 = grid.squared_wavenumbers()
    assert k2.shape == grid.shape
    for at in np.ndindex(grid.shape):
        assert k2[at] == pytest.approx(sum(grid.wavenumbers(a)[i] ** 2 for a, i in enumerate(at)))


@pytest.mark.parametrize("to", [(12, 9), (5, 6), (16, 4)])
def test_resampling_several_axes_is_that_of_one_after_the_other(to):
    u = torch.randn(2, 8, 7, dtype=F64)
    expected = resample(resample(u, to[1]).mT, to[0]).mT
    close(resample(u, to), expected)
    assert torch.equal(resample(u, (8, 7)), u)


LINE, SHEET, CUBE = PeriodicGrid(8, 1.0), PeriodicGrid((6, 8), 1.0), PeriodicGrid((3, 3, 3), 1.0)


@pytest.mark.parametrize(("make", "kind", "message"), [
    (lambda: kuramoto_sivashinsky(SHEET), ValueError, "kuramoto_sivashinsky_height take several"),
    (lambda: korteweg_de_vries(SHEET), ValueError, "grid of one dimension"),
    (lambda: Polynomial(LINE, {}), ValueError, r"powers from 1 up, each with a factor.*got {}"),
    (lambda: Polynomial(LINE, {2: 1.0, 3: 0.0}), ValueError, "a factor other than zero"),
    (lambda: Polynomial(LINE, {0: 1.0}), ValueError, "powers from 1 up"),
    (lambda: allen_cahn(3), TypeError, r"a PeriodicGrid \(got int\).*BoxGrid"),
    (lambda: allen_cahn(LINE, 0.0), ValueError, r"positive, finite width \(got 0.0\)"),
    (lambda: fisher_kpp(LINE, -1.0), ValueError, r"positive, finite diffusivity \(got -1.0\)"),
    (lambda: fisher_kpp(LINE, 1.0, math.inf), ValueError, "positive, finite rate"),
    (lambda: swift_hohenberg(LINE, math.nan), ValueError, "Expected r to be finite"),
    (lambda: swift_hohenberg(LINE, 0.1, "1"), TypeError, "Expected quadratic as a real number"),
    (lambda: cahn_hilliard(LINE, -0.1), ValueError, "positive, finite width"),
    (lambda: vector_burgers(SHEET, 0.0), ValueError, "positive, finite viscosity"),
    (lambda: vector_burgers(SHEET, 0.1).explicit(0.0, torch.ones(3, 6, 8)), ValueError,
     r"a velocity of 2 components, of shape \(\*, 2, \*shape\) \(got \(3, 6, 8\)\)"),
    (lambda: gray_scott(LINE, feed=-0.1), ValueError, r"finite feed of at least 0 \(got -0.1\)"),
    (lambda: gray_scott(LINE, kill=math.nan), ValueError, "finite kill of at least 0"),
    (lambda: gray_scott(LINE, diffusivity=(1.0, 0.0)), ValueError, "two positive diffusivities"),
    (lambda: gray_scott(LINE, diffusivity=torch.ones(3)), ValueError, "two positive diffusiv"),
    (lambda: gray_scott(LINE).explicit(0.0, torch.ones(8)), ValueError,
     r"two species, of shape \(\*, 2, \*shape\) \(got \(8,\)\)"),
    (lambda: navier_stokes(CUBE, 0.1), ValueError, r"two dimensions \(got shape \(3, 3, 3\)\)"),
    (lambda: navier_stokes(SHEET, 0.1, drag=-1.0), ValueError, "finite drag of at least 0"),
    (lambda: navier_stokes(SHEET, 0.1, forcing=1.0, forcing_waves=4), ValueError,
     r"forcing_waves from 1 to 3 on this grid \(got 4\)"),
    (lambda: navier_stokes(SHEET, 0.1, forcing_waves=0.5), TypeError, "float"),
    (lambda: swift_hohenberg(SHEET).explicit(0.0, torch.ones(8, 6)), ValueError,
     r"those of the grid, \(6, 8\) \(got \(8, 6\)\)"),
])
def test_what_does_not_fit_is_refused(make, kind, message):
    with pytest.raises(kind, match=message):
        make()
