r"""Which implicit-explicit multistep schemes are there, and what is one step of them?

.. math::
    \sum_{j=0}^{s} a_j u_{n+1-j} = h \sum_{j=1}^{s} b_j G(t_{n+1-j}, u_{n+1-j})
    + h \sum_{j=0}^{1} c_j J u_{n+1-j}

Source: Ascher, Ruuth and Wetton, "Implicit-explicit methods for time-dependent partial differential
equations" (1995), doi:10.1137/0732037.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .report import Stats
from .schemes import ALIASES, ARK436L2SA, ARS222, ARS443, SCHEMES, get_scheme
from .stepper import Explicit, Gradients, Made, Reverse, RungeKutta, Solves, State, total, weighted
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
    def steps(self) -> int:
        """The number s of earlier states that a step uses."""
        return len(self.b)

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
    scheme.name: scheme for scheme in (SBDF2, SBDF3, SBDF4, CNAB2)
}


def get_method(method: str | IMEXTableau | IMEXMultistep) -> IMEXTableau | IMEXMultistep:
    """Returns the scheme of that name or alias; a scheme comes back as it is.

    Args:
        method (str, IMEXTableau or IMEXMultistep): A key of :obj:`MULTISTEP`, or what
            :func:`pyg_sinode.schemes.get_scheme` knows.

    Raises:
        TypeError: If it is neither a string nor a scheme.
        ValueError: If no scheme goes by that name.
    """
    if isinstance(method, (IMEXMultistep, IMEXTableau)):
        return method
    if isinstance(method, str) and method in MULTISTEP:
        return MULTISTEP[method]
    if isinstance(method, str) and method in {*SCHEMES, *ALIASES}:
        return get_scheme(method)
    known = ", ".join([*SCHEMES, *(f"{alias} (= {name})" for alias, name in ALIASES.items()),
                       *MULTISTEP])
    message = (f"method expects a scheme's name, an IMEXTableau or an IMEXMultistep (got "
               f"{method!r}); use {known}.")
    raise ValueError(message) if isinstance(method, str) else TypeError(message)


class Multistep:
    """One step of a multistep scheme and its transpose.

    A state is u, the earlier u's, the earlier values of G, and a(t) J u + f(t) where c_1 is not 0,
    the newest first.

    Args:
        scheme (IMEXMultistep): The scheme.
        explicit (callable, optional): G(t, u), t a Python float.
        solves (Solves): The implicit part and its linear solves.
        stats (Stats): Filled on the way.
    """

    def __init__(self, scheme: IMEXMultistep, explicit: Explicit | None, solves: Solves,
                 stats: Stats) -> None:
        self.scheme, self.explicit, self.solves, self.stats = scheme, explicit, solves, stats
        self.start = RungeKutta(scheme.start, explicit, solves, stats)
        self.remembers_k = solves.part is not None and scheme.c[1] != 0.0

    def evaluations_before(self, number: int) -> int:
        """The number of evaluations of G in the steps before that one."""
        starting = min(number, self.scheme.steps - 1)
        return self.start.evaluations_before(starting) + (
            number - starting if self.explicit is not None else 0)

    def step(self, number: int, t: float, h: float, state: State) -> Made:
        """Makes one step, by the start while there are too few earlier states."""
        if number < self.scheme.steps - 1:
            return self._start(number, t, h, state)
        us, gs, k = self._parts(number, state)
        if self.explicit is not None:
            self.stats.explicit_evaluations += 1
            gs = [self.explicit(t, us[0]), *gs]
        terms = [(-a, u) for a, u in zip(self.scheme.a[1:], us, strict=True)]
        terms += [(h * b, g) for b, g in zip(self.scheme.b, gs, strict=False)]
        terms.append((h * self.scheme.c[1], k))
        r = weighted(1.0, terms)
        assert r is not None
        u, following = r, None
        if self.solves.part is not None:
            c = h * self.scheme.c[0]
            u = self.solves.stage(t + h, c, r, k)
            following = (u - r).div_(c) if self.remembers_k else None
        return Made(self._join([u, *us[:-1]], gs[:self.scheme.steps - 1], following),
                    [us[0], u], [], [])

    def transposed(self, number: int, t: float, h: float, tape: Sequence[Tensor | None],
                   lam: Gradients, outputs: Sequence[tuple[float, Tensor]], reverse: Reverse
                   ) -> list[Tensor | None]:
        """The gradients at the start of a step from those at its end.

        With c = h c_0 and mu = (I - cJ)^-T (lam_u + lam_k / c), the gradient at the right-hand side
        is mu - lam_k / c.
        """
        if number < self.scheme.steps - 1:
            return self._transposed_start(number, t, h, tape, lam, reverse)
        s = self.scheme.steps
        lam_us, lam_gs, lam_k = self._parts(number + 1, lam)
        before, u = tape
        assert before is not None
        assert u is not None
        mu = lam_us[0]
        if self.solves.part is not None:
            c = h * self.scheme.c[0]
            right = weighted(1.0, [(1.0, mu), (1.0 / c, lam_k)])
            if right is not None:
                y = self.solves.transposed_stage(t + h, c, right)
                reverse.implicit(t + h, u, c * y)
                mu = weighted(1.0, [(1.0, y), (-1.0 / c, lam_k)])
        us = [weighted(1.0, [(-a, mu), (1.0, later)])
              for a, later in zip(self.scheme.a[1:], [*lam_us[1:], None], strict=True)]
        k = weighted(h, [(self.scheme.c[1], mu)]) if self.remembers_k else None
        if self.explicit is None:
            return list(self._join(us, [], k))
        gs = [weighted(1.0, [(h * b, mu), (1.0, later)])
              for b, later in zip(self.scheme.b, [*lam_gs, *[None] * s], strict=False)]
        if gs[0] is not None:
            us[0] = total([us[0], reverse.explicit(0, t, before, gs[0])])
        return list(self._join(us, gs[1:], k))

    def _start(self, number: int, t: float, h: float, state: State) -> Made:
        us, gs, _ = self._parts(number, state)
        made = self.start.step(number, t, h, (us[0],))
        u, k = made.state[0], None
        if self.remembers_k and number == self.scheme.steps - 2:
            k = self.solves.product(t + h, u)
        if self.explicit is not None:
            gs = [made.g[0], *gs]
        return Made(self._join([u, *us], gs, k), [*made.tape, u], [], [])

    def _transposed_start(self, number: int, t: float, h: float, tape: Sequence[Tensor | None],
                          lam: Gradients, reverse: Reverse) -> list[Tensor | None]:
        lam_us, lam_gs, lam_k = self._parts(number + 1, lam)
        at_end = lam_us[0]
        if lam_k is not None:
            u = tape[-1]
            assert u is not None
            reverse.implicit(t + h, u, lam_k)
            at_end = total([at_end, self.solves.transposed_product(t + h, lam_k)])
        first = lam_gs[0] if lam_gs else None
        (back,) = self.start.transposed(number, t, h, tape[:-1], [at_end], [], reverse, first)
        return list(self._join([total([back, lam_us[1]]), *lam_us[2:]], lam_gs[1:], None))

    def _parts(self, number: int, state: Sequence[Any]) -> tuple[list[Any], list[Any], Any]:
        """The u's, the G's and the k in the state before the step of that number."""
        earlier = min(number, self.scheme.steps - 1)
        state = [*state, *[None] * (2 * self.scheme.steps + 1 - len(state))]
        gs = state[earlier + 1:2 * earlier + 1] if self.explicit is not None else []
        k = state[earlier + 1 + len(gs)] if self.remembers_k else None
        return list(state[:earlier + 1]), list(gs), k

    def _join(self, us: Sequence[Any], gs: Sequence[Any], k: Any) -> Any:
        return (*us, *gs, *(() if k is None else (k,)))
