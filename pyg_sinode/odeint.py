"""How is an initial value problem given, and what is wrong with it if something is?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, Literal, Protocol, overload

import torch
from torch import Tensor

from .adjoint import ExplicitTerm, Problem, backpropagate, discrete_adjoint, integrate
from .operators import LinearOperator, Shifted
from .operators.checks import check_real
from .solvers import default
from .stepper import Setups, Stats, plan
from .tableau import IMEXTableau, get_scheme


class LinearSolver(Protocol):
    """Turns an operator into the operator of its inverse."""

    def invert(self, operator: LinearOperator) -> LinearOperator:
        """The inverse of an operator."""
        ...


@overload
def imex_odeint(
    explicit: Callable[..., Tensor] | None, implicit: LinearOperator | None, u0: Tensor, t: Tensor,
    *, method: str | IMEXTableau = ..., step_size: float, solver: LinearSolver | None = ...,
    args: tuple[Any, ...] = ..., gradient: str = ..., return_stats: Literal[False] = ...,
) -> Tensor: ...


@overload
def imex_odeint(
    explicit: Callable[..., Tensor] | None, implicit: LinearOperator | None, u0: Tensor, t: Tensor,
    *, method: str | IMEXTableau = ..., step_size: float, solver: LinearSolver | None = ...,
    args: tuple[Any, ...] = ..., gradient: str = ..., return_stats: Literal[True],
) -> tuple[Tensor, Stats]: ...


def imex_odeint(
    explicit: Callable[..., Tensor] | None, implicit: LinearOperator | None, u0: Tensor, t: Tensor,
    *, method: str | IMEXTableau = "ark324l2sa", step_size: float,
    solver: LinearSolver | None = None, args: tuple[Any, ...] = (), gradient: str = "discrete",
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, Stats]:
    r"""Integrates a semi-implicit ordinary differential equation by an IMEX Runge-Kutta scheme.

    .. math::
        \frac{du}{dt} = G(t, u) + J u, \quad u(t_0) = u_0

    from the `"Semi-Implicit Neural Ordinary Differential Equations"
    <https://arxiv.org/abs/2412.11301>`_ paper: G is evaluated explicitly, and each implicit stage
    is one linear solve with :math:`I - h \tilde{A}_{ii} J`. Stiffness belongs in J; a stiff forcing
    left in G destroys the accuracy of any scheme.

    Args:
        explicit (callable or torch.nn.Module, optional): The term G, called as
            ``explicit(t, u, *args)`` with t a 0-dim tensor; None for a linear equation.
        implicit (LinearOperator, optional): The operator J; None for an explicit integration.
        u0 (Tensor): The initial state.
        t (Tensor): The output times, strictly monotone; the first is where :obj:`u0` holds.
        method (str or IMEXTableau): A scheme's name, an alias, or a scheme of your own.
            (default: :obj:`"ark324l2sa"`)
        step_size (float): The largest step; steps are equal between output times and land on them.
        solver (optional): A linear solver such as :class:`pyg_sinode.solvers.CG`. If None, the
            closed form where J has one, CG where it is known to be symmetric and I - cJ positive
            definite, else GMRES. (default: :obj:`None`)
        args (tuple): Further arguments of G; tensors among them receive gradients.
        gradient (str): :obj:`"discrete"`, the adjoint of the scheme, exact to rounding and to the
            solver's tolerance, at the memory of the stages; or :obj:`"backprop"`, autograd through
            the steps, which allows second derivatives. (default: :obj:`"discrete"`)
        return_stats (bool): Whether to return the statistics too. (default: :obj:`False`)

    Shapes:
        - **u0:** any shape :math:`(*)`, real floating
        - **t:** :math:`(T)`, in units of time
        - **output:** :math:`(T, *)`, and :class:`Stats` if :obj:`return_stats`

    Raises:
        ValueError, TypeError: before any work, if an argument does not fit.
        NonFiniteStateError: if the state stops being finite, with the time and the step.
        LinearSolveError: if a linear solve fails, with time, step, iterations and residual.
    """
    check_real(u0, "u0")
    if not bool(u0.detach().isfinite().all()):
        raise ValueError("Expected a finite u0 (got NaN or Inf); look where it was computed.")
    times = _read_times(t)
    intervals = plan(times, _checked_step(step_size), torch.finfo(t.dtype).eps)
    if gradient not in ("discrete", "backprop"):
        raise ValueError(f'Expected gradient="discrete" or "backprop" (got {gradient!r}).')
    scheme, stats = get_scheme(method), Stats()
    term = _checked_term(explicit, args)
    invert, setups = _inverter(solver), None
    if implicit is not None:
        _check_implicit(implicit, u0)
        setups = Setups(implicit, invert, solver, stats)
    problem = Problem(scheme, term, implicit, setups, intervals, stats)
    result = _run(problem, u0, gradient)
    return (result, stats) if return_stats else result


def _run(problem: Problem, u0: Tensor, gradient: str) -> Tensor:
    tensors = [u0]
    tensors += [] if problem.term is None else problem.term.tensors
    tensors += [] if problem.implicit is None else problem.implicit.tensors
    if gradient == "backprop":
        return backpropagate(problem, u0)
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return discrete_adjoint(problem, u0)
    return integrate(problem, u0)


def _read_times(t: Any) -> list[float]:
    check_real(t, "t")
    if t.requires_grad:
        raise ValueError("Expected t without requires_grad (got one that requires a gradient): no "
                         "gradient reaches the times; pass t.detach(), or scale G and J instead.")
    if t.dim() != 1 or t.numel() == 0:
        raise ValueError(f"Expected t as a 1-D tensor of at least one time (got shape "
                         f"{tuple(t.shape)}).")
    times: list[float] = t.tolist()
    if not all(map(math.isfinite, times)):
        raise ValueError(f"Expected finite times in t (got {times}).")
    rises = [b - a for a, b in itertools.pairwise(times)]
    if not (all(r > 0 for r in rises) or all(r < 0 for r in rises)):
        raise ValueError("Expected t strictly increasing or strictly decreasing (got "
                         f"{times[:8]}{'...' if len(times) > 8 else ''}); sort it and drop "
                         "repetitions.")
    return times


def _checked_step(step_size: Any) -> float:
    if isinstance(step_size, bool) or not isinstance(step_size, (int, float)):
        raise TypeError(f"Expected step_size as a number (got {type(step_size).__name__}).")
    if not (math.isfinite(step_size) and step_size > 0):
        raise ValueError(f"Expected a positive, finite step_size (got {step_size}); the direction "
                         "of time is that of t.")
    return float(step_size)


def _checked_term(explicit: Any, args: Any) -> ExplicitTerm | None:
    if not isinstance(args, tuple):
        raise TypeError(f"Expected args as a tuple (got {type(args).__name__}); write args=(x,).")
    if explicit is None:
        if args:
            raise ValueError(f"Expected no args without an explicit term (got {len(args)}).")
        return None
    if not callable(explicit):
        raise TypeError("Expected the explicit term as a function or module of (t, u, *args) (got "
                        f"{type(explicit).__name__}).")
    return ExplicitTerm(explicit, args)


def _check_implicit(implicit: Any, u0: Tensor) -> None:
    if not isinstance(implicit, LinearOperator):
        raise TypeError("Expected the implicit part as a pyg_sinode.operators.LinearOperator (got "
                        f"{type(implicit).__name__}); wrap a matrix with operators.Dense, a linear "
                        "function with operators.MatrixFree.")
    implicit.check(u0)


def _inverter(solver: LinearSolver | None) -> Callable[[Shifted], LinearOperator]:
    if solver is None:
        return lambda shifted: default(shifted.operator, shifted.c).invert(shifted)
    if isinstance(solver, type) or not hasattr(solver, "invert"):
        raise TypeError("Expected a linear solver such as pyg_sinode.solvers.CG() (got "
                        f"{solver!r}).")
    return solver.invert
