r"""How are functions f(J) of an operator applied to states?

Exponential integrators multiply each state by several functions of hJ and add the products up. The
classes here do so for operators that are a multiplication of the state or of a transform of it, for
matrices, and for all others by polynomials. They share the interface :class:`Functions`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .flat import multiply
from .results import LinearSolveError

if TYPE_CHECKING:
    from .base import LinearOperator

OfNumbers = Callable[[Tensor], Tensor]  # several functions of z, along a new first dimension
Uses = Sequence[tuple[int, int]]  # pairs of the place of a sum and the number of a function
MAX_DEGREE = 2048
ROUNDING = 64 * 2.0**-52  # of values in double precision, relative to the largest one
FEW = 40  # the degree up to which no check of symmetry would pay


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


class Bound:
    """A disc in which polynomials approximate functions of an operator; kept while J is the same.

    The eigenvalues alone say nothing of the error where J is not normal. So the disc is that of
    Gershgorin for the rows or for the columns, in which :math:`\\|J - c\\| \\le r` holds in the
    maximum norm or in the 1-norm. A smaller disc of the operator's own is used if J is symmetric,
    or if nothing else is known.

    Args:
        operator (LinearOperator): The operator.
    """

    def __init__(self, operator: LinearOperator) -> None:
        self.operator = operator
        self.known: bool | None = None
        own = operator.disc()
        discs = [disc_of(each.gershgorin()) for each in (operator, operator.T)]
        others = [disc for disc in discs if disc is not None]
        safe = min(others, key=lambda disc: disc[1], default=None)
        use_own = own is not None and (
            safe is None or (own[1] < (1.0 - 1e-6) * safe[1] and self.symmetric()))
        self.disc = own if use_own else safe

    def symmetric(self) -> bool:
        """Whether J is symmetric, asked once."""
        if self.known is None:
            self.known = self.operator.symmetric()
        return self.known


def disc_of(bounds: tuple[Tensor | float, Tensor | float] | None) -> tuple[float, float] | None:
    """The centre and radius of a disc that holds all Gershgorin discs; None if none are known."""
    if bounds is None:
        return None
    d, others = (torch.as_tensor(x).double() for x in bounds)
    if not (d + others).numel():
        return 0.0, 0.0
    low, high = float((d - others).min()), float((d + others).max())
    return (low + high) / 2, (high - low) / 2


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


class PolynomialFunctions:
    r"""Functions of an operator by polynomials, of as many products with J as their degree.

    They are Taylor series about the centre c of a disc of radius r that holds the eigenvalues,
    whose error is at most :math:`\sum_{m > M} |f_m|\, \|((J - c) / r)^m\|`, :math:`f_m` the
    coefficients for a disc of radius 1. If that takes more than 40 products and J is symmetric,
    they are Chebyshev series on the interval from c - r to c + r. Both end where the coefficients
    fall below the rounding error of the largest value of the function.

    Args:
        operator (LinearOperator): The operator J.
        f (callable): Maps numbers to the values of the functions, along a new first dimension. Its
            attribute ``unit``, 1 if there is none, is a radius on which it varies.
        bound (Bound): A disc that holds the eigenvalues, and whether J is symmetric.
        like (Tensor): A state.

    Raises:
        ValueError: if the degree would exceed 2048.
    """

    carries, size = False, 0

    def __init__(self, operator: LinearOperator, f: OfNumbers, bound: Bound, like: Tensor) -> None:
        assert bound.disc is not None
        centre, radius = bound.disc
        if any(p.requires_grad for p in operator.tensors):
            # The derivative needs terms that the values of functions on a tiny disc do not.
            radius = max(radius, 0.5 * getattr(f, "unit", 1.0))
        self.operator, self.leaves = operator, tuple(operator.tensors)
        self.disc, self.chebyshev = (centre, radius), False
        eps = torch.finfo(like.dtype).eps
        found = _series(_taylor_nodes, f, centre, radius, eps)
        if (found is None or len(found) > FEW) and bound.symmetric():
            found, self.chebyshev = _series(_chebyshev_nodes, f, centre, radius, eps), True
        if found is None:
            raise ValueError(
                f"Expected functions of J that polynomials of degree {MAX_DEGREE} at most "
                f"approximate (got eigenvalues of J in a disc of centre {centre:.3g} and radius "
                f"{radius:.3g}); in an exponential scheme take smaller steps, or an "
                "implicit-explicit scheme, which solves linear systems instead.")
        self.series, self.products = found, len(found) - 1

    def enter(self, x: Tensor) -> Tensor:
        """The state itself."""
        return x

    def leave(self, y: Tensor) -> Tensor:
        """The state itself."""
        return y

    def add(self, sums: list[Tensor | None], x: Tensor, uses: Uses) -> None:
        """See :class:`Functions`."""
        wanted = sorted({k for _, k in uses})
        products = dict(zip(wanted, self._products(self.operator, x, wanted), strict=True))
        for place, k in uses:
            present = sums[place]
            sums[place] = (products[k].clone() if present is None else present.add_(products[k]))

    def transposed(self) -> PolynomialFunctions:
        """See :class:`Functions`."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.operator = self.operator.T
        return other

    def add_vjp(self, grads: list[Tensor | None], x: Tensor, w: Sequence[Tensor | None],
                uses: Uses) -> None:
        """See :class:`Functions`; the products are made again with their graph."""
        chosen = [p for p in self.leaves if p.requires_grad]
        wanted = [(place, k) for place, k in uses if w[place] is not None]
        if not chosen or not wanted:
            return
        with torch.enable_grad():
            products = self._products(self.operator, x.detach(), [k for _, k in wanted])
        pairs = [(p, w[place]) for p, (place, _) in zip(products, wanted, strict=True)
                 if p.requires_grad]
        if not pairs:
            return
        found = torch.autograd.grad([p for p, _ in pairs], chosen, [v for _, v in pairs],
                                    allow_unused=True)
        rest = iter(found)
        for i, leaf in enumerate(self.leaves):
            new = next(rest) if leaf.requires_grad else None
            if new is not None:
                present = grads[i]
                grads[i] = new if present is None else present + new

    def _products(self, operator: LinearOperator, x: Tensor, wanted: Sequence[int]
                  ) -> list[Tensor]:
        """The products of the wanted functions with x, by one recurrence for all of them."""
        centre, radius = self.disc
        factor = 1.0 / radius if radius else 0.0
        before, now = x, x
        sums = [x * self.series[0][k] for k in wanted]
        for m, coefficients in enumerate(self.series[1:], start=1):
            following = torch.sub(operator.mv(now), now, alpha=centre) * factor
            if self.chebyshev and m > 1:
                following = 2.0 * following - before
            before, now = now, following
            for i, k in enumerate(wanted):
                if coefficients[k] != 0.0:
                    sums[i] = torch.add(sums[i], now, alpha=coefficients[k])
        return sums


def functions_of_matrix(matrix: Tensor, f: Any) -> Tensor:
    """The functions of a matrix, along a new first dimension.

    Args:
        matrix (Tensor): A square matrix.
        f (callable): Maps numbers to the values of the functions. If it has a method ``of_matrix``,
            that is used instead of the eigenvalues.
    """
    wide = matrix.double()
    if hasattr(f, "of_matrix"):
        found: Tensor = f.of_matrix(wide)
    else:
        found = _ByEigenvectors.apply(wide, f, torch.finfo(matrix.dtype).eps)
    return found.to(matrix.dtype)


class _ByEigenvectors(torch.autograd.Function):
    """Functions of a matrix by its eigenvectors, with the gradient of Daleckii and Krein.

    Autograd through the eigenvectors would divide by zero where eigenvalues are equal. Source:
    Higham, Functions of Matrices (2008), theorem 3.11.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, f: OfNumbers, eps: float) -> Tensor:
        if torch.equal(matrix, matrix.t()):
            values, vectors = torch.linalg.eigh(matrix)
            right = vectors.t()
        else:
            values, vectors = torch.linalg.eig(matrix)
            condition = float(torch.linalg.cond(vectors))
            if not condition * 2.3e-16 < eps**0.5:
                raise LinearSolveError(
                    f"A function of this Dense matrix cannot be computed by its eigenvectors, "
                    f"whose condition is {condition:.1e}. Give f a method of_matrix(M) for a "
                    "tensor of functions of a matrix.")
            right = torch.linalg.inv(vectors)
        ctx.f = f
        ctx.save_for_backward(values, vectors, right)
        product: Tensor = (vectors * f(values).to(vectors.dtype).unsqueeze(-2)) @ right
        return product.real

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, vectors, right = ctx.saved_tensors
        slopes = _divided_differences(ctx.f, values)
        inner = vectors.mH @ grads[0].to(vectors.dtype) @ right.mH
        whole: Tensor = right.mH @ (slopes.conj() * inner) @ vectors.mH
        return whole.sum(dim=0).real, None, None


def _divided_differences(f: OfNumbers, z: Tensor) -> Tensor:
    """The numbers (f(z_i) - f(z_j)) / (z_i - z_j), and f' where two are nearly equal."""
    rows, columns = z.unsqueeze(1), z.unsqueeze(0)
    apart = rows - columns
    size = 1.0 + z.abs()
    near = apart.abs() <= 1e-5 * torch.maximum(size.unsqueeze(1), size.unsqueeze(0))
    middle = ((rows + columns) / 2).detach().requires_grad_()
    with torch.enable_grad():
        # The gradient of a complex function is the conjugate of its derivative.
        derivative = torch.stack([
            torch.autograd.grad(each, middle, torch.ones_like(each), retain_graph=True)[0].conj()
            for each in f(middle)])
    values = f(z)
    quotient = (values.unsqueeze(2) - values.unsqueeze(1)) / torch.where(
        near, torch.ones_like(apart), apart)
    return torch.where(near, derivative, quotient)


def _series(nodes: Callable[[Tensor], Tensor], f: OfNumbers, centre: float, radius: float,
            eps: float) -> list[list[float]] | None:
    """The coefficients of all functions for each degree, as far as they matter; None if too many.

    Args:
        nodes (callable): Maps angles to the points of the unit disc where f is evaluated: a circle
            for a Taylor series, its real part for a Chebyshev series.
        f (callable): The functions.
        centre, radius (float): Those of the disc.
        eps (float): The relative rounding error.
    """
    points = 64
    while points <= 4 * MAX_DEGREE:
        angle = 2 * math.pi * torch.arange(points, dtype=torch.float64) / points
        values = f(centre + radius * nodes(angle)).detach()
        found = torch.fft.fft(values, dim=-1).real[:, :points // 2] / points
        if nodes is _chebyshev_nodes:
            found[:, 1:] *= 2.0
        size, largest = found.abs(), values.abs().amax(dim=1)
        if not bool(largest.isfinite().all()):
            return None
        # Once a series has converged, its last coefficients are rounding errors of the values.
        noise = size[:, points // 4:].amax(dim=1)
        if bool((noise <= ROUNDING * largest.max()).all()):
            floor = torch.maximum(4 * eps * largest, 4 * noise)
            matter = (size > floor.unsqueeze(1)).any(dim=0).nonzero()
            degree = int(matter[-1]) if len(matter) else 0
            coefficients: list[list[float]] = found[:, :degree + 1].t().tolist()
            return coefficients
        points *= 2
    return None


def _taylor_nodes(angle: Tensor) -> Tensor:
    return torch.polar(torch.ones_like(angle), angle)


def _chebyshev_nodes(angle: Tensor) -> Tensor:
    return angle.cos()
