"""How fast do the same networks learn under this package and under torchdiffeq?

Draws beside_others.png from the records of `python examples/benchmarks beside_others`, given as
arguments; without one from beside_others.jsonl beside this file, their lines without the first:

    python docs/figures/beside_others.py runs/beside_others.jsonl
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

HERE = Path(__file__).parent
# Okabe-Ito colour and marker of a solver; fused attention is solid, plain is dashed and hollow.
STYLES = {"imex": ("#0072B2", "o"), "imex-large": ("#009E73", "s"),
          "imex-attention": ("#CC79A7", "^"), "imex-rk4": ("#56B4E9", "v"),
          "rk4": ("#E69F00", "D"), "dopri5": ("#D55E00", "X")}
LABELS = {("cora", "imex"): "imex_rk2, 19 steps", ("cora", "imex-large"): "imex_rk2, 7 steps",
          ("cora", "imex-attention"): 'imex_rk2, implicit="attention", 3 steps',
          ("cora", "rk4"): "torchdiffeq rk4, 7 steps", ("cora", "dopri5"): "torchdiffeq dopri5",
          ("ks-64", "imex"): "imex_rk2, 1 step", ("ks-64", "imex-rk4"): "imex_rk4, 1 step",
          ("ks-64", "rk4"): "torchdiffeq rk4, 89 steps", ("ks-64", "dopri5"): "torchdiffeq dopri5"}


def main() -> None:
    """Reads the records and draws both panels."""
    paths = [Path(word) for word in sys.argv[1:]] or [HERE / "beside_others.jsonl"]
    runs = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    runs = [run for run in runs if "problem" in run]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5.4), layout="constrained")
    draw(left, [run for run in runs if run["problem"] == "cora"], max, 100.0)
    left.axhline(82, color="0.4", ls=":", lw=1.2)
    left.annotate("82 %", (0.01, 82.3), xycoords=("axes fraction", "data"), fontsize=9)
    left.set(xscale="log", xlabel="training in s of the processor, one thread", ylim=(20, 88),
             ylabel="best test accuracy so far in %, mean of the seeds",
             title="Cora: all learn alike, epoch by epoch;\nthe dearest epoch costs "
                   f"{spread(runs, 'cora'):.0f} times as much as the cheapest")
    draw(right, [run for run in runs if run["problem"] == "ks-64"], min, 1.0)
    right.axhline(1e-3, color="0.4", ls=":", lw=1.2)
    right.annotate("1e-3", (0.01, 1.05e-3), xycoords=("axes fraction", "data"), fontsize=9)
    right.set(xscale="log", yscale="log", xlabel="training in s of the processor, one thread",
              ylabel="least training loss so far (mean squared error)",
              title="Kuramoto-Sivashinsky, 64 points: explicit\nsolvers take at least "
                    f"{math.floor(spread(runs, 'ks-64') / 10) * 10} times as long")
    for ax in (left, right):
        ax.grid(alpha=0.3)
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, fontsize=8,
                  frameon=False, handlelength=3.5)
    figure.savefig(HERE / "beside_others.png", dpi=130)


def draw(ax: Axes, runs: list[dict[str, Any]], best: Any, factor: float) -> None:
    """A line for each solver and attention, a marker for each epoch."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["problem"], run["system"], run["attention"]), []).append(run)
    for (problem, system, attention), seeds in groups.items():
        color, marker = STYLES[system]
        plain = attention == "plain"
        seconds, scores = averaged(seeds, best)
        ax.plot(seconds, [factor * score for score in scores], "--" if plain else "-", color=color,
                marker=marker, ms=5, markerfacecolor="white" if plain else color,
                label=LABELS[problem, system] + (", plain attention" if plain else ""))


def averaged(seeds: list[dict[str, Any]], best: Any) -> tuple[list[float], list[float]]:
    """Seconds and best scores after each epoch, means over seeds; one that has arrived stays."""
    curves = [run["curve"] for run in seeds if run["curve"]]
    ends = [[min(k, len(curve)) for curve in curves] for k in
            range(1, max(map(len, curves), default=0) + 1)]
    seconds = [mean(c[k - 1][0] for c, k in zip(curves, end, strict=True)) for end in ends]
    scores = [mean(best(point[2] for point in c[:k]) for c, k in zip(curves, end, strict=True))
              for end in ends]
    return seconds, scores


def spread(runs: list[dict[str, Any]], problem: str) -> float:
    """On Cora the dearest epoch over the cheapest; else the fastest explicit solver over imex."""
    costs: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        if run["problem"] == problem and run["curve"]:
            cost = run["seconds"] / (len(run["curve"]) if problem == "cora" else 1)
            costs.setdefault((run["system"], run["attention"]), []).append(cost)
    means = {name: mean(values) for name, values in costs.items()}
    if problem == "cora":
        return max(means.values()) / min(means.values())
    return min(means["rk4", "-"], means["dopri5", "-"]) / means["imex", "-"]


if __name__ == "__main__":
    main()
