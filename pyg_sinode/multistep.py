"""The former module of multistep schemes, kept for one release: now :mod:`pyg_sinode.schemes`."""

import warnings
from typing import Any

from . import schemes

_NEW = {"IMEXMultistep": "IMEXMultistep", "MULTISTEP": "MULTISTEP", "get_method": "get_scheme"}


def __getattr__(name: str) -> Any:
    if name not in _NEW:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"multistep.{name} is now schemes.{_NEW[name]}.", DeprecationWarning,
                  stacklevel=2)
    return getattr(schemes, _NEW[name])
