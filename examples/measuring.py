"""How is the work of a solver counted, limited, timed and written down, and when has it failed?

Shared by the measurements in benchmarks/ and paper/, and by grid_learning.py.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import itertools
import json
import math
import platform
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from pyg_sinode import ExplicitTermError, NonFiniteStateError
from pyg_sinode.operators import LinearSolveError
from pyg_sinode.solvers import NewtonError

KEPT = 400  # evaluations in an integration, beyond which each is made again for its gradient
PACKAGES = ("torch", "torch_geometric", "torchdiffeq", "scipy", "numpy")


# What counts as a failure


class DivergedError(RuntimeError):
    """A state, a loss or a gradient that is not finite, or an iteration that does not converge."""


class TimeLimitError(RuntimeError):
    """An integration that was stopped because it takes too long."""


FAILURES = (DivergedError, TimeLimitError, NonFiniteStateError, ExplicitTermError, LinearSolveError,
            NewtonError, AssertionError)  # torchdiffeq asserts that a step does not underflow
# SciPy and torchdiffeq have no errors of their own: whatever they raise in an integration.
FOREIGN_FAILURES = (*FAILURES, RuntimeError, ValueError, ArithmeticError, UserWarning)


def reason(error: BaseException) -> str:
    """What went wrong, in a line."""
    words = " ".join(str(error).split()).split(". ")[0][:160].rstrip(".")
    kind = "" if isinstance(error, (DivergedError, TimeLimitError)) else f"{type(error).__name__}: "
    return kind + words


# Counting and time limits


class Work:
    """Counts what integrations do, their backward passes included, and stops what takes too long.

    Args:
        limit: Seconds from now after which an evaluation of the right-hand side is refused.
        kept: How many evaluations of an integration shall keep their graphs for the gradient.

    Attributes:
        evaluations: Of counted right-hand sides.
        vjps: Their vector-Jacobian products.
        t: The time of the last evaluation.
        parts: The statistics of solvers that count for themselves; they may fill up later.
    """

    def __init__(self, limit: float = math.inf, kept: float = KEPT) -> None:
        self.limit, self.end, self.kept = limit, time.perf_counter() + limit, kept
        self.evaluations = self.vjps = 0
        self.t = 0.0
        self.parts: list[Any] = []

    def counted(self, rhs: Callable[[Any, Any], Any], *, kept: float = math.inf,
                watched: bool = False) -> Callable[[Any, Any], Any]:
        """The same right-hand side, counted; of tensors or of arrays.

        Args:
            rhs: Called with the time and the state.
            kept: Evaluations that keep their graphs; later ones are made again for their
                gradients, to save memory, and are not counted twice.
            watched: Whether a state that is not finite is soon noticed. Adaptive steps may recover
                from one.
        """
        made = 0

        def counted(t: Any, u: Any) -> Any:
            nonlocal made
            made, self.evaluations, self.t = made + 1, self.evaluations + 1, t
            self.check_time()
            if watched and made % 32 == 0 and not bool(u.isfinite().all()):
                raise DivergedError(f"the state is not finite at t = {float(t):.3g}")
            if made > kept and torch.is_grad_enabled():
                f = checkpoint(rhs, t, u, use_reentrant=False, preserve_rng_state=False)
            else:
                f = rhs(t, u)
            if isinstance(f, Tensor) and f.requires_grad:
                f.register_hook(self._count_vjp)
            return f

        return counted

    def _count_vjp(self, _: Tensor) -> None:
        self.check_time()
        self.vjps += 1

    def check_time(self) -> None:
        """Refuses to go on after the limit."""
        if time.perf_counter() > self.end:
            raise TimeLimitError(f"longer than {self.limit:.3g} s")

    def totals(self) -> dict[str, int]:
        """The sums so far: evaluations of G, products with its derivatives, what J took."""
        total = {"evaluations": self.evaluations, "jvps": 0, "vjps": self.vjps,
                 "products": self.evaluations + self.vjps, "factorizations": 0, "solves": 0,
                 "iterations": 0}
        for part in self.parts:
            # Crank-Nicolson's evaluations and derivatives are those of G + J u.
            of_sum = {"evaluations": part.implicit_evaluations, "jvps": part.implicit_jvps,
                      "vjps": part.implicit_vjps}
            found = {"evaluations": part.explicit_evaluations + of_sum["evaluations"],
                     "jvps": of_sum["jvps"], "vjps": part.explicit_vjps + of_sum["vjps"],
                     "factorizations": part.factorizations, "solves": part.linear_solves,
                     "iterations": part.linear_iterations}
            found["products"] = sum(of_sum.values()) or (
                part.operator_products + part.linear_iterations)
            total = {key: total[key] + found[key] for key in total}
        return total


class Watched(nn.Module):
    """G, which refuses to go on, in derivatives of any order, when the time is over."""

    def __init__(self, explicit: nn.Module, work: Work) -> None:
        super().__init__()
        self.explicit, self.work = explicit, work

    def forward(self, t: Tensor, u: Tensor, *args: Any) -> Tensor:
        return _Watch.apply(self.explicit(t, u, *args), self.work)


class _Watch(Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, work: Work) -> Tensor:
        work.check_time()
        ctx.work = work
        return u.view_as(u)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _Watch.apply(grads[0], ctx.work), None


# Time and memory


def cpu_seconds(job: Callable[[], Any]) -> tuple[float, Any]:
    """The processor's time of a job, and its result."""
    start = time.process_time()
    result = job()
    return time.process_time() - start, result


def clock() -> float:
    """Seconds on the clock, read when an accelerator in use has done what it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


@dataclass(frozen=True)
class Timings:
    """What interleaved jobs took.

    Attributes:
        seconds: Of each job, one for each round that counts.
        results: What each job gave last.
    """

    seconds: dict[str, list[float]]
    results: dict[str, Any]

    def median(self, name: str) -> float:
        """The median of a job's seconds."""
        return statistics.median(self.seconds[name])

    def best(self, name: str) -> float:
        """The least of a job's seconds."""
        return min(self.seconds[name])

    def ratio(self, name: str, *others: str) -> float:
        """A job's seconds over those of other jobs together: the median of the rounds' ratios."""
        below = (sum(line) for line in zip(*(self.seconds[o] for o in others), strict=True))
        return statistics.median(a / b for a, b in zip(self.seconds[name], below, strict=True))


def interleaved(jobs: dict[str, Callable[[], Any]], repeats: int, description: str = "rounds",
                uncounted: int = 1) -> Timings:
    """Runs every job once in each round, so that what else the machine does falls on all alike.

    Args:
        jobs: By name.
        repeats: Rounds that count.
        description: Of the progress bar.
        uncounted: Rounds before them, in which caches fill.
    """
    timings = Timings({name: [] for name in jobs}, {})
    for number in tqdm(range(repeats + uncounted), desc=description, leave=False, disable=None):
        for name, job in jobs.items():
            start = clock()
            timings.results[name] = job()
            if number >= uncounted:
                timings.seconds[name].append(clock() - start)
    return timings


def peak_memory(job: Callable[[], Any]) -> float:
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
    try:
        job()
    finally:
        done.set()
        thread.join()
    return max(0, peak - before) / 2**20


def peak_of_tensors(job: Callable[[], Any]) -> int:
    """The most bytes of tensors of the CPU that a job makes and holds at once.

    The resident set is larger: freed memory of up to some megabytes stays with the process, in
    pieces that later tensors may not fit into.
    """
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[cpu], profile_memory=True) as profile:
        job()
    found = profile.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in found if e.name() == "[memory]")
    return max(itertools.accumulate((change for _, change in changes), initial=0))


def resident() -> int:
    """The resident set in bytes, from Linux' own account."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def forget_peak() -> None:
    """The largest resident set of this process counts from now on, where Linux lets it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def largest_resident() -> int:
    """The largest resident set of this process in bytes; unlike getrusage's not its parent's."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines()
               if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


# Records and tables


class Record:
    """A file of JSON lines, of which the first says on what they were measured.

    A file that is there already is kept beside it, as NAME.before.jsonl.
    """

    def __init__(self, path: Path, args: argparse.Namespace) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        if path.exists():  # the measurements of before are not lost where these fail
            path.replace(path.with_suffix(f".before{path.suffix}"))
        path.write_text(json.dumps({"environment": environment(args)}) + "\n")

    def add(self, **values: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(values, default=plain) + "\n")


def finished(path: Path, args: argparse.Namespace, free: set[str]) -> list[dict[str, Any]]:
    """The lines of a record of before; none where versions, machine or settings are others.

    Args:
        path: Of the record.
        args: The settings now.
        free: Those that may differ, besides the folders.
    """
    if not path.exists():
        return []
    first, *lines = map(json.loads, path.read_text().splitlines())
    free = {"out", "root", "restart", *free}

    def comparable(found: dict[str, Any]) -> dict[str, Any]:
        return found | {"settings": {k: v for k, v in found["settings"].items() if k not in free}}

    now = json.loads(json.dumps(environment(args)))
    return lines if comparable(first["environment"]) == comparable(now) else []


def environment(args: argparse.Namespace) -> dict[str, Any]:
    """The machine, the versions, the threads and the settings."""
    return {"machine": platform.machine(), "system": platform.system(), "processor": processor(),
            "python": platform.python_version(), "threads": torch.get_num_threads(),
            **{name: version(name) for name in PACKAGES},
            "settings": {k: plain(v) for k, v in vars(args).items()}}


def version(package: str) -> str | None:
    """Of an installed package; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """The number and the name of the processor's cores."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


def plain(value: Any) -> Any:
    """A value as JSON has it."""
    return value if isinstance(value, (int, float, str, list, tuple, type(None))) else str(value)


def markdown(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    return "\n".join(map(markdown_row, [header, ["---"] * len(header), *rows]))


def markdown_row(cells: Sequence[Any]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(map(str, cells)) + " |"


def print_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Prints a Markdown table, each row as soon as it is there."""
    print(markdown(header, []), flush=True)
    for row in rows:
        print(markdown_row(row), flush=True)


def number(value: float | None, digits: int = 3) -> str:
    """A number for people, a dash where there is none."""
    if value is None or math.isnan(value):
        return "-"
    if abs(value) < 1e7 and (value == int(value) or abs(value) >= 10**digits - 0.5):
        return f"{value:.0f}"
    return f"{value:.{digits}g}"


def write(path: Path, text: str) -> None:
    """Prints a text and keeps it in a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")
    print(f"{text}\n\n{path}", flush=True)
