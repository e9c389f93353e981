"""What does a gradient cost beside the bare evaluations that it needs, and in what memory?

For each problem one interleaved run of: the bare evaluations (with the states given, y = G(t, u)
with its graph, then torch.autograd.grad(y, [u, *parameters], v), for each evaluation of an
integration), and an integration with its backward pass, by gradient="discrete" with and without
kept graphs, and by gradient="backprop". Medians of the ratios of each round.

    python examples/benchmarks/gradient_cost.py
    python examples/benchmarks/gradient_cost.py --problems cora ks-64 --repeats 20
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pyg_sinode import SINODEConv, imex_odeint
from pyg_sinode.grid import PeriodicGrid, kuramoto_sivashinsky

GRADIENTS = {
    "discrete": {"gradient": "discrete", "graph_memory": 2**30},
    "graph_memory=0": {"gradient": "discrete", "graph_memory": 0},
    "backprop": {"gradient": "backprop", "graph_memory": 0},
}


@dataclass
class Problem:
    """An integration and its bare evaluations.

    Attributes:
        run: The integration and its backward pass, with options of imex_odeint.
        term: G, as it is called with a time and a state.
        states: The times and states at which it is evaluated.
        tensors: What the gradient is taken of besides the state.
        forward: The integration alone.
    """

    run: Callable[..., None]
    term: Callable[[Tensor, Tensor], Tensor]
    states: list[tuple[Tensor, Tensor]]
    tensors: list[Tensor]
    forward: Callable[[], None]

    def bare(self) -> None:
        """Every evaluation with its graph, then its vector-Jacobian product."""
        for (t, u), v in zip(self.states, self.weights, strict=True):
            u = u.detach().requires_grad_()
            torch.autograd.grad(self.term(t, u), [u, *self.tensors], v)

    def __post_init__(self) -> None:
        self.weights = [torch.randn_like(u) for _, u in self.states]


def diffusion(nodes: int, edges: int, channels: int, steps: int) -> Problem:
    """SINODEConv on a random graph with the settings of GRAND for Cora."""
    half = torch.randint(0, nodes, (2, edges // 2))
    edge_index = torch.cat([half, half.flip(0)], dim=1)
    conv = SINODEConv(channels, channels, heads=8, attention_channels=16 * 8,
                      normalizer="squareplus", time=float(steps), method="ssp222")
    x = torch.randn(nodes, channels, requires_grad=True)
    seen: list[tuple[Tensor, ...]] = []
    hook = conv.term.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    with torch.no_grad():
        conv(x, edge_index)
    hook.remove()
    rest = seen[0][2:]

    def run(**options) -> None:
        for name, value in options.items():
            setattr(conv, name, value)
        conv(x, edge_index).square().mean().backward()

    def forward() -> None:
        with torch.no_grad():
            conv(x, edge_index)

    def term(t: Tensor, u: Tensor) -> Tensor:
        return conv.term(t, u, *rest)

    states = [(inputs[0], inputs[1].detach().clone()) for inputs in seen]
    return Problem(run, term, states, [x, *conv.term.parameters()], forward)


class Perceptron(nn.Module):
    """G by a perceptron of the whole state, of four hidden layers."""

    def __init__(self, points: int, width: int) -> None:
        super().__init__()
        widths = [points, width, width, width, width]
        layers = [layer for a, b in itertools.pairwise(widths)
                  for layer in (nn.Linear(a, b), nn.ReLU())]
        self.net = nn.Sequential(*layers, nn.Linear(width, points))
        with torch.no_grad():
            self.net[-1].weight.mul_(0.1)

    def forward(self, t: Tensor, u: Tensor) -> Tensor:
        return self.net(u)


def flow(points: int, width: int, batch: int, steps: int, method: str) -> Problem:
    """The Kuramoto-Sivashinsky equation with a perceptron as its nonlinear term."""
    J = kuramoto_sivashinsky(PeriodicGrid(points, 22.0)).implicit
    net, u0 = Perceptron(points, width), torch.randn(batch, points, requires_grad=True)
    t = torch.linspace(0.0, 0.2 * steps, steps + 1)
    seen: list[tuple[Tensor, ...]] = []
    hook = net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))

    def forward() -> None:
        with torch.no_grad():
            imex_odeint(net, J, u0, t, method=method, step_size=0.2)

    forward()
    hook.remove()

    def run(**options) -> None:
        u = imex_odeint(net, J, u0, t, method=method, step_size=0.2, **options)
        u[1:].square().mean().backward()

    states = [(inputs[0], inputs[1].detach().clone()) for inputs in seen]
    return Problem(run, net, states, list(net.parameters()), forward)


def problems(method: str) -> dict[str, Callable[[], Problem]]:
    return {
        "cora": lambda: diffusion(2708, 10556, 80, 19),
        "ks-512": lambda: flow(512, 576, 256, 10, method),
        "ks-64": lambda: flow(64, 200, 256, 10, method),
        "ks-64, one step": lambda: flow(64, 200, 256, 1, method),
        "ks-64, batch 25": lambda: flow(64, 200, 25, 10, method),
        "ks-64, batch 25, one step": lambda: flow(64, 200, 25, 1, method),
        "ten nodes": lambda: diffusion(10, 30, 16, 1),
    }


def measure(problem: Problem, repeats: int) -> dict[str, list[float]]:
    """Seconds of each job, all of them in every round, so that noise falls on all alike."""
    jobs: dict[str, Callable[[], None]] = {"bare": problem.bare, "forward": problem.forward}
    jobs |= {name: partial(problem.run, **options) for name, options in GRADIENTS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for repeat in tqdm(range(repeats + 1), desc="rounds", leave=False, disable=None):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            if repeat > 0:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    return seconds


def peak_memory(job: Callable[[], None]) -> float:
    """The growth of the resident set during a job in MiB, seen from a second thread."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # what other jobs have freed goes back to the system
        trim(0)
    before, peak, done = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, resident())
            time.sleep(0.0005)

    thread = threading.Thread(target=watch)
    thread.start()
    job()
    done.set()
    thread.join()
    return max(0, peak - before) / 2**20


def resident() -> int:
    """The resident set in bytes, from Linux' own account."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    print("| problem | evaluations | bare, ms | forward | "
          + " | ".join(f"{name} | MiB" for name in GRADIENTS) + " |")
    print("|" + "---|" * (4 + 2 * len(GRADIENTS)))
    for name in args.problems:
        torch.manual_seed(0)
        problem = problems(args.method)[name]()
        memory = {kind: peak_memory(partial(problem.run, **options))
                  for kind, options in GRADIENTS.items()}
        seconds = measure(problem, args.repeats)
        ratio = {kind: statistics.median(a / b for a, b in zip(
            seconds[kind], seconds["bare"], strict=True)) for kind in seconds}
        print(f"| {name} | {len(problem.states)} | {1e3 * statistics.median(seconds['bare']):.2f} "
              f"| {ratio['forward']:.2f} | "
              + " | ".join(f"{ratio[kind]:.2f} | {memory[kind]:.0f}" for kind in GRADIENTS) + " |",
              flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="The cost of gradients beside the bare evaluations that they need.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    names = list(problems(""))
    add("--problems", nargs="+", choices=names, default=names, metavar="NAME",
        help="which problems: " + "; ".join(names))
    add("--method", default="imex_rk3", help="scheme of the Kuramoto-Sivashinsky equation")
    add("--threads", type=int, default=1, help="threads of PyTorch")
    add("--repeats", type=int, default=20, help="rounds, each with every job")
    return parser.parse_args()


if __name__ == "__main__":
    main()
