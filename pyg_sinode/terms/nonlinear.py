"""How is a nonlinear implicit term H(t, u) described, evaluated and checked?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from ..operators import LinearOperator
from ..operators.checks import check_dims, lost_gradient, powers_of_two, same
from ..operators.function import Function
from ..solvers import BlockJacobi, Jacobi, Newton
from ..transforms import forward_mode_error, has_tangent, recording
from ..warn import warn_caller

Jacobian = Callable[[Tensor, Tensor], LinearOperator]
JACOBIAN_DEFECT = 0.4  # a larger relative error of a jacobian gives a warning


class Nonlinear:
    r"""A nonlinear implicit term :math:`H(t, u)`, for stiff reactions.

    Each implicit stage solves :math:`U = r + c H(t, U)` by Newton's method. The gradient is that of
    the solution (implicit differentiation): one solve with the transposed Jacobian at U,
    independent of the iterations. With ``explicit=None`` the integration is fully implicit.

    .. code-block:: python

        def robertson(t, u, k):  # three species along the last dimension, their rates k
            x, y, z = u.unbind(-1)
            slow, fast, last = k[0] * x, k[1] * y * y, k[2] * y * z
            return torch.stack([last - slow, slow - last - fast, fast], dim=-1)

        imex_odeint(None, terms.Nonlinear(robertson, k, dims=-1), u0, t, rtol=1e-6)

    Args:
        fn (callable or torch.nn.Module): H, called as ``fn(t, u, *args)``, where t is a 0-dim
            tensor. It must return the same value for the same arguments: no dropout. The parameters
            of a module receive gradients.
        *args: Further arguments of fn; tensors and operators among them receive gradients.
        dims (int or tuple of int, optional): The dimensions of the state that fn mixes, negative.
            Each index of the other dimensions is then a separate, smaller system. ``()`` if fn
            treats each entry separately; all dimensions if None. (default: :obj:`None`)
        jacobian (callable, optional): ``jacobian(t, u)`` returns the derivative of H with respect
            to u as a :class:`pyg_sinode.operators.LinearOperator`; Newton's method then uses its
            closed inverse, or solves with it iteratively. It may be approximate, with more
            iterations; gradients always use the exact derivative. If None, the derivative is
            computed by autograd. (default: :obj:`None`)
        newton (Newton, optional): The options of Newton's method. (default: :obj:`Newton()`)

    Shapes:
        - **u:** any shape :math:`(*)`
        - **output of fn:** :math:`(*)`, in the unit of the state per unit of time

    Raises:
        TypeError, ValueError: if an argument is of the wrong type or out of range; and in
            :meth:`check`, if fn, dims or jacobian do not fit a state.
    """

    def __init__(self, fn: Callable[..., Tensor], *args: Any,
                 dims: int | Sequence[int] | None = None, jacobian: Jacobian | None = None,
                 newton: Newton | None = None) -> None:
        if isinstance(fn, LinearOperator) or not callable(fn):
            raise TypeError("Expected H of Nonlinear as a function or module of (t, u, *args) "
                            f"(got {type(fn).__name__}).")
        if not (jacobian is None or callable(jacobian)) or isinstance(jacobian, LinearOperator):
            raise TypeError("Expected the jacobian of Nonlinear as a function of (t, u) that gives "
                            f"an operator (got {type(jacobian).__name__}).")
        if not (newton is None or isinstance(newton, Newton)):
            raise TypeError(f"Expected newton as pyg_sinode.solvers.Newton(...) (got {newton!r}).")
        preconditioner = getattr(getattr(newton, "solver", None), "preconditioner", None)
        if jacobian is None and isinstance(preconditioner, (Jacobi, BlockJacobi)):
            raise ValueError(f"Expected a jacobian= of Nonlinear for {preconditioner!r} (got "
                             "none): products by autograd know no diagonal and no blocks.")
        self.function, self.jacobian = Function(fn, args), jacobian
        self.own_dims = None if dims is None else check_dims("Nonlinear", dims)
        self.newton = Newton() if newton is None else newton
        self.refuses_lost = False  # whether each value is checked for lost gradients

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that H depends on, those among args, then the parameters of a module."""
        return self.function.tensors

    def with_tensors(self, tensors: Sequence[Tensor]) -> Nonlinear:
        """The same term with other tensors, in the order of :attr:`tensors`."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.function = self.function.on(tensors)
        return other

    def local(self) -> Nonlinear:
        """The same term with leaf tensors: detached copies replace those that are no leaves."""
        other = self.with_tensors([_end(p) for p in self.tensors])
        module = self.function.module
        made_so = {} if module is None else {
            name: _end(b) for name, b in module.named_buffers() if b.is_inference()}
        if made_so and not self.function.buffers:  # graphs save no tensors of inference mode
            other.function = self.function.on(other.tensors, made_so)
        return other

    def buffers(self) -> dict[str, Tensor]:
        """Copies of the current buffers of a module, by name."""
        module = self.function.module
        return {} if module is None else {
            name: b.detach().clone() for name, b in module.named_buffers()}

    def as_it_was(self, tensors: Sequence[Tensor], buffers: dict[str, Tensor]) -> Nonlinear:
        """The same term with the given tensors and buffers, as it was when they were taken."""
        module = self.function.module
        present = {} if module is None else dict(module.named_buffers())
        changed = buffers.keys() != present.keys() or not all(
            same(b, present[name]) for name, b in buffers.items())
        other = self.with_tensors(tensors)
        if changed:
            other.function = self.function.on(tensors, buffers)
        return other

    def dims(self, u: Tensor) -> tuple[int, ...]:
        """The dimensions of a state u that H mixes."""
        return tuple(range(-u.dim(), 0)) if self.own_dims is None else self.own_dims

    def guarded(self) -> Nonlinear:
        """The same term, for a run without gradients; refuses values whose gradient would be lost.
        """
        other = self.with_tensors(self.tensors)
        other.refuses_lost = True
        return other

    def value(self, t: float, u: Tensor) -> Tensor:
        """The value H(t, u), differentiable in u and in :attr:`tensors`."""
        version = None if u.is_inference() else u._version
        value: Any = self.function(u.new_full((), t), u)
        if not isinstance(value, Tensor):
            raise TypeError(f"Expected H of Nonlinear to return a tensor (got "
                            f"{type(value).__name__} at time {t:.6g}).")
        if value.shape != u.shape or value.dtype != u.dtype or value.device != u.device:
            raise ValueError(
                f"Expected H of Nonlinear to return a tensor like the state, {tuple(u.shape)} "
                f"{u.dtype} on {u.device} (got {tuple(value.shape)} {value.dtype} on "
                f"{value.device} at time {t:.6g}).")
        if version is not None and u._version != version:
            raise ValueError("Expected H of Nonlinear to leave the state as it is (it changed it "
                             f"in place at time {t:.6g}); work on u.clone().")
        if has_tangent(value):
            raise forward_mode_error("H of Nonlinear")
        return value

    def check_named(self, value: Tensor, u: Tensor) -> None:
        """Refuses a value at u that depends on a trainable tensor not in :attr:`tensors`."""
        lost = self.function.lost(value, [u])
        if lost is not None:
            raise lost_gradient("H of Nonlinear to use only the state, its args and its own "
                                "parameters", lost, "hand it in, as Nonlinear(fn, tensor) with "
                                "fn(t, u, tensor), or make fn a torch.nn.Module that holds it.")

    def check(self, u: Tensor, t: float) -> None:
        """Raises a ValueError or TypeError if the term does not fit a state u at time t."""
        if u.dim() < max((-d for d in self.dims(u)), default=0):
            raise ValueError(f"Expected a state with the dimensions {self.dims(u)} of Nonlinear "
                             f"(got shape {tuple(u.shape)}).")
        wanted = torch.is_grad_enabled()
        if any(map(is_lazy, self.tensors)):
            with torch.no_grad():
                self.value(t, u.detach())  # gives its parameters their shapes
        with recording():
            state, local = u.detach().clone().requires_grad_(), self.local()
            value = local.value(t, state)
        if wanted:
            local.check_named(value, state)
        if not bool(value.isfinite().all()):
            raise ValueError(f"Expected a finite H of Nonlinear at the initial state (got NaN or "
                             f"Inf at time {t:.6g}).")
        if u.numel():
            with torch.no_grad():
                local._check_values(u.detach(), t)
            if self.jacobian is not None:
                self._check_jacobian(value, state, t)

    def _check_values(self, u: Tensor, t: float) -> None:
        """Checks that H is deterministic, and that its systems do not depend on each other."""
        dims, generator = self.dims(u), torch.Generator().manual_seed(0)
        size = u.abs().max() if bool(u.any()) else 1.0
        x, y = (u * (1.0 + 0.01 * random) + 1e-3 * size * random for random in (
            torch.rand(2, *u.shape, dtype=u.dtype, generator=generator, device="cpu").to(u.device)))
        with recording():
            x = x.clone().requires_grad_()
            graph = self.value(t, x)
        value, again = graph.detach().clone(), self._once(t, x.detach())
        if not torch.equal(value.nan_to_num(), again.nan_to_num()):
            raise ValueError("Expected H of Nonlinear to be a function of t and u alone (got "
                             "another value at the second call), since each stage is solved by "
                             "several evaluations; take out dropout, random numbers and state, or "
                             "call .eval().")
        systems = [1 if at - u.dim() in dims else n for at, n in enumerate(u.shape)]
        if math.prod(systems) < 2:
            return
        some = (torch.rand(systems, generator=generator, device="cpu") < 0.5).to(u.device)
        some.view(-1)[0], some.view(-1)[-1] = True, False
        changed = self._once(t, torch.where(some, x.detach(), y))
        apart = not _differ(torch.where(some, value - changed, 0.0), value, dims)
        if not apart or (graph.requires_grad and not _is_apart(graph, x, systems, dims)):
            raise ValueError(f"Expected H of Nonlinear to mix the dimensions {dims} only (got one "
                             "that mixes others); name all of them in dims=, or leave it out.")

    def _once(self, t: float, u: Tensor) -> Tensor:
        """A copy of one value, with autograd enabled in case H itself uses derivatives."""
        with recording():
            return self.value(t, u.clone().requires_grad_()).detach().clone()

    def operator(self, t: float, u: Tensor) -> LinearOperator:
        """The value of the user's ``jacobian`` at time t and state u."""
        assert self.jacobian is not None
        with torch.no_grad():
            found: Any = self.jacobian(u.new_full((), t), u)
        if not isinstance(found, LinearOperator):
            raise TypeError("Expected the jacobian of Nonlinear to give a LinearOperator (got "
                            f"{type(found).__name__}); wrap a matrix with operators.Dense, blocks "
                            "with operators.BlockDiagonal.")
        return found

    def _check_jacobian(self, value: Tensor, u: Tensor, t: float) -> None:
        """Refuses a jacobian that does not fit the state; warns of one far from the derivative."""
        operator = self.operator(t, u.detach())
        operator.check(u.detach())
        if not set(operator.dims) <= set(self.dims(u)):
            raise ValueError(f"Expected a jacobian along the dimensions {self.dims(u)} of "
                             f"Nonlinear (got one along {operator.dims}).")
        generator = torch.Generator().manual_seed(0)
        w = torch.randn(u.shape, dtype=u.dtype, generator=generator, device="cpu").to(u.device)
        with torch.no_grad():
            product = operator.T.mv(w)
        exact = torch.zeros_like(w)
        if value.requires_grad:
            (exact,) = torch.autograd.grad(value, u, w, allow_unused=True, materialize_grads=True)
        size = float(torch.linalg.vector_norm(exact))
        defect = float(torch.linalg.vector_norm(product - exact))
        if defect > JACOBIAN_DEFECT * size:
            warn_caller(
                f"The jacobian of Nonlinear is off by {defect:.2g} on a random direction where the "
                f"derivative of H is {size:.2g}: Newton's method may converge slowly or not at all "
                "(gradients are exact all the same).")

    def __repr__(self) -> str:
        fn = self.function.fn
        return f"{type(self).__name__}({getattr(fn, '__name__', None) or type(fn).__name__})"


def _is_apart(value: Tensor, u: Tensor, systems: Sequence[int], dims: tuple[int, ...]) -> bool:
    """Whether the derivative of a value at u couples no two systems.

    With a number s for each system, J^T (s w) = s (J^T w) for every w if it does not, and without a
    rounding error where the numbers are powers of two. A coupling of two systems adds the
    difference of their numbers.
    """
    generator = torch.Generator().manual_seed(1)
    w = torch.randn(u.shape, dtype=u.dtype, generator=generator, device="cpu").to(u.device)

    def turned(v: Tensor) -> Tensor:
        """The product J^T v."""
        (found,) = torch.autograd.grad(value, u, v, retain_graph=True, materialize_grads=True,
                                       allow_unused=True)
        return found

    one = turned(w)
    return not any(_differ(turned(s * w) / s - one, one, dims)
                   for s in powers_of_two(systems, w, generator))


def _differ(difference: Tensor, x: Tensor, dims: tuple[int, ...]) -> bool:
    """Whether a difference is more than rounding beside the largest entry of x in its system."""
    size = x.abs().amax(dim=dims, keepdim=True) if dims else x.abs()
    return bool((difference.abs() > 1e4 * torch.finfo(x.dtype).eps * size).any())


def _end(p: Tensor) -> Tensor:
    """The tensor as a leaf of a graph: itself or a detached copy."""
    if p.is_inference():
        with recording():
            return p.clone()
    # A hook must see the whole gradient of a parameter, not the contributions to it.
    return p if p.is_leaf and not p._backward_hooks else p.detach().requires_grad_(p.requires_grad)
