"""What does a solve with I - cJ on a graph take, beside SciPy's solvers looped over the columns?

J = A_hat - I, normalised symmetrically, or row-stochastic with random weights. SciPy gets the same
matrix in CSR form and dtype, the same right-hand sides one by one, and the same tolerance of the
true residual, which is checked. The bare products are those of the same CSR matrix: with all
columns at once in PyTorch, one by one in SciPy. One interleaved run.

    python examples/benchmarks/graph_solves.py
    python examples/benchmarks/graph_solves.py --graphs arxiv --repeats 3
    python examples/benchmarks/graph_solves.py --poisson 10000 100000 1000000

With --poisson, iterations of CG on I - cJ with the Laplacian J of square grids of so many nodes and
a step far above the stiffness, where they grow with the size.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
import torch
from torch import Tensor
from torch_geometric.utils import add_remaining_self_loops
from tqdm import tqdm

from pyg_sinode import solvers
from pyg_sinode.operators import Graph, ScaledIdentity, Shifted

GRAPHS = {"small": (300, 1_200), "cora": (2_708, 10_556), "arxiv": (169_343, 2_332_486)}
RTOL = {torch.float32: 1e-5, torch.float64: 1e-10}


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    if args.poisson:
        poisson(args.poisson)
        return
    torch.zeros(8_000_000)  # its release teaches the allocator to keep memory, as a data set does
    print("| graph | matrix | dtype | columns | solver | iterations | ms | SciPy, ms | SciPy over "
          "it | products: SciPy over PyTorch |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name in args.graphs:
        for kind in ("symmetric", "stochastic"):
            for dtype in RTOL:
                for columns in args.columns:
                    measure(name, kind, dtype, columns, args)


def measure(name: str, kind: str, dtype: torch.dtype, columns: int, args: argparse.Namespace
            ) -> None:
    torch.manual_seed(0)
    nodes, edges = GRAPHS[name]
    graph = random_graph(nodes, edges, kind, dtype)
    system = Shifted(graph + ScaledIdentity(-1.0), args.c)
    b = torch.randn(nodes, columns, dtype=dtype)
    matrix = as_scipy(graph, nodes, args.c)
    each = [np.ascontiguousarray(x) for x in b.numpy().T]
    ours = {"Chebyshev": solvers.Chebyshev(rtol=RTOL[dtype]), "GMRES": solvers.GMRES(
        rtol=RTOL[dtype])}
    if kind == "symmetric":
        ours["CG"] = solvers.CG(rtol=RTOL[dtype])
        reference = scipy.sparse.linalg.cg
    else:
        reference = scipy.sparse.linalg.gmres
    options = {"rtol": RTOL[dtype], "atol": 0.0}
    if reference is scipy.sparse.linalg.gmres:
        options["restart"] = 30
    jobs: dict[str, Callable[[], object]] = {
        "SciPy": lambda: [reference(matrix, x, **options)[0] for x in each],
        "SciPy's products": lambda: [matrix @ x for x in each],
        "products": lambda: graph.mv(b),
    }
    for label, solver in ours.items():
        jobs[label] = lambda solver=solver: solver.invert(system).solve(b)
    seconds = interleaved(jobs, args.repeats, f"{name}, {kind}, {columns} columns")
    check(system, b, torch.from_numpy(np.stack(jobs["SciPy"](), axis=1)), RTOL[dtype])
    products = ratio(seconds["SciPy's products"], seconds["products"])
    for label, solver in ours.items():
        iterations = int(solver.invert(system).solve(b).iterations.max())
        print(f"| {name} | {kind} | {str(dtype)[6:]} | {columns} | {label} | {iterations} | "
              f"{1e3 * statistics.median(seconds[label]):.2f} | "
              f"{1e3 * statistics.median(seconds['SciPy']):.1f} | "
              f"{ratio(seconds['SciPy'], seconds[label]):.2f} | {products:.2f} |", flush=True)


def random_graph(nodes: int, edges: int, kind: str, dtype: torch.dtype) -> Graph:
    half = torch.randint(0, nodes, (2, edges // 2))
    edge_index, _ = add_remaining_self_loops(torch.cat([half, half.flip(0)], dim=1),
                                             num_nodes=nodes)
    weight = torch.ones(edge_index.size(1), dtype=dtype)
    if kind == "stochastic":
        weight = torch.randn_like(weight).exp()
    degree = torch.zeros(nodes, dtype=dtype).index_add(0, edge_index[1], weight)
    if kind == "stochastic":
        return Graph(edge_index, weight / degree[edge_index[1]], nodes, radius=1.0)
    weight = weight * (degree[edge_index[0]] * degree[edge_index[1]]).rsqrt()
    return Graph(edge_index, weight, nodes, largest=1.0, radius=1.0)


def as_scipy(graph: Graph, nodes: int, c: float) -> scipy.sparse.csr_matrix:
    """The matrix (1 + c) I - c A in SciPy's CSR form."""
    entries = graph.to_coo(-2, nodes)
    assert entries is not None
    adjacency = scipy.sparse.coo_matrix(
        (entries.value.numpy(), (entries.row.numpy(), entries.col.numpy())), shape=(nodes, nodes))
    matrix = (1.0 + c) * scipy.sparse.identity(nodes) - c * adjacency
    return matrix.tocsr().astype(entries.value.numpy().dtype)


def check(system: Shifted, b: Tensor, x: Tensor, rtol: float) -> None:
    residual = torch.linalg.vector_norm(b - system.mv(x), dim=0) / torch.linalg.vector_norm(b,
                                                                                           dim=0)
    if float(residual.max()) > 2.0 * rtol:
        print(f"SciPy's residual is {float(residual.max()):.1e}")


def interleaved(jobs: dict[str, Callable[[], object]], repeats: int, what: str
                ) -> dict[str, list[float]]:
    """Seconds of each job, all of them in every round."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for job in jobs.values():
        job()
    for _ in tqdm(range(repeats), desc=what, leave=False, disable=None):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(above: list[float], below: list[float]) -> float:
    """The median over the rounds."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def poisson(sizes: list[int]) -> None:
    print("| nodes | solver | iterations | seconds |")
    print("|---|---|---|---|")
    for size in sizes:
        side = math.isqrt(size)
        edge_index, weight = grid_laplacian(side)
        system = Shifted(Graph(edge_index, weight, side * side, largest=0.0), 1e4)
        b = torch.randn(side * side, 4, dtype=torch.float64)
        for label, solver in preconditioned().items():
            start = time.perf_counter()
            iterations = int(solver.invert(system).solve(b).iterations.max())
            print(f"| {side * side} | {label} | {iterations} | {time.perf_counter() - start:.2f} |",
                  flush=True)


def preconditioned() -> dict[str, solvers.Solver]:
    return {
        "CG": solvers.CG(rtol=1e-8),
        "CG, Jacobi": solvers.CG(rtol=1e-8, preconditioner=solvers.Jacobi()),
        "CG, Multigrid": solvers.CG(rtol=1e-8, preconditioner=solvers.Multigrid()),
    }


def grid_laplacian(side: int) -> tuple[Tensor, Tensor]:
    """The five-point Laplacian with closed ends, unit spacing, as edges and weights."""
    at = torch.arange(side * side).view(side, side)
    pairs = torch.cat([torch.stack([at[1:].flatten(), at[:-1].flatten()]),
                       torch.stack([at[:, 1:].flatten(), at[:, :-1].flatten()])], dim=1)
    pairs = torch.cat([pairs, pairs.flip(0)], dim=1)
    degree = torch.zeros(side * side, dtype=torch.float64).index_add(
        0, pairs[1], torch.ones(pairs.size(1), dtype=torch.float64))
    loops = at.flatten().repeat(2, 1)
    weight = torch.cat([torch.ones(pairs.size(1), dtype=torch.float64), -degree])
    return torch.cat([pairs, loops], dim=1), weight


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Linear solves on graphs, beside SciPy's looped over the columns.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--graphs", choices=GRAPHS, nargs="+", default=["cora"], help="sizes of random graphs")
    add("--columns", type=int, nargs="+", default=[16, 128], help="numbers of right-hand sides")
    add("--c", type=float, default=5.0, help="the step size times the scheme's coefficient")
    add("--poisson", type=int, nargs="+", default=[], metavar="NODES",
        help="count the iterations on square grids of so many nodes instead")
    add("--repeats", type=int, default=9, help="rounds, each with every solver")
    add("--threads", type=int, default=1, help="threads of PyTorch")
    return parser.parse_args()


if __name__ == "__main__":
    main()
