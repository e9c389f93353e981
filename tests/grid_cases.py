"""What do the tests of grid share?"""

import math

import numpy as np
import torch

F64 = torch.float64
KINDS = ("spectral", "finite_difference")


def close(got, expected, atol=1e-12):
    torch.testing.assert_close(got, expected, rtol=0, atol=atol)


def wave(grid, m, phase=0.3):
    return torch.cos(2 * math.pi * m / grid.length[0] * grid.points + phase)


def slope(errors, sizes):
    """The order of convergence: minus the slope of the errors over the sizes, both logarithmic."""
    return -np.polyfit(np.log(sizes), np.log(errors), 1)[0]
