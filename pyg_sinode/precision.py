"""In which precision does the package compute, with and without autocast?

In float32 or float64, that of the parameters or of the state. Under autocast it behaves like
PyTorch's operations that autocast to float32: 16-bit inputs are converted to float32. The sparse
kernels have no 16-bit types, and steps in 16 bits would be inaccurate.
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
    """Whether autocast is enabled for a device."""
    return _has_autocast(device.type) and torch.is_autocast_enabled(device.type)


@functools.lru_cache
def _has_autocast(kind: str) -> bool:
    return torch.amp.is_autocast_available(kind)


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """A context with autocast disabled."""
    return torch.autocast(device.type, enabled=False) if is_autocast(device) else nullcontext()


def without_autocast(method: F) -> F:
    """Decorator: disables autocast, for the device of the first tensor argument, during a call."""
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
    """A 16-bit tensor under autocast as float32; anything else unchanged."""
    if isinstance(x, Tensor) and x.dtype in SHORT and is_autocast(x.device):
        return x.float()
    return x


def check_full(what: str, dtype: torch.dtype) -> None:
    """Raises a TypeError unless the dtype is float32 or float64."""
    if dtype not in FULL:
        raise TypeError(f"Expected {what} in float32 or float64 (got {dtype}): sparse kernels and "
                        "the accuracy of a step need as much; use .float(), and torch.autocast "
                        "around the rest of the model.")
