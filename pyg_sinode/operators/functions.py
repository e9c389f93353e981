r"""How are functions f(J) of an operator applied to states?

Exponential integrators multiply each state by several functions of hJ and add the products up. The
classes here do so for operators that are a multiplication of the state or of a transform of it, for
matrices, and for all others by polynomials. They share the interface :class:`Functions`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from .flat import multiply

OfNumbers = Callable[[Tensor], Tensor]  # several functions of z, along a new first dimension
Uses = Sequence[tuple[int, int]]  # pairs of the place of a sum and the number of a function


class Functions(Protocol):
    """Several functions of an operator, numbered from 0.

    Attributes:
        products (int): The number of products with J in a call of :meth:`add`.
        carries (bool): Whether a transform of a state stays its transform in all sums; if not, the
            state itself is transformed anew in each step.
    """

    products: int
    carries: bool

    @property
    def size(self) -> int:
        """How many numbers are kept beside those of J."""
        ...

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """The tensors whose gradients :meth:`add_vjp` gives: values of functions, or J's own."""
        ...

    def enter(self, x: Tensor) -> Tensor:
        """The transform of a state, in which sums are formed."""
        ...

    def leave(self, y: Tensor) -> Tensor:
        """The state of a transform."""
        ...

    def add(self, sums: list[Tensor | None], x: Tensor, uses: Uses) -> None:
        """Adds the product of each function in ``uses`` with x, transformed, to its sum."""
        ...

    def transposed(self) -> Functions:
        """The same functions of the transposed operator."""
        ...

    def add_vjp(self, grads: list[Tensor | None], x: Tensor, w: Sequence[Tensor | None],
                uses: Uses) -> None:
        """Adds the gradients of <w_i, f_k(J) x>, summed over the ``uses`` (i, k), to ``grads``."""
        ...


class Transform(Protocol):
    """A transform of states, in which an operator is a multiplication."""

    def forward(self, x: Tensor) -> Tensor:
        """The coefficients of a state."""
        ...

    def backward(self, y: Tensor) -> Tensor:
        """The state of coefficients."""
        ...

    def dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype of the coefficients of a state of a dtype."""
        ...

    def weight(self, like: Tensor) -> Tensor | None:
        """How much each coefficient counts in the scalar product of two states; None for 1."""
        ...

    @property
    def is_redundant(self) -> bool:
        """Whether not all coefficients are those of a state."""
        ...


class Fourier:
    """The Fourier transform of real states, of which the first half of the last axis is stored.

    Args:
        dims (tuple of int): The dimensions that are transformed.
        sizes (sequence of int): Their lengths.
    """

    def __init__(self, dims: tuple[int, ...], sizes: Sequence[int]) -> None:
        self.dims, self.sizes = dims, list(sizes)

    def forward(self, x: Tensor) -> Tensor:
        """See :class:`Transform`."""
        found: Tensor = (torch.fft.rfft(x, dim=self.dims[0]) if len(self.dims) == 1
                         else torch.fft.rfftn(x, dim=self.dims))
        return found

    def backward(self, y: Tensor) -> Tensor:
        """See :class:`Transform`."""
        found: Tensor = (torch.fft.irfft(y, self.sizes[0], dim=self.dims[0])
                         if len(self.dims) == 1
                         else torch.fft.irfftn(y, s=self.sizes, dim=self.dims))
        return found

    def dtype(self, dtype: torch.dtype) -> torch.dtype:
        """See :class:`Transform`."""
        return dtype.to_complex()

    def weight(self, like: Tensor) -> Tensor:
        """See :class:`Transform`; a stored mode stands for itself and its conjugate."""
        n, last = self.sizes[-1], self.dims[-1]
        weight = torch.full((n // 2 + 1,), 2.0, dtype=like.real.dtype, device=like.device)
        weight[0] = 1.0
        if n % 2 == 0:
            weight[-1] = 1.0
        return weight.reshape(-1, *([1] * (-last - 1))) / math.prod(self.sizes)

    @property
    def is_redundant(self) -> bool:
        """In several dimensions, modes whose conjugates are stored too: rounding would part them.

        The backward transform does not see the part by which they differ, so that nothing damps it
        where J makes it grow.
        """
        return len(self.dims) > 1


class DiagonalFunctions:
    """Functions of an operator that multiplies each entry of a state, or of its transform.

    Args:
        values (Tensor): The values of the functions, along the first dimension.
        like (Tensor): A state.
        transform (Transform, optional): The transform; none if None. (default: :obj:`None`)
    """

    def __init__(self, values: Tensor, like: Tensor, transform: Transform | None = None) -> None:
        dtype = like.dtype if transform is None else transform.dtype(like.dtype)
        self._set(values.to(like.device, dtype), transform)

    def _set(self, values: Tensor, transform: Transform | None) -> None:
        self.leaves, self.values, self.transform = (values,), values.unbind(), transform
        self.carries = transform is not None and not transform.is_redundant

    products = 0

    @property
    def size(self) -> int:
        """See :class:`Functions`."""
        return self.leaves[0].numel()

    def enter(self, x: Tensor) -> Tensor:
        """See :class:`Functions`."""
        return x if self.transform is None else self.transform.forward(x)

    def leave(self, y: Tensor) -> Tensor:
        """See :class:`Functions`."""
        return y if self.transform is None else self.transform.backward(y)

    def add(self, sums: list[Tensor | None], x: Tensor, uses: Uses) -> None:
        """See :class:`Functions`."""
        values = self.values
        for place, k in uses:
            present = sums[place]
            if present is None:
                sums[place] = values[k] * x
            else:
                present.addcmul_(values[k], x)

    def transposed(self) -> DiagonalFunctions:
        """See :class:`Functions`."""
        other = object.__new__(type(self))
        other._set(self.leaves[0].conj().resolve_conj(), self.transform)
        return other

    def add_vjp(self, grads: list[Tensor | None], x: Tensor, w: Sequence[Tensor | None],
                uses: Uses) -> None:
        """See :class:`Functions`."""
        total = grads[0] = torch.zeros_like(self.leaves[0]) if grads[0] is None else grads[0]
        weight = None if self.transform is None else self.transform.weight(x)
        for place, k in uses:
            own = w[place]
            if own is not None:
                product = own * x.conj()
                if weight is not None:
                    product = product * weight
                total[k] += product.sum_to_size(total[k].shape)


class MatrixFunctions:
    """Functions of a matrix along one dimension, as matrices.

    Args:
        matrices (Tensor): The matrices, along the first dimension.
        dim (int): The dimension of the state that they multiply.
    """

    def __init__(self, matrices: Tensor, dim: int) -> None:
        self.leaves, self.dim = (matrices,), dim

    products, carries = 0, False

    @property
    def size(self) -> int:
        """See :class:`Functions`."""
        return self.leaves[0].numel()

    def enter(self, x: Tensor) -> Tensor:
        """The state itself."""
        return x

    def leave(self, y: Tensor) -> Tensor:
        """The state itself."""
        return y

    def add(self, sums: list[Tensor | None], x: Tensor, uses: Uses) -> None:
        """See :class:`Functions`."""
        for place, k in uses:
            product, present = multiply(self.leaves[0][k], x, self.dim), sums[place]
            sums[place] = product if present is None else present.add_(product)

    def transposed(self) -> MatrixFunctions:
        """See :class:`Functions`."""
        return MatrixFunctions(self.leaves[0].mT, self.dim)

    def add_vjp(self, grads: list[Tensor | None], x: Tensor, w: Sequence[Tensor | None],
                uses: Uses) -> None:
        """See :class:`Functions`."""
        total = grads[0] = torch.zeros_like(self.leaves[0]) if grads[0] is None else grads[0]
        n = self.leaves[0].size(-1)
        flat = x.movedim(self.dim, -1).reshape(-1, n)
        for place, k in uses:
            own = w[place]
            if own is not None:
                total[k] += own.movedim(self.dim, -1).reshape(-1, n).t() @ flat
