"""How does the Chebyshev iteration solve a system whose eigenvalues are known to lie in a disc?"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..operators import LinearOperator
from .base import Solver
from .gmres import GMRES
from .krylov import Krylov, KrylovInverse, System

# An iteration of GMRES takes some four times as long: Chebyshev goes on for more than this share of
# what its bound promises.
PAYS = 0.3


@dataclass(frozen=True, repr=False)
class Chebyshev(Krylov):
    r"""The Chebyshev semi-iteration, which takes no inner products.

    Saad, `"Iterative Methods for Sparse Linear Systems" <https://doi.org/10.1137/1.9780898718003>`_
    (2nd ed., 2003), Algorithm 12.1. All eigenvalues have to lie in a disc of centre d and radius
    :math:`\rho < d`. For eigenvalues on its diameter an iteration divides the residual by
    :math:`(d + \sqrt{d^2 - \rho^2}) / \rho`; those of attention matrices lie near it. How many
    iterations a solve takes is computed beforehand: the host waits for the device at their end. A
    column is solved when its true residual is

    .. math::
        \Vert b - Ax \Vert_2 \leq \max(rtol \, \Vert b \Vert_2,\ atol).

    Where it is not by then, eigenvalues lie off the diameter: the solve goes on while that pays,
    and ends with :class:`GMRES`.

    Args:
        rtol (float, optional): Relative tolerance; 1e-10 in float64 and 1e-5 in float32 if None.
        atol (float): Absolute tolerance, in the unit of b. (default: :obj:`0.0`)
        max_iter (int, optional): Largest number of iterations of a solve; ten times the unknowns of
            a column if None.
        disc (tuple of two floats, optional): The centre d and the radius :math:`\rho`; those that
            the operator knows of itself, as a :class:`pyg_sinode.operators.Graph` with a
            :obj:`radius` does, if None.

    Raises:
        ValueError: if an argument is out of range, or no disc is known.
        LinearSolveError: by a solve, if it is not solved.
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
        """The inverse of an operator, iterated at each product."""
        if self.disc is not None:
            return super().invert(operator)
        disc = operator.disc()
        if disc is None:
            raise ValueError("Expected an operator that knows a disc with its eigenvalues (got "
                             f"{operator!r}); give Graph a radius, Chebyshev a disc, or use GMRES.")
        _check_disc(disc)
        return KrylovInverse(dataclasses.replace(self, disc=disc), operator, None)

    def cycle(self, system: System, r: Tensor, norm: Tensor, active: Tensor) -> Tensor:
        """Iterates from the residual r as often as the bound says, and on while that pays."""
        if system.spent > 0:
            return GMRES().cycle(system, r, norm, active)
        start, first = system.x.clone(), _excess(norm, system.target, active)
        own = self._iterate(system, r, norm, active)
        if _excess(own, system.target, active) < first:  # so written, NaN is not
            return own
        system.x = start
        return norm

    def _iterate(self, system: System, r: Tensor, norm: Tensor, active: Tensor) -> Tensor:
        """The norm of the residual after iterations for as long as they pay."""
        assert self.disc is not None
        center, radius = self.disc
        bound = math.log((center + math.sqrt(center**2 - radius**2)) / radius) if radius else (
            math.inf)
        steps = _Steps(system, r.mul_(active), center, radius)
        left, rate, margin = _excess(norm, system.target, active), bound, math.log(2.0)
        while left > 0 and rate >= PAYS * bound:
            count = max(1, math.ceil((left + margin) / rate))
            done = steps.make(count, active)
            norm = torch.where(active, system.norm(r), norm)
            before, left = left, _excess(norm, system.target, active)
            rate, margin = (before - left) / count if done == count else 0.0, 0.0
        return norm


class _Steps:
    """The recurrence of the iteration, on the solution and the residual of a system.

    Args:
        system (System): The system, whose ``x`` is updated in place.
        r (Tensor): Its residual, which is too.
        center (float): The centre d of the disc.
        radius (float): Its radius, the distance of the foci from the centre.
    """

    def __init__(self, system: System, r: Tensor, center: float, radius: float) -> None:
        self.system, self.r, self.center, self.radius = system, r, center, radius
        self.d, self.rho = r / center, radius / center

    def make(self, count: int, active: Tensor) -> int:
        """Makes so many iterations, or as many as are left; returns their number."""
        x, A = self.system.x, self.system.operator
        for done in range(count):
            if not self.system.count(active):
                return done
            x.add_(self.d)
            self.r.sub_(A.mv(self.d))
            half = 1.0 / (2.0 * self.center - self.radius * self.rho)  # its radius may be 0
            after = self.radius * half
            self.d.mul_(after * self.rho).add_(self.r, alpha=2.0 * half)
            self.rho = after
        return count


def _excess(norm: Tensor, target: Tensor, active: Tensor) -> float:
    """The logarithm of the largest residual of an active column over its target."""
    largest = float(torch.where(active, norm / target, 1.0).max())
    return -math.inf if largest == 0 else math.log(largest)


def _check_disc(disc: tuple[float, float]) -> None:
    center, radius = disc
    if not 0 <= radius < center < math.inf:
        raise ValueError("Expected eigenvalues in a disc to the right of zero, with a radius from "
                         f"0 up and below the centre (got centre {center} and radius {radius}); "
                         "use GMRES.")
