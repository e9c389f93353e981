"""How is an initial value problem given, and what is wrong with it if something is?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, Literal, Protocol, overload

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from .controllers import Adaptive, Controller, I
from .integrate.adjoint import discrete_adjoint, integrate
from .integrate.backprop import backpropagate
from .integrate.clock import Clock, steps_across_outputs, steps_to_outputs
from .integrate.explicit import ExplicitTerm
from .integrate.implicit import Factorizations
from .integrate.integration import Integration
from .integrate.loop import Callback
from .integrate.report import Stats
from .integrate.steps import Steps
from .norms import maximum
from .operators import LinearOperator
from .operators.checks import broadcasts, check_real
from .operators.replaced import is_replacing, refuse_replaced
from .precision import SHORT, check_full, full_precision, is_autocast, widened
from .schemes import SCHEMES, Scheme, get_scheme
from .terms import Affine
from .transforms import WITHOUT_IMPLICIT, forward_mode_error, has_tangent, refuse_transforms


class LinearSolver(Protocol):
    """Turns an operator into the operator of its inverse."""

    def invert(self, operator: LinearOperator) -> LinearOperator:
        """The inverse of an operator."""
        ...


Term = Callable[..., Tensor]
Norm = Callable[[Tensor], Tensor]
Implicit = LinearOperator | Affine
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


def imex_odeint(
    explicit: Term | None, implicit: Implicit | None, u0: Tensor, t: Tensor, *,
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
        \frac{du}{dt} = G(t, u) + J u, \quad u(t_0) = u_0

    from the `"Semi-Implicit Neural Ordinary Differential Equations"
    <https://arxiv.org/abs/2412.11301>`_ paper: G is evaluated explicitly, and each implicit stage
    is one linear solve with :math:`I - h \tilde{A}_{ii} J`. Stiffness belongs in J, a stiff forcing
    in :class:`pyg_sinode.terms.Affine`: left in G it destroys the accuracy of any scheme.

    With :obj:`step_size` the steps are equal. Without it they adapt to :obj:`rtol` and
    :obj:`atol`, by the scheme's embedded pair; ssp222 and ars122 have one too, but are not for
    adaptive steps of stiff problems: they are not stiffly accurate, and their estimate has to be
    filtered by :math:`(I - h \gamma J)^{-1}`. Gradients are those of the steps that were made: the
    step sizes count as constants.

    Args:
        explicit (callable or torch.nn.Module, optional): The term G, called as
            ``explicit(t, u, *args)`` with t a 0-dim tensor of u's dtype; None for a linear
            equation.
        implicit (LinearOperator or Affine, optional): The operator J, or :math:`a(t) J u + f(t)`;
            None for an explicit integration.
        u0 (Tensor): The initial state.
        t (Tensor): The output times, strictly monotone; the first is where :obj:`u0` holds.
        method (str, IMEXTableau or IMEXMultistep, optional): A scheme's name, an alias, or a scheme
            of your own. Multistep schemes (sbdf2, sbdf3, sbdf4, cnab2) evaluate G once in a step,
            and are less stable, see :class:`pyg_sinode.schemes.IMEXMultistep`. If None,
            ark324l2sa for equal steps, ark436l2sa for adaptive ones. (default: :obj:`None`)
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
            definite, else GMRES. (default: :obj:`None`)
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
        NonFiniteStateError: if the state stops being finite, with the time and the step.
        LinearSolveError: if a linear solve fails, with time, step, iterations and residual.
        StepSizeError: if adaptive steps fall below min_step, or are more than max_steps.
    """
    check_real(u0, "u0")
    u0 = widened(u0)
    check_full("u0", u0.dtype)
    plain = gradient == "backprop" and implicit is None
    refuse_transforms("imex_odeint", _tensors_of(u0, implicit, args), differentiable=plain,
                      remedy=WITHOUT_IMPLICIT)
    if not bool(u0.detach().isfinite().all()):
        raise ValueError("Expected a finite u0 (got NaN or Inf); look where it was computed.")
    times = _read_times(t)
    control = _control(u0, step_size, rtol, atol, norm, controller, first_step, min_step, max_steps)
    if gradient not in ("discrete", "backprop"):
        raise ValueError(f'Expected gradient="discrete" or "backprop" (got {gradient!r}).')
    if method is None:
        method = "ark324l2sa" if control is None else "ark436l2sa"
    scheme, stats = get_scheme(method), Stats()
    _check_scheme(scheme, adaptive=control is not None, dense=dense)
    device = _check_checkpoints(checkpoints, checkpoint_device, gradient)
    _check_graph_memory(graph_memory)
    if not (callback is None or callable(callback)):
        raise TypeError(f"Expected callback as a function of (t, u) (got "
                        f"{type(callback).__name__}).")
    clock = _clock(t, times, scheme)
    steps = Steps(times[-1]) if step_size is None else (
        steps_across_outputs if dense else steps_to_outputs)(
        times, _positive("step_size", step_size), clock)
    if scheme.equal_steps:
        _check_equal(steps, scheme)
    term = _checked_term(explicit, args, scheme, u0, times[0], tangents=plain)
    _check_solver(solver)
    part = _part(implicit, u0, times[0])
    tensors = [u0, *(() if term is None else term.tensors), *(() if part is None else part.tensors)]
    known = None if part is None else Factorizations(part.operator, solver, stats)
    run = Integration(scheme, term, part, known, times, clock, steps, control, dense, graph_memory,
                      checkpoints, device, callback, progress, stats)
    with full_precision(u0.device):
        result = _run(run, u0, gradient, tensors)
    return (result, stats) if return_stats else result


def _run(run: Integration, u0: Tensor, gradient: str, tensors: list[Tensor]) -> Tensor:
    if gradient == "backprop":
        return backpropagate(run, u0)
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return discrete_adjoint(run, u0)
    return integrate(run, u0)


def _tensors_of(u0: Tensor, implicit: Any, args: Any) -> list[Any]:
    """What may carry a tangent, before anything is checked; values of G are looked at later."""
    found = [u0, *(args if isinstance(args, tuple) else ())]
    if isinstance(implicit, (LinearOperator, Affine)):
        found += implicit.tensors
    return found


def _read_times(t: Any) -> list[float]:
    check_real(t, "t")
    if has_tangent(t):
        raise forward_mode_error("t", "pass t without one, or scale G and J instead")
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


def _clock(t: Tensor, times: list[float], scheme: Scheme) -> Clock:
    """To what the times are rounded, for the number of steps and for steps of one size.

    Times that were converted from float32 (numbers of 21 to 24 bits among them) get the steps that
    they would have had there. Multistep schemes know no steps but equal ones, and take such times
    for a grid where float32 would: their outputs may move by its rounding.
    """
    own = torch.finfo(t.dtype).eps
    if t.dtype != torch.float64 or all((math.frexp(x)[0] * 2**20).is_integer() for x in times):
        return Clock(own)
    if not torch.equal(t.float().double(), t):
        return Clock(own)
    narrow = torch.finfo(torch.float32).eps
    converted = scheme.equal_steps
    return Clock(narrow if converted else own, narrow, converted)


def _positive(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"Expected {name} as a number (got {type(value).__name__}).")
    number = float(value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"Expected a positive, finite {name} (got {value}); the direction of time "
                         "is that of t.")
    return number


def _control(u0: Tensor, step_size: Any, rtol: Any, atol: Any, norm: Any, controller: Any,
             first_step: Any, min_step: Any, max_steps: Any) -> Adaptive | None:
    """The limits of adaptive steps; None where step_size makes them equal."""
    given = {"rtol": rtol, "atol": atol, "norm": norm, "controller": controller,
             "first_step": first_step, "min_step": min_step, "max_steps": max_steps}
    if step_size is not None:
        wrong = [name for name, value in given.items() if value is not None]
        if wrong:
            raise ValueError(f"Expected no {' or '.join(wrong)} with a step_size (got step_size="
                             f"{step_size}): its steps are equal; leave it out for adaptive ones.")
        return None
    if not (norm is None or callable(norm)):
        raise TypeError("Expected norm as a function such as pyg_sinode.norms.rms (got "
                        f"{type(norm).__name__}).")
    if not (controller is None or isinstance(controller, Controller)):
        raise TypeError(f"Expected a controller such as pyg_sinode.controllers.PI() (got "
                        f"{controller!r}).")
    if max_steps is not None and (
            isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 1):
        raise ValueError(f"Expected max_steps as a positive int (got {max_steps!r}).")
    return Adaptive(
        _tolerance("rtol", rtol, 1e-3, u0), _tolerance("atol", atol, 1e-6, u0),
        I() if controller is None else controller,
        None if first_step is None else _positive("first_step", first_step),
        0.0 if min_step is None else _positive("min_step", min_step),
        100_000 if max_steps is None else max_steps,
        maximum if norm is None else norm)


def _tolerance(name: str, value: Any, default: float, u0: Tensor) -> float | Tensor:
    if value is None:
        return default
    if not isinstance(value, Tensor):
        return _positive(name, value)
    check_real(value, name)
    if value.device != u0.device:
        raise ValueError(f"Expected {name} on the device of the state, {u0.device} (got "
                         f"{value.device}); move one of the two.")
    if not bool((value > 0).all() and value.isfinite().all()):
        raise ValueError(f"Expected a positive, finite {name} (got one with entries that are not).")
    if not broadcasts(value.shape, u0):
        raise ValueError(f"Expected {name} to broadcast to the state of shape {tuple(u0.shape)} "
                         f"(got {tuple(value.shape)}).")
    return value.detach().to(u0.dtype)


def _check_scheme(scheme: Scheme, *, adaptive: bool, dense: bool) -> None:
    """Refuses adaptive steps and interpolation of a scheme that has no coefficients for them."""
    if adaptive and scheme.embedded_order == 0:
        having = [name for name, s in SCHEMES.items() if s.embedded_order > 0]
        raise ValueError(f"Expected a step_size, or a scheme with an embedded pair for adaptive "
                         f"steps (got {scheme.name}); these have one: {', '.join(having)}.")
    if dense and scheme.interpolant is None:
        having = [name for name, s in SCHEMES.items() if s.interpolant is not None]
        raise ValueError(f"Expected a scheme with an interpolant for dense=True (got "
                         f"{scheme.name}); these have one: {', '.join(having)}.")


def _check_checkpoints(checkpoints: Any, device: Any, gradient: str) -> torch.device | None:
    if checkpoints is None:
        if device is not None:
            raise ValueError(f"Expected checkpoint_device only with checkpoints (got {device!r} "
                             'without); set checkpoints="auto", say.')
        return None
    if gradient != "discrete":
        raise ValueError('Expected gradient="discrete" with checkpoints (got '
                         f"{gradient!r}, which keeps a graph of everything).")
    number = isinstance(checkpoints, int) and not isinstance(checkpoints, bool)
    if not (checkpoints == "auto" or (number and checkpoints >= 1)):
        raise ValueError(f'Expected checkpoints as an int of at least 1, "auto" or None (got '
                         f"{checkpoints!r}).")
    return None if device is None else torch.device(device)


def _check_graph_memory(value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
        raise ValueError(f"Expected graph_memory as a number of bytes from 0 up (got {value!r}).")


def _check_equal(steps: Steps, scheme: Scheme) -> None:
    """Refuses steps of several sizes for a multistep scheme."""
    sizes = sorted(set(steps.h))
    if len(sizes) > 1:
        raise ValueError(
            f"Expected output times that are whole multiples of one step size apart for "
            f"{scheme.name} (got steps from {sizes[0]:.6g} to {sizes[-1]:.6g}); choose equally "
            "spaced times, or a step_size that divides every interval, or a Runge-Kutta scheme.")


def _checked_term(explicit: Any, args: Any, scheme: Scheme, u0: Tensor,
                  t: float, *, tangents: bool) -> ExplicitTerm | None:
    if not isinstance(args, tuple):
        raise TypeError(f"Expected args as a tuple (got {type(args).__name__}); write args=(x,).")
    if explicit is None:
        if args:
            raise ValueError(f"Expected no args without an explicit term (got {len(args)}).")
        return None
    if not callable(explicit):
        raise TypeError("Expected the explicit term as a function or module of (t, u, *args) (got "
                        f"{type(explicit).__name__}).")
    args = tuple(map(widened, args))
    term = ExplicitTerm(explicit, args, scheme.live_values, tangents=tangents)
    if not any(map(is_lazy, term.tensors)):
        return term
    with torch.no_grad():
        explicit(u0.new_full((), t), u0.detach(), *args)  # gives its parameters their shapes
    return ExplicitTerm(explicit, args, scheme.live_values, tangents=tangents)


def _part(implicit: Any, u0: Tensor, t: float) -> Affine | None:
    if implicit is None:
        return None
    if not isinstance(implicit, (LinearOperator, Affine)):
        raise TypeError("Expected the implicit part as a pyg_sinode.operators.LinearOperator or "
                        f"Affine (got {type(implicit).__name__}); wrap a matrix with "
                        "operators.Dense, a linear function with operators.MatrixFree.")
    part = implicit if isinstance(implicit, Affine) else Affine(implicit)
    if is_autocast(u0.device) and any(x.dtype in SHORT for x in part.tensors):
        part = part.with_tensors(list(map(widened, part.tensors)))
    refuse_replaced(part.tensors)
    if is_replacing():  # modules in it have other parameters in the backward pass
        part = part.with_tensors(part.tensors)
    with full_precision(u0.device):
        part.check(u0, t)
    return part


def _check_solver(solver: Any) -> None:
    if solver is not None and (isinstance(solver, type) or not hasattr(solver, "invert")):
        raise TypeError("Expected a linear solver such as pyg_sinode.solvers.CG() (got "
                        f"{solver!r}).")
