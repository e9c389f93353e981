"""What may stand on the implicit side besides an operator?"""

from .affine import Affine
from .nonlinear import Nonlinear

__all__ = ["Affine", "Nonlinear"]
