"""How is I - cJ inverted? A linear solver maps an operator to its inverse, again an operator."""

from ..operators import BlockDiagonal, LinearOperator, Shifted
from .base import Inverse, Solver
from .bicgstab import BiCGStab
from .cg import CG
from .chebyshev import Chebyshev
from .direct import Direct
from .gmres import GMRES
from .jacobi import BlockJacobi, Jacobi
from .multigrid import Multigrid
from .newton import Newton, NewtonError

__all__ = ["CG", "GMRES", "BiCGStab", "BlockJacobi", "Chebyshev", "Direct", "Inverse", "Jacobi",
           "Multigrid", "Newton", "NewtonError", "Solver", "default"]

# Up to this ratio of radius to centre, Chebyshev takes as long as CG on Cora's normalised Laplacian
# (1.7 times as long on a random graph of a hundred thousand nodes), is two to six times as fast as
# GMRES on attention, and falls back to it on directed graphs: examples/benchmarks graph_solves.
SAFE = 0.95


def default(operator: LinearOperator, c: float = 1.0) -> Solver:
    """The solver for I - cJ that suits the known properties of the operator J.

    It is :class:`Direct` if I - cJ has a closed-form inverse; else :class:`Chebyshev` if its
    eigenvalues are known to lie in a disc away from zero; else :class:`CG` if it is known to be
    symmetric and positive definite; else :class:`GMRES`. CG and GMRES are preconditioned by
    :class:`BlockJacobi` if a term of J is a :class:`pyg_sinode.operators.BlockDiagonal` and all
    terms know their blocks.

    Args:
        operator (LinearOperator): The operator J.
        c (float): The step size times the diagonal coefficient of the scheme, in units of time.
            (default: :obj:`1.0`)
    """
    if operator.has_closed_inverse():
        return Direct()
    shifted = Shifted(operator, c)
    disc = shifted.disc()
    if disc is not None and disc[1] <= SAFE * disc[0]:
        return Chebyshev()
    preconditioner = next((BlockJacobi(part.dims, optional=True) for part in operator.parts
                           if isinstance(part, BlockDiagonal)), None)
    if shifted.positive_definite():
        return CG(preconditioner=preconditioner)
    return GMRES(preconditioner=preconditioner)
