"""Which line of code does a warning refer to?"""

from __future__ import annotations

import sys
import warnings
from types import FrameType

OWN = (__name__.partition(".")[0], "torch", "torch_geometric")


def warn_caller(message: str) -> None:
    """Issues a warning at the line of the first caller outside this package, PyTorch and PyG."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and _module(frame) in OWN:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]
