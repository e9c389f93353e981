"""How is I - cJ inverted? A linear solver turns an operator into the operator of its inverse."""

from ..operators import BlockDiagonal, LinearOperator, Shifted
from .base import Inverse, Solver
from .bicgstab import BiCGStab
from .cg import CG
from .direct import Direct
from .gmres import GMRES
from .jacobi import BlockJacobi, Jacobi
from .newton import Newton, NewtonError

__all__ = ["CG", "GMRES", "BiCGStab", "BlockJacobi", "Direct", "Inverse", "Jacobi", "Newton",
           "NewtonError", "Solver", "default"]


def default(operator: LinearOperator, c: float = 1.0) -> Solver:
    """The solver for I - cJ that suits what the operator J knows of itself.

    :class:`Direct` where J has a closed form, :class:`CG` where I - cJ is known to be symmetric
    and positive definite, else :class:`GMRES`; these with :class:`BlockJacobi` where a term of J is
    a :class:`pyg_sinode.operators.BlockDiagonal`.

    Args:
        operator (LinearOperator): The operator J.
        c (float): The step size times the diagonal coefficient of the scheme. (default: :obj:`1.0`)
    """
    if operator.has_closed_inverse():
        return Direct()
    preconditioner = next((BlockJacobi(part.dims) for part in operator.parts
                           if isinstance(part, BlockDiagonal)), None)
    if Shifted(operator, c).positive_definite():
        return CG(preconditioner=preconditioner)
    return GMRES(preconditioner=preconditioner)
