"""Was a parameter of an operator replaced by ``torch.func.functional_call`` since it was built?"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from types import FrameType

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.utils import stateless

from .checks import leaves


def refuse_replaced(tensors: Sequence[Tensor]) -> None:
    """Refuses tensors made from a parameter that is replaced in a functional call now going on.

    An operator that a module built in its ``__init__`` holds the parameter of that time, which
    then would receive the gradient in place of its replacement.

    Raises:
        ValueError: naming the remedy.
    """
    modules = [frame.f_locals["module"] for frame in _functional_calls()]
    if not modules:
        return
    own = [p for tensor in tensors for p in leaves(tensor) if isinstance(p, Parameter)]
    present = {id(p) for module in modules for p in module.parameters()}
    held = {id(p) for module in modules for p in _held(module)}
    for p in own:
        if id(p) in held and id(p) not in present:
            raise ValueError(
                f"Expected an operator on the parameters in force (got one on a parameter of shape "
                f"{tuple(p.shape)} that functional_call has replaced, which would receive the "
                "gradient in its place); build the operator in forward, not in __init__.")


def _functional_calls() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if frame.f_code is stateless._functional_call.__code__:
            yield frame
        frame = frame.f_back


def _held(module: Module) -> Iterator[Tensor]:
    """What the operators depend on that a module and its children have as attributes."""
    for each in module.modules():
        values = list(vars(each).values())
        values += [x for v in values if isinstance(v, (list, tuple)) for x in v]
        values += [x for v in values if type(v) is dict for x in v.values()]
        for value in values:
            for tensor in getattr(value, "tensors", ()) if not isinstance(value, Module) else ():
                if isinstance(tensor, torch.Tensor):
                    yield from leaves(tensor)
