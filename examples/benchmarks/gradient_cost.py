"""What does a gradient cost beside the bare evaluations that it needs, and in what memory?"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from grid_learning import GridMLP
from measuring import Timings, interleaved, peak_memory, print_table
from torch import Tensor

from pyg_sinode import SINODEConv, imex_odeint
from pyg_sinode.grid import PeriodicGrid, kuramoto_sivashinsky

GRADIENTS = {
    "discrete": {"gradient": "discrete", "graph_memory": 2**30},
    "graph_memory=0": {"gradient": "discrete", "graph_memory": 0},
    "backprop": {"gradient": "backprop", "graph_memory": 0},
}


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    header = ["problem", "evaluations", "bare, ms", "forward"]
    print_table([*header, *(cell for name in GRADIENTS for cell in (name, "MiB"))],
                (row(name, args) for name in args.problems))


def row(name: str, args: argparse.Namespace) -> list[object]:
    """A problem's row of the table."""
    torch.manual_seed(0)
    problem = problems(args.method)[name]()
    memory = {kind: peak_memory(partial(problem.run, **options))
              for kind, options in GRADIENTS.items()}
    timings = measure(problem, args.repeats)
    return [name, len(problem.states), f"{1e3 * timings.median('bare'):.2f}",
            f"{timings.ratio('forward', 'bare'):.2f}",
            *(cell for kind in GRADIENTS
              for cell in (f"{timings.ratio(kind, 'bare'):.2f}", f"{memory[kind]:.0f}"))]


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
                      normalizer="squareplus", time=float(steps), method="ssp222", source=True,
                      attention="scaled_dot")
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


def flow(points: int, width: int, batch: int, steps: int, method: str) -> Problem:
    """The Kuramoto-Sivashinsky equation with a perceptron as its nonlinear term."""
    J = kuramoto_sivashinsky(PeriodicGrid(points, 22.0)).implicit
    net, u0 = GridMLP(points, width), torch.randn(batch, points, requires_grad=True)
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


def measure(problem: Problem, repeats: int) -> Timings:
    """The bare evaluations, the integration alone, and the kinds of gradients, interleaved."""
    jobs: dict[str, Callable[[], None]] = {"bare": problem.bare, "forward": problem.forward}
    jobs |= {name: partial(problem.run, **options) for name, options in GRADIENTS.items()}
    return interleaved(jobs, repeats)
