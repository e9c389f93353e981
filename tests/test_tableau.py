"""Are the schemes what their literature says, and are wrong ones refused?"""

import copy
import dataclasses
import math
import pickle
from fractions import Fraction

import numpy as np
import pytest

from pyg_sinode import schemes
from pyg_sinode.schemes import ALIASES, RUNGE_KUTTA, IMEXTableau, get_scheme, order_conditions

every_scheme = pytest.mark.parametrize("scheme", RUNGE_KUTTA.values(), ids=RUNGE_KUTTA)
with_embedded = pytest.mark.parametrize(
    "scheme", [s for s in RUNGE_KUTTA.values() if s.b_embedded is not None], ids=lambda s: s.name
)
with_dense_output = pytest.mark.parametrize(
    "scheme", [s for s in RUNGE_KUTTA.values() if s.dense_output is not None], ids=lambda s: s.name
)
GAMMA = 1 - 1 / math.sqrt(2)
EULER = {
    "name": "mine",
    "order": 1,
    "a_explicit": [[0, 0], [1, 0]],
    "a_implicit": [[0, 0], [0, 1]],
    "b_explicit": [1, 0],
    "b_implicit": [0, 1],
}


def worst(residuals):
    return max(map(abs, residuals.values()))


def changed(scheme, field, index, by):
    array = getattr(scheme, field).copy()
    array[index] += by
    return dataclasses.replace(scheme, **{field: array})


# The order conditions


@every_scheme
def test_every_coupled_order_condition_holds_to_1e_14(scheme):
    assert worst(order_conditions(scheme, scheme.order)) <= 1e-14


@pytest.mark.parametrize("scheme", [s for s in RUNGE_KUTTA.values() if s.order < 5], ids=str)
def test_no_scheme_is_of_a_higher_order_than_it_says(scheme):
    assert worst(order_conditions(scheme, scheme.order + 1)) > 1e-3


def test_ark548l2sa_is_not_of_order_six():
    scheme = RUNGE_KUTTA["ark548l2sa"]
    A, b, c = scheme.a_explicit, scheme.b_explicit, scheme.c_explicit
    assert abs(b @ A @ A @ A @ A @ c - 1 / 720) > 1e-5
    assert abs(b @ c**5 - 1 / 6) > 1e-5


@with_embedded
def test_the_embedded_weights_are_of_one_order_less(scheme):
    assert worst(order_conditions(scheme, scheme.order - 1, embedded=True)) <= 1e-14
    assert worst(order_conditions(scheme, scheme.order, embedded=True)) > 1e-4


@pytest.mark.parametrize(("order", "count"), [(1, 2), (2, 6), (3, 20), (4, 72), (5, 286)])
def test_there_is_one_condition_for_each_rooted_tree_of_two_colours(order, count):
    # Partial sums of 2, 4, 14, 52, 214: https://oeis.org/A000151
    assert len(order_conditions(RUNGE_KUTTA["imex_euler"], order)) == count


@every_scheme
def test_conditions_written_out_by_hand_are_among_those_generated(scheme):
    A, B = scheme.a_explicit, scheme.a_implicit
    b, d, c, e = scheme.b_explicit, scheme.b_implicit, scheme.c_explicit, scheme.c_implicit
    by_hand = {
        "E": b.sum() - 1,
        "I": d.sum() - 1,
        "I[E]": d @ c - 1 / 2,
        "E[I]": b @ e - 1 / 2,
        "I[E,I]": d @ (c * e) - 1 / 3,
        "E[I[E]]": b @ B @ c - 1 / 6,
        "I[E,E[I]]": d @ (c * (A @ e)) - 1 / 8,
        "E[I[E,E]]": b @ B @ c**2 - 1 / 12,
        "I[E[I],I[E]]": d @ ((A @ e) * (B @ c)) - 1 / 20,
        "E[E[I[I[E]]]]": b @ A @ B @ B @ c - 1 / 120,
    }
    generated = order_conditions(scheme, 5)
    for name, residual in by_hand.items():
        assert generated[name] == pytest.approx(residual, abs=1e-13), name


def slope(scheme, steps):
    """The order at which the scheme, written out, solves a problem with a known u."""
    J = np.array([[-1.0, 2.0], [-2.0, -0.5]])

    def exact(t):
        return np.array([math.cos(t), math.sin(2 * t)])

    def explicit(t, u):  # depends on time by itself, not through u alone
        v, dv = exact(t), np.array([-math.sin(t), 2 * math.cos(2 * t)])
        off = np.array([u[0] * u[1] - v[0] * v[1], math.sin(u[0]) - math.sin(v[0])])
        return dv - J @ v + off

    def error(n):
        u, h = exact(0.0), 1 / n
        for k in range(n):
            g, j = np.zeros((scheme.stages, 2)), np.zeros((scheme.stages, 2))
            for i in range(scheme.stages):
                known = u + h * (scheme.a_explicit[i] @ g + scheme.a_implicit[i, :i] @ j[:i])
                U = np.linalg.solve(np.eye(2) - h * scheme.a_implicit[i, i] * J, known)
                g[i], j[i] = explicit((k + scheme.c_explicit[i]) * h, U), J @ U
            u = u + h * (scheme.b_explicit @ g + scheme.b_implicit @ j)
        return np.abs(u - exact(1.0)).max()

    return math.log2(error(steps) / error(2 * steps))


@every_scheme
def test_the_order_shows_as_a_slope_on_a_time_dependent_problem(scheme):
    assert abs(slope(scheme, steps=32) - scheme.order) < 0.25


# The coefficients


def test_the_schemes_are_those_of_the_literature():
    assert {name: (s.stages, s.order) for name, s in RUNGE_KUTTA.items()} == {
        "imex_euler": (2, 1),
        "crank_nicolson": (2, 2),
        "ars122": (2, 2),
        "ars222": (3, 2),
        "ssp222": (2, 2),
        "ark232": (3, 2),
        "ars443": (5, 3),
        "ark324l2sa": (4, 3),
        "ark436l2sa": (6, 4),
        "ark548l2sa": (8, 5),
    }


@pytest.mark.parametrize(
    ("name", "diagonal"),
    [
        ("imex_euler", 1.0),
        ("ars122", 0.5),
        ("ars222", GAMMA),
        ("ssp222", GAMMA),
        ("ark232", GAMMA),
        ("ars443", 0.5),
        ("ark324l2sa", 0.4358665215084589994),  # the root of x^3 - 3 x^2 + 3/2 x - 1/6
        ("ark436l2sa", 0.25),
        ("ark548l2sa", 0.205),
    ],
)
def test_the_implicit_diagonal_is_the_published_one(name, diagonal):
    scheme = RUNGE_KUTTA[name]
    solved = np.diag(scheme.a_implicit)[list(scheme.implicit_stages)]
    np.testing.assert_allclose(solved, diagonal, rtol=0, atol=1e-14)
    assert scheme.constant_diagonal


@pytest.mark.parametrize(
    ("name", "abscissae"),
    [
        ("imex_euler", [0, 1]),
        ("ars122", [0, 1 / 2]),
        ("ars222", [0, GAMMA, 1]),
        ("ssp222", [0, 1]),
        ("ark232", [0, 2 * GAMMA, 1]),
        ("ars443", [0, 1 / 2, 2 / 3, 1 / 2, 1]),
        ("ark324l2sa", [0, 1767732205903 / 2027836641118, 3 / 5, 1]),
        ("ark436l2sa", [0, 1 / 2, 83 / 250, 31 / 50, 17 / 20, 1]),
        ("ark548l2sa", [0, 41 / 100, 2935347310677 / 11292855782101, 1426016391358 / 7196633302097,
                        92 / 100, 24 / 100, 3 / 5, 1]),
    ],
)
def test_the_abscissae_are_the_published_ones(name, abscissae):
    np.testing.assert_allclose(RUNGE_KUTTA[name].c_explicit, abscissae, rtol=0, atol=1e-14)


def test_the_row_sums_of_the_two_parts_agree_but_in_ssp222():
    for name, scheme in RUNGE_KUTTA.items():
        agree = np.allclose(scheme.c_explicit, scheme.c_implicit, rtol=0, atol=1e-14)
        assert agree == (name != "ssp222"), name
    np.testing.assert_allclose(RUNGE_KUTTA["ssp222"].c_implicit, [GAMMA, 1 - GAMMA], atol=1e-15)


def test_single_coefficients_are_the_published_ones():
    ars222, ark436 = RUNGE_KUTTA["ars222"], RUNGE_KUTTA["ark436l2sa"]
    assert ars222.a_explicit[2, 0] == pytest.approx(-1 / math.sqrt(2), abs=1e-15)
    assert ars222.b_implicit.tolist() == pytest.approx([0, 1 / math.sqrt(2), GAMMA], abs=1e-15)
    assert RUNGE_KUTTA["ssp222"].a_implicit[1, 0] == pytest.approx(math.sqrt(2) - 1, abs=1e-15)
    assert RUNGE_KUTTA["ars443"].a_explicit[4].tolist() == [0.25, 1.75, 0.75, -1.75, 0]
    assert ark436.b_explicit[2] == float(Fraction(15625, 83664))
    assert ark436.a_implicit[5, 4] == float(Fraction(-2260, 8211))
    assert RUNGE_KUTTA["ark548l2sa"].a_explicit[6, 4:6].tolist() == [-0.125, -0.125]
    assert RUNGE_KUTTA["ark232"].a_explicit[2, 1] == pytest.approx((3 + 8**0.5) / 6, abs=1e-15)


@with_dense_output
def test_the_dense_output_ends_at_the_step(scheme):
    end = scheme.dense_output.sum(axis=1)
    np.testing.assert_allclose(end, scheme.b_explicit, rtol=0, atol=2e-14)
    np.testing.assert_allclose(end, scheme.b_implicit, rtol=0, atol=2e-14)


@with_dense_output
@pytest.mark.parametrize("theta", [0.25, 0.5, 0.9])
def test_the_dense_output_integrates_the_powers_of_time_in_between(scheme, theta):
    powers = scheme.dense_output.shape[1]
    weights = scheme.dense_output @ theta ** np.arange(1, powers + 1)
    for p in range(powers):
        expected = theta ** (p + 1) / (p + 1)
        assert weights @ scheme.c_explicit**p == pytest.approx(expected, abs=1e-14)


# What follows from them


@pytest.mark.parametrize(
    ("name", "evaluations", "solves"),
    [
        ("imex_euler", 1, 1),
        ("ars122", 2, 1),
        ("ars222", 2, 2),
        ("ssp222", 2, 2),
        ("ark232", 3, 2),
        ("ars443", 4, 4),
        ("ark324l2sa", 4, 3),
        ("ark436l2sa", 6, 5),
        ("ark548l2sa", 8, 7),
    ],
)
def test_a_step_evaluates_and_solves_no_more_than_it_uses(name, evaluations, solves):
    scheme = RUNGE_KUTTA[name]
    assert (scheme.explicit_evaluations, sum(scheme.implicit_stages)) == (evaluations, solves)
    assert all(scheme.needs_stage)


def test_the_stages_that_are_used_are_told_apart_by_part():
    assert RUNGE_KUTTA["imex_euler"].needs_explicit == (True, False)
    assert RUNGE_KUTTA["imex_euler"].needs_implicit == (False, True)
    assert RUNGE_KUTTA["ars443"].needs_explicit == (True, True, True, True, False)
    assert RUNGE_KUTTA["ars443"].needs_implicit == (False, True, True, True, True)
    # The diagonal is a stage's own: no product J U is needed for it.
    idle = dataclasses.replace(
        RUNGE_KUTTA["imex_euler"],
        a_explicit=[[0, 0, 0], [1, 0, 0], [1, 0, 0]],
        a_implicit=[[0, 0, 0], [0, 1, 0], [0, 0, 3]],
        b_explicit=[1, 0, 0],
        b_implicit=[0, 1, 0],
    )
    assert idle.needs_stage == (True, True, False)
    assert not idle.constant_diagonal


def test_an_embedded_weight_alone_does_not_make_an_evaluation_necessary():
    scheme = dataclasses.replace(RUNGE_KUTTA["imex_euler"], b_embedded=[0, 1])
    assert scheme.explicit_evaluations == 1


def test_which_schemes_are_stiffly_accurate():
    stiffly = {name for name, scheme in RUNGE_KUTTA.items() if scheme.stiffly_accurate}
    globally = {name for name, scheme in RUNGE_KUTTA.items() if scheme.globally_stiffly_accurate}
    assert stiffly == set(RUNGE_KUTTA) - {"ars122", "ssp222"}
    assert globally == {"imex_euler", "ars222", "ars443"}
    explicit_part_alone = IMEXTableau(**{**EULER, "b_implicit": [1, 0]})
    assert not explicit_part_alone.stiffly_accurate
    assert not explicit_part_alone.globally_stiffly_accurate


def implicit_growth(scheme, z):
    """The stability function 1 + z bt (I - z At)^-1 1 of the implicit part."""
    stages = np.linalg.solve(np.eye(scheme.stages) - z * scheme.a_implicit, np.ones(scheme.stages))
    return 1 + z * scheme.b_implicit @ stages


@every_scheme
def test_the_implicit_part_is_l_stable_but_in_two(scheme):
    limit = 1 if scheme.name in ("ars122", "crank_nicolson") else 0
    assert abs(implicit_growth(scheme, -1e7)) == pytest.approx(limit, abs=1e-5)
    on_the_axis = [abs(implicit_growth(scheme, 1j * y)) for y in np.geomspace(1e-3, 1e5, 200)]
    assert max(on_the_axis) <= 1 + 1e-10


def test_a_scheme_without_implicit_stages_has_a_constant_diagonal():
    explicit = IMEXTableau("euler", 1, [[0]], [[0]], [1], [1])
    assert explicit.constant_diagonal
    assert explicit.implicit_stages == (False,)


# The object


@every_scheme
def test_the_scheme_and_its_arrays_cannot_be_changed(scheme):
    with pytest.raises(dataclasses.FrozenInstanceError):
        scheme.order = 7
    arrays = [getattr(scheme, field.name) for field in dataclasses.fields(scheme)]
    arrays = [a for a in (*arrays, scheme.c_explicit, scheme.c_implicit) if type(a) is np.ndarray]
    assert len(arrays) >= 6
    for array in arrays:
        assert array.dtype == np.float64
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1.0


@every_scheme
def test_a_copied_or_pickled_scheme_is_the_same_and_still_read_only(scheme):
    for twin in (copy.copy(scheme), copy.deepcopy(scheme), pickle.loads(pickle.dumps(scheme))):
        for field in dataclasses.fields(scheme):
            np.testing.assert_array_equal(getattr(twin, field.name), getattr(scheme, field.name))
        assert not twin.a_explicit.flags.writeable
        assert not twin.b_implicit.flags.writeable


def test_the_arrays_given_are_copied():
    given = np.array([[0.0, 0.0], [1.0, 0.0]])
    scheme = IMEXTableau(**{**EULER, "a_explicit": given})
    given[1, 0] = 5.0
    assert scheme.a_explicit[1, 0] == 1.0


def test_the_embedded_weights_of_the_implicit_part_are_by_default_those_of_the_explicit():
    assert IMEXTableau(**EULER, b_embedded=[0, 1]).b_embedded_implicit.tolist() == [0, 1]
    both = IMEXTableau(**EULER, b_embedded=[0, 1], b_embedded_implicit=[1, 0])
    assert both.b_embedded_implicit.tolist() == [1, 0]
    assert IMEXTableau(**EULER).b_embedded_implicit is None


def test_a_coefficient_of_the_size_of_rounding_is_zero():
    scheme = IMEXTableau(**{**EULER, "b_explicit": [1, 1e-17]})
    assert scheme.needs_explicit == (True, False)
    assert scheme.b_explicit[1] == 0


def test_the_representation_names_the_scheme():
    assert str(RUNGE_KUTTA["ark324l2sa"]) == "IMEXTableau(ark324l2sa, order=3, stages=4)"


@every_scheme
def test_every_scheme_says_where_it_comes_from(scheme):
    assert "doi:10." in scheme.reference


# Names


def test_a_scheme_is_found_by_its_name_its_alias_or_itself():
    for name, scheme in RUNGE_KUTTA.items():
        assert scheme.name == name
        assert get_scheme(name) is scheme
        assert get_scheme(scheme) is scheme
    targets = ["ssp222", "ark324l2sa", "ark436l2sa", "ark548l2sa"]
    assert [get_scheme(f"imex_rk{k}").name for k in (2, 3, 4, 5)] == targets


def test_an_unknown_name_is_refused_with_all_known_ones():
    with pytest.raises(ValueError, match=r"scheme's name, .*\(got 'rk4'\)") as raised:
        get_scheme("rk4")
    assert all(name in str(raised.value) for name in (*schemes.SCHEMES, *ALIASES))


@pytest.mark.parametrize("method", [4, None, ["ars222"]])
def test_something_else_than_a_name_is_refused(method):
    with pytest.raises(TypeError, match="expects a scheme's name, an IMEXTableau, an IMEX"):
        get_scheme(method)


# What is refused

ARK548_COEFFICIENTS = [
    (field, tuple(index))
    for field in ("a_explicit", "a_implicit", "b_explicit", "b_implicit")
    for index in np.argwhere(getattr(RUNGE_KUTTA["ark548l2sa"], field)).tolist()
]


@pytest.mark.parametrize(("field", "index"), ARK548_COEFFICIENTS, ids=str)
def test_one_wrong_digit_in_ark548l2sa_is_refused(field, index):
    with pytest.raises(ValueError, match=r"conditions up to order 5 .*residual of .*for the tree"):
        changed(RUNGE_KUTTA["ark548l2sa"], field, index, by=1e-9)


def test_an_error_of_2e_12_in_a_condition_is_refused_and_one_of_rounding_is_not():
    with pytest.raises(ValueError, match=r"residual of (2\.0|1\.9)\d+e-12 for the tree E\)"):
        changed(RUNGE_KUTTA["ark548l2sa"], "b_explicit", 0, by=2e-12)
    changed(RUNGE_KUTTA["ark548l2sa"], "b_explicit", 0, by=1e-13)


@pytest.mark.parametrize("scheme", [s for s in RUNGE_KUTTA.values() if s.order < 5], ids=str)
def test_a_scheme_that_claims_one_order_more_is_refused(scheme):
    with pytest.raises(ValueError, match=f"conditions up to order {scheme.order + 1} to hold"):
        dataclasses.replace(scheme, order=scheme.order + 1)


def test_the_refusal_names_the_worst_tree():
    # The sum of b is 1.5 in place of 1, and the implicit part is right.
    with pytest.raises(ValueError, match=r"residual of 5\.000e-01 for the tree E\)"):
        IMEXTableau(**{**EULER, "b_explicit": [1.5, 0]})


def test_a_right_explicit_and_a_right_implicit_scheme_that_do_not_fit_are_refused():
    # The explicit midpoint and the trapezoidal rule are of order 2, each by itself.
    midpoint, trapezoid = [[0, 0], [0.5, 0]], [[0, 0], [0.5, 0.5]]
    with pytest.raises(ValueError, match=r"residual of 5\.000e-01 for the tree E\[I\]\)"):
        IMEXTableau("mixed", 2, midpoint, trapezoid, b_explicit=[0, 1], b_implicit=[0.5, 0.5])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"order": 6}, r"order to be an int from 1 to 5, the highest .* \(got 6\)"),
        ({"order": 0}, r"order to be an int from 1 .* \(got 0\)"),
        ({"order": 1.0}, r"order to be an int from 1 .* \(got 1.0\)"),
        ({"order": True}, r"order to be an int from 1 .* \(got True\)"),
        ({"a_explicit": [[0, 0]]}, r"a_explicit of shape \(2, 2\) \(got \(1, 2\)\); give one row"),
        ({"a_implicit": [0, 1]}, r"a_implicit of shape \(2, 2\) \(got \(2,\)\)"),
        ({"b_implicit": [0, 1, 0]}, r"b_implicit of shape \(2,\) \(got \(3,\)\)"),
        ({"b_explicit": [[1, 0]]}, r"b_explicit of shape \(2,\) \(got \(1, 2\)\)"),
        ({"b_embedded": [1]}, r"b_embedded of shape \(2,\) \(got \(1,\)\)"),
        ({"b_embedded_implicit": [1]}, r"b_embedded_implicit of shape \(2,\) \(got \(1,\)\)"),
        ({"dense_output": [1, 0]}, r"dense_output of shape \(2, 1\) \(got \(2,\)\)"),
        ({"dense_output": [[1, 0]]}, r"dense_output of shape \(2, 2\) \(got \(1, 2\)\)"),
        ({"a_explicit": [[0], [1, 0]]}, r"real numbers in a_explicit .*; fill short rows"),
        ({"b_explicit": [1, 1j]}, "real numbers in b_explicit"),
        ({"b_explicit": [1, math.nan]}, r"finite numbers in b_explicit \(got \[nan\]\)"),
        ({"a_implicit": [[0, 0], [0, math.inf]]}, r"finite numbers in a_implicit \(got \[inf\]"),
        (
            {"a_explicit": [[0, 0], [1, 0.5]]},
            r"a_explicit to be strictly lower triangular \(got 0.5 at \[1, 1\]\)",
        ),
        (
            {"a_implicit": [[0, 0.5], [0, 1]]},
            r"a_implicit to be lower triangular \(got 0.5 at \[0, 1\]\)",
        ),
    ],
)
def test_what_is_no_scheme_is_refused_with_its_name(wrong, message):
    with pytest.raises(ValueError, match="IMEXTableau 'mine' expects " + message):
        IMEXTableau(**{**EULER, **wrong})


def test_order_conditions_refuse_an_order_beyond_five_and_weights_that_are_not_there():
    with pytest.raises(ValueError, match=r"order to be an int from 1 to 5.*\(got 6\)"):
        order_conditions(RUNGE_KUTTA["ars222"], 6)
    with pytest.raises(ValueError, match=r"'ars222' expects embedded weights \(got None\)"):
        order_conditions(RUNGE_KUTTA["ars222"], 1, embedded=True)


# The second estimate of the error


def stage_values(scheme, z):
    """The stages and the result for u' = z u from 1, all of it explicit."""
    stages = np.linalg.solve(np.eye(scheme.stages) - z * scheme.a_explicit, np.ones(scheme.stages))
    return np.append(stages, 1 + z * scheme.b_explicit @ stages)


with_second = pytest.mark.parametrize(
    "name", [n for n, s in RUNGE_KUTTA.items() if s.d_second is not None])


@with_second
def test_where_a_step_is_unstable_one_of_two_estimates_says_so(name):
    scheme = RUNGE_KUTTA[name]
    d = np.append(scheme.b_explicit - scheme.b_embedded, 0.0)
    blind = 0
    for x in np.linspace(-12.0, 0.0, 61):
        for y in np.linspace(0.0, 14.0, 57):
            values = stage_values(scheme, z := complex(x, y))
            growth = abs(values[-1])
            estimates = abs(z * (d @ values)), abs(z * (scheme.d_second @ values))
            blind += growth > 1.5 and estimates[0] < 0.05 * growth
            assert growth <= 1.5 or max(estimates) > 0.2 * growth
    assert blind > 0  # what the second is for


@with_second
def test_the_second_estimate_falls_like_the_first_where_steps_are_small(name):
    scheme = RUNGE_KUTTA[name]
    d = np.append(scheme.b_explicit - scheme.b_embedded, 0.0)
    for z in (-1.0, 1j, 0.5 - 1j, -0.1, 0.1j, -0.01):
        values = stage_values(scheme, z)
        assert abs(scheme.d_second @ values) < 1.5 * abs(d @ values)


@pytest.mark.parametrize(("changes", "message"), [
    ({"d_second": (1.0, -1.0)}, r"d_second of shape \(5,\)"),
    ({"d_second": (1.0, 0, 0, 0, -0.5)}, "d_second to be zero for trees up to size 2"),
    ({"d_second": (1.0, 0, 0, 0, -1.0)}, r"for E\[E\]"),
    ({"b_embedded": None, "b_embedded_implicit": None}, "embedded weights and a first stage"),
])
def test_a_second_estimate_that_is_none_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(RUNGE_KUTTA["ark324l2sa"], **changes)
