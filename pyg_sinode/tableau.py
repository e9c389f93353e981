"""Which coefficients make an implicit-explicit Runge-Kutta scheme, and are they right?"""

from __future__ import annotations

import math
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


def get_scheme(method: str | IMEXTableau) -> IMEXTableau:
    """Returns the scheme of that name or alias; an :class:`IMEXTableau` comes back as it is.

    Args:
        method (str or IMEXTableau): A key of :obj:`SCHEMES` or :obj:`ALIASES`, or a tableau.

    Raises:
        TypeError: If it is neither a string nor a tableau.
        ValueError: If no scheme goes by that name.
    """
    if isinstance(method, IMEXTableau):
        return method
    known = ", ".join([*SCHEMES, *(f"{alias} (= {name})" for alias, name in ALIASES.items())])
    message = f"method expects a scheme's name or an IMEXTableau (got {method!r}); use {known}."
    if not isinstance(method, str):
        raise TypeError(message)
    if ALIASES.get(method, method) not in SCHEMES:
        raise ValueError(message)
    return SCHEMES[ALIASES.get(method, method)]


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
    reference: str = ""

    def __post_init__(self) -> None:
        """Stores the coefficients as read-only arrays, and refuses those of no such scheme."""
        if self.b_embedded_implicit is None:
            object.__setattr__(self, "b_embedded_implicit", self.b_embedded)
        for field in fields(self):
            values = getattr(self, field.name)
            if field.name.startswith(("a_", "b_", "dense_")) and values is not None:
                object.__setattr__(self, field.name, _to_array(self.name, field.name, values))
        _check_form(self)
        residuals = order_conditions(self, self.order)
        worst = list(residuals)[int(np.argmax(np.abs(list(residuals.values()))))]
        if not abs(residuals[worst]) <= TOLERANCE:
            expected = f"all coupled conditions up to order {self.order} to hold to {TOLERANCE}"
            got = f"a residual of {residuals[worst]:.3e} for the tree {worst}"
            raise _error(self.name, expected, got, "correct a coefficient or state a lower order")

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

    @cached_property
    def implicit_stages(self) -> tuple[bool, ...]:
        """Which stages need a linear solve."""
        return tuple((np.diag(self.a_implicit) != 0).tolist())

    @cached_property
    def constant_diagonal(self) -> bool:
        """Whether all linear solves of a step share one matrix."""
        diagonal = [value for value in np.diag(self.a_implicit) if value != 0]
        return not diagonal or _same(diagonal, diagonal[0])

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
    below: dict[str, Array] = {}  # the sum over j, for a tree that hangs below stage i
    residuals: dict[str, float] = {}
    for tree, children, density in _rooted_trees(order):
        phi = np.ones(tableau.stages)
        for child in children:
            phi = phi * below[child]
        below[tree] = matrices[tree[0]] @ phi
        residuals[tree] = float(weights[tree[0]] @ phi) - 1 / density
    return residuals


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
    shapes |= {"b_embedded": (s,), "b_embedded_implicit": (s,)}
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


def _lower(*rows: tuple[float, ...]) -> tuple[tuple[float, ...], ...]:
    """Puts a row of zeros above the rows of a lower triangle, and zeros behind each."""
    return tuple(row + (0,) * (len(rows) + 1 - len(row)) for row in ((), *rows))


_ROOT = math.sqrt(2)
_GAMMA = 1 - 1 / _ROOT
_ASCHER = "Ascher, Ruuth and Spiteri (1997), doi:10.1016/S0168-9274(97)00056-1"
_KENNEDY = "Kennedy and Carpenter (2003), doi:10.1016/S0168-9274(02)00138-1"
IMEX_EULER = IMEXTableau(
    "imex_euler", 1, _lower((1,)), _lower((0, 1)), (1, 0), (0, 1),
    reference=f"{_ASCHER}, forward-backward Euler (1,1,1), section 2.1")
ARS122 = IMEXTableau(
    "ars122", 2, _lower((1 / 2,)), _lower((0, 1 / 2)), (0, 1), (0, 1), b_embedded=(1 / 2, 1 / 2),
    reference=f"{_ASCHER}, implicit-explicit midpoint (1,2,2), section 2.3")
_DELTA = 1 - 1 / (2 * _GAMMA)
ARS222 = IMEXTableau(
    "ars222", 2, _lower((_GAMMA,), (_DELTA, 1 - _DELTA)),
    _lower((0, _GAMMA), (0, 1 - _GAMMA, _GAMMA)), (_DELTA, 1 - _DELTA, 0), (0, 1 - _GAMMA, _GAMMA),
    reference=f"{_ASCHER}, L-stable (2,2,2), section 2.6")
SSP222 = IMEXTableau(
    "ssp222", 2, _lower((1,)), ((_GAMMA, 0), (1 - 2 * _GAMMA, _GAMMA)), (1 / 2, 1 / 2),
    (1 / 2, 1 / 2), b_embedded=(0, 1),
    reference="Pareschi and Russo (2005), doi:10.1007/s10915-004-4636-4, IMEX-SSP2(2,2,2)")
_ARK232_B = (1 / (2 * _ROOT), 1 / (2 * _ROOT), _GAMMA)
ARK232 = IMEXTableau(
    "ark232", 2, _lower((2 - _ROOT,), ((3 - 2 * _ROOT) / 6, (3 + 2 * _ROOT) / 6)),
    _lower((_GAMMA, _GAMMA), _ARK232_B), _ARK232_B, _ARK232_B,
    b_embedded=((4 - _ROOT) / 8, (4 - _ROOT) / 8, 1 / (2 * _ROOT)),
    reference="Giraldo, Kelly and Constantinescu (2013), doi:10.1137/120876034, ARK2(2,3,2)")
ARS443 = IMEXTableau(
    "ars443", 3,
    _lower((1 / 2,), (11 / 18, 1 / 18), (5 / 6, -5 / 6, 1 / 2), (1 / 4, 7 / 4, 3 / 4, -7 / 4)),
    _lower((0, 1 / 2), (0, 1 / 6, 1 / 2), (0, -1 / 2, 1 / 2, 1 / 2),
           (0, 3 / 2, -3 / 2, 1 / 2, 1 / 2)),
    (1 / 4, 7 / 4, 3 / 4, -7 / 4, 0), (0, 3 / 2, -3 / 2, 1 / 2, 1 / 2),
    reference=f"{_ASCHER}, (4,4,3), section 2.8")
_ARK324_GAMMA = 1767732205903 / 4055673282236
_ARK324_B = (1471266399579 / 7840856788654, -4482444167858 / 7529755066697,
    11266239266428 / 11593286722821, _ARK324_GAMMA)
ARK324L2SA = IMEXTableau(
    "ark324l2sa", order=3, b_explicit=_ARK324_B, b_implicit=_ARK324_B,
    a_explicit=_lower(
        (1767732205903 / 2027836641118,),
        (5535828885825 / 10492691773637, 788022342437 / 10882634858940),
        (6485989280629 / 16251701735622, -4246266847089 / 9704473918619,
         10755448449292 / 10357097424841)),
    a_implicit=_lower(
        (_ARK324_GAMMA, _ARK324_GAMMA),
        (2746238789719 / 10658868560708, -640167445237 / 6845629431997, _ARK324_GAMMA),
        _ARK324_B),
    b_embedded=(2756255671327 / 12835298489170, -10771552573575 / 22201958757719,
        9247589265047 / 10645013368117, 2193209047091 / 5459859503100),
    dense_output=(
        (4655552711362 / 22874653954995, -215264564351 / 13552729205753),
        (-18682724506714 / 9892148508045, 17870216137069 / 13817060693119),
        (34259539580243 / 13192909600954, -28141676662227 / 17317692491321),
        (584795268549 / 6622622206610, 2508943948391 / 7218656332882)),
    reference=f"{_KENNEDY}, ARK3(2)4L[2]SA")
_ARK436_B = (82889 / 524892, 0, 15625 / 83664, 69875 / 102672, -2260 / 8211, 1 / 4)
ARK436L2SA = IMEXTableau(
    "ark436l2sa", order=4, b_explicit=_ARK436_B, b_implicit=_ARK436_B,
    a_explicit=_lower(
        (1 / 2,), (13861 / 62500, 6889 / 62500),
        (-116923316275 / 2393684061468, -2731218467317 / 15368042101831,
         9408046702089 / 11113171139209),
        (-451086348788 / 2902428689909, -2682348792572 / 7519795681897,
         12662868775082 / 11960479115383, 3355817975965 / 11060851509271),
        (647845179188 / 3216320057751, 73281519250 / 8382639484533, 552539513391 / 3454668386233,
         3354512671639 / 8306763924573, 4040 / 17871)),
    a_implicit=_lower(
        (1 / 4, 1 / 4), (8611 / 62500, -1743 / 31250, 1 / 4),
        (5012029 / 34652500, -654441 / 2922500, 174375 / 388108, 1 / 4),
        (15267082809 / 155376265600, -71443401 / 120774400, 730878875 / 902184768,
         2285395 / 8070912, 1 / 4),
        _ARK436_B),
    b_embedded=(4586570599 / 29645900160, 0, 178811875 / 945068544, 814220225 / 1159782912,
        -3700637 / 11593932, 61727 / 225920),
    dense_output=(
        (6943876665148 / 7220017795957, -54480133 / 30881146, 6818779379841 / 7100303317025),
        (0, 0, 0),
        (7640104374378 / 9702883013639, -11436875 / 14766696, 2173542590792 / 12501825683035),
        (-20649996744609 / 7521556579894, 174696575 / 18121608, -31592104683404 / 5083833661969),
        (8854892464581 / 2390941311638, -12120380 / 966161, 61146701046299 / 7138195549469),
        (-11397109935349 / 6675773540249, 3843 / 706, -17219254887155 / 4939391667607)),
    reference=f"{_KENNEDY}, ARK4(3)6L[2]SA")
_ARK548_B = (-872700587467 / 9133579230613, 0, 0, 22348218063261 / 9555858737531,
    -1143369518992 / 8141816002931, -39379526789629 / 19018526304540,
    32727382324388 / 42900044865799, 41 / 200)
ARK548L2SA = IMEXTableau(
    "ark548l2sa", order=5, b_explicit=_ARK548_B, b_implicit=_ARK548_B,
    a_explicit=_lower(
        (41 / 100,), (367902744464 / 2072280473677, 677623207551 / 8224143866563),
        (1268023523408 / 10340822734521, 0, 1029933939417 / 13636558850479),
        (14463281900351 / 6315353703477, 0, 66114435211212 / 5879490589093,
         -54053170152839 / 4284798021562),
        (14090043504691 / 34967701212078, 0, 15191511035443 / 11219624916014,
         -18461159152457 / 12425892160975, -281667163811 / 9011619295870),
        (19230459214898 / 13134317526959, 0, 21275331358303 / 2942455364971,
         -38145345988419 / 4862620318723, -1 / 8, -1 / 8),
        (-19977161125411 / 11928030595625, 0, -40795976796054 / 6384907823539,
         177454434618887 / 12078138498510, 782672205425 / 8267701900261,
         -69563011059811 / 9646580694205, 7356628210526 / 4942186776405)),
    a_implicit=_lower(
        (41 / 200, 41 / 200), (41 / 400, -567603406766 / 11931857230679, 41 / 200),
        (683785636431 / 9252920307686, 0, -110385047103 / 1367015193373, 41 / 200),
        (3016520224154 / 10081342136671, 0, 30586259806659 / 12414158314087,
         -22760509404356 / 11113319521817, 41 / 200),
        (218866479029 / 1489978393911, 0, 638256894668 / 5436446318841,
         -1179710474555 / 5321154724896, -60928119172 / 8023461067671, 41 / 200),
        (1020004230633 / 5715676835656, 0, 25762820946817 / 25263940353407,
         -2161375909145 / 9755907335909, -211217309593 / 5846859502534,
         -4269925059573 / 7827059040749, 41 / 200),
        _ARK548_B),
    b_embedded=(-975461918565 / 9796059967033, 0, 0, 78070527104295 / 32432590147079,
        -548382580838 / 3424219808633, -33438840321285 / 15594753105479,
        3629800801594 / 4656183773603, 4035322873751 / 18575991585200),
    dense_output=(
        (-17674230611817 / 10670229744614, 43486358583215 / 12773830924787,
         -9257016797708 / 5021505065439),
        (0, 0, 0), (0, 0, 0),
        (65168852399939 / 7868540260826, -91478233927265 / 11067650958493,
         26096422576131 / 11239449250142),
        (15494834004392 / 5936557850923, -79368583304911 / 10890268929626,
         92396832856987 / 20362823103730),
        (-99329723586156 / 26959484932159, -12239297817655 / 9152339842473,
         30029262896817 / 10175596800299),
        (-19024464361622 / 5461577185407, 115839755401235 / 10719374521269,
         -26136350496073 / 3983972220547),
        (-6511271360970 / 6095937251113, 5843115559534 / 2180450260947,
         -5289405421727 / 3760307252460)),
    reference=f"{_KENNEDY}, ARK5(4)8L[2]SA")

SCHEMES: dict[str, IMEXTableau] = {
    scheme.name: scheme for scheme in tuple(globals().values()) if isinstance(scheme, IMEXTableau)
}
# The names of Zhang, Liu and Maulik, "Semi-Implicit Neural Ordinary Differential Equations" (2025).
ALIASES = {"imex_rk2": "ssp222", "imex_rk3": "ark324l2sa", "imex_rk4": "ark436l2sa",
           "imex_rk5": "ark548l2sa"}
