"""How does the conjugate gradient method solve a symmetric positive-definite system?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Solver
from .krylov import Krylov, System, safe_divide


@dataclass(frozen=True, repr=False)
class CG(Krylov):
    r"""The preconditioned conjugate gradient method for symmetric positive-definite operators.

    Saad, `"Iterative Methods for Sparse Linear Systems" <https://doi.org/10.1137/1.9780898718003>`_
    (2nd ed., 2003), Algorithm 9.1. A column is solved when its true residual is

    .. math::
        \Vert b - Ax \Vert_2 \leq \max(rtol \, \Vert b \Vert_2,\ atol).

    Args:
        rtol (float, optional): Relative tolerance; 1e-10 in float64 and 1e-5 in float32 if None.
        atol (float): Absolute tolerance, in the unit of b. (default: :obj:`0.0`)
        max_iter (int, optional): Largest number of iterations of a solve; if None, ten times the
            number of unknowns of a column. (default: :obj:`None`)
        preconditioner (Solver, optional): A symmetric positive-definite preconditioner such as
            :class:`Jacobi`. (default: :obj:`None`)

    Raises:
        ValueError: if an argument is out of range.
        LinearSolveError: in a solve, if a column does not reach its tolerance, or if the operator
            is found not to be positive definite.
    """

    rtol: float | None = None
    atol: float = 0.0
    max_iter: int | None = None
    preconditioner: Solver | None = None

    def cycle(self, system: System, r: Tensor, norm: Tensor, active: Tensor) -> Tensor:
        """Iterates until the residual of the recurrence meets the target; see the base class."""
        dot, M, x = system.dot, system.precondition, system.x
        target = system.target.square()
        curvature = torch.ones_like(norm)
        z = M(r)                                                    # 1.
        p, rr = z.clone(), norm.square()
        rz = rr if z is r else dot(r, z)
        while system.advance(active):                               # 2.
            q = system.operator.mv(p)
            curvature = torch.where(active, dot(p, q), curvature)
            active &= curvature > 0
            alpha = safe_divide(rz, curvature, active)              # 3.
            x.addcmul_(p, alpha)                                    # 4.
            r.addcmul_(q, alpha, value=-1)                          # 5.
            rr = dot(r, r)
            active &= rr > target
            z = M(r)                                                # 6.
            before, rz = rz, rr if z is r else dot(r, z)
            beta = safe_divide(rz, before, active)                  # 7.
            p.mul_(beta).add_(z)                                    # 8.
        self._refuse_indefinite(system, curvature)
        return rr.sqrt()

    def _refuse_indefinite(self, system: System, curvature: Tensor) -> None:
        wrong = curvature <= 0
        if bool(wrong.any()):
            at, first = system.iterations[wrong].min(dim=0)
            got = float((curvature * system.scale.square())[wrong][first])
            raise system.error("CG expects a symmetric positive-definite operator (got p^T A p = "
                               f"{got:.1e} at iteration {int(at)}); use GMRES.")
