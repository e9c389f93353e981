r"""Which implicit-explicit multistep schemes are published? A scheme is a constant here.

.. math::
    \sum_{j=0}^{s} a_j u_{n+1-j} = h \sum_{j=1}^{s} b_j G(t_{n+1-j}, u_{n+1-j})
    + h \sum_{j=0}^{1} c_j J u_{n+1-j}

Source: Ascher, Ruuth and Wetton, "Implicit-explicit methods for time-dependent partial differential
equations" (1995), doi:10.1137/0732037.
"""

from __future__ import annotations

from dataclasses import dataclass

from .runge_kutta import ARK436L2SA, ARS222, ARS443
from .tableau import IMEXTableau


@dataclass(frozen=True, eq=False)
class IMEXMultistep:
    r"""A multistep scheme, checked when made; its coefficients are scaled so that a_0 = 1.

    It evaluates G once in a step, at the price of stability. With eigenvalues :math:`\lambda_G < 0`
    of G and :math:`\lambda_J < 0` of J it is stable at every step size up to a ratio
    :math:`\lambda_G / \lambda_J`; a :class:`SINODEConv` with ``implicit="decay"`` has a ratio of up
    to 1 and is stable up to the given :math:`h \alpha` only (:math:`\alpha < 1`):

    ========= ===== ===== ===== =====
    scheme    sbdf2 sbdf3 sbdf4 cnab2
    ========= ===== ===== ===== =====
    ratio     1/3   1/7   1/15  0
    h alpha   2     10/9  16/21 1
    ========= ===== ===== ===== =====

    Args:
        name (str): The name in the literature.
        order (int): The order.
        a (tuple of float): :math:`a_0, \\ldots, a_s`.
        b (tuple of float): :math:`b_1, \\ldots, b_s`.
        c (tuple of float): :math:`c_0`, positive, and :math:`c_1`.
        start (IMEXTableau): Makes the first s - 1 steps; of the same order, its first stage the
            state itself.
        reference (str): Where the coefficients were published.

    Raises:
        ValueError: If a number of coefficients or an order condition is wrong.
    """

    name: str
    order: int
    a: tuple[float, ...]
    b: tuple[float, ...]
    c: tuple[float, ...]
    start: IMEXTableau
    reference: str = ""

    def __post_init__(self) -> None:
        """Scales the coefficients, and refuses those of no such scheme."""
        s = len(self.a) - 1
        if s < 2 or len(self.b) != s or len(self.c) != 2:
            raise ValueError(f"IMEXMultistep {self.name!r} expects s + 1 numbers a, s numbers b, 2 "
                             f"numbers c, and s of at least 2 (got {len(self.a)}, {len(self.b)} "
                             f"and {len(self.c)}).")
        if not (self.a[0] > 0 and self.c[0] > 0):
            raise ValueError(f"IMEXMultistep {self.name!r} expects positive a[0] and c[0] (got "
                             f"{self.a[0]} and {self.c[0]}).")
        for field in ("b", "c", "a"):
            scaled = tuple(x / self.a[0] for x in getattr(self, field))
            object.__setattr__(self, field, scaled)
        for power, (of_b, of_c) in enumerate(self._defects()):
            if not (abs(of_b) <= 1e-12 and abs(of_c) <= 1e-12):  # nor if one is NaN
                raise ValueError(f"IMEXMultistep {self.name!r} expects order {self.order} (got "
                                 f"defects of {of_b:.1e} and {of_c:.1e} for t^{power}); correct a "
                                 "coefficient or state a lower order.")
        first = self.start.a_explicit[0].any() or self.start.a_implicit[0].any()
        if self.start.order != self.order or first or not self.start.needs_explicit[0]:
            raise ValueError(f"IMEXMultistep {self.name!r} expects a start of order {self.order} "
                             f"whose first stage is the state itself (got {self.start!r}).")

    @property
    def embedded_order(self) -> int:
        """The order of an estimate of the error: there is none."""
        return 0

    @property
    def interpolant(self) -> None:
        """The polynomial between the ends of a step: there is none."""
        return None

    @property
    def equal_steps(self) -> bool:
        """Whether all steps have to be of one size."""
        return True

    @property
    def live_values(self) -> int:
        """How many values of G a step uses at one time, at most."""
        return self.start.stages + self.steps

    @property
    def steps(self) -> int:
        """The number s of earlier states that a step uses."""
        return len(self.b)

    def chain(self, steps: int) -> int:
        """How many evaluations of G the state after so many steps depends on, one in another."""
        started = min(steps, self.steps - 1)
        return self.start.chain(started) + steps - started

    def _defects(self) -> list[tuple[float, float]]:
        """What is left over when t^p is integrated from exact values at 1, 0, -1, ..."""
        found = []
        for p in range(self.order + 1):
            left = sum(a * (1.0 - j) ** p for j, a in enumerate(self.a))
            g = sum(b * p * (-1.0 * j) ** (p - 1) for j, b in enumerate(self.b)) if p else 0.0
            k = sum(c * p * (1.0 - j) ** (p - 1) for j, c in enumerate(self.c)) if p else 0.0
            found.append((left - g, left - k))
        return found


_ASCHER = "Ascher, Ruuth and Wetton (1995), doi:10.1137/0732037"
SBDF2 = IMEXMultistep("sbdf2", 2, (3 / 2, -2, 1 / 2), (2, -1), (1, 0), ARS222,
                      reference=f"{_ASCHER}, section 2.2")
SBDF3 = IMEXMultistep("sbdf3", 3, (11 / 6, -3, 3 / 2, -1 / 3), (3, -3, 1), (1, 0), ARS443,
                      reference=f"{_ASCHER}, section 2.3")
SBDF4 = IMEXMultistep("sbdf4", 4, (25 / 12, -4, 3, -4 / 3, 1 / 4), (4, -6, 4, -1), (1, 0),
                      ARK436L2SA, reference=f"{_ASCHER}, section 2.4")
CNAB2 = IMEXMultistep("cnab2", 2, (1, -1, 0), (3 / 2, -1 / 2), (1 / 2, 1 / 2), ARS222,
                      reference=f"{_ASCHER}, section 2.2, Crank-Nicolson, Adams-Bashforth")
MULTISTEP: dict[str, IMEXMultistep] = {
    scheme.name: scheme for scheme in tuple(globals().values()) if isinstance(scheme, IMEXMultistep)
}
