"""How does the generalised minimal residual method solve a nonsymmetric system?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from .base import Solver
from .krylov import Krylov, System, safe_divide


@dataclass(frozen=True, repr=False)
class GMRES(Krylov):
    r"""The restarted generalised minimal residual method with right preconditioning.

    Saad, `"Iterative Methods for Sparse Linear Systems" <https://doi.org/10.1137/1.9780898718003>`_
    (2nd ed., 2003), Algorithm 9.5, with modified Gram-Schmidt and the Givens rotations of Section
    6.5.3. It stores :obj:`restart` + 1 vectors of the size of the state. A column is solved when
    its true residual is

    .. math::
        \Vert b - Ax \Vert_2 \leq \max(rtol \, \Vert b \Vert_2,\ atol).

    Args:
        rtol (float, optional): Relative tolerance; 1e-10 in float64 and 1e-5 in float32 if None.
        atol (float): Absolute tolerance, in the unit of b. (default: :obj:`0.0`)
        restart (int): Number of iterations between restarts. (default: :obj:`30`)
        max_iter (int, optional): Largest number of iterations of a solve, over all restarts; if
            None, ten times the number of unknowns of a column. (default: :obj:`None`)
        preconditioner (Solver, optional): A preconditioner such as :class:`Jacobi`.
            (default: :obj:`None`)

    Raises:
        ValueError: if an argument is out of range.
        LinearSolveError: in a solve, if a column does not reach its tolerance.
    """

    rtol: float | None = None
    atol: float = 0.0
    restart: int = 30
    max_iter: int | None = None
    preconditioner: Solver | None = None

    def cycle(self, system: System, r: Tensor, norm: Tensor, active: Tensor) -> Tensor:
        """Iterates until a restart, or until all columns meet the target; see the base class."""
        dot, M, A = system.dot, system.precondition, system.operator
        longest = min(self.restart, system.size, system.limit - system.spent)
        basis = [r * safe_divide(torch.ones_like(norm), norm, active)]      # 1.
        least = LeastSquares(norm.reshape(-1))
        estimate = norm
        while len(basis) <= longest and system.advance(active):             # 2.
            w = A.mv(M(basis[-1]))                                          # 3.
            h = []
            for at, v in enumerate(basis):                                  # 4.
                h.append(dot(w, v))
                # First not in place: w may be the basis vector itself, if A is the identity.
                w = w.addcmul_(v, h[-1], value=-1) if at else w.addcmul(v, h[-1], value=-1)
            h.append(system.norm(w))                                        # 5.
            estimate, sound = least.append(h, active)
            active &= sound & (estimate > system.target)
            basis.append(w.mul_(safe_divide(torch.ones_like(norm), h[-1], active & (h[-1] > 0))))
        update = torch.zeros_like(r)
        for v, y in zip(basis, least.solve(norm), strict=False):            # 7.
            update.addcmul_(v, y)
        system.x += M(update)
        return estimate


class LeastSquares:
    r"""Minimises :math:`\Vert \beta e_1 - \bar{H} y \Vert_2` for all columns while H grows.

    The Givens rotations of each column of the state are accumulated in an orthogonal matrix Q, so
    that a new column of H needs one product with Q. When a column of the state is finished, its R
    gets rows of the identity with right-hand side 0, which leaves its y unchanged.

    Args:
        beta (Tensor): The norm of each column's residual.

    Shapes:
        - **beta:** :math:`(columns)`
    """

    def __init__(self, beta: Tensor) -> None:
        self.beta, self.estimate = beta, beta
        self.Q = beta.new_ones(beta.numel(), 1, 1)
        self.R: list[Tensor] = []  # the columns of R, down to the diagonal
        self.g: list[Tensor] = []

    def append(self, h: list[Tensor], active: Tensor) -> tuple[Tensor, Tensor]:
        """Appends a column h of H; returns each column's residual norm and whether h was usable.

        It is not usable if the rotated h is zero to rounding: then the operator is singular on the
        current Krylov space.
        """
        k, eps = len(self.R), torch.finfo(self.beta.dtype).eps
        Q = pad(self.Q, (0, 1, 0, 1))
        Q[:, -1, -1] = 1.0
        t = (Q @ torch.stack([part.reshape(-1, 1) for part in h], dim=1)).squeeze(-1)
        length = torch.hypot(t[:, k], t[:, k + 1])
        sound = length > eps * torch.linalg.vector_norm(t, dim=1)
        used = sound & active.reshape(-1)
        c = torch.where(used, t[:, k] / length, 1.0)
        s = safe_divide(t[:, k + 1], length, used)
        Q[:, k:] = torch.stack([c, s, -s, c], dim=1).view(-1, 2, 2) @ Q[:, k:]
        t[:, k] = length
        identity = (torch.arange(k + 1, device=t.device) == k).to(t)
        self.R.append(torch.where(used.unsqueeze(1), t[:, :-1], identity))
        self.g.append(torch.where(used, self.beta * Q[:, k, 0], 0.0))
        self.estimate = torch.where(used, (self.beta * Q[:, k + 1, 0]).abs(), self.estimate)
        self.estimate = torch.where(length.isfinite(), self.estimate, torch.nan)
        self.Q = Q
        return self.estimate.reshape(active.shape), sound.reshape(active.shape)

    def solve(self, like: Tensor) -> list[Tensor]:
        """The minimiser y: for each of its entries a tensor with one number per column."""
        k = len(self.R)
        R = torch.stack([pad(column, (0, k - column.size(1))) for column in self.R], dim=2)
        y = torch.linalg.solve_triangular(R, torch.stack(self.g, dim=1).unsqueeze(2), upper=True)
        return [part.reshape(like.shape) for part in y.squeeze(2).unbind(1)]
