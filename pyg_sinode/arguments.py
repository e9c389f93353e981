"""Which arguments of an integration are valid?"""

from __future__ import annotations

import itertools
import math
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from .controllers import Adaptive, Controller, I
from .integrate.clock import Clock, plan
from .integrate.explicit import ExplicitTerm
from .integrate.steps import Steps
from .norms import maximum
from .operators import LinearOperator
from .operators.checks import broadcasts, check_real
from .operators.replaced import is_replacing, refuse_replaced
from .operators.user_function import no_functions
from .precision import SHORT, full_precision, is_autocast, widened
from .schemes import SCHEMES, ExponentialTableau, Scheme
from .terms import Affine, Nonlinear
from .transforms import forward_mode_error, has_tangent, numbers


def tensors_of(u0: Tensor, implicit: Any, args: Any) -> list[Any]:
    """The objects that may carry a forward-mode tangent; values of G are checked later."""
    found = [u0, *(args if isinstance(args, tuple) else ())]
    if isinstance(implicit, (LinearOperator, Affine, Nonlinear)):
        found += implicit.tensors
    return found


def check_state(u0: Any) -> None:
    """Refuses u0 unless it is a dense tensor of a real floating dtype."""
    if isinstance(u0, (tuple, list)) and any(isinstance(x, Tensor) for x in u0):
        raise TypeError(f"Expected u0 as one tensor (got a {type(u0).__name__} of tensors); "
                        "concatenate them, as torch.cat([x.flatten() for x in u0]) or along a "
                        "dimension of features, and take the state apart in G with .split(sizes).")
    check_real(u0, "u0")
    if u0.layout != torch.strided:
        raise TypeError(f"Expected a dense u0 (got {u0.layout}); use u0.to_dense().")


def read_times(t: Any) -> list[float]:
    """The output times as Python floats, checked to be finite and strictly monotone."""
    check_real(t, "t")
    if has_tangent(t):
        raise forward_mode_error("t", "pass t without one, or scale G and J instead")
    if t.dim() != 1 or t.numel() == 0:
        raise ValueError(f"Expected t as a 1-D tensor of at least one time (got shape "
                         f"{tuple(t.shape)}).")
    times = numbers(t)
    if not all(map(math.isfinite, [*times, times[-1] - times[0]])):
        raise ValueError(f"Expected finite times in t, a finite time apart (got {times}).")
    rises = [b - a for a, b in itertools.pairwise(times)]
    if not (all(r > 0 for r in rises) or all(r < 0 for r in rises)):
        raise ValueError("Expected t strictly increasing or strictly decreasing (got "
                         f"{times[:8]}{'...' if len(times) > 8 else ''}); sort it and drop "
                         "repetitions.")
    return times


def clock_of(t: Tensor, times: list[float], scheme: Scheme) -> Clock:
    """The rounding unit of the times, for the number of steps and for equal step sizes.

    float64 times that were converted from float32 (all representable there, some with more than 20
    bits) get the same steps as in float32. Multistep schemes, which need equal steps, also treat
    such times as equally spaced if they are to the rounding of float32: outputs may then move by
    that rounding.

    Args:
        t (Tensor): The output times.
        times (list of float): The same as floats.
        scheme (Scheme): The scheme.
    """
    own = torch.finfo(t.dtype).eps
    if t.dtype != torch.float64 or all((math.frexp(x)[0] * 2**20).is_integer() for x in times):
        return Clock(own)
    if not torch.equal(t.float().double(), t):
        return Clock(own)
    narrow = torch.finfo(torch.float32).eps
    converted = scheme.equal_steps
    return Clock(narrow if converted else own, narrow, converted)


def count_steps(t: Tensor, step_size: float, scheme: Scheme) -> int:
    """The number of equal steps from the first to the last output time."""
    times = read_times(t)
    return sum(each.steps for each in plan(times, step_size, clock_of(t, times, scheme)))


def positive(name: str, value: Any) -> float:
    """The value as a float; raises a TypeError or ValueError unless it is positive and finite."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"Expected {name} as a number (got {type(value).__name__}).")
    number = float(value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"Expected a positive, finite {name} (got {value}); the direction of time "
                         "is that of t.")
    return number


def control_of(u0: Tensor, step_size: Any, rtol: Any, atol: Any, norm: Any, controller: Any,
             first_step: Any, min_step: Any, max_steps: Any) -> Adaptive | None:
    """The tolerances and limits of adaptive steps, checked; None if step_size is given."""
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
        None if first_step is None else positive("first_step", first_step),
        0.0 if min_step is None else positive("min_step", min_step),
        100_000 if max_steps is None else max_steps,
        maximum if norm is None else norm)


def _tolerance(name: str, value: Any, default: float, u0: Tensor) -> float | Tensor:
    if value is None:
        return default
    if not isinstance(value, Tensor):
        return positive(name, value)
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


def check_scheme(scheme: Scheme, *, adaptive: bool, dense: bool) -> None:
    """Refuses adaptive steps or interpolation with a scheme that has no coefficients for them."""
    if adaptive and scheme.embedded_order == 0:
        having = [name for name, s in SCHEMES.items() if s.embedded_order > 0]
        raise ValueError(f"Expected a step_size, or a scheme with an embedded pair for adaptive "
                         f"steps (got {scheme.name}); these have one: {', '.join(having)}.")
    if dense and scheme.interpolant is None:
        having = [name for name, s in SCHEMES.items() if s.interpolant is not None]
        raise ValueError(f"Expected a scheme with an interpolant for dense=True (got "
                         f"{scheme.name}); these have one: {', '.join(having)}.")


def check_exponential(scheme: Scheme, solver: Any, part: Affine | Nonlinear | None, u0: Tensor
                      ) -> None:
    """Refuses an implicit part or a solver that an exponential scheme cannot use."""
    if not isinstance(scheme, ExponentialTableau):
        return
    if solver is not None:
        raise ValueError(f"Expected no solver with {scheme.name} (got {solver!r}): an exponential "
                         "scheme solves no linear systems; leave it out.")
    if part is None:
        return
    if isinstance(part, Nonlinear):
        raise ValueError(f"Expected an operator J or None with {scheme.name} (got a Nonlinear): an "
                         "exponential scheme needs functions of a linear J. Put the linear part "
                         "there and the rest into the explicit term, or take an implicit-explicit "
                         "scheme such as ark436l2sa.")
    if not part.is_constant():
        raise ValueError(f"Expected an operator J with {scheme.name} (got an Affine with "
                         f"{'a scale a(t)' if not part.is_unscaled() else 'a forcing f(t)'}): add "
                         "a forcing to the explicit term; with a J that varies in time, take an "
                         "implicit-explicit scheme such as ark436l2sa.")
    with torch.no_grad():
        if not part.operator.has_functions(u0):
            raise no_functions(part.operator)


def check_checkpoints(checkpoints: Any, device: Any, gradient: str) -> torch.device | None:
    """The device of the checkpoints, None for that of the state; refuses invalid arguments."""
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


def check_gradient(gradient: Any) -> None:
    """Raises a ValueError unless gradient is "discrete" or "backprop"."""
    if gradient not in ("discrete", "backprop"):
        raise ValueError(f'Expected gradient="discrete" or "backprop" (got {gradient!r}).')


def check_options(solver: Any, gradient: Any, graph_memory: Any, checkpoints: Any) -> None:
    """Refuses options of a layer that are invalid in any integration."""
    check_solver(solver, None)
    check_gradient(gradient)
    check_graph_memory(graph_memory)
    check_checkpoints(checkpoints, None, gradient)


def check_callback(callback: Any) -> None:
    """Raises a TypeError unless callback is callable or None."""
    if not (callback is None or callable(callback)):
        raise TypeError(f"Expected callback as a function of (t, u) (got "
                        f"{type(callback).__name__}).")


def check_graph_memory(value: Any) -> None:
    """Raises a ValueError unless the value is a non-negative int."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
        raise ValueError(f"Expected graph_memory as a number of bytes from 0 up (got {value!r}).")


def check_equal(steps: Steps, scheme: Scheme) -> None:
    """Refuses steps of several sizes for a multistep scheme."""
    sizes = sorted(set(steps.h))
    if len(sizes) > 1:
        raise ValueError(
            f"Expected output times that are whole multiples of one step size apart for "
            f"{scheme.name} (got steps from {sizes[0]:.6g} to {sizes[-1]:.6g}); choose equally "
            "spaced times, or a step_size that divides every interval, or a Runge-Kutta scheme.")


def explicit_term(explicit: Any, args: Any, scheme: Scheme, u0: Tensor,
                  t: float, *, tangents: bool) -> ExplicitTerm | None:
    """The explicit term, checked; lazy parameters are initialised by one evaluation."""
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
        explicit(u0.new_full((), t), u0.detach(), *args)  # initialises lazy parameters
    return ExplicitTerm(explicit, args, scheme.live_values, tangents=tangents)


def implicit_term(implicit: Any, u0: Tensor, t: float) -> Affine | Nonlinear | None:
    """The implicit term, checked against the initial state."""
    if implicit is None:
        return None
    if not isinstance(implicit, (LinearOperator, Affine, Nonlinear)):
        raise TypeError("Expected the implicit part as a pyg_sinode.operators.LinearOperator, "
                        f"terms.Affine or terms.Nonlinear (got {type(implicit).__name__}); wrap a "
                        "matrix with operators.Dense, a linear function with operators.MatrixFree, "
                        "any other with terms.Nonlinear; where nothing is implicit, pass None, as "
                        "imex_odeint(f, None, u0, t).")
    part = Affine(implicit) if isinstance(implicit, LinearOperator) else implicit
    if is_autocast(u0.device) and any(x.dtype in SHORT for x in part.tensors):
        part = part.with_tensors(list(map(widened, part.tensors)))
    refuse_replaced(part.tensors)
    if is_replacing():  # its modules will have other parameters in the backward pass
        part = part.with_tensors(part.tensors)
    with full_precision(u0.device):
        part.check(u0, t)
    return part


def check_solver(solver: Any, implicit: Any) -> None:
    """Refuses a solver that is not a linear solver, is a preconditioner, or would not be used."""
    if solver is not None and (isinstance(solver, type) or not hasattr(solver, "invert")):
        raise TypeError("Expected a linear solver such as pyg_sinode.solvers.CG() (got "
                        f"{solver!r}).")
    if getattr(solver, "is_approximate", False):
        raise ValueError(f"Expected a solver that meets a tolerance (got {solver!r}, a "
                         "preconditioner); use CG or GMRES with preconditioner=, or Direct().")
    if solver is not None and isinstance(implicit, Nonlinear):
        raise ValueError(f"Expected no solver beside a Nonlinear (got {solver!r}); hand it to "
                         "Newton, as Nonlinear(fn, newton=Newton(solver=...)).")
