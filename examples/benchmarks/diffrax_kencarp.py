"""How does diffrax's KenCarp4 integrate a stiff problem, with G explicit and J u implicit?

It is compared if `pip install diffrax` has been done. JAX computes in float64 on one thread, and
compiles before the clock starts.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from measuring import Work
from stiff_methods import Outcome
from stiff_problems import Problem

MAX_STEPS = 2**16
# A step takes dense LUs of the points' size, and a run cannot be stopped: with at most so many
# points**3 times steps it ends after about a minute.
MOST_WORK = 4e10


def is_installed() -> bool:
    """Whether diffrax can be imported."""
    return importlib.util.find_spec("diffrax") is not None


def kencarp4(problem: Problem, tolerance: float, work: Work) -> Callable[[], Outcome]:
    """A run in adaptive steps, whose evaluations are not counted."""
    solve, most = _compiled(problem), _most_steps(problem)
    solve(tolerance)

    def job() -> Outcome:
        state, steps, rejected, success = solve(tolerance)
        if not success:
            raise RuntimeError(f"diffrax did not get to the end in {most} steps")
        return Outcome(np.asarray(state), {"steps_accepted": int(steps),
                                           "steps_rejected": int(rejected)})

    return job


def _most_steps(problem: Problem) -> int:
    return min(MAX_STEPS, int(MOST_WORK / len(problem.u0) ** 3))


@functools.lru_cache(maxsize=1)
def _compiled(problem: Problem) -> Callable[[float], tuple[Any, ...]]:
    """The integration as a compiled function of the tolerance."""
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false "
                          "intra_op_parallelism_threads=1")
    import diffrax
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    n, symbol = len(problem.u0), jnp.asarray(problem.implicit.symbol(problem.u0).numpy())
    u0 = jnp.asarray(problem.u0.numpy())
    terms = diffrax.MultiTerm(
        diffrax.ODETerm(lambda t, u, args: problem.array_explicit(u, jnp)),
        diffrax.ODETerm(lambda t, u, args: jnp.fft.irfft(symbol * jnp.fft.rfft(u), n)))

    @jax.jit
    def solve(tolerance: Any) -> tuple[Any, ...]:
        found = diffrax.diffeqsolve(
            terms, diffrax.KenCarp4(), 0.0, problem.time, None, u0,
            stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
            saveat=diffrax.SaveAt(t1=True), max_steps=_most_steps(problem),
            throw=False)
        stats = found.stats
        return (found.ys[0], stats["num_accepted_steps"], stats["num_rejected_steps"],
                found.result == diffrax.RESULTS.successful)

    return lambda tolerance: jax.block_until_ready(solve(tolerance))
