"""How many evaluations of G does each scheme need for an error? Kuramoto-Sivashinsky, 64 points.

    python docs/figures/work_precision.py

Writes work_precision.png beside this file, and prints the numbers. Float64, L = 22, from t = 0 to
10 after a start-up of 50 time units; the reference is ark548l2sa in steps of 1/400.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import torch
from torch import Tensor

from pyg_sinode import NonFiniteStateError, imex_odeint
from pyg_sinode.grid import PeriodicGrid, kuramoto_sivashinsky

matplotlib.use("Agg")
import matplotlib.pyplot as plt

END = 10.0
# Okabe and Ito's colours; each scheme has a marker of its own.
STYLES = {"imex_euler": ("#999999", "v"), "ssp222": ("#E69F00", "s"), "sbdf2": ("#56B4E9", "D"),
          "sbdf4": ("#0072B2", "P"), "ark324l2sa": ("#CC79A7", "^"), "ark436l2sa": ("#009E73", "o"),
          "ark548l2sa": ("#D55E00", "X")}
STEPS = (25, 50, 100, 200, 400, 800)
EXPLICIT_STEPS = (16000, 18000)  # 16,480 are needed to be stable
TOLERANCES = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)


def main() -> None:
    """Measures every curve, and draws them."""
    torch.set_num_threads(1)
    grid = PeriodicGrid(64, 22.0)
    G, J, initial = kuramoto_sivashinsky(grid)
    torch.manual_seed(0)
    u0 = imex_odeint(G, J, initial(1).double(), times(50.0), step_size=0.05)[-1].detach()
    exact = imex_odeint(G, J, u0, times(END), method="ark548l2sa", step_size=1 / 400)[-1]

    def point(method: str, *, explicit: bool = False, **options: float) -> tuple[int, float] | None:
        term = (lambda t, u: G(t, u) + J.mv(u)) if explicit else G
        try:
            u, stats = imex_odeint(term, None if explicit else J, u0, times(END), method=method,
                                   return_stats=True, **options)
        except NonFiniteStateError:
            return None
        error = float((u[-1] - exact).norm() / exact.norm())
        return (stats.explicit_evaluations, error) if error < 1.0 else None

    figure, axes = plt.subplots(figsize=(8.4, 4.4), layout="constrained")
    for method, (color, marker) in STYLES.items():
        draw(axes, method, [point(method, step_size=END / n) for n in STEPS], color, marker, "-")
    draw(axes, "ark436l2sa, adaptive (the default)",
         [point("ark436l2sa", rtol=tol, atol=tol) for tol in TOLERANCES], "#000000", "*", "--")
    draw(axes, "no J: the explicit half of ark436l2sa",
         [point("ark436l2sa", explicit=True, step_size=END / n) for n in EXPLICIT_STEPS],
         "#000000", "p", ":")
    axes.set(xscale="log", yscale="log", xlabel="evaluations of G (dimensionless)",
             ylabel="relative error at t = 10 (dimensionless)",
             title="Kuramoto-Sivashinsky: from order 2 on, 60 to 600 evaluations of G reach\n"
                   "1e-3 with J implicit; without J the first stable run takes 108,000")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", fontsize=8)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=130)


def times(end: float) -> Tensor:
    """From 0 to a time."""
    return torch.tensor([0.0, end], dtype=torch.float64)


def draw(axes: plt.Axes, name: str, points: list[tuple[int, float] | None], color: str,
         marker: str, line: str) -> None:
    """One curve, of the points that did not blow up; prints them too."""
    found = [p for p in points if p is not None]
    print(f"{name}: " + ", ".join(f"{n} {e:.1e}" for n, e in found)
          + ("" if len(found) == len(points) else f"; {len(points) - len(found)} blew up"))
    axes.plot(*zip(*found, strict=True), line, color=color, marker=marker, label=name, ms=5)


if __name__ == "__main__":
    main()
