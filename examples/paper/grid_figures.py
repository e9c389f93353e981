"""How do training losses and predictions on grids look? Figures 3 to 6 of the paper."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from grids import GridProblem
from systems import FAILURES, Work
from torch import Tensor, nn

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def plot_losses(path: Path, name: str, rows: list[dict[str, Any]], target: float) -> None:
    """Training loss against training time; what finished no turn is in the legend alone."""
    figure, ax = plt.subplots(figsize=(8.5, 4.5), constrained_layout=True)
    colors = plt.get_cmap("tab20")
    curves = [smoothed(np.array(row["curve"], dtype=float).reshape(-1, 2)) for row in rows]
    top = 3 * min((curve[0, 1] for curve in curves if len(curve)), default=1.0)
    bottom = 0.7 * min((curve[:, 1].min() for curve in curves if len(curve)), default=0.1)
    for i, (row, curve) in enumerate(zip(rows, curves, strict=True)):
        label = row["system"] + (" (failed)" if row["failure"] else "")
        if len(curve) and curve[:, 1].min() > top:
            label += " (beyond the scale)"
        style = "-" if row["system"].startswith("imex") else "--" if i < 10 else ":"
        ax.loglog(*curve.T, style, label=label, color=colors((2 * i + i // 10) % 20),
                  marker="o" if 0 < len(curve) < 5 else None, markersize=5)
    if name.startswith("ks"):
        ax.axhline(target, color="k", linestyle=":", linewidth=1)
    ax.set(title=name, xlabel="training time in s", ylabel="training loss, mean squared error")
    ax.set_ylim(bottom, top)
    ax.tick_params(which="minor", labelsize=7)
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small", frameon=False)
    save(figure, path)


def smoothed(curve: np.ndarray, points: int = 60) -> np.ndarray:
    """Means of neighbours, so that a curve has few enough points to be read."""
    size = -(-len(curve) // points)
    parts = [curve[i : i + size] for i in range(0, len(curve), max(size, 1))]
    return np.array([(part[-1, 0], part[:, 1].mean()) for part in parts]).reshape(-1, 2)


def plot_rollout(path: Path, problem: GridProblem, row: Any, model: nn.Module,
                 truths: dict[str, Tensor], batches: int) -> None:
    """For each truth: what the model predicts from its first state, and the difference."""
    length = min(truth.size(1) for truth in truths.values())
    figure, axes = plt.subplots(len(truths), 3, figsize=(12, 3.1 * len(truths)), sharex=True,
                                sharey=True, constrained_layout=True, squeeze=False)
    for line, (name, truth) in zip(axes, truths.items(), strict=True):
        truth = truth[:, :length]
        found, exact = rollout(problem, row, model, truth)[0].numpy(), truth[0].numpy()
        extent = (0, (len(exact) - 1) * problem.interval, 0, problem.length)
        size = float(np.abs(exact).max())
        error = np.linalg.norm(found - exact, axis=1) / np.linalg.norm(exact, axis=1)
        titles = (name, f"prediction by {row.label}",
                  f"difference: {100 * error.mean():.0f} % of the truth")
        for ax, field, title in zip(line, (exact, found, found - exact), titles, strict=True):
            image = ax.imshow(field.T, origin="lower", aspect="auto", extent=extent, cmap="RdBu_r",
                              vmin=-size, vmax=size)
            ax.set(title=title)
        line[0].set_ylabel("x")
        figure.colorbar(image, ax=line, label="u", pad=0.01)
    for ax in axes[-1]:
        ax.set_xlabel("t")
    figure.suptitle(f"{problem.name}, after {batches} batches of training")
    save(figure, path)


@torch.no_grad()
def rollout(problem: GridProblem, row: Any, model: nn.Module, truth: Tensor) -> Tensor:
    """One interval after another from the first state; not a number from where it fails."""
    states = torch.full_like(truth, torch.nan)
    states[:, 0] = truth[:, 0]
    with suppress(*FAILURES):
        for i in range(truth.size(1) - 1):
            states[:, i + 1] = row.system.integrate(
                problem.split(model), states[:, i], problem.t, row.step, Work())[-1]
    return states


def save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
