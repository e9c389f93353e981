"""How is each solver drawn, the same in every figure of this folder?

The kind of a solver has a line style, each solver a colour and a marker: IMEX solid, explicit
dashed, implicit dash-dotted, adaptive dotted. Open markers: another step than the paper's.
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


def marked_line(name: str, points: int, usual: bool = True) -> dict[str, Any]:
    """The options of a solver's line of so many points; usual: at the paper's step."""
    return {**style(*STYLES[name], filled=usual), "markevery": marked(points)}
