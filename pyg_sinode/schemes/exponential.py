r"""Which exponential Runge-Kutta schemes are there? Each is a constant of this module.

The coefficients are linear combinations of the functions :math:`\varphi_0(z) = e^z` and
:math:`\varphi_k(z) = \int_0^1 e^{(1 - \theta) z} \theta^{k-1} / (k - 1)!\, d\theta`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np

from .tableau import MAX_ORDER, TOLERANCE, Array, rooted_trees

# {(k, c): w} is the sum of w phi_k(c z).
Weights = Mapping[tuple[int, float], float]
MAX_PHI = 4  # the highest index of a phi function


@dataclass(frozen=True, eq=False, repr=False)
class ExponentialTableau:
    r"""An exponential Runge-Kutta scheme for :math:`\dot{u} = G(t, u) + J u`.

    .. math::
        U_i &= e^{c_i h J} u_n + h \sum_{j<i} a_{ij}(h J)\, G_j, \qquad
        G_j = G(t_n + c_j h, U_j)

        u_{n+1} &= e^{h J} u_n + h \sum_j b_j(h J)\, G_j

    J is integrated exactly; no linear system is solved. The abscissae are :math:`c_i = \sum_j
    a_{ij}(0)`. A stage that only :obj:`b_embedded` uses is not computed with equal steps.

    Args:
        name (str): The name of the scheme.
        order (int): The order of accuracy for a fixed J, 1 to 5; the conditions of all trees up to
            it must hold, those with products by J included.
        a (sequence): The coefficients :math:`a_{ij}`: for stage i a sequence of its i - 1 entries,
            each a dictionary ``{(k, c): w}`` for :math:`\sum w\, \varphi_k(c z)`.
        b (sequence): The weights :math:`b_j`, one dictionary for each of the s stages.
        b_embedded (sequence, optional): The weights of the embedded solution, for an error
            estimate; no estimate if None. (default: :obj:`None`)
        reference (str): The source of the coefficients. (default: :obj:`""`)

    Raises:
        ValueError: if a number of coefficients is wrong, a coefficient is not finite, or an order
            condition does not hold.
    """

    name: str
    order: int
    a: Sequence[Sequence[Weights]]
    b: Sequence[Weights]
    b_embedded: Sequence[Weights] | None = None
    reference: str = ""

    def __post_init__(self) -> None:
        """Checks the coefficients."""
        self._check_form()
        residuals = exponential_order_conditions(self, self.order)
        worst = max(residuals, key=lambda tree: abs(residuals[tree]))
        if not abs(residuals[worst]) <= TOLERANCE:
            raise self._error(
                f"all conditions up to order {self.order} to hold to {TOLERANCE}",
                f"a residual of {residuals[worst]:.3e} for the tree {worst}",
                "correct a coefficient or state a lower order")

    def _check_form(self) -> None:
        s = len(self.b)
        given = [list(row) for row in self.a]
        if s < 1 or [len(row) for row in given] != list(range(s)) or (
                self.b_embedded is not None and len(self.b_embedded) != s):
            raise self._error("i - 1 coefficients in row i of a, and as many rows as weights in b "
                              "and b_embedded", f"rows of {[len(row) for row in given]} and {s} "
                              "weights", "write {} for a zero")
        if isinstance(self.order, bool) or not isinstance(self.order, int) or not (
                1 <= self.order <= MAX_ORDER):
            raise self._error(f"order to be an int from 1 to {MAX_ORDER}, the highest that can be "
                              "checked", repr(self.order), "state the highest that holds")
        for each in (*(x for row in given for x in row), *self.b, *(self.b_embedded or ())):
            for at, w in each.items():
                if not (isinstance(at, tuple) and len(at) == 2 and at[0] in range(MAX_PHI + 1)
                        and math.isfinite(at[1]) and math.isfinite(w)):
                    raise self._error(f"finite weights w of phi_k(c z), k from 0 to {MAX_PHI}",
                                      f"{{{at}: {w}}}", "write {(k, c): w}")

    def _error(self, expected: str, got: str, remedy: str) -> ValueError:
        return ValueError(f"ExponentialTableau {self.name!r} expects {expected} (got {got}); "
                          f"{remedy}.")

    def __reduce__(self) -> tuple[type[ExponentialTableau], tuple[object, ...]]:
        """Copies by calling the constructor, which checks the coefficients."""
        return type(self), tuple(getattr(self, field.name) for field in fields(self))

    def __repr__(self) -> str:
        """The name, order and number of stages, without the coefficients."""
        return f"{type(self).__name__}({self.name}, order={self.order}, stages={self.stages})"

    @property
    def stages(self) -> int:
        """The number of stages s."""
        return len(self.b)

    @cached_property
    def c(self) -> tuple[float, ...]:
        """The abscissae c, the row sums of a(0); the c of a phi function in the row if equal."""
        return tuple(map(_abscissa, self.a))

    @property
    def equal_steps(self) -> bool:
        """Whether all steps must have the same size (False)."""
        return False

    @property
    def interpolant(self) -> None:
        """The interpolant within a step, None since there is none."""
        return None

    @property
    def live_values(self) -> int:
        """The largest number of values of G that are in use at the same time."""
        return self.stages

    @cached_property
    def needs_explicit(self) -> tuple[bool, ...]:
        """For each stage, whether a later stage or the weights b use its G, in equal steps."""
        return self.used(embedded=False)

    @property
    def explicit_evaluations(self) -> int:
        """The number of evaluations of G per step of equal size."""
        return sum(self.needs_explicit)

    def used(self, *, embedded: bool) -> tuple[bool, ...]:
        """For each stage, whether its G is used, by the error estimate too if ``embedded``."""
        found = [bool(w) for w in self.b]
        if embedded and self.b_embedded is not None:
            found = [x or bool(w) for x, w in zip(found, self.b_embedded, strict=True)]
        for i in reversed(range(self.stages)):
            if found[i]:
                found[:i] = [x or bool(w) for x, w in zip(found[:i], self.a[i], strict=True)]
        return tuple(found)

    def chain(self, steps: int) -> int:
        """The largest number of nested evaluations of G in the state after ``steps`` steps."""
        depth: list[int] = []
        for row in (*self.a, self.b):
            depth.append(max((d + 1 for d, w in zip(depth, row, strict=True) if w), default=0))
        return steps * depth[-1]

    @cached_property
    def embedded_order(self) -> int:
        """The order of the embedded solution; 0 if there is none."""
        if self.b_embedded is None:
            return 0
        return max((q for q in range(1, self.order + 1) if all(
            abs(r) <= TOLERANCE
            for r in exponential_order_conditions(self, q, embedded=True).values())), default=0)


def _abscissa(row: Sequence[Weights]) -> float:
    total = math.fsum(map(at_zero, row))
    exact = [c for weights in row for _, c in weights if abs(c - total) <= 1e-14]
    return float(exact[0]) if exact else total


def at_zero(weights: Weights) -> float:
    """The value of a coefficient at z = 0."""
    return sum(w / math.factorial(k) for (k, _), w in weights.items())


def exponential_order_conditions(tableau: ExponentialTableau, order: int, *,
                                 embedded: bool = False) -> dict[str, float]:
    r"""Returns the residuals of the order conditions for a fixed J, by rooted tree.

    With the Taylor coefficients :math:`a_{ij}(z) = \sum_m a^{(m)}_{ij} z^m`, a chain of m nodes I
    (products by J) below which a tree with root E hangs has the weights :math:`\sum_j a^{(m)}_{ij}
    \prod_\sigma \Phi_j(\sigma)`, :math:`\sigma` the children of that root; a chain that ends with a
    leaf has :math:`c_i^m / m!`. Trees are named as in :func:`order_conditions`; since J is linear,
    nodes I have one child at most.

    Args:
        tableau (ExponentialTableau): The scheme.
        order (int): The largest size of a tree, 1 to 5.
        embedded (bool, optional): Whether to use the embedded weights. (default: :obj:`False`)

    Returns:
        dict: The residual, left side minus right side, by the name of the tree.
    """
    s = tableau.stages
    weights = tableau.b_embedded if embedded else tableau.b
    if weights is None:
        raise ValueError(f"ExponentialTableau {tableau.name!r} expects embedded weights (got "
                         "None); give it b_embedded.")
    rows = [*([*row, *[{}] * (s - len(row))] for row in tableau.a), list(weights)]
    taylor = np.array([[[sum(w * c**m / math.factorial(m + k) for (k, c), w in entry.items())
                         for entry in row] for row in rows] for m in range(order)])
    c = np.array([*tableau.c, 1.0])
    at_stage: dict[str, Array] = {}  # the weight of a tree in each stage, and in the result
    below: dict[str, tuple[int, Array | None]] = {}  # the length of its chain, and the product
    found = {}
    for tree, children, density in rooted_trees(order):
        linear = tree[0] == "E" or len(children) <= 1
        if not linear or any(child not in at_stage for child in children):
            continue
        if tree[0] == "E":
            product = np.ones(s)
            for child in children:
                product = product * at_stage[child][:s]
            below[tree] = 0, product
        else:
            m, rest = below[children[0]] if children else (0, None)
            below[tree] = m + 1, rest
        m, rest = below[tree]
        at_stage[tree] = (c**m / math.factorial(m) if rest is None else taylor[m] @ rest)
        found[tree] = float(at_stage[tree][-1]) - 1 / density
    return found


_COX = "Cox and Matthews (2002), doi:10.1006/jcph.2002.6995"
_HOCHBRUCK = "Hochbruck and Ostermann (2005), doi:10.1137/040611434"
_EMBEDDED = "; the embedded weights are those of this package"

_EULER: Weights = {(1, 1): 1}
ETD1 = ExponentialTableau("etd1", 1, [[]], [_EULER], reference=f"{_COX}, equation (4)")
ETDRK2 = ExponentialTableau(
    "etdrk2", 2, [[], [_EULER]], [{(1, 1): 1, (2, 1): -1}, {(2, 1): 1}],
    b_embedded=[_EULER, {}], reference=f"{_COX}, equations (20) to (22)")

# The weights of the quadrature formula with nodes 0, 1/2, 1.
_FIRST: Weights = {(1, 1): 1, (2, 1): -3, (3, 1): 4}
_MIDDLE: Weights = {(2, 1): 4, (3, 1): -8}
_LAST: Weights = {(2, 1): -1, (3, 1): 4}


def times(weights: Weights, factor: float) -> Weights:
    """A coefficient times a number."""
    return {at: w * factor for at, w in weights.items()}


def plus(*parts: Weights) -> Weights:
    """The sum of coefficients."""
    found: dict[tuple[int, float], float] = {}
    for part in parts:
        for at, w in part.items():
            found[at] = found.get(at, 0.0) + w
    return {at: w for at, w in found.items() if w}


# The estimate is b_3 (G_1 - 2 G_2 + G_3): it vanishes for G linear in time.
ETDRK3 = ExponentialTableau(
    "etdrk3", 3,
    [[], [{(1, 0.5): 0.5}], [{(1, 1): -1}, {(1, 1): 2}]], [_FIRST, _MIDDLE, _LAST],
    b_embedded=[plus(_FIRST, times(_LAST, -1)), plus(_MIDDLE, times(_LAST, 2)), {}],
    reference=f"{_COX}, equations (23) to (25){_EMBEDDED}")

# Schemes of order 4 with the nodes 0, 1/2, 1 have no embedded solution of order 3 whose estimate
# sees the error of the quadrature of a G(t). A further stage at 3/4, interpolated to second order,
# gives one: d times (-1/3, 2, 1, -8/3) at 0, 1/2, 1, 3/4 is a third divided difference.
_THREE_QUARTERS = 0.75


def _extra(middle: int, stages: int) -> list[Weights]:
    """The row of the stage at 3/4, from the values at 0 and at stage ``middle``, at 1/2."""
    c = _THREE_QUARTERS
    row: list[Weights] = [{} for _ in range(stages)]
    row[0], row[middle] = {(1, c): c, (2, c): -2 * c * c}, {(2, c): 2 * c * c}
    return row


def _without(b: Sequence[Weights], d: Sequence[float], function: Weights) -> list[Weights]:
    """The weights b minus the function times d."""
    return [plus(own, times(function, -factor)) for own, factor in zip(b, d, strict=True)]


_HALF: Weights = {(1, 0.5): 0.5}
_KUTTA: list[Weights] = [_FIRST, times(_MIDDLE, 0.5), times(_MIDDLE, 0.5), _LAST, {}]
ETDRK4 = ExponentialTableau(
    "etdrk4", 4,
    [[], [_HALF], [{}, _HALF], [{(1, 1): 1, (1, 0.5): -1}, {}, {(1, 0.5): 1}], _extra(2, 4)],
    _KUTTA, b_embedded=_without(_KUTTA, (-1 / 3, 1, 1, 1, -8 / 3), _LAST),
    reference=f"{_COX}, equations (26) to (29){_EMBEDDED}")

_A52: Weights = {(2, 0.5): 0.5, (3, 1): -1, (2, 1): 0.25, (3, 0.5): -0.5}
_STIFF: list[Weights] = [_FIRST, {}, {}, _LAST, _MIDDLE, {}]
ETDRK4S = ExponentialTableau(
    "etdrk4s", 4,
    [[], [_HALF], [plus(_HALF, {(2, 0.5): -1}), {(2, 0.5): 1}],
     [{(1, 1): 1, (2, 1): -2}, {(2, 1): 1}, {(2, 1): 1}],
     [plus(_HALF, {(2, 0.5): -0.25}, times(_A52, -1)), _A52, _A52,
      plus({(2, 0.5): 0.25}, times(_A52, -1))],
     _extra(4, 5)],
    _STIFF, b_embedded=_without(_STIFF, (-1 / 3, 0, 0, 1, 2, -8 / 3), _LAST),
    reference=f"{_HOCHBRUCK}, equation (5.19){_EMBEDDED}")


def _lawson(factor: float, since: float) -> Weights:
    """The coefficient factor e^(since z)."""
    return {(0, since): factor}


# The classical Runge-Kutta scheme for the variable e^(-tJ) u: each coefficient is a number times
# the exponential over the time from its stage on.
_CLASSICAL: list[Weights] = [_lawson(1 / 6, 1), _lawson(1 / 3, 0.5), _lawson(1 / 3, 0.5),
                             _lawson(1 / 6, 0), {}]
LAWSON4 = ExponentialTableau(
    "lawson4", 4,
    [[], [_lawson(0.5, 0.5)], [{}, _lawson(0.5, 0)], [{}, {}, _lawson(1, 0.5)],
     [_lawson(3 / 16, 0.75), {}, _lawson(9 / 16, 0.25), {}]],
    _CLASSICAL,
    b_embedded=[plus(own, _lawson(-d / 6, 1 - c)) for own, d, c in zip(
        _CLASSICAL, (-1 / 3, 1, 1, 1, -8 / 3), (0, 0.5, 0.5, 1, 0.75), strict=True)],
    reference=f"Lawson (1967), doi:10.1137/0704033, with the classical scheme{_EMBEDDED}")

EXPONENTIAL: dict[str, ExponentialTableau] = {
    scheme.name: scheme for scheme in tuple(globals().values())
    if isinstance(scheme, ExponentialTableau)
}
