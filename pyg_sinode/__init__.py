"""Semi-implicit neural ordinary differential equations on graphs, for PyTorch Geometric."""

from . import controllers, norms, operators, solvers
from .attention import GRANDAttention
from .conv import SINODEConv
from .models import SINODE
from .odeint import imex_odeint
from .operators import LinearSolveError
from .report import NonFiniteStateError, Stats, StepSizeError
from .tableau import IMEXTableau

__all__ = [
    "SINODE", "GRANDAttention", "IMEXTableau", "LinearSolveError", "NonFiniteStateError",
    "SINODEConv", "Stats", "StepSizeError", "controllers", "imex_odeint", "norms",
    "operators", "solvers",
]
__version__ = "0.1.0"
