"""Which linear operators J can be integrated implicitly, and which properties has each?"""

import importlib
import warnings
from typing import Any

from .banded import Banded
from .base import LinearOperator, Product, Scaled, Sum, Transposed
from .block_diagonal import BlockDiagonal
from .circulant import Circulant
from .dense import Dense
from .dissipative import Dissipative
from .dissipative_circulant import DissipativeCirculant
from .dissipative_graph import DissipativeGraph
from .graph import Graph
from .matrix_free import MatrixFree
from .pointwise import Diagonal, ScaledIdentity
from .results import Entries, LinearSolveError, Solution, SolveError
from .shifted import Shifted
from .sine_cosine import SineCosine

__all__ = [
    "Banded", "BlockDiagonal", "Circulant", "Dense", "Diagonal", "Dissipative",
    "DissipativeCirculant", "DissipativeGraph", "Entries", "Graph", "LinearOperator",
    "LinearSolveError", "MatrixFree", "Product", "Scaled", "ScaledIdentity", "Shifted",
    "SineCosine", "Solution", "SolveError", "Sum", "Transposed",
]


def __getattr__(name: str) -> Any:
    """Gives Affine by its former place, for one release."""
    if name != "Affine":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn("operators.Affine is now terms.Affine.", DeprecationWarning, stacklevel=2)
    return importlib.import_module("pyg_sinode.terms").Affine
