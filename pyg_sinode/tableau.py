"""The former module of IMEXTableau, kept for one release: now :mod:`pyg_sinode.schemes`."""

import warnings
from typing import Any

from . import schemes


def __getattr__(name: str) -> Any:
    if name not in ("IMEXTableau", "order_conditions"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"tableau.{name} is now schemes.{name}.", DeprecationWarning, stacklevel=2)
    return getattr(schemes, name)
