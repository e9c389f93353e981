"""Figures equation_*.png: what does each equation of docs/equations.md do?

    python docs/figures/equations.py                 # all, a minute or two
    python docs/figures/equations.py gray_scott
"""

import math
import sys
from pathlib import Path

import matplotlib
import torch
from PIL import Image

from pyg_sinode import imex_odeint
from pyg_sinode.grid import (
    BoxGrid,
    PeriodicGrid,
    allen_cahn,
    cahn_hilliard,
    fisher_kpp,
    gray_scott,
    korteweg_de_vries,
    kuramoto_sivashinsky_height,
    navier_stokes,
    swift_hohenberg,
    vector_burgers,
)

matplotlib.use("Agg")
import matplotlib.pyplot as plt

UNIT = "(dimensionless)"


def integrate(equation, u0, times, step):
    G, J, _ = equation
    return imex_odeint(G, J, u0, times, method="ark436l2sa", step_size=step)


def start(equation, seed=0):
    return equation.initial(1, torch.Generator().manual_seed(seed))


def on_line(name, title, grid, u, end, signed=True):
    """One state in space and time."""
    figure, axis = plt.subplots(figsize=(6.4, 2.6), layout="constrained")
    show(figure, [axis], [u.T], (0, end, 0, grid.length[0]), "u", signed, "auto")
    axis.set(xlabel=f"time t {UNIT}", ylabel=f"x {UNIT}", title=title)
    save(figure, name)


def on_plane(name, title, grid, states, times, symbol="u", signed=True):
    """States side by side; x to the right, y upwards."""
    figure, axes = plt.subplots(1, len(states), figsize=(6.8, 2.7), layout="constrained",
                                sharey=True)
    extent = (0, grid.length[0], 0, grid.length[1])
    show(figure, axes, [state.T for state in states], extent, symbol, signed, "equal")
    for axis, t in zip(axes, times, strict=True):
        axis.set(title=f"t = {float(t):g}", xlabel=f"x {UNIT}")
    axes[0].set_ylabel(f"y {UNIT}")
    figure.suptitle(title)
    save(figure, name)


def show(figure, axes, fields, extent, symbol, signed, aspect):
    largest = max(float(field.abs().max()) for field in fields)
    colors = plt.get_cmap("PuOr" if signed else "cividis", 17)
    for axis, field in zip(axes, fields, strict=True):
        image = axis.imshow(field, origin="lower", aspect=aspect, extent=extent, cmap=colors,
                            vmin=-largest if signed else 0.0, vmax=largest,
                            interpolation="nearest")
    figure.colorbar(image, ax=list(axes), label=f"{symbol} {UNIT}")


def save(figure, name):
    path = Path(__file__).with_name(f"equation_{name}.png")
    figure.savefig(path, dpi=100)
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(96).save(path, optimize=True)


def draw_korteweg_de_vries():
    grid, t = PeriodicGrid(160, 40.0), torch.linspace(0, 12, 241, dtype=torch.float64)
    u0 = sum(c / 2 / torch.cosh(math.sqrt(c) / 2 * (grid.points - x)) ** 2
             for c, x in ((4.0, 6.0), (1.0, 18.0)))
    on_line("korteweg_de_vries", "Korteweg-de Vries: the taller soliton overtakes the other",
            grid, integrate(korteweg_de_vries(grid), u0, t, 0.005), 12, signed=False)


def draw_allen_cahn():
    grid, t = PeriodicGrid(256, 4.0), torch.linspace(0, 20, 201, dtype=torch.float64)
    equation = allen_cahn(grid)
    on_line("allen_cahn", "Allen-Cahn: phases form, and narrow domains vanish", grid,
            integrate(equation, start(equation, 1)[0], t, 0.1), 20)


def draw_fisher_kpp():
    grid, t = PeriodicGrid(256, 100.0), torch.linspace(0, 20, 201, dtype=torch.float64)
    u0 = torch.exp(-((grid.points - 50.0) / 2) ** 2)
    on_line("fisher_kpp", "Fisher-KPP: a population spreads, at a speed that tends to 2", grid,
            integrate(fisher_kpp(grid), u0, t, 0.1), 20, signed=False)


def draw_swift_hohenberg():
    grid, t = PeriodicGrid(128, 32 * math.pi), torch.linspace(0, 60, 121, dtype=torch.float64)
    equation = swift_hohenberg(grid)
    on_line("swift_hohenberg", "Swift-Hohenberg: waves of length 2 pi grow from noise", grid,
            integrate(equation, start(equation)[0], t, 0.5), 60)


def draw_cahn_hilliard():
    grid, t = PeriodicGrid(128, 2.0), torch.linspace(0, 1, 251, dtype=torch.float64)
    equation = cahn_hilliard(grid)
    on_line("cahn_hilliard", "Cahn-Hilliard: a mixture separates and coarsens", grid,
            integrate(equation, start(equation)[0], t, 0.001), 1)


def draw_vector_burgers():
    grid, t = PeriodicGrid((128, 128), 1.0), torch.tensor([0.0, 0.2, 0.6], dtype=torch.float64)
    equation = vector_burgers(grid, 0.005)
    u = integrate(equation, start(equation), t, 0.005)
    on_plane("vector_burgers", "Burgers in the plane: a smooth velocity steepens to shocks", grid,
             u[:, 0, 0], t, "u along x")


def draw_kuramoto_sivashinsky():
    grid, t = PeriodicGrid((64, 64), 32.0), torch.tensor([0.0, 10.0, 60.0], dtype=torch.float64)
    equation = kuramoto_sivashinsky_height(grid)
    u = integrate(equation, start(equation), t, 0.2)[:, 0]
    on_plane("kuramoto_sivashinsky", "Kuramoto-Sivashinsky in the plane: chaos of cells", grid,
             u - u.mean((-2, -1), keepdim=True), t, "u minus its mean")


def draw_gray_scott():
    grid, t = PeriodicGrid((96, 96), 0.9375), torch.tensor([0.0, 800.0, 3200.0]).double()
    equation = gray_scott(grid)
    u = integrate(equation, start(equation), t, 2.0)
    on_plane("gray_scott", "Gray-Scott: a seed grows to a maze", grid, u[:, 0, 1], t, "v", False)


def draw_navier_stokes():
    grid, t = PeriodicGrid((64, 64), 2 * math.pi), torch.tensor([0.0, 5.0, 40.0]).double()
    equation = navier_stokes(grid, 0.01, drag=0.1, forcing=1.0)
    w = integrate(equation, start(equation), t, 0.025)
    on_plane("navier_stokes", "Navier-Stokes: vortices are carried by a Kolmogorov flow", grid,
             w[:, 0], t, "vorticity")


def draw_box():
    grid = BoxGrid((63, 64), 1.0, ("dirichlet", "neumann"))
    t = torch.tensor([0.0, 0.05, 0.4], dtype=torch.float64)
    x, y = grid.points.unbind(-1)
    u0 = torch.exp(-100 * ((x - 0.25) ** 2 + (y - 0.1) ** 2))
    u = imex_odeint(None, 0.1 * grid.laplacian(), u0, t, rtol=1e-6, atol=1e-8)
    on_plane("box", "Diffusion: u = 0 at left and right, no flux below and above",
             grid, u / u.amax((-2, -1), keepdim=True), t, "u / max u", False)


if __name__ == "__main__":
    every = {key.removeprefix("draw_"): draw for key, draw in globals().items()
             if key.startswith("draw_")}
    for name in sys.argv[1:] or every:
        every[name]()
