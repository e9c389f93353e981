"""Which coefficients make an implicit-explicit Runge-Kutta scheme, and are they right?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Coefficients = Any  # any array_like when given; a read-only float64 array when read
MAX_ORDER = 5  # the highest order whose conditions are checked
TOLERANCE = 1e-12  # the largest residual of a condition that is accepted
ROUNDING = 1e-14  # numbers closer than this are equal


@dataclass(frozen=True, eq=False, repr=False)
class IMEXTableau:
    r"""An additive Runge-Kutta scheme for :math:`\dot{u} = G(t, u) + J u`, checked when made.

    .. math::
        (I - h \tilde{a}_{ii} J) U_i &= u_n + h \sum_{j<i} \left( a_{ij} G_j
        + \tilde{a}_{ij} J U_j \right), \qquad G_j = G(t_n + c_j h, U_j)

        u_{n+1} &= u_n + h \sum_j \left( b_j G_j + \tilde{b}_j J U_j \right)

    Coefficients within :math:`10^{-14}` of zero are stored as zero: "used" means "not zero".

    Args:
        name (str): The name in the literature.
        order (int): The order, 1 to 5; all coupled conditions up to it must hold.
        a_explicit, a_implicit (array_like): :math:`a`, strictly lower triangular, and
            :math:`\tilde{a}`, lower triangular, of shape :obj:`(s, s)`.
        b_explicit, b_implicit (array_like): :math:`b` and :math:`\tilde{b}`, of shape :obj:`(s,)`.
        b_embedded, b_embedded_implicit (array_like, optional): The weights of a second solution,
            to estimate the error; the latter is by default the former.
        dense_output (array_like, optional): Entry :obj:`[j, k]` is the coefficient of
            :math:`\theta^{k+1}` in both weights of stage :obj:`j` at :math:`t_n + \theta h`.
        d_second (array_like, optional): The weights of a second estimate of the error,
            :math:`h \sum_{i \le s+1} d_i G_i` with G at the step's end as :math:`G_{s+1}`, of shape
            :obj:`(s + 1,)`; of the order of the embedded weights, for the rates of G at which
            the difference of these from b vanishes though the step is unstable.
        reference (str): Where the coefficients were published.

    Raises:
        ValueError: If a shape, a triangle or an order condition is wrong, or a number not finite.
    """

    name: str
    order: int
    a_explicit: Coefficients
    a_implicit: Coefficients
    b_explicit: Coefficients
    b_implicit: Coefficients
    b_embedded: Coefficients = None
    b_embedded_implicit: Coefficients = None
    dense_output: Coefficients = None
    d_second: Coefficients = None
    reference: str = ""

    def __post_init__(self) -> None:
        """Stores the coefficients as read-only arrays, and refuses those of no such scheme."""
        if self.b_embedded_implicit is None:
            object.__setattr__(self, "b_embedded_implicit", self.b_embedded)
        for field in fields(self):
            values = getattr(self, field.name)
            if field.name.startswith(("a_", "b_", "d_", "dense_")) and values is not None:
                object.__setattr__(self, field.name, _to_array(self.name, field.name, values))
        _check_form(self)
        residuals = order_conditions(self, self.order)
        worst = list(residuals)[int(np.argmax(np.abs(list(residuals.values()))))]
        if not abs(residuals[worst]) <= TOLERANCE:
            expected = f"all coupled conditions up to order {self.order} to hold to {TOLERANCE}"
            got = f"a residual of {residuals[worst]:.3e} for the tree {worst}"
            raise _error(self.name, expected, got, "correct a coefficient or state a lower order")
        if self.d_second is not None:
            _check_second(self)

    def __reduce__(self) -> tuple[type[IMEXTableau], tuple[object, ...]]:
        """Makes copies anew: numpy would bring the arrays back writeable from a pickle."""
        return type(self), tuple(getattr(self, field.name) for field in fields(self))

    def __repr__(self) -> str:
        """Names the scheme without its coefficients."""
        return f"{type(self).__name__}({self.name}, order={self.order}, stages={self.stages})"

    @property
    def stages(self) -> int:
        """The number of stages s."""
        return len(self.b_explicit)

    @cached_property
    def c_explicit(self) -> Array:
        """The abscissae c of G: the row sums of the explicit matrix."""
        return _to_array(self.name, "c_explicit", self.a_explicit.sum(axis=1))

    @cached_property
    def c_implicit(self) -> Array:
        """The row sums of the implicit matrix (not c for every scheme: see ssp222)."""
        return _to_array(self.name, "c_implicit", self.a_implicit.sum(axis=1))

    @property
    def equal_steps(self) -> bool:
        """Whether all steps have to be of one size."""
        return False

    @property
    def live_values(self) -> int:
        """How many values of G a step uses at one time, at most."""
        return self.stages

    @cached_property
    def implicit_stages(self) -> tuple[bool, ...]:
        """Which stages need a linear solve."""
        return tuple((np.diag(self.a_implicit) != 0).tolist())

    @cached_property
    def constant_diagonal(self) -> bool:
        """Whether all linear solves of a step share one matrix."""
        diagonal = [value for value in np.diag(self.a_implicit) if value != 0]
        return not diagonal or _same(diagonal, diagonal[0])

    def continues(self, *, alone: bool) -> bool:
        """Whether the last stage is the state at the end, and its H the first of the next step.

        Args:
            alone (bool): Whether there is no G.
        """
        accurate = self.stiffly_accurate if alone else self.globally_stiffly_accurate
        return accurate and not self.a_implicit[0].any() and _same(self.c_implicit[-1], 1)

    @cached_property
    def stiffly_accurate(self) -> bool:
        """Whether the implicit weights are the last row of their matrix."""
        return _same(self.b_implicit, self.a_implicit[-1])

    @cached_property
    def globally_stiffly_accurate(self) -> bool:
        """Whether that holds in both parts: the last stage is then the step's result."""
        return self.stiffly_accurate and _same(self.b_explicit, self.a_explicit[-1])

    @cached_property
    def needs_explicit(self) -> tuple[bool, ...]:
        """Whether a later stage or a weight b (not an embedded one) uses G at each stage."""
        return _used(self.a_explicit, self.b_explicit)

    @cached_property
    def needs_implicit(self) -> tuple[bool, ...]:
        """Whether a later stage or an implicit weight (not an embedded one) uses each J U."""
        return _used(self.a_implicit, self.b_implicit)

    @cached_property
    def needs_stage(self) -> tuple[bool, ...]:
        """Whether either of these holds, for each stage."""
        return tuple(g or j for g, j in zip(self.needs_explicit, self.needs_implicit, strict=True))

    @property
    def explicit_evaluations(self) -> int:
        """The number of evaluations of G in a step."""
        return sum(self.needs_explicit)

    def chain(self, steps: int) -> int:
        """How many evaluations of G the state after so many steps depends on, one in another."""
        depth: list[int] = []
        for i in range(self.stages):
            depth.append(self._deepest(self.a_explicit[i, :i], self.a_implicit[i, :i], depth))
        return steps * self._deepest(self.b_explicit, self.b_implicit, depth)

    @staticmethod
    def _deepest(of_g: Array, of_h: Array, depth: list[int]) -> int:
        found = [d + int(g != 0) for g, h, d in zip(of_g, of_h, depth, strict=True)
                 if g != 0 or h != 0]
        return max(found, default=0)

    @cached_property
    def embedded_order(self) -> int:
        """The order of the embedded weights, 0 where there are none."""
        if self.b_embedded is None:
            return 0
        return max((q for q in range(1, self.order + 1) if all(
            abs(r) <= TOLERANCE for r in order_conditions(self, q, embedded=True).values())),
            default=0)

    @cached_property
    def starts_with_state(self) -> bool:
        """Whether the first stage is the state itself."""
        return not (self.a_explicit[0].any() or self.a_implicit[0].any())

    @cached_property
    def interpolant(self) -> tuple[Array, Array] | None:
        r"""The coefficients of :math:`\theta^{k+1}` in the weights of G_j and of J U_j.

        They are :obj:`dense_output`; without it, the cubic Hermite polynomial where the scheme is
        globally stiffly accurate and starts with the state itself; else None. Hermite's needs
        J u at both ends, which is bounded for a stiff J only if the step's result is a stage.
        """
        if self.dense_output is not None:
            return self.dense_output, self.dense_output
        if not (self.globally_stiffly_accurate and self.starts_with_state
                and _same(self.c_explicit[-1], 1)):
            return None
        ends = np.zeros((self.stages, 3))
        ends[0] += 1, -2, 1  # theta - 2 theta^2 + theta^3, of the slope at the start
        ends[-1] += 0, -1, 1
        rise = np.array([0, 3, -2])
        return ends + np.outer(self.b_explicit, rise), ends + np.outer(self.b_implicit, rise)


def order_conditions(tableau: IMEXTableau, order: int, embedded: bool = False) -> dict[str, float]:
    r"""Returns the residual of every coupled order condition up to an order, by tree.

    .. math::
        \sum_i b^{\mathrm{root}(\tau)}_i \Phi_i(\tau) = \frac{1}{\gamma(\tau)}, \qquad
        \Phi_i(\tau) = \prod_{\sigma\ \mathrm{child\ of}\ \tau} \sum_j
        a^{\mathrm{root}(\sigma)}_{ij} \Phi_j(\sigma)

    for every rooted tree :math:`\tau` with nodes coloured E (explicit) or I (implicit); its
    density :math:`\gamma` is its size times its children's densities. ``I[E,E]`` stands for
    :math:`\sum_i \tilde{b}_i c_i^2 = 1/3`. The time in G is an unknown with derivative 1 in
    the explicit part, hence a leaf E, and nothing is assumed of the row sums.
    Source: Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, section II.15.

    Args:
        tableau (IMEXTableau): The scheme.
        order (int): The largest size of tree, 1 to 5.
        embedded (bool, optional): Whether to take the embedded weights. (default: :obj:`False`)

    Raises:
        ValueError: If the order is not supported, or there are no embedded weights.
    """
    if isinstance(order, bool) or not isinstance(order, int) or not 1 <= order <= MAX_ORDER:
        expected = f"order to be an int from 1 to {MAX_ORDER}, the highest that can be checked"
        raise _error(tableau.name, expected, repr(order), "state the highest of these that holds")
    weights = {"E": tableau.b_explicit, "I": tableau.b_implicit}
    if embedded:
        weights = {"E": tableau.b_embedded, "I": tableau.b_embedded_implicit}
        if tableau.b_embedded is None:
            raise _error(tableau.name, "embedded weights", None, "give it b_embedded")
    matrices = {"E": tableau.a_explicit, "I": tableau.a_implicit}
    return {tree: float(weights[tree[0]] @ phi) - 1 / density
            for tree, phi, density in _elementary(matrices, order)}


def _elementary(matrices: dict[str, Array], order: int) -> Iterator[tuple[str, Array, int]]:
    r"""Every coloured tree up to a size, its :math:`\Phi_i` at each stage and its density."""
    below: dict[str, Array] = {}  # the sum over j, for a tree that hangs below stage i
    for tree, children, density in _rooted_trees(order):
        phi = np.ones(len(matrices["E"]))
        for child in children:
            phi = phi * below[child]
        below[tree] = matrices[tree[0]] @ phi
        yield tree, phi, density


@lru_cache
def _rooted_trees(order: int) -> tuple[tuple[str, tuple[str, ...], int], ...]:
    """Returns name, children and density of every coloured tree up to a size, small ones first."""
    density: dict[str, int] = {}
    by_size: list[dict[str, tuple[str, ...]]] = []
    forests: list[set[tuple[str, ...]]] = [{()}]  # sorted trees, by their total size
    for size in range(1, order + 1):
        trees = {f"{c}[{','.join(f)}]" if f else c: f for c in "EI" for f in sorted(forests[-1])}
        for name, children in trees.items():
            density[name] = size * math.prod(density[child] for child in children)
        by_size.append(trees)
        forests.append({tuple(sorted((*rest, tree))) for k, row in enumerate(by_size, start=1)
                        for tree in row for rest in forests[size - k]})
    return tuple((n, children, density[n]) for trees in by_size for n, children in trees.items())


def _used(matrix: Array, weights: Array) -> tuple[bool, ...]:
    return tuple(((np.tril(matrix, -1) != 0).any(axis=0) | (weights != 0)).tolist())


def _same(left: ArrayLike, right: ArrayLike) -> bool:
    return bool(np.all(np.abs(np.subtract(left, right)) <= ROUNDING))


def _error(name: str, expected: str, got: object, remedy: str) -> ValueError:
    return ValueError(f"IMEXTableau {name!r} expects {expected} (got {got}); {remedy}.")


def _to_array(name: str, field: str, values: ArrayLike) -> Array:
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise _error(name, f"real numbers in {field}", error, "fill short rows with 0") from error
    if not np.isfinite(array).all():
        wrong = array[~np.isfinite(array)].tolist()
        raise _error(name, f"finite numbers in {field}", wrong, "correct these")
    array[np.abs(array) <= ROUNDING] = 0
    array.setflags(write=False)
    return array


def _check_form(tableau: IMEXTableau) -> None:
    s = np.size(tableau.b_explicit)
    shapes = {"a_explicit": (s, s), "a_implicit": (s, s), "b_explicit": (s,), "b_implicit": (s,)}
    shapes |= {"b_embedded": (s,), "b_embedded_implicit": (s,), "d_second": (s + 1,)}
    shapes["dense_output"] = (s, (*np.shape(tableau.dense_output), 1, 1)[1])
    for field, shape in shapes.items():
        array = getattr(tableau, field)
        if array is not None and array.shape != shape:
            remedy = "give one row per stage, as many as b_explicit has entries"
            raise _error(tableau.name, f"{field} of shape {shape}", array.shape, remedy)
    for field, diagonal, kind in (("a_explicit", 0, "strictly lower"), ("a_implicit", 1, "lower")):
        outside = np.triu(getattr(tableau, field), diagonal)
        for i, j in np.argwhere(outside).tolist():
            got, remedy = f"{outside[i, j]} at [{i}, {j}]", "order the stages by what they use"
            raise _error(tableau.name, f"{field} to be {kind} triangular", got, remedy)


def _check_second(tableau: IMEXTableau) -> None:
    """Refuses a second estimate that is not zero to the order of the embedded weights."""
    if not (tableau.starts_with_state and tableau.embedded_order):
        got = f"embedded order {tableau.embedded_order}, {tableau}"
        raise _error(tableau.name, "embedded weights and a first stage that is the state itself "
                     "with d_second", got, "leave it out")
    zeros = np.zeros((tableau.stages + 1, 1))
    matrices = {"E": np.hstack([np.vstack([tableau.a_explicit, tableau.b_explicit]), zeros]),
                "I": np.hstack([np.vstack([tableau.a_implicit, tableau.b_implicit]), zeros])}
    for tree, phi, _ in _elementary(matrices, tableau.embedded_order):
        residual = float(tableau.d_second @ phi)
        if tree[0] == "E" and not abs(residual) <= TOLERANCE:
            raise _error(tableau.name, f"d_second to be zero for trees up to size "
                         f"{tableau.embedded_order}", f"{residual:.3e} for {tree}",
                         "correct a coefficient")
