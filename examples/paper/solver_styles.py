"""How is each solver drawn, the same in every figure of this folder?

The kind of a solver has a line style, each solver a colour and a marker: IMEX solid, explicit
dashed, implicit dash-dotted, adaptive dotted. Markers are filled at the paper's step, and white,
then grey inside at other ones.
"""

from __future__ import annotations

from typing import Any

from drawing import marked, style

# The colour, the marker and the dashes of drawing.style.
STYLES = {
    "imex_rk2": (0, 0, 0), "imex_rk3": (4, 1, 0), "imex_rk4": (2, 2, 0), "imex_rk5": (3, 3, 0),
    "rk4": (6, 4, 1), "explicit_adams": (1, 7, 1),
    "implicit_adams": (5, 6, 2), "crank_nicolson": (4, 5, 2),
    "dopri5": (2, 8, 3), "dopri5_adjoint": (0, 10, 3),
}


INSIDE = (None, "white", "0.75")
LEGEND = "white or grey inside:\nother steps than the paper's"


def marked_line(name: str, points: int, other: int = 0) -> dict[str, Any]:
    """The options of a solver's line of so many points.

    Args:
        name: Of the solver.
        points: Of its line.
        other: 0 at the paper's step, else which of its other steps it is.
    """
    inside = INSIDE[min(other, len(INSIDE) - 1)]
    return {**style(*STYLES[name], inside=inside), "markevery": marked(points)}
