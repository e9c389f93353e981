r"""Which implicit-explicit multistep schemes are there? Each is a constant of this module.

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
    r"""An implicit-explicit (IMEX) multistep scheme for :math:`\dot{u} = G(t, u) + H(t, u)`.

    .. math::
        \sum_{j=0}^{s} a_j u_{n+1-j} = h \sum_{j=1}^{s} b_j G(t_{n+1-j}, u_{n+1-j})
        + h \sum_{j=0}^{1} c_j H(t_{n+1-j}, u_{n+1-j})

    All steps must have the same size. The coefficients are checked and scaled to :math:`a_0 = 1`.

    A multistep scheme evaluates G once per step but is less stable than a Runge-Kutta scheme. With
    eigenvalues :math:`\lambda_G < 0` of G and :math:`\lambda_J < 0` of J, it is stable at every
    step size if :math:`\lambda_G / \lambda_J` does not exceed the ratio in the table. For a
    :class:`pyg_sinode.SINODEConv` with ``implicit="decay"`` that ratio can be as large as 1; it is
    stable up to the :math:`h \alpha` in the table (:math:`\alpha < 1`):

    ========= ===== ===== ===== =====
    scheme    sbdf2 sbdf3 sbdf4 cnab2
    ========= ===== ===== ===== =====
    ratio     1/3   1/7   1/15  0
    h alpha   2     10/9  16/21 1
    ========= ===== ===== ===== =====

    Args:
        name (str): The name of the scheme.
        order (int): The order of accuracy.
        a (tuple of float): The coefficients :math:`a_0, \ldots, a_s`.
        b (tuple of float): The coefficients :math:`b_1, \ldots, b_s`.
        c (tuple of float): The coefficients :math:`c_0` (positive) and :math:`c_1`.
        start (IMEXTableau): The scheme of the first s - 1 steps, of the same order; its first stage
            must be the state itself.
        reference (str): The source of the coefficients. (default: :obj:`""`)

    Raises:
        ValueError: if a number of coefficients is wrong or an order condition does not hold.
    """

    name: str
    order: int
    a: tuple[float, ...]
    b: tuple[float, ...]
    c: tuple[float, ...]
    start: IMEXTableau
    reference: str = ""

    def __post_init__(self) -> None:
        """Scales and checks the coefficients."""
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
            if not (abs(of_b) <= 1e-12 and abs(of_c) <= 1e-12):  # true for NaN
                raise ValueError(f"IMEXMultistep {self.name!r} expects order {self.order} (got "
                                 f"defects of {of_b:.1e} and {of_c:.1e} for t^{power}); correct a "
                                 "coefficient or state a lower order.")
        first = self.start.a_explicit[0].any() or self.start.a_implicit[0].any()
        if self.start.order != self.order or first or not self.start.needs_explicit[0]:
            raise ValueError(f"IMEXMultistep {self.name!r} expects a start of order {self.order} "
                             f"whose first stage is the state itself (got {self.start!r}).")

    @property
    def embedded_order(self) -> int:
        """The order of the error estimate, 0 since there is none."""
        return 0

    @property
    def interpolant(self) -> None:
        """The interpolant within a step, None since there is none."""
        return None

    @property
    def equal_steps(self) -> bool:
        """Whether all steps must have the same size (True)."""
        return True

    @property
    def live_values(self) -> int:
        """The largest number of values of G that are in use at the same time."""
        return self.start.stages + self.steps

    @property
    def steps(self) -> int:
        """The number s of states that a step uses."""
        return len(self.b)

    def chain(self, steps: int) -> int:
        """The largest number of nested evaluations of G in the state after ``steps`` steps."""
        started = min(steps, self.steps - 1)
        return self.start.chain(started) + steps - started

    def _defects(self) -> list[tuple[float, float]]:
        """The errors, explicit and implicit, for u = t^p, p = 0 to order, on t = 1, 0, -1, ..."""
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
