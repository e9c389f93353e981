"""Which accuracy on Cora is left when the same equation is integrated in fewer and fewer steps?

Trains GRAND's network with the three choices of J, and with torchdiffeq's RK4, at each number of
equal steps; writes cora_steps.json beside this file, for the figures that show it. About an hour on
one thread, seconds with ``--epochs 2 --seeds 0 --steps 3``:

    python docs/figures/cora_steps.py --root data/planetoid
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.datasets import Planetoid
from torchdiffeq import odeint
from tqdm import tqdm

from pyg_sinode import SINODE, LinearSolveError, NonFiniteStateError
from pyg_sinode.presets import GRAND

SYSTEMS = ("decay", "laplacian", "attention", "rk4")


class RK4(torch.nn.Module):
    """The same network and the same equation, all of it integrated by torchdiffeq's RK4."""

    def __init__(self, net: SINODE, time: float, steps: int) -> None:
        super().__init__()
        self.net, self.time, self.steps = net, time, steps

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        net = self.net
        G, J, u0, args = net.conv.equation(net.encode(x), edge_index)
        t = torch.linspace(0, self.time, self.steps + 1)
        u = odeint(lambda t, u: G(t, u, *args) + J.mv(u), u0, t, method="rk4")[-1]
        return net.decode(u)


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(1)
    data = Planetoid(args.root, "Cora")[0]
    results = []
    jobs = [(s, n, seed) for seed in args.seeds for n in args.steps for s in args.systems]
    for system, steps, seed in tqdm(jobs, disable=None):
        results.append({"system": system, "steps": steps, "seed": seed,
                        "step_size": GRAND["Cora"].time / steps,
                        **train(data, system, steps, seed, args.epochs)})
        args.out.write_text(json.dumps(results, indent=1) + "\n")
        print(results[-1], flush=True)


def make_model(system: str, steps: int, data: Data) -> torch.nn.Module:
    """GRAND's network for Cora, its layer in that many steps."""
    time = GRAND["Cora"].time
    implicit = "decay" if system == "rk4" else system
    net = SINODE.grand("Cora", data.num_features, int(data.y.max()) + 1, implicit=implicit,
                       method="ssp222", step_size=time / steps * (1 + 1e-6))
    return RK4(net, time, steps) if system == "rk4" else net


def train(data: Data, system: str, steps: int, seed: int, epochs: int) -> dict:
    """Test accuracy in % at the best validation accuracy; None and the epoch where it failed."""
    torch.manual_seed(seed)
    model, preset = make_model(system, steps, data), GRAND["Cora"]
    optimizer = torch.optim.Adamax(model.parameters(), lr=preset.lr,
                                   weight_decay=preset.weight_decay)
    best, test, start = -1.0, 0.0, time.perf_counter()
    for epoch in range(epochs):
        try:
            model.train()
            optimizer.zero_grad()
            out = model(data.x, data.edge_index)
            loss = F.cross_entropy(out[data.train_mask], data.y[data.train_mask])
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                model.eval()
                out = model(data.x, data.edge_index)
        except (NonFiniteStateError, LinearSolveError):
            return {"test": None, "failed": epoch + 1}
        if not bool(out.isfinite().all() & loss.isfinite()):
            return {"test": None, "failed": epoch + 1}
        right = (out.argmax(dim=-1) == data.y).float()
        if float(right[data.val_mask].mean()) > best:
            best = float(right[data.val_mask].mean())
            test = 100 * float(right[data.test_mask].mean())
    return {"test": test, "seconds": time.perf_counter() - start}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Accuracy on Cora against the number of equal steps.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--root", default="data/planetoid", help="where PyG keeps, or puts, Planetoid")
    add("--steps", type=int, nargs="+", default=[19, 10, 7, 5, 4, 3, 2], help="equal steps")
    add("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS), help="what integrates")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of weights and dropout")
    add("--epochs", type=int, default=100, help="of each training")
    add("--out", type=Path, default=Path(__file__).with_suffix(".json"), help="the results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
