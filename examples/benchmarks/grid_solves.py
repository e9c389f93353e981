"""What does an implicit stage cost on a grid: FFT, cached LU, banded LU, or GMRES?"""

from __future__ import annotations

import argparse
import time

import torch
from measuring import interleaved, print_table
from torch import Tensor

from pyg_sinode.grid import PeriodicGrid, kuramoto_sivashinsky, viscous_burgers
from pyg_sinode.operators import Banded, Circulant, LinearOperator, LinearSolveError, Shifted
from pyg_sinode.solvers import GMRES, Direct
from pyg_sinode.solvers.base import Solver


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype)
    c = (0.2 if args.equation == "ks" else 0.05) * (1 - 0.5**0.5)
    print(f"{args.equation}, c = {c:.4f}, {args.batch} right-hand sides, {args.dtype}, "
          f"{args.threads} thread(s); ms of a solve (ms of the set-up)")
    row(args, 16, c, dtype)  # what is loaded at the first use belongs to no row
    print_table(["points", "FFT", "dense LU", "sparse LU", "banded LU (with ends)",
                 "GMRES (iterations)"], ([n, *row(args, n, c, dtype)] for n in args.points))


def row(args: argparse.Namespace, n: int, c: float, dtype: torch.dtype) -> list[str]:
    """The cells of a number of points."""
    operator = make_operator(args.equation, n)
    b = torch.randn(args.batch, n, dtype=dtype)
    fft, exact = measure(Direct(), operator, c, b, args.repeats)
    cells = [fft]
    for solver in (Direct(dense=True), Direct(dense=False)):
        try:
            cell, x = measure(solver, operator, c, b, args.repeats)
            check(x, exact, dtype)
        except LinearSolveError:  # float32 holds no LU of so stiff a matrix
            cell = "singular to rounding"
        cells.append(cell)
    cells.append(measure(Direct(), with_ends(operator, n, dtype), c, b, args.repeats)[0])
    cells.append(krylov(operator, c, b))
    return cells


def make_operator(equation: str, n: int) -> Circulant:
    """The linear part by central differences, on the equation's own period."""
    if equation == "ks":
        return kuramoto_sivashinsky(PeriodicGrid(n, 22.0),
                                    discretization="finite_difference").implicit
    return viscous_burgers(PeriodicGrid(n, 1.0), 8e-4, discretization="finite_difference").implicit


def with_ends(operator: Circulant, n: int, dtype: torch.dtype) -> Banded:
    """The same stencil, cut off at the ends."""
    entries = operator.to_coo(-1, n)
    stencil = entries.value[: len(entries.value) // n].to(dtype)
    reach = len(stencil) // 2
    return Banded(stencil.unsqueeze(1).repeat(1, n), range(-reach, reach + 1))


def measure(solver: Solver, operator: LinearOperator, c: float, b: Tensor,
            repeats: int) -> tuple[str, Tensor]:
    """The table's cell, and the solution."""
    start = time.perf_counter()
    inverse = solver.invert(Shifted(operator, c))
    inverse.solve(b[:1])  # some factorise at the first right-hand side
    setup = time.perf_counter() - start
    timings = interleaved({"solve": lambda: inverse.solve(b)}, repeats)
    return f"{1e3 * timings.median('solve'):.2f} ({1e3 * setup:.1f})", timings.results["solve"].x


def check(x: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    error = float((x - exact).abs().max() / exact.abs().max())
    if error > (1e-2 if dtype == torch.float32 else 1e-6):
        raise RuntimeError(f"two solvers differ by {error:.1e}")


def krylov(operator: LinearOperator, c: float, b: Tensor) -> str:
    """GMRES, without a preconditioner, as a matrix-free code would use it."""
    inverse = GMRES(max_iter=1000, restart=50).invert(Shifted(operator, c))
    start = time.perf_counter()
    try:
        solution = inverse.solve(b)
    except LinearSolveError as error:
        return f"no convergence in {error.iterations} iterations"
    assert solution.iterations is not None
    return f"{1e3 * (time.perf_counter() - start):.0f} ({int(solution.iterations.max())})"
