"""How large are the eigenvalues of J, and do they decay or oscillate?

    python docs/figures/stiffness_eigenvalues.py

Writes stiffness_eigenvalues.png beside itself.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import torch
from torch_geometric.utils import barabasi_albert_graph, get_laplacian, to_dense_adj

from pyg_sinode.grid import PeriodicGrid, kuramoto_sivashinsky, viscous_burgers

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Label, colour (Okabe-Ito), line style.
LINES = {
    "graph, normalised: $D^{-1/2} A D^{-1/2} - I$": ("#000000", "-"),
    "graph, not normalised: $A - D$": ("#0072B2", "--"),
    "advection, $u_x$, 512 points (imaginary)": ("#009E73", ":"),
    "Burgers, $\\nu u_{xx}$, $\\nu$ = 8e-4, 512 points": ("#D55E00", "-."),
    "Kuramoto-Sivashinsky, 64 points": ("#CC79A7", (0, (10, 2))),
    "the same, 512 points": ("#E69F00", (0, (5, 1, 1, 1, 1, 1))),
}


def main() -> None:
    """Draws the magnitudes of the eigenvalues in increasing order."""
    figure, axes = plt.subplots(figsize=(7.2, 3.9), layout="constrained")
    for (label, (colour, style)), values in zip(LINES.items(), spectra(), strict=True):
        magnitude = np.sort(np.abs(values))
        axes.semilogy(np.linspace(0, 1, len(magnitude)), np.maximum(magnitude, 1e-3),
                      color=colour, linestyle=style, linewidth=2, label=label)
    for step in (1.0, 1e-2, 1e-4, 1e-6):
        axes.axhline(2.785 / step, color="0.6", linewidth=0.8)
        axes.text(1.01, 2.785 / step, f"step {step:g}", va="center", fontsize=8, color="0.3")
    axes.set(xlim=(0, 1), ylim=(1e-2, 1e8), xlabel="share of the eigenvalues below (dimensionless)",
             ylabel="magnitude (1 / unit of time)",
             title="Eigenvalues of J; RK4 is unstable above the grey line of its step")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2,
                  fontsize=8, frameon=False)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=130)


def spectra() -> list[np.ndarray]:
    """The eigenvalues of each line, in the order of LINES."""
    torch.manual_seed(0)
    edges = barabasi_albert_graph(1000, 3)
    graphs = [-np.linalg.eigvalsh(_dense(edges, kind)) for kind in ("sym", None)]
    u = torch.zeros(512, dtype=torch.float64)
    unit = PeriodicGrid(512, 1.0)
    advection = unit.derivative(1, discretization="finite_difference")
    burgers = viscous_burgers(unit, 8e-4).implicit
    ks = [kuramoto_sivashinsky(PeriodicGrid(n, 22.0)).implicit.symbol(u[:n]).numpy()
          for n in (64, 512)]
    return [*graphs, advection.symbol(u).numpy(), burgers.symbol(u).numpy(), *ks]


def _dense(edges: torch.Tensor, normalization: str | None) -> np.ndarray:
    index, weight = get_laplacian(edges, normalization=normalization, dtype=torch.float64)
    return to_dense_adj(index, edge_attr=weight)[0].numpy()


if __name__ == "__main__":
    main()
