"""How is I - cJ inverted? A linear solver turns an operator into the operator of its inverse."""

from ..operators import LinearOperator, Shifted
from .base import Inverse, Solver
from .bicgstab import BiCGStab
from .cg import CG
from .direct import Direct
from .gmres import GMRES
from .jacobi import Jacobi

__all__ = ["CG", "GMRES", "BiCGStab", "Direct", "Inverse", "Jacobi", "Solver", "default"]


def default(operator: LinearOperator, c: float = 1.0) -> Solver:
    """The solver for I - cJ that suits what the operator J knows of itself.

    :class:`Direct` where J has a closed form, :class:`CG` where I - cJ is known to be symmetric
    and positive definite, else :class:`GMRES`.

    Args:
        operator (LinearOperator): The operator J.
        c (float): The step size times the diagonal coefficient of the scheme. (default: :obj:`1.0`)
    """
    if operator.has_closed_inverse():
        return Direct()
    return CG() if Shifted(operator, c).positive_definite() else GMRES()
