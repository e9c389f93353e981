"""Which matrix is dissipative whatever its parameters are, and how is I - cJ inverted?"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ..precision import without_autocast
from .base import LinearOperator
from .checks import along, check_dim, check_real, check_size, check_tensors
from .dense import DenseInverse
from .flat import multiply
from .results import Entries, LinearSolveError


class Dissipative(LinearOperator):
    r"""A matrix along one dimension that cannot make a state grow, whatever its parameters are.

    .. math::
        J = S - S^T - B B^T - \varepsilon I, \qquad\text{with a rank}\quad
        J = P Q^T - Q P^T - B B^T - \varepsilon I

    Its symmetric part is :math:`-B B^T - \varepsilon I`, so that solutions of :math:`\dot u = J u`
    contract in the 2-norm: :math:`\frac{d}{dt} \Vert u \Vert^2 = -2 \Vert B^T u \Vert^2 -
    2 \varepsilon \Vert u \Vert^2`. So do the steps of every Runge-Kutta scheme that is A-stable, of
    any size.

    The tensors are random :class:`torch.nn.Parameter` objects, of which :math:`J` is made anew in
    each product. Train them in two lines:

    .. code-block:: python

        J = operators.Dissipative(64, rank=8)
        optimizer = torch.optim.Adam([*model.parameters(), *J.tensors])

    or as the parameters of a module, by :class:`pyg_sinode.LearnedOperator`.
    :class:`pyg_sinode.SINODEConv` registers them itself.

    :math:`I - cJ` is inverted by an LU factorization, computed once for all right-hand sides; with
    a rank by the formula of Woodbury, in :math:`O(n r)` for each right-hand side, where the factors
    are replaced by an orthonormal basis of their columns, in which the system of size :math:`3 r`
    stays well conditioned. For :math:`c \ge 0` no inverse is larger than one in the 2-norm, and
    the condition is at most :math:`1 + c \Vert J \Vert_2`.

    Args:
        n (int): The size of the matrix.
        rank (int, optional): The number r of columns of P, Q and B; a full matrix if None.
            (default: :obj:`None`)
        eps (float): The rate :math:`\varepsilon > 0` at which everything decays at least, per unit
            of time. (default: :obj:`1e-3`)
        dim (int): The dimension of the state that it multiplies, negative. (default: :obj:`-1`)
        dtype, device: Those of the parameters. (default: PyTorch's)
        generator (torch.Generator, optional): Makes the initial numbers, which are normal with a
            variance of 1/n: J is of order one. (default: :obj:`None`)

    Shapes:
        - **S, B:** :math:`(n, n)`; **P, Q, B:** :math:`(n, r)`; their products per unit of time
        - **u:** :math:`(*, n, *)` with n at :obj:`dim`

    Raises:
        ValueError: if n, rank or eps is not positive, or given tensors do not fit.
        TypeError: if given tensors are not of a real floating dtype.
    """

    eps: float

    def __init__(self, n: int, rank: int | None = None, *, eps: float = 1e-3, dim: int = -1,
                 dtype: torch.dtype | None = None, device: Any = None,
                 generator: torch.Generator | None = None) -> None:
        for name, value in (("n", n), ("rank", 1 if rank is None else rank)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"Expected {name} as an int of at least 1 in Dissipative (got "
                                 f"{value!r}).")
        shapes = [(n, n)] * 2 if rank is None else [(n, rank)] * 3
        self._set([normal(shape, n**-0.5, dtype, device, generator) for shape in shapes], eps, dim)

    @classmethod
    def from_tensors(cls, *tensors: Tensor, eps: float = 1e-3, dim: int = -1) -> Dissipative:
        """The operator of given tensors, such as the output of a network.

        Args:
            *tensors (Tensor): S and B, or P, Q and B; they receive gradients. B may have any
                number of columns.
            eps, dim: As in the class.
        """
        self = cls.__new__(cls)
        self._set(tensors, eps, dim)
        return self

    def _set(self, tensors: Sequence[Tensor], eps: float, dim: int) -> None:
        if len(tensors) not in (2, 3):
            raise ValueError(f"Expected two tensors, S and B, or three, P, Q and B, in Dissipative "
                             f"(got {len(tensors)}).")
        for name, tensor in zip("SB" if len(tensors) == 2 else "PQB", tensors, strict=True):
            check_real(tensor, name)
        _check_shapes([tuple(t.shape) for t in tensors])
        if not isinstance(eps, Real) or not 0.0 < eps < math.inf:
            raise ValueError(f"Expected eps as a finite number above 0 in Dissipative (got "
                             f"{eps!r}): it keeps the symmetric part definite.")
        self.tensors, self.dims = tuple(tensors), check_dim("Dissipative", dim)
        self.eps = float(eps)

    @property
    def rank(self) -> int | None:
        """The number of columns of P and Q; None for a full matrix."""
        return None if len(self.tensors) == 2 else self.tensors[0].size(1)

    @property
    def n(self) -> int:
        """The size of the matrix."""
        return self.tensors[0].size(0)

    @without_autocast
    def mv(self, u: Tensor) -> Tensor:
        moved = u.movedim(self.dims[0], -1)
        # In two dimensions, where matmul gives the same bits with an autograd graph and without.
        rows = moved.reshape(-1, self.n)
        if self.rank is None:
            S, B = self.tensors
            product = rows @ (S.t() - S) - (rows @ B) @ B.t()
        else:
            P, Q, B = self.tensors
            product = (rows @ torch.cat([Q, P, B], dim=1)) @ torch.cat([P, -Q, -B], dim=1).t()
        product = torch.sub(product, rows, alpha=self.eps)
        return product.view(moved.shape).movedim(-1, self.dims[0])

    def transpose(self) -> Dissipative:
        other = copy.copy(self)
        first, *rest = self.tensors
        other.tensors = (first.t(), *rest) if self.rank is None else (rest[0], first, rest[1])
        return other

    def check(self, u: Tensor) -> None:
        check_tensors(type(self).__name__, self.tensors, u)
        check_size("Dissipative", u, self.dims[0], self.n)

    def symmetric(self) -> bool:
        P, Q = self.tensors[:2]
        if self.rank is None:
            return torch.equal(P, P.t())
        return torch.equal(P, Q) or not P.any() or not Q.any()

    def largest_eigenvalue(self) -> float:
        return -self.eps

    def disc(self) -> tuple[float, float]:
        # The numerical range has real parts from -eps - |B|^2 to -eps and imaginary ones up to the
        # norm of the skew part, at most 2^-1/2 of its Frobenius norm, since eigenvalues are paired.
        *skew, B = (t.detach().double() for t in self.tensors)
        if self.rank is None:
            high = float((skew[0] - skew[0].t()).norm()) / math.sqrt(2.0)
        else:
            P, Q = skew
            high = math.sqrt(2.0 * float(((P.t() @ P) * (Q.t() @ Q)).sum().clamp(min=0.0)))
        half = 0.5 * float(B.square().sum())
        return -self.eps - half, math.hypot(half, high) * (1.0 + 1e-6)

    def gershgorin(self) -> tuple[Tensor, Tensor]:
        matrix = self.matrix().detach()
        d = matrix.diagonal().clone()
        others = matrix.abs().fill_diagonal_(0.0).sum(dim=1)
        return along(d, self.dims[0]), along(others, self.dims[0])

    def size_along(self, dim: int) -> int | None:
        return self.n if dim == self.dims[0] else None

    def diagonal(self, u: Tensor) -> Tensor:
        B = self.tensors[-1].detach()
        return along(-B.square().sum(dim=1) - self.eps, self.dims[0])

    def matrix(self) -> Tensor:
        *skew, B = self.tensors
        half = skew[0] if self.rank is None else skew[0] @ skew[1].t()
        identity = torch.eye(self.n, dtype=B.dtype, device=B.device)
        return half - half.t() - B @ B.t() - self.eps * identity

    def to_coo(self, dim: int, size: int) -> Entries | None:
        if dim != self.dims[0]:
            return None
        matrix = self.matrix().detach()
        at = torch.arange(size, device=matrix.device)
        return Entries(at.repeat_interleave(size), at.repeat(size), matrix.reshape(-1))

    @property
    def is_uniform(self) -> bool:
        return True

    def has_closed_inverse(self) -> bool:
        return True

    def resolvent(self, c: float) -> LinearOperator:
        if self.rank is None or sum(t.size(1) for t in self.tensors) >= self.n:
            matrix = -c * self.matrix().detach()
            matrix.diagonal().add_(1.0)
            return DenseInverse.of(matrix, self.dims[0])
        return LowRankInverse.of([t.detach() for t in self.tensors], c, self.eps, self.dims[0])


class LowRankInverse(LinearOperator):
    r"""The inverse of I - cJ for a J of low rank, less a multiple of the identity.

    With an orthonormal basis W of the columns of P, Q and B, :math:`J = W M W^T - \varepsilon I`,
    and with :math:`a = 1 + c \varepsilon`

    .. math::
        (I - cJ)^{-1} = \frac{1}{a} (I - W W^T) + W (a I - c M)^{-1} W^T

    The formula of Woodbury without a basis has the Gram matrix of the columns in its place, whose
    condition is the square of theirs, and differences of large numbers where c is large.

    Args:
        basis (Tensor): The W.
        inner (LinearOperator): The inverse of aI - cM.
        outside (float): The a.
        dim (int): The dimension of the state, negative.
    """

    def __init__(self, basis: Tensor, inner: LinearOperator, outside: float, dim: int) -> None:
        self.basis, self.inner, self.outside, self.dims = basis, inner, outside, (dim,)

    @classmethod
    def of(cls, tensors: Sequence[Tensor], c: float, eps: float, dim: int) -> LowRankInverse:
        """Factorizes; raises a LinearSolveError if I - cJ is singular to rounding, c negative."""
        outside = 1.0 + c * eps
        if abs(outside) <= 4 * torch.finfo(tensors[0].dtype).eps:
            raise LinearSolveError(
                f"I - cJ is singular to rounding: an eigenvalue is {abs(outside):.1e} in magnitude."
                " Keep the eigenvalues of J away from 1/c, or change the step size.",
                residual=math.inf)
        basis, factors = torch.linalg.qr(torch.cat(list(tensors), dim=1))
        P, Q, B = factors.split([t.size(1) for t in tensors], dim=1)
        half = P @ Q.t()
        inner = -c * (half - half.t() - B @ B.t())
        inner.diagonal().add_(outside)
        return cls(basis, DenseInverse.of(inner, dim), outside, dim)

    def mv(self, u: Tensor) -> Tensor:
        (dim,) = self.dims
        inside = multiply(self.basis.t(), u, dim)
        change = self.inner.mv(inside) - inside / self.outside
        return u / self.outside + multiply(self.basis, change, dim)

    def transpose(self) -> LowRankInverse:
        return LowRankInverse(self.basis, self.inner.T, self.outside, self.dims[0])


def normal(shape: Sequence[int], std: float, dtype: torch.dtype | None, device: Any,
           generator: torch.Generator | None) -> Parameter:
    """A parameter of normal random numbers."""
    made_on = device if generator is None else generator.device
    numbers = torch.randn(*shape, dtype=dtype, device=made_on, generator=generator)
    return Parameter((std * numbers).to(device))


def _check_shapes(shapes: Sequence[tuple[int, ...]]) -> None:
    """Raises a ValueError unless these are shapes of S and B, or of P, Q and B."""
    n = shapes[0][0] if shapes[0] else 0
    two = all(len(shape) == 2 and shape[0] == n for shape in shapes)
    if len(shapes) == 2 and not (two and shapes[0][1] == n):
        raise ValueError(f"Expected S of shape (n, n) and B of shape (n, k) in Dissipative (got "
                         f"{shapes[0]} and {shapes[1]}).")
    if len(shapes) == 3 and not (two and shapes[0] == shapes[1]):
        raise ValueError(f"Expected P and Q of shape (n, r) and B of shape (n, k) in Dissipative "
                         f"(got {shapes[0]}, {shapes[1]} and {shapes[2]}).")
