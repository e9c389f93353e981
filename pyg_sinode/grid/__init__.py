"""Which grids are there, and which equations on them?"""

from .axes import DISCRETIZATIONS, Grid
from .box import BoxGrid
from .dealiased import Dealiased, resample
from .equation import Equation
from .equations import (
    allen_cahn,
    cahn_hilliard,
    fisher_kpp,
    korteweg_de_vries,
    kuramoto_sivashinsky,
    kuramoto_sivashinsky_height,
    swift_hohenberg,
    viscous_burgers,
)
from .fields import gray_scott, navier_stokes, vector_burgers
from .nonlinear import Advection, Polynomial
from .periodic import DIFFERENCES, PeriodicGrid

__all__ = [
    "DIFFERENCES", "DISCRETIZATIONS", "Advection", "BoxGrid", "Dealiased", "Equation", "Grid",
    "PeriodicGrid", "Polynomial", "allen_cahn", "cahn_hilliard", "fisher_kpp", "gray_scott",
    "korteweg_de_vries", "kuramoto_sivashinsky", "kuramoto_sivashinsky_height", "navier_stokes",
    "resample", "swift_hohenberg", "vector_burgers", "viscous_burgers",
]
