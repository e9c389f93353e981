"""What do compositions of several operators share: tensors in order, spectra, diagonals?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from .base import LinearOperator
from .checks import as_tensor
from .functions import Transform


def with_all(operators: Sequence[LinearOperator], tensors: Sequence[Tensor]
              ) -> list[LinearOperator]:
    """Copies of the operators with other tensors, taken in order."""
    found, rest = [], list(tensors)
    for operator in operators:
        n = len(operator.tensors)
        found.append(operator.with_tensors(rest[:n]))
        rest = rest[n:]
    return found


def one_beside(factors: Sequence[LinearOperator]
               ) -> tuple[LinearOperator, Tensor | float] | None:
    """The only non-diagonal factor and the product of the diagonal ones; None if not only one."""
    others, d = [], 1.0
    for factor in factors:
        own = factor.as_diagonal()
        if own is None:
            others.append(factor)
        else:
            d = d * own  # type: ignore[assignment]
    return (others[0], d) if len(others) == 1 else None


def beside_one(parts: Sequence[LinearOperator], like: Tensor, dims: tuple[int, ...],
               combine: Callable[[Tensor, Tensor], Tensor]
               ) -> tuple[Tensor, Transform | None] | None:
    """The eigenvalues of one operator, combined with those that are constant along its dims."""
    mixing = [part for part in parts if part.dims]
    found = mixing[0].diagonalized(like) if len(mixing) == 1 else None
    if found is None:
        return None
    values = found[0]
    for part in parts:
        if part is not mixing[0]:
            own = part.wide_spectrum(like, dims)
            if own is None:
                return None
            values = combined(combine, values, own)
    return values, found[1]


def combined(combine: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor | float
              ) -> Tensor:
    """Two spectra combined; those of fixed numbers are on the host, others where the state is."""
    b = as_tensor(b)
    if a.device != b.device:
        a, b = (a, b.to(a.device)) if b.device.type == "cpu" else (a.to(b.device), b)
    return combine(a, b)


def varies(d: Tensor | float, dims: tuple[int, ...]) -> int | None:
    """The only dimension along which d varies, or -1 if none; None if several, or one of dims."""
    if not isinstance(d, Tensor):
        return -1
    varying = [at - d.dim() for at, length in enumerate(d.shape) if length != 1]
    if len(varying) > 1 or (varying and varying[0] in dims):
        return None
    return varying[0] if varying else -1
