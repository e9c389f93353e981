"""What do the tests of operators share?"""

import pytest
import torch
from cases import OPERATORS, dense_matrix

F64 = torch.float64
every_case = pytest.mark.parametrize("case", OPERATORS.values(), ids=OPERATORS)
EXACT = {"rtol": 0, "atol": 1e-14}


def matrix_of(case, operator=None):
    return dense_matrix(case.operator() if operator is None else operator, case.shape).detach()


def shifted_matrix(case, c):
    matrix = matrix_of(case)
    return torch.eye(len(matrix), dtype=F64) - c * matrix
