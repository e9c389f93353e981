"""How does the memory of a backward pass grow with the steps, by what is kept for it?

    python docs/figures/memory.py

Writes memory.png beside this file, and prints the numbers. A state of 1 MiB (4096 nodes, 64
channels, float32), J = -I, G a linear map and tanh, equal steps of ark324l2sa (four stages). Each
setting runs in a process of its own, which reports by how much a forward and a backward pass raised
its peak memory. Only that process imports PyTorch: a process inherits the peak of its parent.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

SETTINGS: dict[str, tuple[dict[str, Any], str, str]] = {
    'gradient="backprop"': ({"gradient": "backprop"}, "#D55E00", "X"),
    "default (stages and graphs of G)": ({}, "#E69F00", "s"),
    "graph_memory=0 (stages)": ({"graph_memory": 0}, "#009E73", "o"),
    'graph_memory=0, checkpoints="auto"':
        ({"graph_memory": 0, "checkpoints": "auto"}, "#0072B2", "^"),
    "graph_memory=0, checkpoints=5": ({"graph_memory": 0, "checkpoints": 5}, "#000000", "v"),
}
STEPS = (10, 20, 40, 80, 160)


def measure(options: dict[str, Any], steps: int) -> float:
    """The rise of this process's peak memory, MiB."""
    import torch

    from pyg_sinode import imex_odeint, operators

    torch.set_num_threads(1)
    torch.manual_seed(0)

    class Term(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = torch.nn.Linear(64, 64)

        def forward(self, t: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
            return torch.tanh(self.lin(u))

    G, J, u0 = Term(), operators.ScaledIdentity(-1.0), torch.randn(4096, 64)

    def run(count: int, state: torch.Tensor) -> None:
        t = torch.tensor([0.0, 0.01 * count])
        imex_odeint(G, J, state, t, step_size=0.01, **options)[-1].sum().backward()

    run(2, u0[:16])  # what libraries allocate once
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(steps, u0)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> None:
    """Measures every setting in its own process, and draws the curves."""
    if len(sys.argv) > 1:
        print(json.dumps(measure(json.loads(sys.argv[1]), int(sys.argv[2]))))
        return
    found = {name: [_in_a_process(options, n) for n in STEPS]
             for name, (options, _, _) in SETTINGS.items()}
    for name, values in found.items():
        print(f"| {name} | " + " | ".join(f"{v:.0f}" for v in values) + " |")
    _plot(found)


def _in_a_process(options: dict[str, Any], steps: int) -> float:
    command = [sys.executable, __file__, json.dumps(options), str(steps)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    value: float = json.loads(done.stdout)
    return value


def _plot(found: dict[str, list[float]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
    for (name, (_, color, marker)), line in zip(SETTINGS.items(), ("-", "--", "-.", ":", "-"),
                                                strict=True):
        axes.plot(STEPS, found[name], line, color=color, marker=marker, label=name, ms=5)
    axes.set(xscale="log", yscale="log", xlabel="steps of ark324l2sa (dimensionless)",
             ylabel="rise of the peak memory (MiB)",
             title="Memory of forward and backward pass, a state of 1 MiB:\n"
                   "checkpoints stop it from growing with the steps")
    axes.set_xticks(STEPS, [str(n) for n in STEPS])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=130)


if __name__ == "__main__":
    main()
