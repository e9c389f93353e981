"""Which solvers does the paper compare, and how does each integrate du/dt = G(t, u) + J u?"""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint
from torchdiffeq import odeint, odeint_adjoint

from pyg_sinode import ExplicitTermError, NonFiniteStateError, imex_odeint
from pyg_sinode.operators import LinearOperator, LinearSolveError, ScaledIdentity
from pyg_sinode.solvers import GMRES, Newton, NewtonError
from pyg_sinode.terms import Nonlinear

sys.path.append(str(Path(__file__).parents[1]))
from grid_learning import RightHandSide

KEPT = 400  # evaluations in an integration, beyond which each is made again for its gradient


class DivergedError(RuntimeError):
    """A state, a loss or a gradient that is not finite, or an iteration that does not converge."""


class TimeLimitError(RuntimeError):
    """An integration that was stopped because it takes too long."""


FAILURES = (DivergedError, TimeLimitError, NonFiniteStateError, ExplicitTermError, LinearSolveError,
            NewtonError, AssertionError)  # torchdiffeq asserts that a step does not underflow


@dataclass(frozen=True)
class Equation:
    """du/dt = G(t, u, *args) + J u.

    Attributes:
        explicit: The G.
        implicit: The J. For the continuous adjoint its tensors are constant, or made from
            parameters of G.
        args: Further arguments of G.
        dim: The dimensions that G and J mix, from the end; None: all.
    """

    explicit: nn.Module
    implicit: LinearOperator
    args: tuple[Any, ...] = ()
    dim: int | None = None


class Work:
    """Counts what integrations do, their backward passes included, and stops what takes too long.

    Args:
        limit: Seconds from now after which an evaluation of the right-hand side is refused.
        kept: Evaluations in each integration that keep their graphs; later ones are made again
            for their gradients, to save memory, and are not counted twice.
    """

    def __init__(self, limit: float = math.inf, kept: float = KEPT) -> None:
        self.limit, self.end, self.kept = limit, time.perf_counter() + limit, kept
        self.evaluations = self.vjps = 0
        self.parts: list[Any] = []  # the statistics of solvers that keep them

    def totals(self) -> dict[str, int]:
        """Evaluations of G with its derivatives' products, products of J, set-ups, iterations."""
        total = {"evaluations": self.evaluations, "jvps": 0, "vjps": self.vjps,
                 "products": self.evaluations + self.vjps, "factorizations": 0, "iterations": 0}
        for part in self.parts:
            # Crank-Nicolson's evaluations and derivatives are those of G + J u.
            of_sum = {"evaluations": part.implicit_evaluations, "jvps": part.implicit_jvps,
                      "vjps": part.implicit_vjps}
            found = {"evaluations": part.explicit_evaluations + of_sum["evaluations"],
                     "jvps": of_sum["jvps"], "vjps": part.explicit_vjps + of_sum["vjps"],
                     "factorizations": part.factorizations, "iterations": part.linear_iterations}
            found["products"] = sum(of_sum.values()) or (
                part.operator_products + part.linear_iterations)
            total = {key: total[key] + found[key] for key in total}
        return total

    def check_time(self) -> None:
        if time.perf_counter() > self.end:
            raise TimeLimitError(f"longer than {self.limit:.3g} s")


@dataclass(frozen=True)
class System:
    """A solver as the tables name it.

    Attributes:
        name: In tables and options.
        kind: "explicit", "adaptive", "implicit" or "imex": whose step size the paper uses.
        run: Integrates: (equation, u0, t, step_size, work) -> the states at the times t.
    """

    name: str
    kind: str
    run: Callable[[Equation, Tensor, Tensor, float, Work], Tensor]

    def integrate(self, equation: Equation, u0: Tensor, t: Tensor, step_size: float,
                  work: Work | None = None) -> Tensor:
        """The states at the times t, (T, *u0.shape); one of FAILURES where there are none.

        Each interval of t is divided into equal steps of at most step_size, whatever the solver;
        adaptive ones choose their own.
        """
        with warnings.catch_warnings():
            # torchdiffeq only warns of a step that it has not solved.
            warnings.filterwarnings("error", message="Functional iteration did not converge")
            try:
                states = self.run(equation, u0, t, step_size, work or Work())
            except UserWarning as error:
                raise DivergedError(str(error)) from error
        if not bool(states.isfinite().all()):
            raise DivergedError("the state is not finite")
        return states


def diffeq(method: str, options: dict[str, Any], equation: Equation, u0: Tensor, t: Tensor,
           step_size: float, work: Work) -> Tensor:
    """torchdiffeq, differentiated through its equal steps."""
    times, rhs = grid(t, step_size), right_hand_side(equation, work, work.kept, watched=True)
    return odeint(rhs, u0, t, method=method, rtol=1e-5, atol=1e-5,
                  options={"grid_constructor": lambda f, y, t: times, **options})


def dopri5(adjoint: bool, rtol: float, equation: Equation, u0: Tensor, t: Tensor,
           step_size: float, work: Work) -> Tensor:
    """torchdiffeq's adaptive solver, differentiated through its steps or by the adjoint ODE."""
    rhs = right_hand_side(equation, work, math.inf if adjoint else work.kept)
    options = {"method": "dopri5", "rtol": rtol, "atol": 1e-2 * rtol}
    if not adjoint:
        return odeint(rhs, u0, t, **options)
    tensors = [*equation.explicit.parameters(), *equation.args,
               *(a for a in equation.implicit.tensors if a.is_leaf)]
    wanted = tuple(a for a in tensors if isinstance(a, Tensor) and a.requires_grad)
    return odeint_adjoint(rhs, u0, t, adjoint_params=wanted, **options)


def crank_nicolson(equation: Equation, u0: Tensor, t: Tensor, step_size: float, work: Work
                   ) -> Tensor:
    """Newton-Krylov on whole states, or on each column of a grid's batch."""
    # Newton's method cannot see a residual below the rounding of h/2 J u, which grows with J.
    eps = torch.finfo(u0.dtype).eps
    rounding = 16 * eps * (1 + step_size / 2 * norm_of(equation.implicit, u0))
    if rounding > 0.01:
        # A residual of that size is there before the first iteration: nothing would be solved.
        raise DivergedError(f"the rounding of h/2 J u in {u0.dtype} hides the residual: "
                            f"{rounding:.2g} of the state")
    rtol = max(1e-5 if u0.dtype == torch.float32 else 1e-10, rounding)
    restart = 30 if equation.dim is None else u0.size(equation.dim)
    states, stats = imex_odeint(
        None, sum_of(equation, work, Newton(rtol=rtol, solver=GMRES(restart=restart))), u0, t,
        method="crank_nicolson", step_size=step_size, return_stats=True)
    work.parts.append(stats)
    return states


def sum_of(equation: Equation, work: Work, newton: Newton) -> Nonlinear:
    """G + J u as one implicit term."""
    whole = RightHandSide(Watched(equation.explicit, work))
    return Nonlinear(whole, equation.implicit, *equation.args, dims=equation.dim, newton=newton)


def imex(method: str, equation: Equation, u0: Tensor, t: Tensor, step_size: float, work: Work
         ) -> Tensor:
    states, stats = imex_odeint(equation.explicit, equation.implicit, u0, t, method=method,
                                step_size=step_size, args=equation.args, return_stats=True)
    work.parts.append(stats)
    return states


def adams(method: str, order: int = 4) -> Callable[..., Tensor]:
    """torchdiffeq's Adams methods; order 12, its default, is unstable at the paper's steps."""
    return partial(diffeq, method, {"max_order": order, "max_iters": 100}
                   if method == "implicit_adams" else {"max_order": order})


SYSTEMS = {system.name: system for system in (
    System("rk4", "explicit", partial(diffeq, "rk4", {})),
    System("dopri5", "adaptive", partial(dopri5, False, 1e-4)),
    System("dopri5_adjoint", "adaptive", partial(dopri5, True, 1e-4)),
    System("explicit_adams", "explicit", adams("explicit_adams")),
    System("implicit_adams", "implicit", adams("implicit_adams")),
    System("crank_nicolson", "implicit", crank_nicolson),
    System("imex_rk2", "imex", partial(imex, "imex_rk2")),
    System("imex_rk3", "imex", partial(imex, "imex_rk3")),
    System("imex_rk4", "imex", partial(imex, "imex_rk4")),
    System("imex_rk5", "imex", partial(imex, "imex_rk5")),
)}


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


def right_hand_side(equation: Equation, work: Work, kept: float, watched: bool = False
                    ) -> Callable[..., Tensor]:
    """G + J u, counted, of which the first evaluations keep their graphs for the gradient.

    A state that is not finite is soon noticed when watched; adaptive steps may recover from it.
    """
    made = 0

    def rhs(t: Tensor, u: Tensor) -> Tensor:
        return equation.explicit(t, u, *equation.args) + equation.implicit.mv(u)

    def count_vjp(_: Tensor) -> None:
        work.check_time()
        work.vjps += 1

    def counted(t: Tensor, u: Tensor) -> Tensor:
        nonlocal made
        work.check_time()
        made, work.evaluations = made + 1, work.evaluations + 1
        if watched and made % 32 == 0 and not bool(u.isfinite().all()):
            raise DivergedError(f"the state is not finite at t = {float(t):.3g}")
        if made > kept and torch.is_grad_enabled():
            f = checkpoint(rhs, t, u, use_reentrant=False, preserve_rng_state=False)
        else:
            f = rhs(t, u)
        if f.requires_grad:
            f.register_hook(count_vjp)
        return f

    return counted


def grid(t: Tensor, step_size: float) -> Tensor:
    """The ends of the equal steps that pyg_sinode takes over the times t."""
    ends = [float(t[0])]
    imex_odeint(None, ScaledIdentity(0.0), t.new_zeros(1), t, step_size=step_size,
                callback=lambda end, _: ends.append(end))
    return torch.tensor(ends, dtype=t.dtype)


def count_evaluations(system: System, t: Tensor, step_size: float) -> int:
    """The evaluations of one integration by a solver with equal steps, made for u' = -u."""
    work = Work()
    zero = Equation(Zero(), ScaledIdentity(-1.0))
    with torch.no_grad():
        system.integrate(zero, torch.ones(1, 1, dtype=torch.float64), t, step_size, work)
    return work.totals()["evaluations"]


class Zero(nn.Module):
    """G = 0."""

    def forward(self, t: Tensor, u: Tensor) -> Tensor:
        return torch.zeros_like(u)


def norm_of(operator: LinearOperator, u: Tensor, rounds: int = 20) -> float:
    """The spectral radius of J, about, by power iteration on one random column."""
    with torch.no_grad():
        v = torch.randn(u.shape, generator=torch.Generator().manual_seed(0), dtype=u.dtype)
        for _ in range(rounds):
            size = float(v.norm())
            v = operator.mv(v / size) if size > 0 else v
    return float(v.norm())


def reason(error: BaseException) -> str:
    """What went wrong, in a line."""
    words = " ".join(str(error).split()).split(". ")[0][:160].rstrip(".")
    kind = "" if isinstance(error, (DivergedError, TimeLimitError)) else f"{type(error).__name__}: "
    return kind + words
