"""How does a user integrate a semi-implicit ordinary differential equation?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol, overload

import torch
from torch import Tensor

from .arguments import (
    check_callback,
    check_checkpoints,
    check_equal,
    check_exponential,
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
from .integrate.coefficient_term import on_coefficients
from .integrate.function_part import FunctionStore
from .integrate.implicit import Factorizations
from .integrate.integration import Integration
from .integrate.loop import Callback
from .integrate.report import Stats
from .integrate.steps import Steps
from .operators import LinearOperator
from .operators.checks import is_finite
from .precision import check_full, full_precision, widened
from .schemes import ExponentialTableau, Scheme, get_scheme
from .terms import Affine, Nonlinear
from .time_gradients import between, refuse_moving
from .transforms import WITHOUT_IMPLICIT, refuse_tracing, refuse_transforms, uncompiled


class LinearSolver(Protocol):
    """A linear solver: maps an operator A to an operator whose product solves A x = b."""

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
    t: Tensor = None, *,  # type: ignore[assignment]  # required; None to say so in the error
    method: Method | None = None, step_size: float | None = None,
    rtol: float | Tensor | None = None, atol: float | Tensor | None = None,
    norm: Norm | None = None, controller: Controller | None = None, first_step: float | None = None,
    min_step: float | None = None, max_steps: int | None = None,
    solver: LinearSolver | None = None, args: tuple[Any, ...] = (), gradient: str = "discrete",
    dense: bool = False, graph_memory: int = 2**30, checkpoints: Checkpoints | None = None,
    checkpoint_device: torch.device | str | None = None, callback: Callback | None = None,
    progress: bool = False, return_stats: bool = False,
) -> Tensor | tuple[Tensor, Stats]:
    r"""Integrates a semi-implicit ordinary differential equation with an IMEX scheme.

    .. math::
        \frac{du}{dt} = G(t, u) + H(t, u), \quad u(t_0) = u_0

    from the `"Semi-Implicit Neural Ordinary Differential Equations"
    <https://arxiv.org/abs/2412.11301>`_ paper. G is evaluated explicitly. If H = J u, each implicit
    stage is one linear solve with :math:`I - h \tilde{A}_{ii} J`; if H is a
    :class:`pyg_sinode.terms.Nonlinear`, each is solved by Newton's method.

    Put the stiff terms into H, and a stiff forcing into :class:`pyg_sinode.terms.Affine`: in G it
    destroys the accuracy of all Runge-Kutta schemes that are not stiffly accurate in both parts
    (imex_euler, ars222 and ars443 are). If solutions of H grow by a large factor within one step,
    as those of a fast decay integrated backwards in time do, then equal steps do not resolve that
    growth but damp it.

    With :obj:`step_size` the steps are equal. Without it they are adaptive: the scheme's embedded
    pair estimates the error, which :obj:`rtol` and :obj:`atol` bound. Do not use ssp222 and ars122
    with adaptive steps on stiff problems: they have an embedded pair but are not stiffly accurate,
    and their error estimate has to be filtered by :math:`(I - h \gamma J)^{-1}`.

    Gradients are those of the steps that were made, with the step sizes held constant.

    Args:
        explicit (callable or torch.nn.Module, optional): The term G, called as
            ``explicit(t, u, *args)``, where t is a 0-dim tensor of u's dtype. None if nothing is
            integrated explicitly.
        implicit (LinearOperator, Affine or Nonlinear, optional): The term H: an operator J (then
            H = J u), an :class:`pyg_sinode.terms.Affine` (:math:`a(t) J u + f(t)`) or a
            :class:`pyg_sinode.terms.Nonlinear` (any :math:`H(t, u)`). None if nothing is integrated
            implicitly.
        u0 (Tensor): The initial state.
        t (Tensor): The output times, strictly increasing or strictly decreasing; the first is the
            time of :obj:`u0`. Times that require a gradient receive one with equal Runge-Kutta
            steps; it holds the number of steps fixed.
        method (str or Scheme, optional): The name or alias of a scheme, or a scheme. implicit_euler
            is an alias of imex_euler; crank_nicolson treats G by Heun's method. The multistep
            schemes (sbdf2, sbdf3, sbdf4, cnab2) evaluate G once per step and are less stable, see
            :class:`pyg_sinode.schemes.IMEXMultistep`. The exponential schemes (etd1, etdrk2,
            etdrk3, etdrk4, etdrk4s, lawson4) integrate J u exactly by functions of hJ and solve no
            linear systems; they need an operator that knows them, see
            :class:`pyg_sinode.schemes.ExponentialTableau`. If None, ark324l2sa for equal steps and
            ark436l2sa for adaptive steps. (default: :obj:`None`)
        step_size (float, optional): The largest step size. The steps between two output times are
            equal, and a step ends at each output time. If None, steps are adaptive.
            (default: :obj:`None`)
        rtol (float or Tensor, optional): Relative tolerance of the error of an adaptive step, see
            :mod:`pyg_sinode.controllers`; a tensor broadcasts against the state. (default: 1e-3)
        atol (float or Tensor, optional): Absolute tolerance of that error, in the unit of the
            state; a tensor broadcasts against the state. (default: 1e-6)
        norm (callable, optional): Maps the error of an adaptive step, divided componentwise by its
            tolerance, to a 0-dim tensor; the step is accepted if that is at most 1. See
            :mod:`pyg_sinode.norms`. If None, :func:`pyg_sinode.norms.maximum`: no component exceeds
            its tolerance. (default: :obj:`None`)
        controller (Controller, optional): Chooses the adaptive step sizes, see
            :mod:`pyg_sinode.controllers`; ``I()`` if None. (default: :obj:`None`)
        first_step (float, optional): The size of the first adaptive step tried; if None, it is
            estimated from the initial state. (default: :obj:`None`)
        min_step (float, optional): The smallest adaptive step size; a smaller one is an error. If
            None, the smallest that the rounding of the times permits. (default: :obj:`None`)
        max_steps (int, optional): The largest number of adaptive steps, rejected ones included;
            more are an error. (default: 100000)
        solver (optional): A linear solver such as :class:`pyg_sinode.solvers.CG`. If None,
            :func:`pyg_sinode.solvers.default` chooses: the closed form if J has one; Chebyshev if a
            disc that holds the eigenvalues is known; CG if J is known to be symmetric and I - cJ
            positive definite; else GMRES; the last two with block Jacobi if J has a BlockDiagonal
            term. The solver of a Nonlinear is set in :class:`pyg_sinode.solvers.Newton`.
            (default: :obj:`None`)
        args (tuple): Further arguments of G. Tensors and operators among them receive gradients;
            tensors inside other objects do not. The backward pass may evaluate G again; it restores
            the random state of PyTorch's default generators and the buffers and modes of the
            module. So G must not draw from other generators, and must keep any changing state in
            buffers. (default: :obj:`()`)
        gradient (str): :obj:`"discrete"`, the adjoint of the discrete scheme: exact to rounding and
            to the tolerance of the solver; it needs the memory of the stages, and up to
            :obj:`graph_memory`. Or :obj:`"backprop"`, autograd through all steps, which allows
            second derivatives. (default: :obj:`"discrete"`)
        dense (bool): Whether steps need not end at the output times: outputs are then interpolated
            by the scheme's own polynomial, whose order may be lower. (default: :obj:`False`)
        graph_memory (int): The most bytes of autograd graphs of G that this call keeps until its
            backward pass, not counting stages, parameters and args. Each graph kept saves one
            evaluation of G in the backward pass; 0 keeps none. The limit is per call: ten calls in
            one model may hold ten times as much. (default: 1 GiB)
        checkpoints (int or str, optional): How many states to keep for the backward pass, the
            initial one included, instead of all stages. The backward pass computes the other states
            again, with the least number of steps. :obj:`"auto"` keeps about the square root of the
            number of steps. The gradient is the same to the last bit. (default: :obj:`None`)
        checkpoint_device (torch.device or str, optional): The device to keep these states on, such
            as :obj:`"cpu"`; if None, that of the state. (default: :obj:`None`)
        callback (callable, optional): Called as ``callback(t, u)`` after each accepted step, t a
            float. If it returns True, the integration ends at t: the result holds the outputs
            before t and the state at t, and :obj:`stats.stopped_at` is t. (default: :obj:`None`)
        progress (bool): Whether to show a progress bar. (default: :obj:`False`)
        return_stats (bool): Whether to also return the :class:`pyg_sinode.Stats`.
            (default: :obj:`False`)

    Shapes:
        - **u0:** any shape :math:`(*)`, real floating
        - **t:** :math:`(T)`, in units of time, as are step_size, first_step and min_step
        - **output:** the states at the output times, :math:`(T, *)`; a tuple of them and
          :class:`pyg_sinode.Stats` if :obj:`return_stats`

    Raises:
        ValueError, TypeError: before the first step, if an argument is invalid.
        ExplicitTermError: if G does not return a tensor like the state.
        NonFiniteStateError: if the state becomes infinite or NaN.
        LinearSolveError: if a linear solve does not reach its tolerance.
        NewtonError: if Newton's method does not solve an implicit stage of an equal step.
        StepSizeError: if the adaptive step size falls below min_step, or max_steps is exceeded.
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
    """The outputs, differentiable in the times: each interval is a separate integration."""
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
    if not is_finite(u0):
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
    check_exponential(scheme, solver, part, u0)
    J = part.operator if isinstance(part, Affine) else None
    exponential = isinstance(scheme, ExponentialTableau)
    known = None if J is None or exponential else Factorizations(J, solver, stats)
    functions = FunctionStore(J, stats) if exponential else None
    term = on_coefficients(term, functions, u0)
    tensors = [u0, *(() if term is None else term.tensors), *(() if part is None else part.tensors)]
    run = Integration(scheme, term, part, known, functions, times, clock, steps, control, dense,
                      graph_memory, checkpoints, device, callback, progress, stats)
    with full_precision(u0.device):
        result = _run(run, u0, gradient, tensors)
        if isinstance(part, Affine) and part.is_unscaled():
            warn_of_growth(part.operator, u0, result, forwards=times[-1] > times[0])
        return result


def _run(run: Integration, u0: Tensor, gradient: str, tensors: list[Tensor]) -> Tensor:
    if gradient == "backprop":
        return backpropagate(run, u0)
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return discrete_adjoint(run, u0)
    return integrate(run, u0)
