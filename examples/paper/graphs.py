"""Which networks on graphs does the paper train, on which data, by whichever solver?"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import node_classification as nc
import torch
from measuring import Work
from systems import Equation, System
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.utils import remove_self_loops, to_undirected

from pyg_sinode.models import SINODE

DENSE = 50_000_000  # numbers in a feature matrix beyond which only those that are not 0 are kept


@dataclass(frozen=True)
class GraphProblem:
    """A data set of the paper's Table 1.

    Attributes:
        name: As node_classification.py has it.
        raw: Where its files lie in a folder of PyG's data sets.
        sizes: Nodes, directed edges, features, classes, and features of a node that are not 0.
        evaluations: In an epoch by the paper's Table 1, by the name of the system.
        accuracy: GRAND's published ones in %: mean and standard deviation over random splits.
    """

    name: str
    raw: str
    sizes: tuple[int, int, int, int, int]
    evaluations: dict[str, int]
    accuracy: tuple[float, float]

    @property
    def settings(self) -> nc.Preset:
        return nc.SETTINGS[self.name]


# Counts: Table 1 of https://arxiv.org/abs/2412.11301. Accuracies: GRAND-nl, Table 1 of
# https://arxiv.org/abs/2106.10934.
PROBLEMS = {problem.name: problem for problem in (
    GraphProblem("Cora", "planetoid/Cora/raw", (2708, 10556, 1433, 7, 18), {
        "rk4": 43908, "explicit_adams": 10995, "implicit_adams": 1852, "crank_nicolson": 611,
        "imex_rk2": 114, "imex_rk3": 228, "imex_rk4": 342, "imex_rk5": 456}, (82.3, 1.6)),
    GraphProblem("CoauthorCS", "coauthor/CS/raw", (18333, 163788, 6805, 15, 60), {
        "rk4": 7512, "explicit_adams": 1896, "implicit_adams": 73, "crank_nicolson": 174,
        "imex_rk2": 24, "imex_rk3": 48, "imex_rk4": 72, "imex_rk5": 96}, (92.4, 0.3)),
    GraphProblem("Photo", "amazon/Photo/raw", (7650, 238162, 745, 8, 259), {
        "rk4": 8572, "explicit_adams": 2169, "implicit_adams": 62, "crank_nicolson": 447,
        "imex_rk2": 24, "imex_rk3": 48, "imex_rk4": 72, "imex_rk5": 96}, (92.4, 0.8)),
)}


def load(problem: GraphProblem, root: Path | None, cache: Path) -> tuple[Data, str]:
    """The graph, and whether it is the data set or a stand-in of the same size.

    Args:
        problem: Which.
        root: Folder with planetoid/, coauthor/ and amazon/; it is only read.
        cache: Folder to which raw files are copied, since PyG writes beside them.
    """
    source = None if root is None else root / problem.raw
    if source is None or not source.is_dir():
        return stochastic_block_model(*problem.sizes), "stochastic block model"
    target = cache / problem.raw
    if not target.exists():
        target.mkdir(parents=True)
        for path in source.iterdir():
            shutil.copyfile(path, target / path.name)
    return nc.load_data(problem.name, str(cache / Path(problem.raw).parts[0])), "data set"


def stochastic_block_model(nodes: int, edges: int, features: int, classes: int, words: int,
                           homophily: float = 0.8, seed: int = 0) -> Data:
    """A random graph whose nodes share a class with most neighbours, and words with their class."""
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=generator)

    y = torch.randperm(nodes, generator=generator) % classes
    by_class = y.argsort()
    first = torch.searchsorted(y[by_class], torch.arange(classes))
    source, target = draw(nodes, edges // 2), draw(nodes, edges // 2)
    own = y[source]
    count = y.bincount(minlength=classes)[own]
    alike = by_class[first[own] + draw(1 << 40, edges // 2) % count]
    same = torch.rand(edges // 2, generator=generator) < homophily
    edge_index, _ = remove_self_loops(torch.stack([source, torch.where(same, alike, target)]))
    topics = draw(features, classes, max(features // 10, 1))
    word = draw(features, nodes, words)
    special = topics[y].gather(1, draw(topics.size(1), nodes, words))
    word = torch.where(torch.rand(nodes, words, generator=generator) < 0.3, special, word)
    x = torch.zeros(nodes, features).scatter_(1, word, 1.0)
    return Data(x=x, y=y, edge_index=to_undirected(edge_index, num_nodes=nodes))


def with_split(problem: GraphProblem, data: Data, seed: int) -> Data:
    """The largest component with GRAND's random split; large features as a sparse matrix."""
    data = nc.with_split(data, problem.name, seed, "random")
    return nc.sparse_features(data) if data.x.numel() > DENSE else data


class GraphODE(nn.Module):
    """The network :class:`~pyg_sinode.models.SINODE`, integrated by any of the systems.

    J is the decay -alpha I, and G the rest of alpha (A(u) u - u) + beta u_0.

    Args:
        net: Its encoder, right-hand side and decoder are used.
        system: The solver.
        step_size: Its step; the steps are equal.
        time: The terminal time; None: that of the network.
    """

    def __init__(self, net: SINODE, system: System, step_size: float,
                 time: float | None = None) -> None:
        super().__init__()
        self.net, self.system, self.step_size = net, system, step_size
        self.time, self.work = time or net.conv.time, Work()
        self.forward_work: dict[str, int] = {}  # what the last forward pass added up to

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """The class scores of each node."""
        u0 = self.net.encode(x)
        equation = self.equation(u0, edge_index)
        t = torch.tensor([0.0, self.time], dtype=torch.float64)
        u = self.system.integrate(equation, u0, t, self.step_size, self.work)[-1]
        self.forward_work = self.work.totals()
        return self.net.decode(u)

    def equation(self, u0: Tensor, edge_index: Tensor) -> Equation:
        """The right-hand side from an initial state."""
        G, J, _, args = self.net.conv.equation(u0, edge_index)
        return Equation(G, J, args)


def make_network(problem: GraphProblem, data: Data, seed: int, implicit: str = "decay",
                 step_size: float = 1.0) -> SINODE:
    """The network with the settings of its data set, the same for the same seed."""
    words = ["--dataset", problem.name, "--implicit", implicit, "--step-size", str(step_size)]
    torch.manual_seed(seed)
    return nc.make_model(nc.parse_arguments(words), problem.settings, data)
