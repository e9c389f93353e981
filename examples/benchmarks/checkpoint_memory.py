"""How much memory and work does the gradient of a long integration take, with checkpoints?"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from measuring import print_table
from torch import Tensor
from tqdm import tqdm

from pyg_sinode import Stats, imex_odeint
from pyg_sinode.grid import PeriodicGrid, kuramoto_sivashinsky
from pyg_sinode.integrate.checkpoints import advances


def run(args: argparse.Namespace) -> None:
    if args.only is not None:
        print(json.dumps(measure(args.points, args.steps, read_checkpoints(args.only))))
        return
    rows = [in_a_process(args.points, args.steps, c)
            for c in tqdm(args.checkpoints, desc="settings", leave=False, disable=None)]
    print(f"{args.steps} steps of ark324l2sa, {args.points} points in float64, "
          f"{args.points * 8 / 1024:.0f} KiB a state")
    print_table(["checkpoints", "peak memory, MiB", "steps made again", "advances by formula",
                 "seconds"], (cells(row, args.steps) for row in rows))
    same = len({row["gradient"] for row in rows}) == 1
    print("gradients are equal to the last bit" if same else "GRADIENTS DIFFER")
    sys.exit(0 if same else 1)


def cells(row: dict[str, object], steps: int) -> list[object]:
    """A setting's row of the table."""
    kept = row["checkpoints"]
    return [kept or "all stages", f"{row['mib']:.1f}", row["recomputed"],
            advances(steps, kept) if isinstance(kept, int) else "-", f"{row['seconds']:.1f}"]


class Reaction(torch.nn.Module):
    """A bounded explicit term with one parameter for each point."""

    def __init__(self, points: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(0.1, 1.0, points, dtype=torch.float64))

    def forward(self, t: Tensor, u: Tensor) -> Tensor:
        return torch.tanh(self.weight * u)


def gradient(points: int, steps: int, checkpoints: int | str | None) -> tuple[Tensor, Stats, float]:
    """The gradient of a loss on the final state, the statistics and the seconds it took."""
    _, J, initial = kuramoto_sivashinsky(PeriodicGrid(points, 22.0))
    term = Reaction(points)
    torch.manual_seed(0)
    u0 = initial(1).double()
    start = time.perf_counter()
    u, stats = imex_odeint(
        term, J, u0, torch.tensor([0.0, 1e-3 * steps]), method="ark324l2sa", step_size=1e-3,
        checkpoints=checkpoints, graph_memory=0, return_stats=True)  # of states and stages alone
    u[-1].square().sum().backward()
    assert term.weight.grad is not None
    return term.weight.grad, stats, time.perf_counter() - start


def measure(points: int, steps: int, checkpoints: int | str | None) -> dict[str, object]:
    """What one setting takes, in this process."""
    torch.set_num_threads(1)
    gradient(points, 5, checkpoints)  # what libraries allocate once
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grad, stats, seconds = gradient(points, steps, checkpoints)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"checkpoints": checkpoints, "mib": (peak - before) / 1024, "seconds": seconds,
            "steps": stats.steps_accepted, "recomputed": stats.steps_recomputed,
            "gradient": hashlib.sha256(grad.numpy().tobytes()).hexdigest()}


def in_a_process(points: int, steps: int, checkpoints: str) -> dict[str, object]:
    """What one setting takes, in a process of its own, so that its peak is its own."""
    command = [sys.executable, str(Path(__file__).parent), "checkpoint_memory", "--points",
               str(points), "--steps", str(steps), "--only", checkpoints]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, object] = json.loads(done.stdout)
    return result


def read_checkpoints(text: str) -> int | str | None:
    """An int, "auto", or None for "all"."""
    return None if text == "all" else text if text == "auto" else int(text)
