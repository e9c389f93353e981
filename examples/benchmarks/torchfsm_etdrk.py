"""How long does a step of TorchFSM's ETDRK4 take, over one of etdrk4 of this package?

It is compared if `pip install torchfsm` has been done. Both are given the same equation in Fourier
space, the same states and the same step, with the options they have by default, and have to end
in the same state.
"""

from __future__ import annotations

import importlib.util
import math
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from measuring import cpu_seconds
from torch import Tensor

from pyg_sinode import imex_odeint
from pyg_sinode.grid import Equation, PeriodicGrid, kuramoto_sivashinsky, navier_stokes

VISCOSITY = 0.01


class Case(NamedTuple):
    """An equation on a grid, the number of states, and the steps to make."""

    name: str
    shape: tuple[int, ...]
    states: int
    steps: int
    step_size: float


CASES = (Case("Kuramoto-Sivashinsky", (64,), 1, 200, 0.1),
         Case("Kuramoto-Sivashinsky", (512,), 1, 200, 0.1),
         Case("Kuramoto-Sivashinsky", (64,), 256, 20, 0.1),
         Case("Kuramoto-Sivashinsky", (512,), 256, 5, 0.1),
         Case("Navier-Stokes", (128, 128), 1, 10, 0.01))


def is_installed() -> bool:
    """Whether TorchFSM can be imported."""
    return importlib.util.find_spec("torchfsm") is not None


def compare(case: Case, seed: int, repeats: int) -> dict[str, Any]:
    """The milliseconds of a step of both and their median ratio, by alternating runs."""
    equation, length = make_equation(case)
    u = equation.initial(case.states, torch.Generator().manual_seed(seed))
    t = torch.tensor([0.0, case.steps * case.step_size], dtype=torch.float64)
    theirs = stepper(case, length)

    def ours() -> Tensor:
        return imex_odeint(equation.explicit, equation.implicit, u, t, method="etdrk4",
                           step_size=case.step_size)[-1]

    pairs, difference = [], 0.0
    for _ in range(repeats):
        (other, found), (own, expected) = cpu_seconds(lambda: theirs(u)), cpu_seconds(ours)
        pairs.append((other / case.steps, own / case.steps))
        difference = max(difference, float((found - expected).abs().max() / expected.abs().max()))
    if not difference < 1e-8:
        raise RuntimeError(f"Expected the same state of both (got a difference of {difference}).")
    return {"name": case.name, "shape": case.shape, "states": case.states,
            "theirs": 1e3 * min(p[0] for p in pairs), "ours": 1e3 * min(p[1] for p in pairs),
            "ratio": statistics.median(a / b for a, b in pairs), "difference": difference}


def make_equation(case: Case) -> tuple[Equation, float]:
    """The equation of a case, and the length of the sides of its grid."""
    if case.name == "Navier-Stokes":
        length = 2 * math.pi
        return navier_stokes(PeriodicGrid(case.shape, (length, length)), VISCOSITY), length
    return kuramoto_sivashinsky(PeriodicGrid(case.shape, 22.0)), 22.0


def stepper(case: Case, length: float) -> Callable[[Tensor], Tensor]:
    """TorchFSM's integration of states, from the first one to the last."""
    from torchfsm.integrator import SETDRKIntegrator
    from torchfsm.pde import KuramotoSivashinsky, NavierStokesVorticity

    equation = (NavierStokesVorticity(1.0 / VISCOSITY) if case.name == "Navier-Stokes"
                else KuramotoSivashinsky())
    equation.register_mesh([(0.0, length, n) for n in case.shape], 1, device="cpu",
                           dtype=torch.float64)
    equation.set_integrator(SETDRKIntegrator.SETDRK4)

    def run(u: Tensor) -> Tensor:
        found: Tensor = equation.integrate(u.unsqueeze(1), dt=case.step_size, step=case.steps)
        return found.squeeze(1)

    return run
