"""Which linear operators J can be integrated implicitly, and which properties has each?"""

import importlib
import warnings
from typing import Any

from .banded import Banded
from .base import LinearOperator
from .block_diagonal import BlockDiagonal
from .circulant import Circulant
from .dense import Dense
from .dissipative import Dissipative
from .dissipative_circulant import DissipativeCirculant
from .dissipative_graph import DissipativeGraph
from .function_of import FunctionOf as FunctionOf  # which J.function(f) makes
from .graph import Graph
from .matrix_free import MatrixFree
from .pointwise import Diagonal, ScaledIdentity
from .products import Product
from .results import Entries, LinearSolveError, Solution, SolveError
from .scaled import Scaled
from .shifted import Shifted
from .sine_cosine import SineCosine
from .sums import Sum
from .transposed import Transposed

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
