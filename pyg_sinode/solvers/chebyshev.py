"""How does the Chebyshev iteration solve a system whose eigenvalues are known to lie in a disc?"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from ..operators import LinearOperator
from .base import Solver
from .gmres import GMRES
from .krylov import Krylov, KrylovInverse, System

# An iteration of GMRES takes about four times as long: Chebyshev continues while it converges at
# more than this fraction of the rate of its bound.
PAYS = 0.3


@dataclass(frozen=True, repr=False)
class Chebyshev(Krylov):
    r"""The Chebyshev semi-iteration, which needs no inner products.

    Saad, `"Iterative Methods for Sparse Linear Systems" <https://doi.org/10.1137/1.9780898718003>`_
    (2nd ed., 2003), Algorithm 12.1. All eigenvalues must lie in a disc with centre d on the real
    axis and radius :math:`\rho < d`. If they lie on its real diameter (those of attention matrices
    lie near it), an iteration divides the residual by :math:`(d + \sqrt{d^2 - \rho^2}) / \rho`. The
    number of iterations is computed from this bound beforehand, so that the host waits for the
    device only at their end. A column is solved when its true residual is

    .. math::
        \Vert b - Ax \Vert_2 \leq \max(rtol \, \Vert b \Vert_2,\ atol).

    If it is larger after these iterations, because eigenvalues lie off the diameter, the iteration
    continues while it converges fast enough, and then :class:`GMRES` continues.

    Args:
        rtol (float, optional): Relative tolerance; 1e-10 in float64 and 1e-5 in float32 if None.
        atol (float): Absolute tolerance, in the unit of b. (default: :obj:`0.0`)
        max_iter (int, optional): Largest number of iterations of a solve; if None, a thousand plus
            ten times the number of unknowns of a column. (default: :obj:`None`)
        disc (tuple of two floats, optional): The centre d and the radius :math:`\rho` for the
            matrix to invert, which is I - cJ in an integration. If None, they are taken from the
            operator; a :class:`pyg_sinode.operators.Graph` with a :obj:`radius` knows them.
            (default: :obj:`None`)

    Raises:
        ValueError: if an argument is out of range, or no disc is known.
        LinearSolveError: in a solve, if a column does not reach its tolerance.
    """

    rtol: float | None = None
    atol: float = 0.0
    max_iter: int | None = None
    disc: tuple[float, float] | None = None
    preconditioner: Solver | None = dataclasses.field(default=None, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.disc is not None:
            _check_disc(self.disc)

    def invert(self, operator: LinearOperator) -> KrylovInverse:
        """The inverse of an operator, whose product is computed by the iteration."""
        if self.disc is not None:
            return super().invert(operator)
        disc = operator.disc()
        if disc is None:
            raise ValueError("Expected an operator that knows a disc with its eigenvalues (got "
                             f"{operator!r}); give Graph a radius, Chebyshev a disc, or use GMRES.")
        _check_disc(disc)
        return KrylovInverse(dataclasses.replace(self, disc=disc), operator, None)

    def most(self, size: int) -> int:
        """The default :obj:`max_iter`: the iterations depend on the disc more than on the size."""
        return 1000 + super().most(size)

    def cycle(self, system: System, r: Tensor, norm: Tensor, active: Tensor) -> Tensor | None:
        """Makes the iterations that the bound asks for, or hands over to GMRES; see the base class.
        """
        assert self.disc is not None
        bound = _rate(self.disc)
        left, rate = _excess(norm, system.target, active), bound
        if system.spent:
            rate = (_excess(system.initial, system.target, active) - left) / system.spent
            if not rate > PAYS * bound:
                return self._give_over(system, r, norm, active, worse=not rate > 0)
        # The bound holds for the residual up to a factor of two.
        count = max(1, math.ceil((left + math.log(2.0)) / rate))
        _iterate(system, r, self.disc, min(count, _longest(bound, r.dtype)), active)
        return None  # the method has no residual of its own

    def _give_over(self, system: System, r: Tensor, norm: Tensor, active: Tensor, *, worse: bool
                   ) -> Tensor:
        """Continues with GMRES; from zero in columns whose residual has grown."""
        if worse:
            grown = active & ~(norm < system.norm_b)  # true for NaN
            system.x = torch.where(grown, 0.0, system.x)
            r, norm = torch.where(grown, system.b, r), torch.where(grown, system.norm_b, norm)
        system.solver = GMRES(self.rtol, self.atol, max_iter=self.max_iter)
        return system.solver.cycle(system, r, norm, active)


def _iterate(system: System, r: Tensor, disc: tuple[float, float], count: int, active: Tensor
             ) -> None:
    """Makes ``count`` iterations, or fewer if the limit is reached.

    The direction in Saad's algorithm is stored as alpha e, which saves a pass over memory.
    """
    center, radius = disc
    e, alpha, rho = r.mul_(active).clone(), 1.0 / center, radius / center
    for made in range(count):
        if not system.count(active):
            return
        system.x.add_(e, alpha=alpha)
        if made + 1 == count:
            return
        system.subtract(r, e, alpha)
        half = 1.0 / (2.0 * center - radius * rho)  # the radius may be 0
        after = radius * half
        torch.add(r, e, alpha=after * rho * alpha / (2.0 * half), out=e)
        alpha, rho = 2.0 * half, after


def _rate(disc: tuple[float, float]) -> float:
    """The logarithm of the residual's reduction per iteration, for eigenvalues on the diameter."""
    center, radius = disc
    if radius == 0.0:
        return math.inf
    ratio = center / radius
    return math.log(ratio + math.sqrt(ratio - 1.0) * math.sqrt(ratio + 1.0))


def _longest(rate: float, dtype: torch.dtype) -> int:
    """The number of iterations in which a residual can grow by 1 / eps at most.

    For an eigenvalue anywhere in the disc, an iteration multiplies the residual by at most
    (1 + sqrt(2)) divided by the reduction that holds on the diameter.
    """
    growth = math.log(1.0 + math.sqrt(2.0)) - rate
    return max(1, int(-math.log(torch.finfo(dtype).eps) / growth)) if growth > 0 else 2**31


def _excess(norm: Tensor, target: Tensor, active: Tensor) -> float:
    """The logarithm of the largest quotient of residual and target of the active columns."""
    largest = float(torch.where(active, norm / target, 1.0).max())
    return -math.inf if largest == 0 else math.log(largest)


def _check_disc(disc: tuple[float, float]) -> None:
    if not isinstance(disc, tuple) or len(disc) != 2 or not all(
            isinstance(x, Real) for x in disc):
        raise TypeError(f"Expected a disc as its centre and its radius, two numbers (got "
                        f"{disc!r}).")
    center, radius = disc
    if not 0 <= radius < center < math.inf:
        raise ValueError("Expected eigenvalues in a disc to the right of zero, with a radius from "
                         f"0 up and below the centre (got centre {center} and radius {radius}); "
                         "use GMRES.")
