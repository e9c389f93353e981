"""Which linear maps J can be integrated implicitly, and what does each know about itself?"""

from .affine import Affine
from .banded import Banded
from .base import LinearOperator, Scaled, Sum, Transposed
from .circulant import Circulant
from .dense import Dense
from .graph import Graph
from .matrix_free import MatrixFree
from .pointwise import Diagonal, ScaledIdentity
from .results import LinearSolveError, Solution
from .shifted import Shifted

__all__ = [
    "Affine", "Banded", "Circulant", "Dense", "Diagonal", "Graph", "LinearOperator",
    "LinearSolveError", "MatrixFree", "Scaled", "ScaledIdentity", "Shifted", "Solution", "Sum",
    "Transposed",
]
