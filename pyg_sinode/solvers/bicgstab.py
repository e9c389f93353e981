"""How does the stabilised biconjugate gradient method solve a nonsymmetric system?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Solver
from .krylov import Krylov, System, safe_divide


@dataclass(frozen=True, repr=False)
class BiCGStab(Krylov):
    r"""The stabilised biconjugate gradient method with right preconditioning.

    Saad, `"Iterative Methods for Sparse Linear Systems" <https://doi.org/10.1137/1.9780898718003>`_
    (2nd ed., 2003), Algorithm 7.7. An iteration makes two products, and the memory does not grow
    with their number. If the recurrence of a column breaks down (:math:`(Ap, r_0^*) = 0`,
    :math:`\omega = 0` or :math:`(r, r_0^*) = 0`), the column keeps its half step and is restarted
    from its true residual. An error holds the iterate of the smallest residual. A column is solved
    when its true residual is

    .. math::
        \Vert b - Ax \Vert_2 \leq \max(rtol \, \Vert b \Vert_2,\ atol).

    Args:
        rtol (float, optional): Relative tolerance; 1e-10 in float64 and 1e-5 in float32 if None.
        atol (float): Absolute tolerance, in the unit of b. (default: :obj:`0.0`)
        max_iter (int, optional): Largest number of iterations of a solve; if None, ten times the
            number of unknowns of a column. (default: :obj:`None`)
        preconditioner (Solver, optional): A preconditioner such as :class:`Jacobi`.
            (default: :obj:`None`)

    Raises:
        ValueError: if an argument is out of range.
        LinearSolveError: in a solve, if a column does not reach its tolerance.
    """

    rtol: float | None = None
    atol: float = 0.0
    max_iter: int | None = None
    preconditioner: Solver | None = None

    def cycle(self, system: System, r: Tensor, norm: Tensor, active: Tensor) -> Tensor:
        """Iterates from the residual r until the recurrence meets the target or breaks down."""
        dot, M, A, x = system.dot, system.precondition, system.operator, system.x
        target, eps = system.target.square(), torch.finfo(r.dtype).eps
        shadow, p = self._shadow(system, r, norm), r.clone()            # 1.-2.
        rr, rho = norm.square(), dot(r, shadow)
        system.remember(rr)
        # (a, r0*) is zero to rounding where (a, r0*)^2 <= tiny |a|^2.
        tiny = eps**2 * dot(shadow, shadow)
        while system.advance(active):                                   # 3.
            z = M(p)
            v = A.mv(z)
            along = dot(v, shadow)
            sound = along.square() > tiny * dot(v, v)
            alpha = safe_divide(rho, along, active & sound)             # 4.
            x.addcmul_(z, alpha)
            r.addcmul_(v, alpha, value=-1)                              # 5. s, in the place of r
            z = M(r)
            t = A.mv(z)
            ts, tt = dot(t, r), dot(t, t)
            omega = safe_divide(ts, tt, active & (tt > 0))              # 6.
            x.addcmul_(z, omega)                                        # 7.
            r.addcmul_(t, omega, value=-1)                              # 8.
            rr, before, rho = dot(r, r), rho, dot(r, shadow)
            system.remember(rr)
            # |s|^2 = |r|^2 + omega (t, s), since omega makes the two orthogonal.
            sound &= (ts.square() > eps**2 * tt * (rr + omega * ts)) & (rho.square() > tiny * rr)
            active &= sound & (rr > target)
            beta = safe_divide(rho * alpha, before * omega, active)     # 9.
            p.addcmul_(v, omega, value=-1).mul_(beta).add_(r)           # 10.
        return rr.sqrt()

    def _shadow(self, system: System, r: Tensor, norm: Tensor) -> Tensor:
        """The vector r0*: r at the start; at a restart one orthogonal to neither r nor A r.

        With r again, a restart after omega = 0 would break down at once, since (A r, r) = 0.
        """
        if system.spent == 0:
            return r.clone()
        v = system.operator.mv(system.precondition(r))
        size = system.norm(v)
        side = torch.where(system.dot(v, r) < 0, -1.0, 1.0)
        return torch.addcmul(r, v, safe_divide(side * norm, size, size > 0))
