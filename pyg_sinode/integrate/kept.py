"""Which inverses and functions of an operator are kept between integrations?"""

from __future__ import annotations

import weakref
from numbers import Number
from typing import Any

import numpy as np
import torch

from ..operators import LinearOperator
from ..operators.checks import same
from ..operators.functions import Functions
from ..operators.polynomials import Bound

KEPT = 8  # the largest number of inverses or sets of functions kept per operator
OPERATORS = 256  # the largest number of operators of which some are kept


class Kept:
    """The inverses and functions of an operator kept between calls.

    They are those of a copy, so that the operator itself can be deleted.
    """

    def __init__(self, operator: LinearOperator) -> None:
        self.numbers = _numbers(operator)
        self.operator = operator.with_tensors([t.detach().clone() for t in operator.tensors])
        self.inference = torch.is_inference_mode_enabled()
        self.inverses: dict[Any, LinearOperator | None] = {}
        self.functions: dict[Any, list[Functions]] = {}
        self.bound: Bound | None = None

    def is_of(self, operator: LinearOperator) -> bool:
        """Whether the operator is unchanged since the copy was made."""
        copies, tensors = self.operator.tensors, operator.tensors
        return (self.inference == torch.is_inference_mode_enabled()
                and self.numbers == _numbers(operator)
                and len(copies) == len(tensors) and all(map(same, copies, tensors)))


# By the operator's id, since an operator of one's own need not be hashable.
_OF: dict[int, tuple[weakref.ref[LinearOperator], Kept]] = {}


def kept_of(operator: LinearOperator) -> Kept:
    """What is kept of an operator, empty if its content has changed."""
    key = id(operator)
    found = _OF.get(key)
    if found is not None and found[0]() is operator and found[1].is_of(operator):
        return found[1]

    def forget(_: object, of: dict[int, Any] = _OF) -> None:
        of.pop(key, None)

    kept = Kept(operator)
    if len(_OF) >= OPERATORS:  # copies that refer to their operator would keep it for ever
        _OF.pop(next(iter(_OF)), None)
    _OF[key] = weakref.ref(operator, forget), kept
    return kept


def _numbers(operator: LinearOperator) -> list[Any]:
    """The numbers, strings and arrays that an operator and its parts depend on, without tensors."""
    found: list[Any] = [type(operator), operator.generation]
    for name, value in vars(operator).items():
        if isinstance(value, (Number, str, np.generic)):
            found.append((name, value))
        elif isinstance(value, np.ndarray):
            found.append((name, value.shape, value.tobytes()))
    return [*found, *(_numbers(part) for part in operator.parts)]
