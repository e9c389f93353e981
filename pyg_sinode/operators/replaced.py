"""Has ``torch.func.functional_call`` replaced a parameter that an operator still holds?"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from types import FrameType

from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils import stateless

from .checks import graph_parts


def refuse_replaced(tensors: Sequence[Tensor]) -> None:
    """Refuses tensors made from a parameter that an active functional call replaces.

    An operator built in a module's ``__init__`` holds the original parameter, which would be used
    and receive the gradient instead of its replacement. Which module that parameter belongs to is
    not known: one that no module in the call holds now, and that has the shape and dtype of a
    replacement, is assumed to be replaced.

    Args:
        tensors (sequence of Tensor): The tensors of the operator.

    Raises:
        ValueError: if there is such a parameter.
    """
    calls = [frame.f_locals for frame in _functional_calls()]
    if not calls:
        return
    present = {id(p) for call in calls for p in call["module"].parameters()}
    new = [x for call in calls for x in call["parameters_and_buffers"].values()
           if isinstance(x, Tensor)]
    replaced = {(x.shape, x.dtype) for x in new}
    for p in _parameters(tensors, new):
        if id(p) not in present and (p.shape, p.dtype) in replaced:
            raise ValueError(
                f"Expected an operator on the parameters in force (got one on a parameter of shape "
                f"{tuple(p.shape)} that functional_call has replaced, which would be used in its "
                "place); build the operator in forward, not in __init__.")


def is_replacing() -> bool:
    """Whether a functional call is active, after which modules have their own tensors again."""
    return next(_functional_calls(), None) is not None


def _parameters(tensors: Sequence[Tensor], new: Sequence[Tensor]) -> Iterator[Tensor]:
    """The parameters among tensors, and those they were computed from, without the new ones."""
    known = {id(leaf) for x in new for leaf in graph_parts(x).leaves}
    for tensor in tensors:
        if isinstance(tensor, Parameter):
            yield tensor
        else:
            yield from (p for p in graph_parts(tensor).leaves if isinstance(p, Parameter)
                        and id(p) not in known)


def _functional_calls() -> Iterator[FrameType]:
    code = getattr(getattr(stateless, "_functional_call", None), "__code__", None)
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if frame.f_code is code:
            yield frame
        frame = frame.f_back
