"""What does a solve with I - cJ on a graph take, beside SciPy's solvers looped over the columns?"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
import torch
from measuring import clock, interleaved, print_table
from torch import Tensor
from torch_geometric.utils import add_remaining_self_loops

from pyg_sinode import solvers
from pyg_sinode.operators import Graph, ScaledIdentity, Shifted

GRAPHS = {"small": (300, 1_200), "cora": (2_708, 10_556), "arxiv": (169_343, 2_332_486)}
RTOL = {torch.float32: 1e-5, torch.float64: 1e-10}


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    if args.poisson:
        print_table(["nodes", "solver", "iterations", "seconds"],
                    poisson(args.poisson, args.device))
        return
    torch.zeros(8_000_000)  # its release teaches the allocator to keep memory, as a data set does
    print_table(["graph", "matrix", "dtype", "columns", "solver", "iterations", "ms", "SciPy, ms",
                 "SciPy over it", "products: SciPy over PyTorch"],
                (row for name in args.graphs for kind in ("symmetric", "stochastic")
                 for dtype in RTOL for columns in args.columns
                 for row in measure(name, kind, dtype, columns, args)))


def measure(name: str, kind: str, dtype: torch.dtype, columns: int, args: argparse.Namespace
            ) -> Iterator[list[object]]:
    """The rows of a graph, one for each solver."""
    torch.manual_seed(0)
    nodes, edges = GRAPHS[name]
    graph = random_graph(nodes, edges, kind, dtype, args.device)
    system = Shifted(graph + ScaledIdentity(-1.0), args.c)
    b = torch.randn(nodes, columns, dtype=dtype).to(args.device)
    matrix = as_scipy(graph, nodes, args.c)
    each = [np.ascontiguousarray(x) for x in b.cpu().numpy().T]
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
    timings = interleaved(jobs, args.repeats, f"{name}, {kind}, {columns} columns")
    theirs = torch.from_numpy(np.stack(timings.results["SciPy"], axis=1)).to(b)
    check(system, b, theirs, RTOL[dtype])
    products = timings.ratio("SciPy's products", "products")
    for label in ours:
        iterations = int(timings.results[label].iterations.max())
        yield [name, kind, str(dtype)[6:], columns, label, iterations,
               f"{1e3 * timings.median(label):.2f}", f"{1e3 * timings.median('SciPy'):.1f}",
               f"{timings.ratio('SciPy', label):.2f}", f"{products:.2f}"]


def random_graph(nodes: int, edges: int, kind: str, dtype: torch.dtype, device: str) -> Graph:
    half = torch.randint(0, nodes, (2, edges // 2))
    edge_index, _ = add_remaining_self_loops(torch.cat([half, half.flip(0)], dim=1),
                                             num_nodes=nodes)
    weight = torch.ones(edge_index.size(1), dtype=dtype)
    if kind == "stochastic":
        weight = torch.randn_like(weight).exp()
    degree = torch.zeros(nodes, dtype=dtype).index_add(0, edge_index[1], weight)
    if kind == "stochastic":
        weight = weight / degree[edge_index[1]]
        return Graph(edge_index.to(device), weight.to(device), nodes, radius=1.0)
    weight = weight * (degree[edge_index[0]] * degree[edge_index[1]]).rsqrt()
    return Graph(edge_index.to(device), weight.to(device), nodes, largest=1.0, radius=1.0)


def as_scipy(graph: Graph, nodes: int, c: float) -> scipy.sparse.csr_matrix:
    """The matrix (1 + c) I - c A in SciPy's CSR form."""
    entries = graph.to_coo(-2, nodes)
    assert entries is not None
    row, col, value = (t.cpu().numpy() for t in (entries.row, entries.col, entries.value))
    adjacency = scipy.sparse.coo_matrix((value, (row, col)), shape=(nodes, nodes))
    matrix = (1.0 + c) * scipy.sparse.identity(nodes) - c * adjacency
    return matrix.tocsr().astype(value.dtype)


def check(system: Shifted, b: Tensor, x: Tensor, rtol: float) -> None:
    residual = torch.linalg.vector_norm(b - system.mv(x), dim=0) / torch.linalg.vector_norm(b,
                                                                                           dim=0)
    if float(residual.max()) > 2.0 * rtol:
        print(f"SciPy's residual is {float(residual.max()):.1e}")


def poisson(sizes: list[int], device: str) -> Iterator[list[object]]:
    """The rows of square grids of about so many nodes, one for each preconditioner."""
    for size in sizes:
        side = math.isqrt(size)
        edge_index, weight = (t.to(device) for t in grid_laplacian(side))
        system = Shifted(Graph(edge_index, weight, side * side, largest=0.0), 1e4)
        b = torch.randn(side * side, 4, dtype=torch.float64).to(device)
        for label, solver in preconditioned().items():
            start = clock()
            iterations = int(solver.invert(system).solve(b).iterations.max())
            yield [side * side, label, iterations, f"{clock() - start:.2f}"]


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
