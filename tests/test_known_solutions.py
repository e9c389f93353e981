"""Have the equations on grids their known solutions, invariants and energies?"""

import math

import numpy as np
import pytest
import scipy.integrate
import torch
from equations_cases import d, integrate, smooth, total_rate
from grid_cases import F64, close, slope

from pyg_sinode import imex_odeint
from pyg_sinode.grid import (
    PeriodicGrid,
    allen_cahn,
    cahn_hilliard,
    fisher_kpp,
    gray_scott,
    korteweg_de_vries,
    kuramoto_sivashinsky,
    kuramoto_sivashinsky_height,
    navier_stokes,
    swift_hohenberg,
    vector_burgers,
    viscous_burgers,
)

PLANE = PeriodicGrid((32, 32), 2 * math.pi)


def mean(u):
    """Over the plane or, of states on a line, over the line."""
    return u.mean((-2, -1)) if u.size(-2) == 32 else u.mean(-1)


# Korteweg-de Vries


def two_solitons(x, t, p=1.6, q=1.0):
    """Hirota's solution, 2 (log f)_xx with f = 1 + e^a + e^b + c e^(a + b); speeds p^2, q^2."""
    a, b = p * (x - 12) - p**3 * t, q * (x - 20) - q**3 * t
    terms = [(0.0, 0 * x), (p, a), (q, b), (p + q, a + b + 2 * math.log((p - q) / (p + q)))]
    f, f1, f2 = (sum(k**n * torch.exp(e) for k, e in terms) for n in range(3))
    return 2 * (f2 * f - f1**2) / f**2


def test_two_solitons_pass_through_each_other_with_the_scheme_s_order():
    """The faster one, behind at first, is ahead in the end, and both are shifted."""
    grid, end = PeriodicGrid(128, 50.0), 8.0
    before, after = (two_solitons(grid.points, t) for t in (0.0, end))
    steps, errors = (120, 240, 360), []
    for count in steps:
        u = integrate(korteweg_de_vries(grid), before, end, end / count)
        errors.append((u - after).abs().max().item())
    assert before.argmax() < 45
    assert after.argmax() > 80
    assert slope(errors, steps) == pytest.approx(4.0, abs=0.3)
    assert errors[-1] < 5e-4


def test_korteweg_de_vries_conserves_mass_momentum_and_energy():
    grid = PeriodicGrid(64, 20.0)
    equation = korteweg_de_vries(grid)
    u0 = equation.initial(3, torch.Generator().manual_seed(0))
    u = integrate(equation, u0, 1.0, 0.005)
    for quantity, bound in ((lambda u: u, 1e-14), (lambda u: u**2, 1e-6),
                            (lambda u: u**3 - d(grid, u) ** 2 / 2, 1e-5)):
        close(quantity(u).mean(-1), quantity(u0).mean(-1), bound)


# Fronts


def pair_of_fronts(grid, front):
    """front(x) falls from 1 to 0; its mirror image stands at the other side of the middle."""
    x = grid.points - grid.length[0] / 2
    return torch.where(x > 0, front(x), front(-x))


@pytest.mark.parametrize("name", ["allen_cahn", "fisher_kpp"])
def test_fronts_invade_with_the_exact_profile_and_speed(name):
    """Both fronts of a pair go outwards; between them u is 1 to within rounding."""
    if name == "allen_cahn":
        width = 0.5
        grid, end, speed = PeriodicGrid(512, 80.0), 4.0, 3 * width / math.sqrt(2)
        equation = allen_cahn(grid, width)
        def profile(z):
            return 0.5 * (1 - torch.tanh(z / (2 * math.sqrt(2) * width)))
    else:
        D, r = 0.5, 2.0
        grid, end, speed = PeriodicGrid(512, 80.0), 2.0, 5 / math.sqrt(6) * math.sqrt(r * D)
        equation = fisher_kpp(grid, D, r)
        def profile(z):
            return (1 + torch.exp(math.sqrt(r / (6 * D)) * z)) ** -2.0
    before, after = (pair_of_fronts(grid, lambda x, t=t: profile(x - 20 - speed * t))
                     for t in (0.0, end))
    u = integrate(equation, before, end, 0.02)
    assert (after - before).abs().max() > 0.7
    close(u, after, 1e-7)


# Energies


def allen_cahn_energy(grid, u, width):
    slopes = sum(d(grid, u, a) ** 2 for a in range(2))
    return mean(width**2 / 2 * slopes + (1 - u**2) ** 2 / 4)


def test_allen_cahn_energy_falls_as_fast_as_the_equation_says():
    equation = allen_cahn(PLANE, 0.4)
    u0 = equation.initial(2, torch.Generator().manual_seed(0))
    u = integrate(equation, u0, 2.0, 0.05, outputs=41)
    energy = allen_cahn_energy(PLANE, u, 0.4)
    loss = mean(total_rate(equation, u).square())
    assert bool((energy.diff(dim=0) < 0).all())
    lost = torch.tensor(scipy.integrate.simpson(loss.numpy(), dx=0.05, axis=0))
    torch.testing.assert_close(energy[0] - energy[-1], lost, rtol=1e-3, atol=0)


def test_cahn_hilliard_conserves_mass_while_its_energy_falls_by_what_is_dissipated():
    width, step = 0.4, 0.02
    equation = cahn_hilliard(PLANE, width)
    u0 = 0.2 + 2 * equation.initial(2, torch.Generator().manual_seed(0))
    u = integrate(equation, u0, 2.0, step, outputs=101)
    close(mean(u), torch.full((101, 2), 0.2, dtype=F64), 1e-13)
    energy = allen_cahn_energy(PLANE, u, width)
    assert bool((energy.diff(dim=0) < 0).all())
    potential = u**3 - u - width**2 * sum(d(PLANE, u, a, 2) for a in range(2))
    loss = mean(sum(d(PLANE, potential, a) ** 2 for a in range(2)))
    lost = torch.tensor(scipy.integrate.simpson(loss.numpy(), dx=step, axis=0))
    assert bool((lost > 0.02).all())
    torch.testing.assert_close(energy[0] - energy[-1], lost, rtol=5e-4, atol=0)


def test_cahn_hilliard_and_allen_cahn_keep_an_interface_in_equilibrium():
    """tanh(x / (sqrt(2) eps)), and its mirror image half a period away."""
    grid, width = PeriodicGrid(128, 4.0), 0.1
    x = grid.points
    u0 = torch.tanh((x - 1) / (math.sqrt(2) * width)) * torch.tanh((3 - x) / (math.sqrt(2) * width))
    for make, step in ((allen_cahn, 0.1), (cahn_hilliard, 0.002)):
        close(integrate(make(grid, width), u0, 20 * step, step), u0, 1e-5)


@pytest.mark.parametrize("b", [0.0, 0.8])
def test_swift_hohenberg_energy_falls_as_fast_as_the_equation_says(b):
    grid, r = PeriodicGrid((32, 32), 6 * math.pi), 0.3
    equation = swift_hohenberg(grid, r, b)
    u0 = 2 * equation.initial(2, torch.Generator().manual_seed(0))
    u = integrate(equation, u0, 10.0, 0.1, outputs=101)
    inner = u + sum(d(grid, u, a, 2) for a in range(2))
    energy = mean(-r / 2 * u**2 + inner**2 / 2 - b / 3 * u**3 + u**4 / 4)
    loss = mean(total_rate(equation, u).square())
    lost = torch.tensor(scipy.integrate.simpson(loss[50:].numpy(), dx=0.1, axis=0))
    assert bool((energy.diff(dim=0) < 0).all())
    torch.testing.assert_close(energy[50] - energy[-1], lost, rtol=1e-4, atol=0)


def test_swift_hohenberg_saturates_at_the_amplitude_of_weakly_nonlinear_theory():
    """sqrt(4 r / 3) cos x + O(r^(3/2)), from a smaller wave."""
    grid, r = PeriodicGrid(32, 4 * math.pi), 0.01
    wave = math.sqrt(4 * r / 3) * torch.cos(grid.points)
    u = integrate(swift_hohenberg(grid, r), 0.5 * wave, 900.0, 2.0)
    assert (u - wave).abs().max() < 0.02 * r * wave.abs().max()


# Kuramoto-Sivashinsky, Burgers


def test_slopes_of_the_height_obey_the_kuramoto_sivashinsky_equation():
    grid = PeriodicGrid(64, 22.0)
    height = smooth(grid, 7, 2)
    found = d(grid, integrate(kuramoto_sivashinsky_height(grid), height, 3.0, 0.025))
    expected = integrate(kuramoto_sivashinsky(grid), d(grid, height), 3.0, 0.025)
    close(found, expected, 1e-11)


def test_a_height_that_varies_along_a_diagonal_is_that_of_a_line():
    """h(x + y) has twice the squared slope and the Laplacian of a line sqrt(2) shorter."""
    line, plane = PeriodicGrid(32, 22.0 / math.sqrt(2)), PeriodicGrid((32, 32), 22.0)
    height = smooth(line, 5)
    at = torch.arange(32)
    along = (at[:, None] + at) % 32
    found = integrate(kuramoto_sivashinsky_height(plane), height[along], 2.0, 0.1)
    expected = integrate(kuramoto_sivashinsky_height(line), height, 2.0, 0.1)
    close(found, expected[along], 1e-11)


def cole_hopf(grid, viscosity, t):
    """-2 nu grad(phi) / phi, where phi solves the heat equation."""
    x, y = grid.points.unbind(-1)
    first, second = 0.4 * math.exp(-2 * viscosity * t), 0.3 * math.exp(-5 * viscosity * t)
    phi = 1 + first * torch.cos(x + y) + second * torch.sin(2 * x) * torch.cos(y)
    phi_x = -first * torch.sin(x + y) + 2 * second * torch.cos(2 * x) * torch.cos(y)
    phi_y = -first * torch.sin(x + y) - second * torch.sin(2 * x) * torch.sin(y)
    return -2 * viscosity * torch.stack([phi_x, phi_y]) / phi


def test_burgers_in_the_plane_has_the_solution_of_cole_and_hopf():
    grid, viscosity, end = PeriodicGrid((36, 36), 2 * math.pi), 0.3, 1.0
    before, after = (cole_hopf(grid, viscosity, t) for t in (0.0, end))
    steps, errors = (10, 20, 40), []
    for count in steps:
        u = integrate(vector_burgers(grid, viscosity), before, end, end / count)
        errors.append((u - after).abs().max().item())
    assert (after - before).abs().max() > 0.1
    assert slope(errors, steps) == pytest.approx(4.0, abs=0.2)
    assert errors[-1] < 1e-8


def test_burgers_of_one_component_is_that_of_a_line():
    grid = PeriodicGrid(64, 1.0)
    u = smooth(grid, 7, 2)
    found = integrate(vector_burgers(grid, 0.01), u.unsqueeze(1), 0.2, 0.01).squeeze(1)
    close(found, integrate(viscous_burgers(grid, 0.01), u, 0.2, 0.01), 1e-12)


# Gray-Scott


def test_gray_scott_agrees_with_an_integration_by_scipy():
    grid, feed, kill, d_u, d_v = PeriodicGrid((24, 20), (0.6, 0.5)), 0.04, 0.06, 2e-3, 1e-3
    x, y = (2 * math.pi * p / length for p, length in zip(
        grid.points.unbind(-1), grid.length, strict=True))
    bump = torch.exp(torch.cos(x) + torch.cos(y) - 2)
    u0 = torch.stack([1 - 0.5 * bump, 0.25 * bump + 0.05 * torch.sin(x)])
    k2 = ((2 * np.pi / 0.6 * np.fft.fftfreq(24, 1 / 24)[:, None]) ** 2
          + (2 * np.pi / 0.5 * np.fft.fftfreq(20, 1 / 20)) ** 2)

    def rate(t, flat):
        u, v = flat.reshape(2, *grid.shape)
        lap_u, lap_v = (np.fft.ifft2(-k2 * np.fft.fft2(w)).real for w in (u, v))
        return np.concatenate([(d_u * lap_u - u * v * v + feed * (1 - u)).ravel(),
                               (d_v * lap_v + u * v * v - (feed + kill) * v).ravel()])

    exact = scipy.integrate.solve_ivp(rate, (0, 15), u0.numpy().ravel(), "RK45", rtol=1e-8,
                                      atol=1e-10).y[:, -1].reshape(2, *grid.shape)
    u = integrate(gray_scott(grid, feed, kill, (d_u, d_v)), u0, 15.0, 0.5)
    assert (u - u0).abs().max() > 0.1
    close(u, torch.tensor(exact), 2e-7)


def test_gray_scott_learns_its_diffusivities():
    grid = PeriodicGrid((8, 6), 0.5)
    u0, t = gray_scott(grid).initial(1), torch.tensor([0.0, 2.0], dtype=F64)
    found = []
    for gradient in ("discrete", "backprop"):
        diffusivity = torch.tensor([2e-3, 1e-3], dtype=F64, requires_grad=True)
        G, J, _ = gray_scott(grid, diffusivity=diffusivity)
        imex_odeint(G, J, u0, t, step_size=0.5, gradient=gradient)[-1].square().sum().backward()
        found.append(diffusivity.grad)
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=0)
    assert found[0].abs().min() > 0


# Navier-Stokes


@pytest.mark.parametrize(("p", "q"), [(1, 1), (2, 3)])
def test_taylor_green_vortices_decay_at_their_rate(p, q):
    grid, viscosity = PeriodicGrid((24, 20), (2 * math.pi, 4 * math.pi)), 0.05
    x, y = grid.points.unbind(-1)
    w = (p**2 + q**2 / 4) * torch.cos(p * x) * torch.cos(q * y / 2)
    equation = navier_stokes(grid, viscosity, drag=0.1)
    close(equation.explicit(0.0, w), torch.zeros_like(w))
    rate = viscosity * (p**2 + q**2 / 4) + 0.1
    close(integrate(equation, w, 2.0, 0.05), math.exp(-2 * rate) * w, 1e-8)
    u1, u2 = equation.explicit.velocity(w)
    close(u1, -q / 2 * torch.cos(p * x) * torch.sin(q * y / 2))
    close(u2, p * torch.sin(p * x) * torch.cos(q * y / 2))


def test_the_kolmogorov_flow_comes_to_its_laminar_profile():
    grid, viscosity, drag, A, m = PeriodicGrid((16, 24), 2 * math.pi), 0.5, 0.2, 0.6, 2
    equation = navier_stokes(grid, viscosity, drag=drag, forcing=A, forcing_waves=m)
    y = grid.points[..., 1]
    profile = -A * m * torch.cos(m * y) / (viscosity * m**2 + drag)
    u = integrate(equation, equation.initial(2, torch.Generator().manual_seed(0)), 24.0, 0.08,
                  "ark324l2sa")
    close(u, profile.expand_as(u), 1e-6)
    u1, u2 = equation.explicit.velocity(profile)
    close(viscosity * d(grid, u1, 1, 2) - drag * u1, -A * torch.sin(m * y))
    close(u2, torch.zeros_like(u2))


def test_forced_flow_keeps_its_balances_of_energy_and_enstrophy():
    viscosity, drag, A, m = 0.02, 0.1, 0.8, 3
    equation = navier_stokes(PLANE, viscosity, drag=drag, forcing=A, forcing_waves=m)
    flow = navier_stokes(PLANE, viscosity).explicit
    w = smooth(PLANE, 19, 3)
    u = flow.velocity(w)
    w = d(PLANE, u[:, 1], 0) - d(PLANE, u[:, 0], 1)  # without a mean
    close(mean(w * flow(0.0, w)), torch.zeros(3, dtype=F64), 1e-10)
    rate = flow.velocity(total_rate(equation, w))
    forcing = A * torch.sin(m * PLANE.points[..., 1])
    expected = (-viscosity * mean(w**2) - drag * mean(u.square().sum(1))
                + mean(u[:, 0] * forcing))
    close(mean((u * rate).sum(1)), expected, 1e-11)


def test_decaying_turbulence_loses_the_energy_that_its_enstrophy_says():
    viscosity, step = 0.05, 0.02
    equation = navier_stokes(PLANE, viscosity)
    w = integrate(equation, equation.initial(2, torch.Generator().manual_seed(1)), 1.0, step,
                  outputs=51)
    energy = mean(equation.explicit.velocity(w).square().sum(2)) / 2
    lost = torch.tensor(scipy.integrate.simpson(viscosity * mean(w**2).numpy(), dx=step, axis=0))
    torch.testing.assert_close(energy[0] - energy[-1], lost, rtol=1e-5, atol=0)
    assert bool((mean(w**2).diff(dim=0) < 0).all())


def test_gradients_of_a_flow_are_those_of_backprop():
    equation = navier_stokes(PeriodicGrid((8, 6), 1.0), 0.01, forcing=1.0, forcing_waves=2)
    found = []
    for gradient in ("discrete", "backprop"):
        torch.manual_seed(0)
        w = torch.randn(2, 8, 6, dtype=F64, requires_grad=True)
        t = torch.tensor([0.0, 0.1], dtype=F64)
        imex_odeint(equation.explicit, equation.implicit, w, t, step_size=0.05,
                    gradient=gradient)[-1].sin().sum().backward()
        found.append(w.grad)
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-13)
