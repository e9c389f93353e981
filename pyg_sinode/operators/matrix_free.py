"""How is a linear function or module used as an operator?"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..precision import without_autocast
from .base import LinearOperator
from .checks import check_dims, check_real, check_tensors, powers_of_two, shares_memory
from .function import Function
from .transposed import Transposed


class MatrixFree(LinearOperator):
    r"""A linear function or module as an operator, :math:`J u = f(u; \theta)`.

    The product with the transpose is the vector-Jacobian product of autograd. Before the first
    integration, fn is checked to be linear, by products with random vectors.

    Args:
        fn (callable or torch.nn.Module): Called as ``fn(u, *tensors)``. A module is called as
            ``fn(u)``; its parameters are the tensors.
        *tensors (Tensor): The tensors that the function depends on; they receive gradients.
        dim (int or tuple of int): The dimensions of the state that fn mixes, negative.
            (default: :obj:`-1`)

    Raises:
        TypeError: if fn is not callable, or a tensor is not of a real floating dtype.
        ValueError: before the first integration, if fn(0) is not zero, or fn is not linear, changes
            the shape, or mixes dimensions other than :obj:`dim`.
    """

    _turned = False  # whether the transpose was checked; on the class for older pickles

    def __init__(self, fn: Callable[..., Tensor], *tensors: Tensor,
                 dim: int | Sequence[int] = -1) -> None:
        if not callable(fn):
            raise TypeError(f"Expected a function or module (got {type(fn).__name__}).")
        for tensor in tensors:
            check_real(tensor, "the tensors of MatrixFree")
        if isinstance(fn, torch.nn.Module) and tensors:
            raise ValueError(f"Expected no tensors beside a module (got {len(tensors)}); its "
                             "parameters are its tensors.")
        self.applied, self.dims = Function(fn, tensors), check_dims("MatrixFree", dim)
        self._checked, self._copies = False, False

    @property
    def fn(self) -> Callable[..., Tensor]:
        """The function or module fn."""
        return self.applied.fn

    @property
    def tensors(self) -> tuple[Tensor, ...]:  # type: ignore[override]
        return self.applied.tensors

    def with_tensors(self, tensors: Sequence[Tensor]) -> MatrixFree:
        other = copy.copy(self)
        other.applied = self.applied.on(tensors)
        return other

    @without_autocast
    def mv(self, u: Tensor) -> Tensor:
        product: Tensor = self.applied(u)
        return product.clone() if self._copies else product

    def transpose(self) -> LinearOperator:
        return Transposed(self)

    def check(self, u: Tensor) -> None:
        check_tensors(type(self).__name__, self.tensors, u)
        if self._checked:
            return
        if u.dim() < max((-d for d in self.dims), default=0):
            raise ValueError(f"Expected a state with the dimensions {self.dims} of MatrixFree (got "
                             f"shape {tuple(u.shape)}).")
        with torch.no_grad():
            self._check_linear(u)
        self._checked = True

    def check_named(self, u: Tensor) -> None:
        self._check_product(u)

    @torch.no_grad()
    def check_transposed(self, u: Tensor) -> None:
        """Checks once that autograd gives the transpose: <w, J x> = <J^T w, x> for random x, w.

        Raises:
            ValueError: if it does not, since fn detaches its argument or a part of its value.
        """
        if self._turned or not u.numel():
            return
        self._turned = True  # before the products, one of which comes here
        generator = torch.Generator().manual_seed(0)
        x, w = torch.randn(2, *u.shape, dtype=u.dtype, generator=generator,
                           device="cpu").to(u.device)
        y, z = self.mv(x), Transposed(self).mv(w)
        off = float(((w * y).sum() - (z * x).sum()).abs())
        size = float(w.norm() * y.norm() + z.norm() * x.norm())
        if off > 1e4 * torch.finfo(u.dtype).eps * size:
            self._turned = False
            raise ValueError(f"Expected products of {self!r} that autograd can differentiate (got "
                             "a transpose that is not theirs, as after detach(), numpy() or under "
                             "no_grad in a part of the function): gradients would be wrong; "
                             "compute the product with differentiable operations, or write an "
                             "operator with transpose().")

    def _check_linear(self, u: Tensor) -> None:
        generator = torch.Generator(device=u.device).manual_seed(0)
        x, y = (torch.randn(u.shape, dtype=u.dtype, device=u.device, generator=generator)
                for _ in range(2))
        zero = self.mv(torch.zeros_like(x))
        if not isinstance(zero, Tensor) or zero.dtype != u.dtype:
            got = zero.dtype if isinstance(zero, Tensor) else type(zero).__name__
            raise TypeError(f"Expected a function that gives one tensor of the dtype of the state, "
                            f"{u.dtype}, in MatrixFree (got {got}).")
        if zero.shape != u.shape:
            raise ValueError(f"Expected a function that keeps the shape {tuple(u.shape)} of the "
                             f"state in MatrixFree (got {tuple(zero.shape)}).")
        if bool((zero != 0).any()):
            raise ValueError("Expected fn(0) = 0 in MatrixFree (got a largest entry of "
                             f"{float(zero.abs().max()):.1e}); use bias=False, and put the "
                             "constant into the explicit term.")
        given, fx = x.clone(), self.mv(x)
        if not torch.equal(given, x):
            raise ValueError("Expected a function that leaves its argument as it is in MatrixFree "
                             "(got one that changes it in place); return a new tensor.")
        kept, fy = fx.clone(), self.mv(y)
        # If the function reuses the memory of an earlier product, products are copied.
        self._copies = shares_memory(fx, fy) or any(shares_memory(zero, f) for f in (fx, fy))
        fx, fy, fxy = kept, fy.clone(), self.mv(2.0 * x - 3.0 * y)
        error = (fxy - (2.0 * fx - 3.0 * fy)).abs().amax() if x.numel() else x.new_zeros(())
        scale = (fx.abs().amax() + fy.abs().amax()) if x.numel() else x.new_ones(())
        if not float(error) <= 1e4 * torch.finfo(u.dtype).eps * float(scale):
            raise ValueError("Expected a linear function in MatrixFree (got |f(2x - 3y) - 2f(x) + "
                             f"3f(y)| = {float(error):.1e} on random x, y); put what is not "
                             "linear into the explicit term.")
        self._check_columns(x, fx, generator)

    def _check_columns(self, x: Tensor, fx: Tensor, generator: torch.Generator) -> None:
        """Right-hand sides must not depend on each other, since each is solved separately."""
        columns = [1 if at - x.dim() in self.dims else n for at, n in enumerate(x.shape)]
        # A number s for each: fn(s x) = s fn(x) if none depends on another. If one does, the result
        # has the difference of their numbers.
        if not x.numel():
            return
        size = fx.abs().amax(dim=self.dims, keepdim=True) if self.dims else fx.abs()
        largest = 1e4 * torch.finfo(x.dtype).eps * size
        if any(bool(((self.mv(s * x) / s - fx).abs() > largest).any())
               for s in powers_of_two(columns, x, generator)):
            raise ValueError(f"Expected a function that mixes the dimensions {self.dims} only in "
                             "MatrixFree (got one that mixes others); name all of them in dim=.")
