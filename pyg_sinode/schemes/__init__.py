"""Which scheme has a given name?"""

from __future__ import annotations

from .exponential import EXPONENTIAL, ExponentialTableau, exponential_order_conditions
from .multistep import MULTISTEP, IMEXMultistep
from .runge_kutta import RUNGE_KUTTA
from .tableau import IMEXTableau, order_conditions

__all__ = ["ALIASES", "EXPONENTIAL", "MULTISTEP", "RUNGE_KUTTA", "SCHEMES", "ExponentialTableau",
           "IMEXMultistep", "IMEXTableau", "Scheme", "exponential_order_conditions", "get_scheme",
           "order_conditions"]

Scheme = IMEXTableau | IMEXMultistep | ExponentialTableau
SCHEMES: dict[str, Scheme] = {**RUNGE_KUTTA, **MULTISTEP, **EXPONENTIAL}
# The second to fifth are the names in Zhang, Liu and Maulik, "Semi-Implicit Neural Ordinary
# Differential Equations" (2025).
ALIASES = {"implicit_euler": "imex_euler", "imex_rk2": "ssp222", "imex_rk3": "ark324l2sa",
           "imex_rk4": "ark436l2sa", "imex_rk5": "ark548l2sa"}


def get_scheme(method: str | Scheme) -> Scheme:
    """Returns the scheme with the given name or alias; a scheme is returned unchanged.

    Args:
        method (str or Scheme): A key of :obj:`SCHEMES` or :obj:`ALIASES`, or a scheme.

    Raises:
        TypeError: if method is neither a string nor a scheme.
        ValueError: if no scheme has that name.
    """
    if isinstance(method, (IMEXTableau, IMEXMultistep, ExponentialTableau)):
        return method
    if isinstance(method, str):
        found = SCHEMES.get(ALIASES.get(method, method))
        if found is not None:
            return found
    known = ", ".join([*RUNGE_KUTTA, *(f"{alias} (= {name})" for alias, name in ALIASES.items()),
                       *MULTISTEP, *EXPONENTIAL])
    message = (f"method expects a scheme's name, an IMEXTableau, an IMEXMultistep or an "
               f"ExponentialTableau (got {method!r}); use {known}.")
    if not isinstance(method, str):
        raise TypeError(message)
    raise ValueError(message)
