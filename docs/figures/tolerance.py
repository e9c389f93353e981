"""Which accuracy does which tolerance cost, where the layer takes adaptive steps on Cora?

Draws tolerance.png from the records of `python examples/benchmarks tolerance`, given as arguments;
without one from tolerance.jsonl beside this file, their lines without the first:

    python docs/figures/tolerance.py runs/tolerance.jsonl
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import mean, median
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
STYLES = {"decay": ("#0072B2", "o", "-"), "decay, rms": ("#56B4E9", "s", "--"),
          "attention": ("#009E73", "^", "-"), "attention, rms": ("#CC79A7", "v", "--"),
          "dopri5": ("#D55E00", "X", "-.")}
LABELS = {"decay": 'implicit="decay"', "decay, rms": "the same, norm=norms.rms",
          "attention": 'implicit="attention"', "attention, rms": "the same, norm=norms.rms",
          "dopri5": "torchdiffeq dopri5 (rms)"}


def main() -> None:
    """Reads the records and draws accuracy and time against the tolerance."""
    paths = [Path(word) for word in sys.argv[1:]] or [HERE / "tolerance.jsonl"]
    runs = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    runs = [run for run in runs if "system" in run]
    base = {run["seed"]: run for run in runs if run["rtol"] is None}
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.8), layout="constrained")
    names = [name for name in STYLES if any(run["system"] == name for run in runs)]
    for at, name in enumerate(names):
        own = [run for run in runs if run["system"] == name]
        tolerances = sorted({run["rtol"] for run in own})
        color, marker, dashes = STYLES[name]
        options = {"color": color, "marker": marker, "ls": dashes, "ms": 6, "label": LABELS[name]}
        groups = [[run for run in own if run["rtol"] == rtol] for rtol in tolerances]
        left.plot(tolerances, [mean(run["test"] for run in group) for group in groups], **options)
        beside = 1.0 + 0.06 * (at - len(names) / 2)  # seeds of several systems beside each other
        left.plot([beside * run["rtol"] for run in own], [run["test"] for run in own], marker,
                  color=color, ms=3, alpha=0.5)
        right.plot(tolerances, [ratio(group, base) for group in groups], **options)
    level = mean(run["test"] for run in base.values())
    left.axhline(level, color="0.4", ls=":", lw=1.2)
    right.axhline(1.0, color="0.4", ls=":", lw=1.2, label="decay in 19 equal steps of imex_rk2")
    left.set(ylabel="test accuracy at the best validation accuracy, %",
             title=f"Accuracy, mean of {len(base)} seeds (small marks):\n"
                   "loose dopri5 alone loses some")
    right.set(ylabel="an epoch over one of 19 equal steps", ylim=(0, None),
              title="Time: what a tighter tolerance costs,\nwithout a gain in accuracy")
    for ax in (left, right):
        ax.set(xscale="log", xlabel="tolerance, rtol = atol (dimensionless)")
        ax.invert_xaxis()
        ax.grid(alpha=0.3)
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    figure.savefig(HERE / "tolerance.png", dpi=130)


def ratio(group: list[dict[str, Any]], base: dict[int, dict[str, Any]]) -> float:
    """The seconds of an epoch over those of equal steps in the same turn, the median."""
    return median(a / b for run in group
                  for a, b in zip(run["seconds"], base[run["seed"]]["seconds"], strict=True))


if __name__ == "__main__":
    main()
