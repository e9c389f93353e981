"""Which coefficients define an implicit-explicit Runge-Kutta scheme, and are they correct?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Coefficients = Any  # array_like as an argument; a read-only float64 array as an attribute
MAX_ORDER = 5  # the highest order whose conditions are checked
TOLERANCE = 1e-12  # the largest residual of a condition that is accepted
ROUNDING = 1e-14  # numbers closer than this are equal


@dataclass(frozen=True, eq=False, repr=False)
class IMEXTableau:
    r"""An implicit-explicit (IMEX) Runge-Kutta scheme for :math:`\dot{u} = G(t, u) + J u`.

    .. math::
        (I - h \tilde{a}_{ii} J) U_i &= u_n + h \sum_{j<i} \left( a_{ij} G_j
        + \tilde{a}_{ij} J U_j \right), \qquad G_j = G(t_n + c_j h, U_j)

        u_{n+1} &= u_n + h \sum_j \left( b_j G_j + \tilde{b}_j J U_j \right)

    The coefficients are checked, and those within :math:`10^{-14}` of zero are stored as zero; a
    stage or value with zero coefficients only is not computed.

    Args:
        name (str): The name of the scheme.
        order (int): The order of accuracy, 1 to 5; all coupled order conditions up to it must hold.
        a_explicit (array_like): The matrix :math:`a`, strictly lower triangular, of shape
            :obj:`(s, s)`.
        a_implicit (array_like): The matrix :math:`\tilde{a}`, lower triangular, of shape
            :obj:`(s, s)`.
        b_explicit (array_like): The weights :math:`b`, of shape :obj:`(s,)`.
        b_implicit (array_like): The weights :math:`\tilde{b}`, of shape :obj:`(s,)`.
        b_embedded (array_like, optional): The weights of the embedded solution, for an error
            estimate; no estimate if None. (default: :obj:`None`)
        b_embedded_implicit (array_like, optional): Its weights for the implicit term; those of
            :obj:`b_embedded` if None. (default: :obj:`None`)
        dense_output (array_like, optional): The coefficients of the interpolant at :math:`t_n +
            \theta h`: entry :obj:`[j, k]` is that of :math:`\theta^{k+1}` in both weights of stage
            :obj:`j`. (default: :obj:`None`)
        d_second (array_like, optional): The weights of a second error estimate :math:`h \sum_{i \le
            s+1} d_i G_i`, of shape :obj:`(s + 1,)`, where :math:`G_{s+1}` is G at the end of the
            step. It must vanish to the order of the embedded weights. It detects unstable steps for
            which the first estimate happens to vanish. (default: :obj:`None`)
        reference (str): The source of the coefficients. (default: :obj:`""`)

    Raises:
        ValueError: if a shape is wrong, a matrix is not (strictly) lower triangular, an order
            condition does not hold, or a number is not finite.
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
        """Stores the coefficients as read-only arrays and checks them."""
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
        """Copies by calling the constructor, since numpy unpickles arrays as writeable."""
        return type(self), tuple(getattr(self, field.name) for field in fields(self))

    def __repr__(self) -> str:
        """The name, order and number of stages, without the coefficients."""
        return f"{type(self).__name__}({self.name}, order={self.order}, stages={self.stages})"

    @property
    def stages(self) -> int:
        """The number of stages s."""
        return len(self.b_explicit)

    @cached_property
    def c_explicit(self) -> Array:
        """The abscissae c of G, which are the row sums of the explicit matrix."""
        return _to_array(self.name, "c_explicit", self.a_explicit.sum(axis=1))

    @cached_property
    def c_implicit(self) -> Array:
        """The abscissae of H, the row sums of the implicit matrix (not equal to c for ssp222)."""
        return _to_array(self.name, "c_implicit", self.a_implicit.sum(axis=1))

    @property
    def equal_steps(self) -> bool:
        """Whether all steps must have the same size (False)."""
        return False

    @property
    def live_values(self) -> int:
        """The largest number of values of G that are in use at the same time."""
        return self.stages

    @cached_property
    def implicit_stages(self) -> tuple[bool, ...]:
        """For each stage, whether it needs a solve."""
        return tuple((np.diag(self.a_implicit) != 0).tolist())

    @cached_property
    def constant_diagonal(self) -> bool:
        """Whether all solves of a step have the same matrix, I - h gamma J."""
        diagonal = [value for value in np.diag(self.a_implicit) if value != 0]
        return not diagonal or _same(diagonal, diagonal[0])

    def continues(self, *, alone: bool) -> bool:
        """Whether the last stage is the state at the end of the step, so that its H can be reused.

        The next step then uses it as the H of its first stage.

        Args:
            alone (bool): Whether there is no explicit term G.
        """
        accurate = self.stiffly_accurate if alone else self.globally_stiffly_accurate
        return accurate and not self.a_implicit[0].any() and _same(self.c_implicit[-1], 1)

    @cached_property
    def stiffly_accurate(self) -> bool:
        """Whether the implicit weights equal the last row of the implicit matrix."""
        return _same(self.b_implicit, self.a_implicit[-1])

    @cached_property
    def globally_stiffly_accurate(self) -> bool:
        """Whether both weights equal the last rows, so that the last stage is the step's result."""
        return self.stiffly_accurate and _same(self.b_explicit, self.a_explicit[-1])

    @cached_property
    def needs_explicit(self) -> tuple[bool, ...]:
        """For each stage, whether a later stage or the weights b use its G."""
        return _used(self.a_explicit, self.b_explicit)

    @cached_property
    def needs_implicit(self) -> tuple[bool, ...]:
        """For each stage, whether a later stage or the implicit weights use its J U."""
        return _used(self.a_implicit, self.b_implicit)

    @cached_property
    def needs_stage(self) -> tuple[bool, ...]:
        """For each stage, whether its G or its J U is used."""
        return tuple(g or j for g, j in zip(self.needs_explicit, self.needs_implicit, strict=True))

    @property
    def explicit_evaluations(self) -> int:
        """The number of evaluations of G per step."""
        return sum(self.needs_explicit)

    def chain(self, steps: int) -> int:
        """The largest number of nested evaluations of G in the state after ``steps`` steps."""
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
        """The order of the embedded solution; 0 if there is none."""
        if self.b_embedded is None:
            return 0
        return max((q for q in range(1, self.order + 1) if all(
            abs(r) <= TOLERANCE for r in order_conditions(self, q, embedded=True).values())),
            default=0)

    @cached_property
    def starts_with_state(self) -> bool:
        """Whether the first stage is the state at the start of the step."""
        return not (self.a_explicit[0].any() or self.a_implicit[0].any())

    @cached_property
    def interpolant(self) -> tuple[Array, Array] | None:
        r"""The coefficients of :math:`\theta^{k+1}` in the weights of G and of J U at each stage.

        They are :obj:`dense_output` if it is given. Else they are those of the cubic Hermite
        polynomial if the scheme is globally stiffly accurate and starts with the state itself, else
        None. The Hermite polynomial needs J u at both ends of the step, which is bounded for a
        stiff J only if the result of the step is a stage.
        """
        if self.dense_output is not None:
            return self.dense_output, self.dense_output
        if not (self.globally_stiffly_accurate and self.starts_with_state
                and _same(self.c_explicit[-1], 1)):
            return None
        ends = np.zeros((self.stages, 3))
        ends[0] += 1, -2, 1  # theta - 2 theta^2 + theta^3 multiplies the slope at the start
        ends[-1] += 0, -1, 1
        rise = np.array([0, 3, -2])
        return ends + np.outer(self.b_explicit, rise), ends + np.outer(self.b_implicit, rise)


def order_conditions(tableau: IMEXTableau, order: int, embedded: bool = False) -> dict[str, float]:
    r"""Returns the residuals of all coupled order conditions up to an order, by rooted tree.

    .. math::
        \sum_i b^{\mathrm{root}(\tau)}_i \Phi_i(\tau) = \frac{1}{\gamma(\tau)}, \qquad
        \Phi_i(\tau) = \prod_{\sigma\ \mathrm{child\ of}\ \tau} \sum_j
        a^{\mathrm{root}(\sigma)}_{ij} \Phi_j(\sigma)

    There is one condition for every rooted tree :math:`\tau` with nodes coloured E (explicit) or I
    (implicit). The density :math:`\gamma` of a tree is its size times the densities of its
    children. For example, ``I[E,E]`` is the condition :math:`\sum_i \tilde{b}_i c_i^2 = 1/3`. The
    time in G is treated as a component of u with derivative 1 in the explicit part, hence a leaf E;
    nothing is assumed about the row sums.
    Source: Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, section II.15.

    Args:
        tableau (IMEXTableau): The scheme.
        order (int): The largest size of a tree, 1 to 5.
        embedded (bool, optional): Whether to use the embedded weights. (default: :obj:`False`)

    Returns:
        dict: The residual, left side minus right side, by the name of the tree.

    Raises:
        ValueError: if the order is not supported, or there are no embedded weights.
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
    r"""All coloured trees up to a size, with :math:`\Phi_i` at each stage and the density."""
    below: dict[str, Array] = {}  # the sum over j, for a tree as a child at stage i
    for tree, children, density in rooted_trees(order):
        phi = np.ones(len(matrices["E"]))
        for child in children:
            phi = phi * below[child]
        below[tree] = matrices[tree[0]] @ phi
        yield tree, phi, density


@lru_cache
def rooted_trees(order: int) -> tuple[tuple[str, tuple[str, ...], int], ...]:
    """Name, children and density of all coloured trees up to a size, in order of size."""
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
    """Refuses a second error estimate that does not vanish to the order of the embedded weights."""
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
