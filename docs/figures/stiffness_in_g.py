"""What goes wrong when a stiff term, or a stiff forcing, stays in the explicit part?

    python docs/figures/stiffness_in_g.py

Writes stiffness_in_g.png beside itself and prints the numbers.
"""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib
import torch
from torch import Tensor

from pyg_sinode import NonFiniteStateError, imex_odeint
from pyg_sinode.grid import PeriodicGrid
from pyg_sinode.operators import Circulant, ScaledIdentity
from pyg_sinode.terms import Affine

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

COLOURS = ("#0072B2", "#009E73", "#E69F00", "#D55E00", "#CC79A7")  # Okabe-Ito
MARKERS = ("o", "s", "^", "D", "v")
RATE = 1e6


def main() -> None:
    """Draws the error against the step size for both faults."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.2, 4.3), layout="constrained")
    shares(left)
    forcings(right)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=120)


def shares(axes: Axes) -> None:
    """Diffusion with a reaction, where only a share of the diffusion is implicit."""
    grid = PeriodicGrid(128, 2 * math.pi)
    laplacian = grid.laplacian(discretization="finite_difference")
    u0, t = grid.points.sin() + 0.5 * (3 * grid.points).cos(), torch.tensor([0.0, 1.0])
    exact = diffuse(laplacian, 1.0, u0, t, step_size=1 / 4096)
    steps = [1 / 2**k for k in range(1, 11)]
    for share, colour, marker in zip((1.0, 0.75, 0.5, 0.0), COLOURS, MARKERS, strict=False):
        errors = [worst(diffuse(laplacian, share, u0, t, step_size=h), exact) for h in steps]
        print(f"share {share}", [f"{e:.0e}" for e in errors])
        shown = [e if e < 100 else math.nan for e in errors]
        axes.loglog(steps, shown, color=colour, marker=marker, markersize=5,
                    label=f"{share:.0%} implicit")
    axes.set(xlabel="step size (units of time)", ylabel="largest error at t = 1 (dimensionless)",
             title="A stiff term in G (ark436l2sa):\nno point where the state blew up")
    below(axes)


def diffuse(laplacian: Circulant, share: float, u0: Tensor, t: Tensor, **options: float
            ) -> Tensor | None:
    """The state at the last time, or None if it blew up."""
    def explicit(t: Tensor, u: Tensor) -> Tensor:
        return 2 * (u - u**3) + (1 - share) * laplacian.mv(u)

    try:
        return imex_odeint(explicit, share * laplacian, u0, t, method="ark436l2sa", **options)[-1]
    except NonFiniteStateError:
        return None


def worst(u: Tensor | None, exact: Tensor | None) -> float:
    """The largest error, infinite for a state that blew up."""
    return math.inf if u is None or exact is None else float((u - exact).abs().max())


def forcings(axes: Axes) -> None:
    """du/dt = 1e6 (cos t - u), the forcing in G or in Affine."""
    u0, t = torch.zeros(1, dtype=torch.float64), torch.tensor([0.0, 10.0])
    J = ScaledIdentity(-RATE)
    steps = [1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01]
    schemes = ("ssp222", "ark324l2sa", "ark436l2sa", "ars443")
    for name, colour, marker in zip(schemes, COLOURS, MARKERS, strict=False):
        in_g = [error(imex_odeint(lambda t, u: RATE * torch.cos(t).expand(1), J, u0, t, method=name,
                                  step_size=h)) for h in steps]
        beside = [error(imex_odeint(None, Affine(J, lambda t: RATE * torch.cos(t)), u0, t,
                                    method=name, step_size=h)) for h in steps]
        print(name, "in G", [f"{e:.1e}" for e in in_g], "Affine", [f"{e:.1e}" for e in beside])
        axes.loglog(steps, in_g, color=colour, marker=marker, markersize=4, label=f"{name}, in G")
        axes.loglog(steps, beside, color=colour, marker=marker, markersize=4, linestyle=":",
                    label=f"{name}, in Affine")
    axes.set(xlabel="step size (units of time)", ylabel="error at t = 10 (dimensionless)",
             title="A stiff forcing in G:\nu' = 1e6 (cos t - u)")
    below(axes)


def below(axes: Axes) -> None:
    """The legend, off the data."""
    axes.legend(fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.17), frameon=False)


def error(u: Tensor) -> float:
    """The error at t = 10 against the exact solution."""
    exact = (RATE**2 * math.cos(10) + RATE * math.sin(10)) / (1 + RATE**2)
    return max(abs(float(u[-1]) - exact), 1e-16)


if __name__ == "__main__":
    main()
