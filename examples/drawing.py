"""How are many solvers told apart in one figure, in colour and in grey?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import figures
from figures import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION

# Dark and light by turns, so that neighbours differ in grey too.
COLORS = (BLUE, ORANGE, GREEN, PURPLE, VERMILION, SKY, BLACK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h")
DASHES = ("-", "--", "-.", (0, (1, 1.2)), (0, (5, 1, 1, 1, 1, 1)))


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
    """Writes a figure, in a folder that need not exist yet, and forgets it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return figures.save(figure, path)
