"""How does an implicit term a(t) J u + f(t) depend on time and on its tensors?"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..operators import LinearOperator, MatrixFree, Scaled
from ..operators.checks import (
    as_float,
    broadcasts,
    check_real,
    check_tensors,
    lost_gradient,
)
from ..operators.function import Function
from ..transforms import forward_mode_error, has_tangent

OfTime = Callable[[Tensor], Any]


class Affine:
    r"""The implicit term :math:`H(t, u) = a(t) J u + f(t)`, which depends on time.

    Put a stiff forcing f here: in the explicit term it destroys the accuracy of most schemes. For
    :math:`\dot u = 10^6 (\cos t - u)` with step size 0.1, the error at t = 10 is 65,000 with ssp222
    and 1,300 with ark324l2sa if the forcing is explicit, and below 0.01 if it is here.

    Args:
        operator (LinearOperator): The operator J.
        f (callable, torch.nn.Module or Tensor, optional): The forcing, called as ``f(t)``, where t
            is a 0-dim tensor with the dtype and device of the state; a tensor is a constant
            forcing. It must return the same value for the same t: no dropout. The parameters of a
            module receive gradients; a plain function must not use tensors that require gradients.
            No forcing if None. (default: :obj:`None`)
        scale (callable or torch.nn.Module, optional): The factor a, called as ``scale(t)``; it
            returns a number or a 0-dim tensor. Each distinct value needs its own factorization. The
            factor is 1 if None. (default: :obj:`None`)

    Shapes:
        - **f:** any that broadcasts to the shape of the state, in its unit per unit of time
        - **scale:** :math:`()`, dimensionless

    Raises:
        TypeError: if an argument is of the wrong type.
    """

    def __init__(self, operator: LinearOperator, f: OfTime | Tensor | None = None, *,
                 scale: OfTime | None = None) -> None:
        if not isinstance(operator, LinearOperator):
            raise TypeError("Expected the operator of Affine as a LinearOperator (got "
                            f"{type(operator).__name__}); wrap a matrix with operators.Dense.")
        if not (f is None or isinstance(f, Tensor) or callable(f)):
            raise TypeError("Expected the forcing f as a function of time, a module or a tensor "
                            f"(got {type(f).__name__}).")
        if not (scale is None or callable(scale)):
            raise TypeError("Expected scale as a function of time or a module (got "
                            f"{type(scale).__name__}); multiply the operator by a constant.")
        self.operator, self.f, self.a = operator, _TimeFunction(f), _TimeFunction(scale)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that receive gradients, those of J, of f and of a, in this order."""
        return (*self.operator.tensors, *self.f.tensors, *self.a.tensors)

    def with_tensors(self, tensors: Sequence[Tensor]) -> Affine:
        """The same term with other tensors, in the order of :attr:`tensors`."""
        n, m = len(self.operator.tensors), len(self.f.tensors)
        other = Affine(self.operator.with_tensors(tensors[:n]))
        other.f, other.a = self.f.on(tensors[n:n + m]), self.a.on(tensors[n + m:])
        return other

    def wrapped(self, wrap: Callable[[Callable[..., Any]], Callable[..., Any]], last: Tensor
                ) -> Affine:
        """The same term with its functions of time wrapped by ``wrap``.

        The wrapped functions are called with ``last`` as a further argument.
        """
        other = Affine(self.operator)
        other.a = self.a.wrapped(wrap, last) if self.a.function else _TimeFunction(_one).wrapped(
            wrap, last)
        other.f = self.f.wrapped(wrap, last)
        return other

    def is_constant(self) -> bool:
        """Whether the term is J u, with neither a forcing nor a factor."""
        return self.f.function is None and self.a.function is None

    def is_unscaled(self) -> bool:
        """Whether the term has no factor a(t)."""
        return self.a.function is None

    def check(self, u: Tensor, t: float) -> None:
        """Raises a ValueError or TypeError if the term does not fit a state u at time t."""
        self.operator.check(u)
        if torch.is_grad_enabled():
            self.operator.check_named(u)
        check_tensors("Affine", (*self.f.tensors, *self.a.tensors), u)
        if self.is_constant():
            return
        forcing, scale = self.check_ends(t, u, graph=torch.is_grad_enabled())
        again, factor = self.forcing(t, u), self.scale(t, u)
        if forcing is not None and again is not None:
            _check_forcing(forcing, u)
            _check_same("forcing f", forcing, again)
        _check_same("scale", torch.as_tensor(scale), torch.as_tensor(factor))
        check_finite(as_float(scale), t)

    def check_ends(self, t: float, u: Tensor, *, graph: bool = True
                   ) -> tuple[Tensor | None, Tensor | float]:
        """Returns f(t) and a(t) for a state like u; refuses values whose gradient would be lost.

        Args:
            t (float): The time.
            u (Tensor): The state.
            graph (bool): Whether to record graphs, without which nothing is refused.
                (default: :obj:`True`)

        Raises:
            ValueError: if f or a depends on a tensor that requires a gradient but is not in
                :attr:`tensors`.
        """
        if self.is_constant():
            return None, 1.0
        own = Affine(self.operator)
        own.f, own.a = self.f.detached(), self.a.detached()
        with torch.set_grad_enabled(graph):
            forcing, scale = own.forcing(t, u.detach()), own.scale(t, u.detach())
        if forcing is not None:
            own.f.check_named(forcing, "forcing f")
        if isinstance(scale, Tensor):
            own.a.check_named(scale, "scale")
        return forcing, scale

    def guarded(self) -> Affine:
        """The same term, for a run without gradients; refuses values whose gradient would be lost.
        """
        if self.is_constant():
            return self
        other = Affine(self.operator)
        other.f, other.a = self.f.guarded("forcing f"), self.a.guarded("scale")
        return other

    def forcing(self, t: float, u: Tensor) -> Tensor | None:
        """The forcing f(t), for a state like u."""
        if self.f.function is None:
            return None
        value = self.f(t, u)
        if not isinstance(value, Tensor):
            raise TypeError(f"Expected the forcing f to return a tensor (got "
                            f"{type(value).__name__} at time {t:.6g}).")
        return value

    def scale(self, t: float, u: Tensor) -> Tensor | float:
        """The factor a(t), for a state like u."""
        if self.a.function is None:
            return 1.0
        value = self.a(t, u)
        if isinstance(value, Tensor) and value.dim() != 0:
            raise ValueError(f"Expected scale to return a number or a 0-dim tensor (got shape "
                             f"{tuple(value.shape)} at time {t:.6g}).")
        if not isinstance(value, (Tensor, numbers.Real)):
            raise TypeError(f"Expected scale to return a number or a 0-dim tensor (got "
                            f"{type(value).__name__} at time {t:.6g}).")
        return value if isinstance(value, Tensor) and value.is_floating_point() else float(value)

    def product(self, t: float, u: Tensor) -> Tensor:
        """The value a(t) J u + f(t), differentiable in u and in :attr:`tensors`."""
        product, scale, forcing = self.operator.mv(u), self.scale(t, u), self.forcing(t, u)
        if self.operator.is_foreign() or isinstance(self.operator, MatrixFree):
            product = product.clone()  # the next product may overwrite it
        if isinstance(scale, Tensor) or scale != 1.0:
            product = product * scale
        return product if forcing is None else product + forcing

    def transposed(self, t: float, u: Tensor, turned: LinearOperator | None = None) -> Tensor:
        """The product a(t) J^T u, with ``turned`` for J^T if it is known."""
        turned = self.operator.T if turned is None else turned
        product, scale = turned.mv(u), as_float(self.scale(t, u))
        if self.operator.is_foreign():
            product = product.clone()  # the next product may overwrite it
        return product if scale == 1.0 else product * scale

    def vjp(self, t: float, u: Tensor, w: Tensor, wanted: Sequence[bool]) -> list[Tensor | None]:
        """The gradients of <w, a(t) J u + f(t)> with respect to the ``wanted`` :attr:`tensors`."""
        n = len(self.operator.tensors)
        if not any(wanted[n:]):
            scale = as_float(self.scale(t, u))
            found = self.operator.vjp(u, w if scale == 1.0 else w * scale, wanted[:n])
            return found + [None] * len(wanted[n:])
        own = [p.detach().requires_grad_(want)
               for p, want in zip(self.tensors, wanted, strict=True)]
        with torch.enable_grad():
            value = self.with_tensors(own).product(t, u.detach())
        if not value.requires_grad:  # a module that does not use its parameters
            return [None] * len(own)
        chosen = [p for p in own if p.requires_grad]
        gradients = iter(torch.autograd.grad(value, chosen, w, allow_unused=True))
        return [next(gradients) if p.requires_grad else None for p in own]

    def scaled(self, scale: Tensor | float) -> LinearOperator:
        """The operator J times a value ``scale`` of the factor."""
        if not isinstance(scale, Tensor) and scale == 1.0:
            return self.operator
        return Scaled(self.operator, scale)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.operator!r})"


class _TimeFunction:
    """A function of time, given as a callable, a module, a constant tensor or None."""

    def __init__(self, source: OfTime | Tensor | None) -> None:
        self.function: Function | None = None
        self.what = ""  # its name, if values whose gradient would be lost are to be refused
        if isinstance(source, Tensor):
            check_real(source, "the forcing f")
            self.function = Function(_constant, (source,))
        elif source is not None:
            self.function = Function(source)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that the function depends on."""
        return () if self.function is None else self.function.tensors

    def on(self, tensors: Sequence[Tensor]) -> _TimeFunction:
        """The same function with other tensors."""
        other = _TimeFunction(None)
        other.function = None if self.function is None else self.function.on(tensors)
        return other

    def wrapped(self, wrap: Callable[[Callable[..., Any]], Callable[..., Any]], last: Tensor
                ) -> _TimeFunction:
        """The function wrapped, with one further argument; None stays None."""
        other = _TimeFunction(None)
        if self.function is not None:
            other.function = Function(wrap(self.function.fn), (*self.function.args, last))
        return other

    def detached(self) -> _TimeFunction:
        """The same function with detached copies of its tensors, the leaves of its graph."""
        return self.on([p.detach().requires_grad_(p.requires_grad) for p in self.tensors])

    def guarded(self, what: str) -> _TimeFunction:
        """The same function, which refuses values whose gradient would be lost."""
        other = _TimeFunction(None)
        other.function, other.what = self.function, what
        return other

    def __call__(self, t: float, u: Tensor) -> Any:
        assert self.function is not None
        with torch.set_grad_enabled(torch.is_grad_enabled() or bool(self.what)):
            value = self.function(u.new_full((), t))
        if not isinstance(value, Tensor):
            return value
        if has_tangent(value):
            raise forward_mode_error("a forcing or scale")
        if self.what and value.requires_grad:
            self.check_named(value, self.what)
        return value.detach() if self.what else value

    def check_named(self, value: Tensor, what: str) -> None:
        """Refuses a value that depends on a trainable tensor which is not in :attr:`tensors`."""
        lost = None if self.function is None else self.function.lost(value)
        if lost is not None:
            raise lost_gradient(f"the {what} to use only its own parameters", lost,
                                "make it a torch.nn.Module that holds it as a parameter.")


def _constant(t: Tensor, value: Tensor) -> Tensor:
    return value


def _one(t: Tensor) -> float:
    return 1.0


def check_finite(scale: float, t: float) -> None:
    """Raises a ValueError if a value of the factor is not finite."""
    if not math.isfinite(scale):
        raise ValueError(f"Expected a finite scale (got {scale} at time {t:.6g}).")


def _check_same(what: str, value: Tensor, again: Tensor) -> None:
    """Refuses a function of time that returned two different values at the same time."""
    if not torch.equal(value.detach().nan_to_num(), again.detach().nan_to_num()):
        raise ValueError(f"Expected the {what} to be a function of time alone (got another value "
                         "at the second call), since the backward pass evaluates it again; take "
                         "out dropout, random numbers and state, or call .eval().")


def _check_forcing(forcing: Tensor, u: Tensor) -> None:
    if forcing.dtype != u.dtype or forcing.device != u.device:
        raise ValueError(f"Expected the forcing f in the dtype and on the device of the state, "
                         f"{u.dtype} on {u.device} (got {forcing.dtype} on {forcing.device}).")
    if not broadcasts(forcing.shape, u):
        raise ValueError(f"Expected the forcing f to broadcast to the state of shape "
                         f"{tuple(u.shape)} (got {tuple(forcing.shape)}).")
