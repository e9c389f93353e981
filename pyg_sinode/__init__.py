"""Semi-implicit neural ordinary differential equations on graphs and grids, for PyG."""

from . import controllers, norms, operators, schemes, solvers, terms
from .attention import GRANDAttention
from .conv import SINODEConv
from .integrate.report import ExplicitTermError, NonFiniteStateError, Stats, StepSizeError
from .learned_operator import LearnedOperator
from .models import SINODE
from .odeint import imex_odeint
from .operators import LinearSolveError
from .schemes import ExponentialTableau, IMEXMultistep, IMEXTableau
from .solvers import NewtonError

__all__ = [
    "SINODE", "ExplicitTermError", "ExponentialTableau", "GRANDAttention", "IMEXMultistep",
    "IMEXTableau", "LearnedOperator", "LinearSolveError", "NewtonError", "NonFiniteStateError",
    "SINODEConv", "Stats", "StepSizeError", "controllers", "imex_odeint", "norms", "operators",
    "schemes", "solvers", "terms",
]
__version__ = "0.1.0"
