"""Where are RK4 and the implicit schemes stable, and what do they do to a fast decay?

    python docs/figures/stiffness_stability.py

Writes stiffness_stability.png beside itself.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import torch

from pyg_sinode.grid import PeriodicGrid, kuramoto_sivashinsky
from pyg_sinode.schemes import get_scheme

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

SCHEMES = {"imex_euler": ("#009E73", "--"), "crank_nicolson": ("#E69F00", ":"),
           "ssp222": ("#CC79A7", "-."), "ark436l2sa": ("#0072B2", "-")}  # Okabe-Ito


def main() -> None:
    """Draws the regions and the amplification on the negative axis."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.2, 4.2), layout="constrained")
    regions(left)
    amplification(right)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=130)


def regions(axes: Axes) -> None:
    """The region of RK4, that of the implicit half of ark436l2sa, and eigenvalues of KS."""
    x, y = np.meshgrid(np.linspace(-6, 3.97, 201), np.linspace(-4, 4, 161))
    z = x + 1j * y
    axes.contourf(x, y, np.abs(rk4(z)), levels=[0, 1], colors=["#D55E00"], alpha=0.45)
    axes.contour(x, y, np.abs(implicit("ark436l2sa", z)), levels=[1.0], colors=["#0072B2"],
                 linestyles="--")
    axes.axvspan(-6, 0, color="#0072B2", alpha=0.12)
    grid = PeriodicGrid(64, 22.0)
    symbol = kuramoto_sivashinsky(grid).implicit.symbol(torch.zeros(64, dtype=torch.float64))
    for step, marker in ((4e-4, "o"), (8e-4, "x")):
        values = symbol.numpy().real * step
        axes.plot(values, np.zeros_like(values), marker, color="0.1", markersize=4,
                  fillstyle="none", label=f"h times eigenvalues of KS, h = {step:g}")
    axes.text(-2.3, 1.1, "RK4", color="#7A3500")
    axes.text(-5.8, -3.6, "implicit: all of this half plane", color="#00466E", fontsize=8)
    axes.set(xlim=(-6, 3.9), ylim=(-4, 4), xlabel=r"real part of $h\lambda$ (dimensionless)",
             ylabel=r"imaginary part of $h\lambda$ (dimensionless)",
             title="Where a scheme is stable")
    below(axes, 1)


def amplification(axes: Axes) -> None:
    """By what one step multiplies a component that decays."""
    z = -np.logspace(-1, 5, 241)
    axes.loglog(-z, np.abs(rk4(z)), color="#D55E00", linestyle=(0, (1, 1)), linewidth=2,
                label="RK4")
    axes.loglog(-z, np.exp(z).clip(1e-30), color="0.6", linewidth=1, label="exact")
    for name, (colour, style) in SCHEMES.items():
        axes.loglog(-z, np.abs(implicit(name, z)), color=colour, linestyle=style, linewidth=2,
                    label=name)
    axes.axhline(1, color="0.3", linewidth=0.8)
    axes.set(xlim=(0.1, 1e5), ylim=(1e-6, 1e3), xlabel=r"$-h\lambda$ (dimensionless)",
             ylabel="factor in one step (dimensionless)", title="What one step does to a decay")
    below(axes, 2)


def below(axes: Axes, columns: int) -> None:
    """The legend, off the data."""
    axes.legend(fontsize=7, ncols=columns, loc="upper center", bbox_to_anchor=(0.5, -0.17),
                frameon=False)


def rk4(z: np.ndarray) -> np.ndarray:
    """The stability function of RK4."""
    return 1 + z * (1 + z / 2 * (1 + z / 3 * (1 + z / 4)))


def implicit(name: str, z: np.ndarray) -> np.ndarray:
    """The stability function of a scheme's implicit half: 1 + z b (I - z A)^-1 1."""
    scheme = get_scheme(name)
    a, b = np.asarray(scheme.a_implicit), np.asarray(scheme.b_implicit)
    stages = np.linalg.solve(np.eye(len(b)) - z[..., None, None] * a, np.ones((len(b), 1)))
    return 1 + z * (b @ stages)[..., 0]


if __name__ == "__main__":
    main()
