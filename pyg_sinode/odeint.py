"""What may be asked of an integration?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol, overload

import torch
from torch import Tensor

from .arguments import (
    check_callback,
    check_checkpoints,
    check_equal,
    check_gradient,
    check_graph_memory,
    check_scheme,
    check_solver,
    check_state,
    clock_of,
    control_of,
    explicit_term,
    implicit_term,
    positive,
    read_times,
    tensors_of,
)
from .controllers import Controller
from .growth import warn_of_growth
from .integrate.adjoint import discrete_adjoint, integrate
from .integrate.backprop import backpropagate
from .integrate.clock import steps_across_outputs, steps_to_outputs
from .integrate.implicit import Factorizations
from .integrate.integration import Integration
from .integrate.loop import Callback
from .integrate.report import Stats
from .integrate.steps import Steps
from .operators import LinearOperator
from .precision import check_full, full_precision, widened
from .schemes import Scheme, get_scheme
from .terms import Affine, Nonlinear
from .time_gradients import between, refuse_moving
from .transforms import WITHOUT_IMPLICIT, refuse_tracing, refuse_transforms, uncompiled


class LinearSolver(Protocol):
    """Turns an operator into the operator of its inverse."""

    def invert(self, operator: LinearOperator) -> LinearOperator:
        """The inverse of an operator."""
        ...


Term = Callable[..., Tensor]
Norm = Callable[[Tensor], Tensor]
Implicit = LinearOperator | Affine | Nonlinear
Method = str | Scheme
Checkpoints = int | Literal["auto"]
Gradient = Literal["discrete", "backprop"]


@overload
def imex_odeint(
    explicit: Term | None, implicit: Implicit | None, u0: Tensor, t: Tensor, *,
    method: Method | None = ..., step_size: float | None = ..., rtol: float | Tensor | None = ...,
    atol: float | Tensor | None = ..., norm: Norm | None = ...,
    controller: Controller | None = ...,
    first_step: float | None = ..., min_step: float | None = ..., max_steps: int | None = ...,
    solver: LinearSolver | None = ..., args: tuple[Any, ...] = ..., gradient: str = ...,
    dense: bool = ..., graph_memory: int = ..., checkpoints: Checkpoints | None = ...,
    checkpoint_device: torch.device | str | None = ..., callback: Callback | None = ...,
    progress: bool = ..., return_stats: Literal[False] = ...,
) -> Tensor: ...


@overload
def imex_odeint(
    explicit: Term | None, implicit: Implicit | None, u0: Tensor, t: Tensor, *,
    method: Method | None = ..., step_size: float | None = ..., rtol: float | Tensor | None = ...,
    atol: float | Tensor | None = ..., norm: Norm | None = ...,
    controller: Controller | None = ...,
    first_step: float | None = ..., min_step: float | None = ..., max_steps: int | None = ...,
    solver: LinearSolver | None = ..., args: tuple[Any, ...] = ..., gradient: str = ...,
    dense: bool = ..., graph_memory: int = ..., checkpoints: Checkpoints | None = ...,
    checkpoint_device: torch.device | str | None = ..., callback: Callback | None = ...,
    progress: bool = ..., return_stats: Literal[True],
) -> tuple[Tensor, Stats]: ...


@uncompiled
def imex_odeint(
    explicit: Term | None, implicit: Implicit | None, u0: Tensor,
    t: Tensor = None, *,  # type: ignore[assignment]  # missing only by mistake
    method: Method | None = None, step_size: float | None = None,
    rtol: float | Tensor | None = None, atol: float | Tensor | None = None,
    norm: Norm | None = None, controller: Controller | None = None, first_step: float | None = None,
    min_step: float | None = None, max_steps: int | None = None,
    solver: LinearSolver | None = None, args: tuple[Any, ...] = (), gradient: str = "discrete",
    dense: bool = False, graph_memory: int = 2**30, checkpoints: Checkpoints | None = None,
    checkpoint_device: torch.device | str | None = None, callback: Callback | None = None,
    progress: bool = False, return_stats: bool = False,
) -> Tensor | tuple[Tensor, Stats]:
    r"""Integrates a semi-implicit ordinary differential equation by an IMEX scheme.

    .. math::
        \frac{du}{dt} = G(t, u) + H(t, u), \quad u(t_0) = u_0

    from the `"Semi-Implicit Neural Ordinary Differential Equations"
    <https://arxiv.org/abs/2412.11301>`_ paper: G is evaluated explicitly, and each implicit stage
    is one linear solve with :math:`I - h \tilde{A}_{ii} J` where H = J u, and solved by Newton's
    method where it is a :class:`pyg_sinode.terms.Nonlinear`. Stiffness belongs in H, a stiff
    forcing in :class:`pyg_sinode.terms.Affine`: left in G it destroys the accuracy of any scheme.
    Equal steps damp an H that grows faster than they can follow, such as a fast decay backwards in
    time.

    With :obj:`step_size` the steps are equal. Without it they adapt to :obj:`rtol` and
    :obj:`atol`, by the scheme's embedded pair; ssp222 and ars122 have one too, but are not for
    adaptive steps of stiff problems: they are not stiffly accurate, and their estimate has to be
    filtered by :math:`(I - h \gamma J)^{-1}`. Gradients are those of the steps that were made: the
    step sizes count as constants.

    Args:
        explicit (callable or torch.nn.Module, optional): The term G, called as
            ``explicit(t, u, *args)`` with t a 0-dim tensor of u's dtype; None for an equation that
            is linear, or integrated implicitly as a whole.
        implicit (LinearOperator, Affine or Nonlinear, optional): The operator J, or
            :math:`a(t) J u + f(t)`, or any :math:`H(t, u)`; None for an explicit integration.
        u0 (Tensor): The initial state.
        t (Tensor): The output times, strictly monotone; the first is where :obj:`u0` holds. They
            receive a gradient where they require one and Runge-Kutta steps are equal: that of the
            steps, whose number is constant.
        method (str, IMEXTableau or IMEXMultistep, optional): A scheme's name, an alias, or a scheme
            of your own; implicit_euler is imex_euler, and crank_nicolson takes G by Heun's method.
            Multistep schemes (sbdf2, sbdf3, sbdf4, cnab2) evaluate G once in a step, and are less
            stable, see :class:`pyg_sinode.schemes.IMEXMultistep`. If None, ark324l2sa for equal
            steps, ark436l2sa for adaptive ones. (default: :obj:`None`)
        step_size (float, optional): The largest step; steps are equal between output times and land
            on them. If None, steps are adaptive. (default: :obj:`None`)
        rtol, atol (float or Tensor, optional): Tolerances of a step's error, relative to the state
            and absolute; tensors broadcast against the state. (default: 1e-3 and 1e-6)
        norm (callable, optional): The norm of a step's error, ``norm(e / scale)`` with the scale
            above, gives a 0-dim tensor that is at most 1 where the step is good enough; see
            :mod:`pyg_sinode.norms`. If None, :func:`pyg_sinode.norms.maximum`, by which no
            component exceeds its tolerance. (default: :obj:`None`)
        controller (Controller, optional): Chooses the step sizes, see
            :mod:`pyg_sinode.controllers`; ``I()`` if None. (default: :obj:`None`)
        first_step (float, optional): The first step tried; chosen if None. (default: :obj:`None`)
        min_step (float, optional): The size below which a step is an error; if None, what rounding
            of time allows. (default: :obj:`None`)
        max_steps (int, optional): The number of adaptive steps, rejected ones included, after which
            to give up. (default: 100000)
        solver (optional): A linear solver such as :class:`pyg_sinode.solvers.CG`. If None, the
            closed form where J has one, CG where it is known to be symmetric and I - cJ positive
            definite, else GMRES, with block Jacobi where J has a BlockDiagonal. A Nonlinear has
            its own, in Newton. (default: :obj:`None`)
        args (tuple): Further arguments of G; tensors and operators among them receive gradients,
            tensors inside of other objects do not. The backward
            pass evaluates G again with the random state of PyTorch's own generators, with its
            buffers and modes as they were: G is to draw from no generator of its own, and to keep
            in buffers what changes.
        gradient (str): :obj:`"discrete"`, the adjoint of the scheme, exact to rounding and to the
            solver's tolerance, at the memory of the stages; or :obj:`"backprop"`, autograd through
            the steps, which allows second derivatives. (default: :obj:`"discrete"`)
        dense (bool): Whether steps pass over the output times, which are then interpolated with the
            scheme's own polynomial, of an order that may be lower. (default: :obj:`False`)
        graph_memory (int): The bytes that autograd graphs of G may hold until the backward pass of
            this call, counted without the stages, parameters and args: each that is kept saves an
            evaluation of G there. 0 keeps none. Ten calls in one model may hold ten times as much.
            (default: 1 GiB)
        checkpoints (int or str, optional): How many states to keep for the backward pass, the
            initial one included, instead of all stages; the others are computed again, in the
            fewest steps, each with its graphs before it is reversed. :obj:`"auto"` keeps about the
            square root of the number of steps. The gradient is the same to the last bit.
            (default: :obj:`None`)
        checkpoint_device (torch.device or str, optional): Where to keep them, the host's memory
            say. (default: :obj:`None`)
        callback (callable, optional): Called as ``callback(t, u)`` after every accepted step. A
            true value ends the integration: the result then holds the outputs before that time and
            the state at it, :obj:`stats.stopped_at`. (default: :obj:`None`)
        progress (bool): Whether to show a bar. (default: :obj:`False`)
        return_stats (bool): Whether to return the statistics too. (default: :obj:`False`)

    Shapes:
        - **u0:** any shape :math:`(*)`, real floating
        - **t:** :math:`(T)`, in units of time, as are step_size, first_step and min_step
        - **output:** :math:`(T, *)`, and :class:`Stats` if :obj:`return_stats`

    Raises:
        ValueError, TypeError: before any work, if an argument does not fit.
        ExplicitTermError: if a value of G is no rate of change of the state, with the time.
        NonFiniteStateError: if the state stops being finite, with the time and the step.
        LinearSolveError: if a linear solve fails, with time, step, iterations and residual.
        NewtonError: the same of a nonlinear stage, where steps are equal.
        StepSizeError: if adaptive steps fall below min_step, or are more than max_steps.
    """
    refuse_tracing("imex_odeint")
    if t is None:
        raise TypeError("Expected imex_odeint(explicit, implicit, u0, t) (got no t); where nothing "
                        "is implicit, pass None, as imex_odeint(f, None, u0, t).")
    options: dict[str, Any] = {
        "method": method, "step_size": step_size, "rtol": rtol, "atol": atol, "norm": norm,
        "controller": controller, "first_step": first_step, "min_step": min_step,
        "max_steps": max_steps, "solver": solver, "gradient": gradient, "dense": dense,
        "graph_memory": graph_memory, "checkpoints": checkpoints,
        "checkpoint_device": checkpoint_device, "callback": callback, "progress": progress}
    stats = Stats()
    if isinstance(t, Tensor) and t.requires_grad and torch.is_grad_enabled():
        result = _moving_times(explicit, implicit, u0, t, args, stats, options)
    else:
        result = _integrate(explicit, implicit, u0, t, args, stats, **options)
    stats.end_forward()
    return (result, stats) if return_stats else result


def _moving_times(explicit: Term | None, implicit: Implicit | None, u0: Tensor, t: Tensor,
                  args: tuple[Any, ...], stats: Stats, options: dict[str, Any]) -> Tensor:
    """The outputs as functions of the times too: each interval is integrated by itself."""
    scheme = get_scheme(options["method"] or "ark324l2sa")
    refuse_moving(adaptive=options["step_size"] is None, dense=options["dense"],
                  multistep=scheme.equal_steps, implicit=implicit, callback=options["callback"])
    assert not isinstance(implicit, Nonlinear)
    times = t.detach()
    read_times(times)
    found = [_integrate(explicit, implicit, u0, times[:1], args, stats, **options)[0]]
    for k in range(len(t) - 1):
        G, J, more = between(explicit, implicit, args, t[k:k + 2], found[-1])
        found.append(_integrate(G, J, found[-1], times[k:k + 2], more, stats, **options)[1])
    return torch.stack(found)


def _integrate(
    explicit: Term | None, implicit: Implicit | None, u0: Tensor, t: Tensor, args: tuple[Any, ...],
    stats: Stats, *, method: Method | None, step_size: float | None, rtol: float | Tensor | None,
    atol: float | Tensor | None, norm: Norm | None, controller: Controller | None,
    first_step: float | None, min_step: float | None, max_steps: int | None,
    solver: LinearSolver | None, gradient: str, dense: bool, graph_memory: int,
    checkpoints: Checkpoints | None, checkpoint_device: torch.device | str | None,
    callback: Callback | None, progress: bool,
) -> Tensor:
    check_state(u0)
    u0 = widened(u0)
    check_full("u0", u0.dtype)
    plain = gradient == "backprop" and implicit is None
    refuse_transforms("imex_odeint", tensors_of(u0, implicit, args), differentiable=plain,
                      remedy=WITHOUT_IMPLICIT)
    if not bool(u0.detach().isfinite().all()):
        raise ValueError("Expected a finite u0 (got NaN or Inf); look where it was computed.")
    times = read_times(t)
    control = control_of(
        u0, step_size, rtol, atol, norm, controller, first_step, min_step, max_steps)
    check_gradient(gradient)
    if method is None:
        method = "ark324l2sa" if control is None else "ark436l2sa"
    scheme = get_scheme(method)
    check_scheme(scheme, adaptive=control is not None, dense=dense)
    device = check_checkpoints(checkpoints, checkpoint_device, gradient)
    check_graph_memory(graph_memory)
    check_callback(callback)
    clock = clock_of(t, times, scheme)
    steps = Steps(times[-1]) if step_size is None else (
        steps_across_outputs if dense else steps_to_outputs)(
        times, positive("step_size", step_size), clock)
    if scheme.equal_steps:
        check_equal(steps, scheme)
    term = explicit_term(explicit, args, scheme, u0, times[0], tangents=plain)
    check_solver(solver, implicit)
    part = implicit_term(implicit, u0, times[0])
    tensors = [u0, *(() if term is None else term.tensors), *(() if part is None else part.tensors)]
    known = Factorizations(part.operator, solver, stats) if isinstance(part, Affine) else None
    run = Integration(scheme, term, part, known, times, clock, steps, control, dense, graph_memory,
                      checkpoints, device, callback, progress, stats)
    with full_precision(u0.device):
        result = _run(run, u0, gradient, tensors)
        if isinstance(part, Affine) and part.is_unscaled():
            warn_of_growth(part.operator, u0, result[-1], forwards=times[-1] > times[0])
        return result


def _run(run: Integration, u0: Tensor, gradient: str, tensors: list[Tensor]) -> Tensor:
    if gradient == "backprop":
        return backpropagate(run, u0)
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return discrete_adjoint(run, u0)
    return integrate(run, u0)
