"""Which implicit terms are there besides an operator J?"""

from .affine import Affine
from .nonlinear import Nonlinear

__all__ = ["Affine", "Nonlinear"]
