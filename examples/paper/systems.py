"""Which solvers does the paper compare, and how does each integrate du/dt = G(t, u) + J u?"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from grid_learning import RightHandSide
from measuring import DivergedError, Watched, Work
from torch import Tensor, nn
from torchdiffeq import odeint, odeint_adjoint

from pyg_sinode import imex_odeint
from pyg_sinode.operators import LinearOperator, ScaledIdentity
from pyg_sinode.solvers import GMRES, Newton
from pyg_sinode.terms import Nonlinear


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


def right_hand_side(equation: Equation, work: Work, kept: float, watched: bool = False
                    ) -> Callable[..., Tensor]:
    """G + J u, counted, of which the first evaluations keep their graphs for the gradient.

    A state that is not finite is soon noticed when watched; adaptive steps may recover from it.
    """
    def rhs(t: Tensor, u: Tensor) -> Tensor:
        return equation.explicit(t, u, *equation.args) + equation.implicit.mv(u)

    return work.counted(rhs, kept=kept, watched=watched)


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
