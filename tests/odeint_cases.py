"""What do the tests of odeint share?"""

import math

import pytest
from cases import double

every_gradient = pytest.mark.parametrize("gradient", ["discrete", "backprop"])
AXES = double([[math.cos(math.pi / 6), -math.sin(math.pi / 6)],
               [math.sin(math.pi / 6), math.cos(math.pi / 6)]])


def decay():
    return double([[-1.0, 0.5], [0.25, -2.0]])
