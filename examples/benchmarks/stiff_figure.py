"""How do the errors of the stiff solvers look against their work?

The package has a line style (pyg_sinode solid where steps are adaptive, dashed where they are
equal; torchdiffeq dotted; SciPy dash-dotted), each solver a colour and a marker.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drawing import legend, save, style
from figures import plt
from stiff_problems import Problem

PACKAGES = {"pyg_sinode": "pyg_sinode", "torchdiffeq": "torchdiffeq", "scipy": "SciPy"}
# The colour, the marker and the dashes of drawing.style, and what the marker has inside.
STYLES = {
    "ark324l2sa": (5, 0, 0, None), "ark436l2sa": (0, 1, 0, None), "ark548l2sa": (2, 3, 0, None),
    "ssp222, equal steps": (1, 2, 1, "white"), "sbdf2, equal steps": (6, 4, 1, "white"),
    "ark436l2sa, equal steps": (0, 1, 1, "white"),
    "dopri5": (4, 5, 3, None), "implicit_adams, order 4": (3, 9, 3, None),
    "implicit_adams, order 12": (1, 6, 3, None),
    "BDF": (3, 7, 2, None), "Radau": (6, 8, 2, None),
}


def plot(path: Path, problem: Problem, difference: float, results: Sequence[Any]) -> None:
    """The error against evaluations, and against seconds.

    Args:
        path: Of the picture.
        problem: What was solved.
        difference: Of two references; errors below it say nothing.
        results: Of stiff_solvers.
    """
    figure, axes = plt.subplots(1, 2, figsize=(11.5, 5.2), sharey=True)
    solvers = dict.fromkeys((r.family, r.solver) for r in results)
    for family, solver in solvers:
        good = [r for r in results if r.solver == solver and r.error]
        if not good:
            continue
        for axis, work in zip(axes, ([r.evaluations for r in good],
                                     [min(r.seconds) for r in good]), strict=True):
            axis.loglog(work, [r.error for r in good], label=f"{PACKAGES[family]}: {solver}",
                        **style(*STYLES[solver]))
    for axis, label in zip(axes, ("evaluations of the right-hand side (pyg_sinode: of G)",
                                  "wall time in s"), strict=True):
        axis.axhspan(axis.get_ylim()[0] / 10, difference, color="0.9", zorder=0,
                     label="below the difference of\ntwo reference solutions")
        axis.set_xlabel(label)
    lowest = min((r.error for r in results if r.error), default=difference)
    axes[0].set_ylim(bottom=0.4 * min(lowest, difference))
    axes[0].set_ylabel(f"relative L2 error at t = {problem.time:g}")
    failed = [solver for _, solver in solvers
              if not any(r.error for r in results if r.solver == solver)]
    note = f"\nno result: {'; '.join(failed)}" if failed else ""
    size = problem.time * problem.stiffness()
    figure.suptitle(f"{problem.title}: error against work "
                    f"($T\\,|\\lambda|_{{max}}$ = {size:.0f}){note}", fontsize="medium")
    legend(figure, axes[0], "right center")
    save(figure, path)
