"""How does the memory of a gradient grow with the solver's iterations, and with the steps?"""

from __future__ import annotations

import argparse
import weakref
from collections.abc import Callable
from typing import Any

import torch
from measuring import markdown, number
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchdiffeq import odeint

from claims.finding import Finding, Verdict
from pyg_sinode import imex_odeint
from pyg_sinode.grid import PeriodicGrid, viscous_burgers
from pyg_sinode.operators import LinearOperator
from pyg_sinode.solvers import CG, GMRES

TOLERANCES = {"loose": 1e-1, "tight": 1e-10}
SAME = 1.25  # a ratio of memories up to which they count as equal
STEP = 0.1  # of imex_euler, at which a solve takes several iterations


class TensorMemory(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, while they live.

    Unlike the memory of the process it is the same in every run and on every machine; what an
    operation needs within itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive, self.peak = 0, 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.alive += size
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.alive -= size


class Reaction(nn.Module):
    """A bounded G with one parameter for each point."""

    def __init__(self, points: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.1, 1.0, points, dtype=torch.float64))

    def forward(self, t: Tensor, u: Tensor) -> Tensor:
        return torch.tanh(self.weight * u)


def iterations(args: argparse.Namespace) -> Finding:
    """Does the memory grow with the iterations of a solve?"""
    records = [of_iterations(args, name, rtol) for name in ("GMRES", "CG") for rtol in TOLERANCES]
    records += [of_iterations(args, "CG, autograd through it", r["rtol"], round(r["iterations"]))
                for r in records if r["solver"] == "CG"]
    rows = [[r["solver"], r["rtol"], f"{r['iterations']:.1f}", f"{r['kept']:.2f}",
             f"{r['peak']:.2f}"] for r in records]
    header = ["solver", "tolerance", "iterations a solve", "kept for the gradient, MiB",
              "peak, MiB"]
    table = (f"{args.memory_steps[0]} steps of imex_euler, tanh as G and diffusion as J, "
             f"{args.columns} states of {args.points} points in float64 "
             f"({mib(8 * args.columns * args.points):.2f} MiB); a GMRES holds the basis of up to "
             f"30 iterations (its restart) during a solve.\n\n{markdown(header, rows)}")
    return Finding("the memory of a gradient does not grow with the iterations of the solver",
                   judge_iterations(records), [table], records)


def judge_iterations(records: list[dict[str, Any]]) -> Verdict:
    """What is kept must not grow, with GMRES or CG; the peak is told."""
    growth = {key: {name: ratio(records, "solver", name, key)
                    for name in dict.fromkeys(r["solver"] for r in records)}
              for key in ("iterations", "kept", "peak")}
    words = "; ".join(f"{name}: {growth['iterations'][name]:.1f} times the iterations, "
                      f"{x:.2f} times the memory kept, {growth['peak'][name]:.2f} times the peak"
                      for name, x in growth["kept"].items())
    return Verdict(all(growth["kept"][name] <= SAME for name in ("GMRES", "CG")), words)


def steps(args: argparse.Namespace) -> Finding:
    """Does the memory grow with the number of steps?"""
    kinds = {"all stages kept": of_steps(None), "10 checkpoints": of_steps(10),
             "autograd through the steps": of_steps(None, "backprop"),
             "torchdiffeq rk4, through its steps": explicit_steps}
    records = []
    for name, integrate in kinds.items():
        for count in args.memory_steps:
            kept, peak, _ = measure(args, count, integrate)
            records.append({"gradient": name, "steps": count, "kept": kept, "peak": peak})
    rows = [[name, *(number(r["peak"]) for r in records if r["gradient"] == name)]
            for name in kinds]
    header = ["gradient", *(f"{count} steps" for count in args.memory_steps)]
    table = (f"imex_rk2, tanh as G and diffusion as J by FFT, {args.columns} states of "
             f"{args.points} points in float64 ({mib(8 * args.columns * args.points):.2f} MiB); "
             f"peak in MiB:\n\n{markdown(header, rows)}")
    return Finding("the memory of a gradient does not grow with the number of steps",
                   judge_steps(records), [table], records)


def judge_steps(records: list[dict[str, Any]]) -> Verdict:
    """Whether it holds by itself; and whether it does with a budget of checkpoints."""
    growth = {name: ratio(records, "gradient", name, "peak")
              for name in ("all stages kept", "10 checkpoints")}
    least, most = (f(r["steps"] for r in records) for f in (min, max))
    full, budget = growth.values()
    with_budget = "holds" if budget <= SAME else "does not hold either"
    return Verdict(full <= SAME,
                   f"from {least} to {most} steps the peak grows {full:.2f} times; with 10 "
                   f"checkpoints it {with_budget}: {budget:.2f} times")


def ratio(records: list[dict[str, Any]], key: str, name: str, value: str) -> float:
    """The last of the values over the first, of the records of one name."""
    values = [r[value] for r in records if r[key] == name]
    return values[-1] / values[0]


def of_iterations(args: argparse.Namespace, name: str, rtol: str, count: int = 0) -> dict[str, Any]:
    """One row: a solver of the package, or autograd through as many iterations of another."""
    solver = {"GMRES": GMRES(TOLERANCES[rtol]), "CG": CG(TOLERANCES[rtol])}.get(name)

    def integrate(term: nn.Module, J: LinearOperator, u0: Tensor, n: int) -> tuple[Tensor, float]:
        if solver is None:
            return through_iterations(term, J, u0, n, STEP, count), count
        states, stats = imex_odeint(term, J, u0, torch.tensor([0.0, STEP * n]), step_size=STEP,
                                    method="imex_euler", solver=solver, return_stats=True)
        return states[-1], stats.linear_iterations / stats.linear_solves

    kept, peak, per_solve = measure(args, args.memory_steps[0], integrate)
    return {"solver": name, "rtol": rtol, "iterations": per_solve, "kept": kept, "peak": peak}


def measure(args: argparse.Namespace, steps: int, integrate: Callable[..., Any]
            ) -> tuple[float, float, float]:
    """MiB that the forward pass leaves alive, MiB at the peak, and what else was found."""
    _, J, _ = viscous_burgers(PeriodicGrid(args.points, 1.0), 8e-4,
                              discretization="finite_difference")
    term = Reaction(args.points)
    u0 = torch.randn(args.columns, args.points, dtype=torch.float64,
                     generator=torch.Generator().manual_seed(args.seed))
    integrate(term, J, u0, 1)  # what an operator keeps from its first product belongs to no step
    with TensorMemory() as memory:
        u, found = integrate(term, J, u0, steps)
        kept = memory.alive
        u.square().sum().backward()
    return mib(kept), mib(memory.peak), found


def through_iterations(term: nn.Module, J: LinearOperator, u: Tensor, steps: int, h: float,
                       iterations: int) -> Tensor:
    """imex_euler by conjugate gradients, as operations that autograd records."""
    for _ in range(steps):
        r = b = u + h * term(torch.tensor(0.0), u)
        p, x, rr = r, torch.zeros_like(b), r.square().sum(-1, keepdim=True)
        for _ in range(iterations):
            w = p - h * J.mv(p)
            a = rr / (p * w).sum(-1, keepdim=True)
            x, r = x + a * p, r - a * w
            new = r.square().sum(-1, keepdim=True)
            p, rr = r + new / rr * p, new
        u = x
    return u


def of_steps(checkpoints: int | None, gradient: str = "discrete") -> Callable[..., Any]:
    """The integration by imex_rk2 whose memory is measured."""
    def integrate(term: nn.Module, J: LinearOperator, u0: Tensor, n: int) -> tuple[Tensor, int]:
        states = imex_odeint(term, J, u0, torch.tensor([0.0, 1e-3 * n], dtype=torch.float64),
                             step_size=1e-3, method="imex_rk2", checkpoints=checkpoints,
                             gradient=gradient)
        return states[-1], n

    return integrate


def explicit_steps(term: nn.Module, J: LinearOperator, u0: Tensor, n: int) -> tuple[Tensor, int]:
    """As many steps of RK4, at a step where it is stable."""
    t = torch.tensor([0.0, 1e-3 * n], dtype=torch.float64)
    states = odeint(lambda t, u: term(t, u) + J.mv(u), u0, t, method="rk4",
                    options={"step_size": 1e-3})
    return states[-1], n


def mib(size: int) -> float:
    return size / 2**20
