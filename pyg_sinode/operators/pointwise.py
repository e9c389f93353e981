"""Which operators multiply each entry of the state by a number?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .base import LinearOperator
from .checks import as_tensor, broadcasts, check_number, check_real, check_tensors, detached
from .results import Entries, LinearSolveError


class ScaledIdentity(LinearOperator):
    r"""A multiple of the identity, :math:`J u = \alpha u`; :math:`I - cJ` is inverted by division.

    Args:
        alpha (float or Tensor): The factor, negative for a decay; a 0-dim tensor receives
            gradients.

    Shapes:
        - **alpha:** :math:`()`, per unit of time
        - **u:** any
    """

    def __init__(self, alpha: float | Tensor) -> None:
        if isinstance(alpha, Tensor):
            check_real(alpha, "alpha")
            if alpha.dim() != 0:
                raise ValueError(f"Expected alpha as a number or a 0-dim tensor (got shape "
                                 f"{tuple(alpha.shape)}); use Diagonal for several numbers.")
            self.tensors = (alpha,)
        else:
            check_number(alpha, "alpha")
            self._alpha = float(alpha)

    @property
    def alpha(self) -> Tensor | float:
        """The factor, as it was given."""
        return self.tensors[0] if self.tensors else self._alpha

    def mv(self, u: Tensor) -> Tensor:
        return u * self.alpha

    def vjp(self, u: Tensor, w: Tensor, wanted: Sequence[bool]) -> list[Tensor | None]:
        if not any(wanted):
            return [None] * len(wanted)
        return [torch.dot(u.detach().reshape(-1), w.reshape(-1))]

    def transpose(self) -> ScaledIdentity:
        return self

    def symmetric(self) -> bool:
        return True

    def gershgorin(self) -> tuple[Tensor | float, float]:
        return detached(self.alpha), 0.0

    def as_diagonal(self) -> Tensor | float:
        return detached(self.alpha)

    def diagonal(self, u: Tensor) -> Tensor:
        return torch.as_tensor(detached(self.alpha), dtype=u.dtype, device=u.device)

    def spectrum(self, sizes: dict[int, int]) -> Tensor:
        return as_tensor(self.alpha)

    def to_coo(self, dim: int, size: int) -> Entries | None:
        return _diagonal_entries(as_tensor(detached(self.alpha)), size)


class Diagonal(LinearOperator):
    r"""A diagonal matrix, :math:`J u = d \odot u`; :math:`I - cJ` is inverted by division.

    Args:
        d (Tensor): The diagonal, which broadcasts against the state; receives gradients.

    Shapes:
        - **d:** any shape that broadcasts to the shape of the state, per unit of time
        - **u:** any
    """

    def __init__(self, d: Tensor) -> None:
        check_real(d, "d")
        self.tensors = (d,)

    def mv(self, u: Tensor) -> Tensor:
        return u * self.tensors[0]

    def transpose(self) -> Diagonal:
        return self

    def check(self, u: Tensor) -> None:
        check_tensors(type(self).__name__, self.tensors, u)
        shape = self.tensors[0].shape
        if not broadcasts(shape, u):
            raise ValueError(f"Expected a diagonal that broadcasts against the state of shape "
                             f"{tuple(u.shape)} (got {tuple(shape)}).")

    def symmetric(self) -> bool:
        return True

    def gershgorin(self) -> tuple[Tensor, float]:
        return self.tensors[0].detach(), 0.0

    def as_diagonal(self) -> Tensor:
        return self.tensors[0].detach()

    def diagonal(self, u: Tensor) -> Tensor:
        return self.tensors[0].detach()

    def spectrum(self, sizes: dict[int, int]) -> Tensor | None:
        d = self.tensors[0]
        # Constant along the dimensions of the transform, it multiplies the transform as well.
        return d if all(d.dim() < -dim or d.size(dim) == 1 for dim in sizes) else None

    def to_coo(self, dim: int, size: int) -> Entries | None:
        d = self.tensors[0].detach()
        # A diagonal that varies along another dimension is a different matrix for each column.
        if any(length != 1 and at - d.dim() != dim for at, length in enumerate(d.shape)):
            return None
        return _diagonal_entries(d, size)


class Reciprocal(LinearOperator, composes="division"):
    """Division by a divisor, a number or a tensor, which must not be zero to rounding."""

    def __init__(self, divisor: Tensor | float) -> None:
        if isinstance(divisor, Tensor):
            small = divisor.detach().abs().min() if divisor.numel() else math.inf
        else:
            small = abs(divisor)
        eps = torch.finfo(divisor.dtype).eps if isinstance(divisor, Tensor) else 2.3e-16
        if not float(small) > 4 * eps:
            raise LinearSolveError(
                f"I - cJ is singular to rounding: its smallest diagonal entry is {float(small):.1e}"
                " in magnitude. Keep J negative (a decay), or change the step size.")
        self.divisor = divisor

    def mv(self, u: Tensor) -> Tensor:
        return u / self.divisor

    def transpose(self) -> Reciprocal:
        return self


def _diagonal_entries(d: Tensor, size: int) -> Entries:
    at = torch.arange(size, device=d.device)
    return Entries(at, at, d.reshape(-1).expand(size))
