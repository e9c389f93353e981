"""How do training losses and predictions on grids look? Figures 3 to 6 of the paper."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from drawing import legend, note, save
from figures import plt
from grids import GridProblem
from measuring import FAILURES, Work
from solver_styles import LEGEND, marked_line
from torch import Tensor, nn


def plot_losses(path: Path, name: str, rows: list[dict[str, Any]], target: float | None) -> None:
    """Training loss against training time; what has no line is named below."""
    figure, ax = plt.subplots(figsize=(8.5, 4.6))
    curves = [smoothed(np.array(row["curve"], dtype=float).reshape(-1, 2)) for row in rows]
    top = 3 * min((curve[0, 1] for curve in curves if len(curve)), default=1.0)
    bottom = 0.7 * min((curve[:, 1].min() for curve in curves if len(curve)), default=0.1)
    without = []
    for row, curve in zip(rows, curves, strict=True):
        if not len(curve) or curve[:, 1].min() > top:
            why = ("loss beyond the scale" if len(curve) else
                   "too slow" if "longer than" in (row["failure"] or "") else "fails")
            without.append(f"{row['system']}: {why}")
            continue
        solver, _, other = row["system"].partition(", ")
        ax.loglog(*curve.T, label=row["system"] + (" (fails later)" if row["failure"] else ""),
                  **marked_line(solver, len(curve), other=bool(other)))
    if target is not None:
        ax.axhline(target, color="0.4", linestyle=(0, (1, 3)),
                   label=f"loss of {target:g}, to which\nthe paper compares times")
        bottom = min(bottom, 0.7 * target)
    ax.set(title=f"{name}: training loss against training time", xlabel="training time in s",
           ylabel="mean squared error, dimensionless", ylim=(bottom, top))
    legend(figure, ax, "right upper", title=LEGEND)
    note(figure, lines_of(without))
    save(figure, path)


def lines_of(without: list[str], each: int = 3) -> list[str]:
    """What has no line, so many in a line of text."""
    lines = ["; ".join(without[i : i + each]) for i in range(0, len(without), each)]
    return ["without a line: " + lines[0], *lines[1:]] if lines else []


def smoothed(curve: np.ndarray, points: int = 60) -> np.ndarray:
    """Means of neighbours, so that a curve has few enough points to be read."""
    size = -(-len(curve) // points)
    parts = [curve[i : i + size] for i in range(0, len(curve), max(size, 1))]
    return np.array([(part[-1, 0], part[:, 1].mean()) for part in parts]).reshape(-1, 2)


def plot_rollout(path: Path, problem: GridProblem, row: Any, model: nn.Module,
                 truths: dict[str, Tensor], batches: int) -> None:
    """For each truth: what the model predicts from its first state, and the difference.

    The difference has a scale of its own, so that a good model's shows.
    """
    length = min(truth.size(1) for truth in truths.values())
    figure, axes = plt.subplots(len(truths), 3, figsize=(11.5, 2.9 * len(truths)), sharex=True,
                                sharey=True, squeeze=False)
    for line, (name, truth) in zip(axes, truths.items(), strict=True):
        truth = truth[:, :length]
        found, exact = rollout(problem, row, model, truth)[0].numpy(), truth[0].numpy()
        extent = (0, (len(exact) - 1) * problem.interval, 0, problem.length)
        error = np.linalg.norm(found - exact, axis=1) / np.linalg.norm(exact, axis=1)
        titles = (f"truth, {name}", f"prediction by {row.label}",
                  f"difference, mean {100 * error.mean():.0f} % of the truth")
        fields = (exact, found, found - exact)
        sizes = (largest(exact), largest(exact), largest(found - exact))
        images = []
        for ax, field, title, size in zip(line, fields, titles, sizes, strict=True):
            ax.set_facecolor("0.8")  # where a prediction has ended
            ax.grid(False)
            ax.set_title(title)
            images.append(ax.imshow(field.T, origin="lower", aspect="auto", extent=extent,
                                    cmap="RdBu_r", vmin=-size, vmax=size))
        line[0].set_ylabel("x, dimensionless")
        figure.colorbar(images[1], ax=line[:2], pad=0.01, extend="both").ax.set_title("u")
        figure.colorbar(images[2], ax=line[2], pad=0.02).ax.set_title("error")
    for ax in axes[-1]:
        ax.set_xlabel("time, dimensionless")
    figure.suptitle(f"{problem.name}: prediction after {batches} batches of training")
    save(figure, path)


def largest(field: np.ndarray) -> float:
    """The largest finite magnitude; 1 where all are 0."""
    return float(np.nanmax(np.abs(np.where(np.isfinite(field), field, np.nan)), initial=0.0)) or 1.0


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
