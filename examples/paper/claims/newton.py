"""At which steps does Crank-Nicolson solve Kuramoto-Sivashinsky, and how long does it take?"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from grid_learning import GridMLP
from measuring import FAILURES, Work, interleaved, markdown, number, reason
from systems import Equation, sum_of
from torch import Tensor, nn

from claims.finding import Finding, Verdict
from pyg_sinode import imex_odeint
from pyg_sinode.grid import PeriodicGrid, kuramoto_sivashinsky
from pyg_sinode.solvers import GMRES, Newton

INTERVAL = 0.2  # between two states of the data, so of one batch
BATCHES, BATCH = 15, 256  # of an epoch
STEPS = (0.2, 0.02)
USUAL = 30  # iterations between restarts, the default of PETSc and others
RATIO = 1000.0  # of the times of an epoch; more than an hour over less than a second is 3600


def newton(args: argparse.Namespace) -> Finding:
    """Which steps does Newton-GMRES solve, and what would an epoch of them take?"""
    records = [of_crank_nicolson(args, step, restart, dtype) for dtype in ("float32", "float64")
               for step in STEPS for restart in (USUAL, args.points)]
    records += [of_imex(args, dtype) for dtype in ("float32", "float64")]
    rows = [[r["solver"], r["dtype"], r["step"], r["restart"] or "-", r["states"],
             r["failure"] or "works", number(r["seconds"]), number(r["iterations"]),
             epoch_text(r)] for r in records]
    header = ["solver", "dtype", "step", "restart", "states", "result", "s a step", "iterations",
              "s an epoch"]
    table = (f"Kuramoto-Sivashinsky by finite differences on {args.points} points, G a perceptron "
             f"at its first weights, one step forward and backward. An epoch is {BATCHES} batches "
             f"of {BATCH} states over {INTERVAL}; about: taken from one step of fewer states, "
             "so more states take longer still, for all of them iterate until the last is solved."
             f"\n\n{markdown(header, rows)}")
    return Finding("on 512 points Crank-Nicolson fails at a step of 0.2; at 0.02 it works and "
                   "takes more than an hour an epoch, where IMEX takes less than a second",
                   judge_newton(records), [table], records)


def judge_newton(records: list[dict[str, Any]]) -> Verdict:
    """With the usual restart all large steps must fail, and a small one take RATIO times as long.

    What longer restarts do is told.
    """
    cn = [r for r in records if r["solver"] == "crank_nicolson"]
    large, small = ([r for r in cn if (r["step"], r["restart"]) == (step, USUAL)]
                    for step in STEPS)
    failed = sum(r["failure"] is not None for r in large)
    working = [r["epoch"] for r in small if r["failure"] is None]
    imex = min(r["epoch"] for r in records if r["solver"] != "crank_nicolson")
    holds = failed == len(large) and bool(working) and min(working) >= RATIO * imex
    slow = f", about {number(min(working))} s an epoch of the fastest" if working else ""
    longer = [r for r in cn if r["restart"] != USUAL and r["failure"] is None]
    others = "".join(f"; at {r['step']} a restart of {r['restart']} works in {r['dtype']}, about "
                     f"{number(r['epoch'])} s an epoch" for r in longer)
    return Verdict(holds, f"with GMRES restarted every {USUAL} iterations {failed} of {len(large)} "
                          f"fail at {STEPS[0]} and {len(working)} of {len(small)} work at "
                          f"{STEPS[1]}{slow}; an epoch of imex_rk2 takes {number(imex)} s (asked "
                          f"for: {RATIO:g} times the time){others}")


def of_crank_nicolson(args: argparse.Namespace, step: float, restart: int, dtype: str
                      ) -> dict[str, Any]:
    """One step, forward and backward, stopped after args.limit seconds."""
    term, J, u0 = make_problem(args, args.newton_states, dtype)
    newton = Newton(rtol=1e-5, solver=GMRES(restart=restart))
    whole = sum_of(Equation(term, J, dim=-1), Work(args.limit), newton)
    record = {"solver": "crank_nicolson", "dtype": dtype, "step": step, "restart": restart,
              "states": len(u0), "seconds": None, "iterations": None, "epoch": None,
              "failure": None}
    t, start = torch.tensor([0.0, step], dtype=torch.float64), time.perf_counter()
    try:
        states, stats = imex_odeint(None, whole, u0, t, method="crank_nicolson", step_size=step,
                                    return_stats=True)
        states[-1].square().mean().backward()
    except FAILURES as error:
        return {**record, "failure": detail(error)}
    seconds = time.perf_counter() - start
    return {**record, "seconds": seconds, "iterations": stats.linear_iterations,
            "epoch": seconds * BATCHES * round(INTERVAL / step)}


def of_imex(args: argparse.Namespace, dtype: str) -> dict[str, Any]:
    """A whole batch in one step of imex_rk2."""
    term, J, u0 = make_problem(args, args.imex_states, dtype)
    t = torch.tensor([0.0, INTERVAL], dtype=torch.float64)

    def job() -> None:
        imex_odeint(term, J, u0, t, method="imex_rk2", step_size=INTERVAL)[-1].square().mean(
            ).backward()

    seconds = interleaved({"imex_rk2": job}, args.repeats).median("imex_rk2")
    return {"solver": "imex_rk2", "dtype": dtype, "step": INTERVAL, "restart": None,
            "states": len(u0), "seconds": seconds, "iterations": 0, "epoch": seconds * BATCHES,
            "failure": None}


def make_problem(args: argparse.Namespace, states: int, dtype: str
                 ) -> tuple[nn.Module, Any, Tensor]:
    torch.manual_seed(args.seed)
    _, J, initial = kuramoto_sivashinsky(PeriodicGrid(args.points, 22.0),
                                         discretization="finite_difference")
    u0 = initial(states, torch.Generator().manual_seed(args.seed)).to(getattr(torch, dtype))
    return GridMLP(args.points, args.points + args.points // 8).to(u0.dtype), J, u0


def detail(error: BaseException) -> str:
    """Why it failed: of Newton's error, what its linear solve says."""
    inner = str(error).partition("a linear solve failed: ")[2]
    return inner.split(";")[0] if inner else reason(error)


def epoch_text(record: dict[str, Any]) -> str:
    about = "about " if record["solver"] == "crank_nicolson" or record["states"] < BATCH else ""
    return "-" if record["epoch"] is None else about + number(record["epoch"])
