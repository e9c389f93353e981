"""In which precision does the package compute under autocast, and which precisions has it?

As PyTorch's own operations that are "autocast to float32": in that of its parameters or of the
state, and in float32 where autocast made those shorter. The sparse kernels have no 16-bit types,
and a step of a scheme would lose the accuracy that it is there for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor

SHORT = (torch.bfloat16, torch.float16)
FULL = (torch.float32, torch.float64)
F = TypeVar("F", bound=Callable[..., Any])


def is_autocast(device: torch.device) -> bool:
    """Whether autocast is on for a device."""
    return _has_autocast(device.type) and torch.is_autocast_enabled(device.type)


@functools.lru_cache
def _has_autocast(kind: str) -> bool:
    return torch.amp.is_autocast_available(kind)


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """A region without autocast."""
    return torch.autocast(device.type, enabled=False) if is_autocast(device) else nullcontext()


def without_autocast(method: F) -> F:
    """Makes a function or method run without autocast on the device of its first tensor."""
    @functools.wraps(method)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        device = next((x.device for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
        if device is None or not is_autocast(device):
            return method(*args, **kwargs)
        with torch.autocast(device.type, enabled=False):
            return method(*args, **kwargs)
    wrapped_: Any = wrapped
    return wrapped_  # type: ignore[no-any-return]


def widened(x: Any) -> Any:
    """A tensor that autocast may have made short in float32, anything else as it is."""
    if isinstance(x, Tensor) and x.dtype in SHORT and is_autocast(x.device):
        return x.float()
    return x


def check_full(what: str, dtype: torch.dtype) -> None:
    """Refuses 16-bit numbers."""
    if dtype not in FULL:
        raise TypeError(f"Expected {what} in float32 or float64 (got {dtype}): sparse kernels and "
                        "the accuracy of a step need as much; use .float(), and torch.autocast "
                        "around the rest of the model.")
