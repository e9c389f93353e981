"""How are many solvers told apart in one figure, in colour and in grey?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Okabe and Ito's colours without yellow, which is too light for lines; dark and light by turns.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h")
DASHES = ("-", "--", "-.", (0, (1, 1.2)), (0, (5, 1, 1, 1, 1, 1)))

plt.rcParams.update({
    "axes.grid": True, "axes.spines.right": False, "axes.spines.top": False,
    "axes.titlesize": "medium", "figure.constrained_layout.use": True, "figure.dpi": 120,
    "font.size": 9.5, "grid.alpha": 0.3, "legend.frameon": False, "legend.fontsize": "small",
    "legend.handlelength": 3.2, "lines.linewidth": 1.6, "lines.markersize": 5.5})


def style(color: int, marker: int, dashes: int, inside: str | None = None) -> dict[str, Any]:
    """The options of a line, by places in COLORS, MARKERS and DASHES; inside: of its markers."""
    options = {"color": COLORS[color % len(COLORS)], "marker": MARKERS[marker % len(MARKERS)],
               "linestyle": DASHES[dashes % len(DASHES)]}
    return options if inside is None else {**options, "markerfacecolor": inside}


def marked(count: int, most: int = 8) -> int:
    """Which points of a line carry a marker: every so many, so that at most so many do."""
    return max(1, -(-count // most))


def legend(figure: Any, axis: Any, place: str, **options: Any) -> None:
    """The legend of one panel beside or below all of them; none where nothing was drawn."""
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc=f"outside {place}", **options)


def note(figure: Any, lines: list[str]) -> None:
    """Small print below all panels."""
    if lines:
        figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize="small")


def save(figure: Any, path: Path) -> Path:
    """Writes a figure and forgets it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)
    return path
