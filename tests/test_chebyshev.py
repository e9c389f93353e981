"""Does the Chebyshev iteration solve what is known to have its eigenvalues in a disc, unseen?"""

import math

import pytest
import torch
from on_device import WaitsForDevice
from solvers_cases import F32, F64, RTOL, N, normalised, norms, randn, stochastic

from pyg_sinode import SINODEConv
from pyg_sinode.operators import (
    Dense,
    Diagonal,
    Graph,
    LinearSolveError,
    ScaledIdentity,
    Shifted,
)
from pyg_sinode.solvers import CG, GMRES, Chebyshev, default
from pyg_sinode.solvers.chebyshev import PAYS

pytestmark = pytest.mark.usefixtures("one_thread")


def normalised_graph(n=N, dtype=F64):
    return Graph(*normalised(n, dtype), n, radius=1.0)


def ring(n, dtype=F64):
    """A permutation of the nodes: its eigenvalues lie on the unit circle, all around."""
    at = torch.arange(n)
    return Graph(torch.stack([at, (at + 1) % n]), torch.ones(n, dtype=dtype), n, radius=1.0)


def diffusion(graph, c, alpha=1.0):
    return Shifted(alpha * graph + ScaledIdentity(-alpha), c)


# What operators know


def test_a_disc_moves_and_grows_with_its_operator():
    graph, weight = normalised_graph(), torch.tensor(0.5, dtype=F64)
    assert graph.disc() == graph.T.disc() == (0.0, 1.0)
    assert ScaledIdentity(-2.0).disc() == (-2.0, 0.0)
    assert (-3.0 * graph).disc() == (0.0, 3.0)
    assert (weight * graph).T.disc() == (0.0, 0.5)
    assert (graph + ScaledIdentity(-1.0) + ScaledIdentity(0.25)).disc() == (-0.75, 1.0)
    assert Shifted(2.0 * graph + ScaledIdentity(-1.0), 0.5).disc() == (1.5, 1.0)
    assert graph.with_tensors([2.0 * graph.value]).disc() == (0.0, 1.0)  # it is the caller's word


@pytest.mark.parametrize("implicit", ["attention", "laplacian"])
def test_a_layer_whose_alpha_is_nan_says_so(implicit):
    conv = SINODEConv(3, 3, implicit=implicit)
    conv.term.alpha.data.fill_(math.nan)
    with pytest.raises(ValueError, match="Expected finite"):
        conv(torch.randn(4, 3), torch.tensor([[0, 1, 2], [1, 2, 3]]))


@pytest.mark.parametrize("operator", [
    Graph(*normalised(N), N), normalised_graph() + normalised_graph(),
    normalised_graph() + Diagonal(torch.ones(N, 1)), Dense(torch.eye(3))], ids=str)
def test_no_disc_is_made_up(operator):
    assert operator.disc() is None
    with pytest.raises(ValueError, match="knows a disc"):
        Chebyshev().invert(Shifted(operator, 0.1))


@pytest.mark.parametrize("radius", [-1.0, math.inf, math.nan])
def test_a_radius_that_says_nothing_is_refused(radius):
    with pytest.raises(ValueError, match="radius from 0 up"):
        Graph(*normalised(N), N, radius=radius)


@pytest.mark.parametrize("disc", [(1.0, 1.0), (1.0, -0.5), (-1.0, 0.5), (math.inf, 1.0),
                                  (1.0, math.nan)])
def test_a_disc_around_zero_is_refused(disc):
    with pytest.raises(ValueError, match="disc to the right of zero"):
        Chebyshev(disc=disc)


@pytest.mark.parametrize("disc", [(1.0,), "a", 1.0, [1.0, 0.5], (1.0, "b")])
def test_a_disc_that_is_no_two_numbers_is_refused(disc):
    with pytest.raises(TypeError, match="centre and its radius, two numbers"):
        Chebyshev(disc=disc)


def test_a_radius_that_is_no_number_is_refused():
    with pytest.raises(TypeError, match="number as the radius"):
        Graph(*normalised(N), N, radius="1")


def test_two_graphs_of_radius_zero_have_no_disc_together():
    up = Graph(torch.tensor([[0, 1], [1, 2]]), num_nodes=3, radius=0.0)
    assert up.disc() == (0.0, 0.0)
    assert (up + up.T).disc() is None


def test_a_matrix_that_may_be_singular_is_refused():
    with pytest.raises(ValueError, match="disc to the right of zero"):
        Chebyshev().invert(Shifted(normalised_graph(), 1.0))


# Solves


def dense(operator, n):
    columns = [operator.mv(e) for e in torch.eye(n, dtype=F64).unsqueeze(2)]
    return torch.stack(columns, dim=1).squeeze(2)


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("c", [0.1, 1.0, 5.0])
def test_the_iterations_are_those_of_the_bound(dtype, c):
    b = randn(50, 4, dtype=dtype)
    x, iterations, residual = Chebyshev().invert(diffusion(normalised_graph(50, dtype), c)).solve(b)
    rate = (1.0 + c + math.sqrt((1.0 + c) ** 2 - c**2)) / c
    assert int(iterations.max()) <= math.ceil(math.log(2.0 / RTOL[dtype]) / math.log(rate)) + 1
    assert bool((residual <= RTOL[dtype] * norms(b, -2)).all())
    exact = torch.linalg.solve(dense(diffusion(normalised_graph(50), c), 50), b.double())
    torch.testing.assert_close(x.double(), exact, rtol=0, atol=20 * RTOL[dtype])


@pytest.mark.parametrize("c", [0.1, 1.0, 5.0, 15.0])
def test_a_directed_graph_ends_with_gmres(c):
    system, b = diffusion(stochastic(n=200), c), randn(200, 4)
    x, iterations, _ = Chebyshev().invert(system).solve(b)
    bound = math.log(2e10) / math.log((1.0 + c + math.sqrt(1.0 + 2.0 * c)) / c)
    of_gmres = int(GMRES().invert(system).solve(b).iterations.max())
    assert int(iterations.max()) <= max(bound + 1 + of_gmres, bound / PAYS + 2)
    torch.testing.assert_close(x, torch.linalg.solve(dense(system, 200), b), rtol=0, atol=1e-8)


@pytest.mark.parametrize("c", [0.5, 2.0, 8.0])
def test_eigenvalues_all_around_the_disc_are_no_obstacle(c):
    system, b = diffusion(ring(40), c), randn(40, 2)
    x = Chebyshev().invert(system).mv(b)
    torch.testing.assert_close(x, torch.linalg.solve(dense(system, 40), b), rtol=0, atol=1e-8)


def columns_apart(n, c):
    """A constant column, which any number of iterations keeps, beside one that grows."""
    b = randn(n, 2)
    b[:, 0] = 1.0
    system = diffusion(ring(n), c)
    return system, b, torch.linalg.solve(dense(system, n), b)


@pytest.mark.parametrize(("n", "c"), [(12, 5.0), (64, 4.0), (40, 19.0)])
@pytest.mark.parametrize("guess", ["none", "exact for one"])
def test_a_column_that_is_solved_stays_while_another_grows(n, c, guess):
    system, b, exact = columns_apart(n, c)
    given = None if guess == "none" else exact * torch.tensor([1.0, 0.0], dtype=F64)
    x, iterations, residual = Chebyshev().invert(system).solve(b, given)
    torch.testing.assert_close(x, exact, rtol=0, atol=1e-8)
    assert bool((residual <= 1e-10 * norms(b, -2)).all())
    if given is not None:
        assert iterations.view(-1).tolist()[0] == 0
        assert torch.equal(x[:, 0], exact[:, 0])


@pytest.mark.parametrize("c", [15.0, 18.0])
def test_a_good_guess_is_no_obstacle_where_it_ends_with_gmres(c):
    system, b = diffusion(ring(400), c), randn(400, 1)
    exact = torch.linalg.solve(dense(system, 400), b)
    x = Chebyshev().invert(system).solve(b, exact + 1e-3 * randn(400, 1, seed=3)).x
    torch.testing.assert_close(x, exact, rtol=0, atol=1e-7)


@pytest.mark.parametrize(("n", "c"), [(1, 0.3), (1, 1.0), (2, 5.0), (3, 1.0), (3, 15.0)])
def test_small_graphs_take_as_many_iterations_as_large_ones(n, c):
    system, b = diffusion(ring(n), c), randn(n, 2)
    x = default(system.operator, c).invert(system).mv(b)
    torch.testing.assert_close(x, torch.linalg.solve(dense(system, n), b), rtol=0, atol=1e-8)


@pytest.mark.parametrize(("c", "dtype"), [(100.0, F32), (100.0, F64)])
def test_an_iteration_that_would_overflow_is_given_up_before(c, dtype):
    b = randn(60, 1, dtype=dtype)
    _, _, residual = Chebyshev(rtol=1e-4).invert(diffusion(ring(60, dtype), c)).solve(b)
    assert float(residual) <= 1e-4 * float(norms(b, -2))


@pytest.mark.parametrize("value", [3e38, 1.8e38, 1e30, 1e-30, 1e-39, 1e-42])
@pytest.mark.parametrize("solver", [Chebyshev(), GMRES(), CG()], ids=repr)
def test_right_hand_sides_of_any_size_are_solved(value, solver):
    graph = normalised_graph(dtype=F32)
    b = torch.full((N, 1), value)
    x = solver.invert(diffusion(graph, 0.5)).mv(b)
    exact = solver.invert(diffusion(graph, 0.5)).mv(torch.ones(N, 1)).double() * b.double()
    torch.testing.assert_close(x.double(), exact, rtol=1e-3 if value > 1e-38 else 1.0,
                               atol=2e-45)


def test_a_failure_carries_no_worse_a_state_than_the_guess():
    system, b = diffusion(normalised_graph(60), 15.0), randn(60, 2)
    exact = torch.linalg.solve(dense(system, 60), b)
    guess = exact + 1e-6 * randn(60, 2, seed=4)
    before = torch.linalg.vector_norm(b - system.mv(guess))
    for solver in (Chebyshev(rtol=1e-15, max_iter=2), CG(rtol=1e-15, max_iter=2)):
        with pytest.raises(LinearSolveError) as caught:
            solver.invert(system).solve(b, guess)
        after = torch.linalg.vector_norm(b - system.mv(caught.value.state))
        assert float(after) <= 1.01 * float(before)


def test_a_disc_that_is_given_serves_any_operator():
    matrix = torch.diag(torch.linspace(0.5, 1.5, 6, dtype=F64))
    b = randn(2, 6)
    x = Chebyshev(disc=(1.0, 0.5)).invert(Dense(matrix)).mv(b)
    torch.testing.assert_close(x, b / matrix.diagonal(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("disc", [(1.0, 0.1), (1.0, 0.0)])
def test_a_disc_that_is_too_small_costs_iterations_and_no_digit(disc):
    matrix, b = torch.diag(torch.linspace(0.5, 9.0, 6, dtype=F64)), randn(2, 6)
    x = Chebyshev(disc=disc).invert(Dense(matrix)).mv(b)
    torch.testing.assert_close(x, b / matrix.diagonal(), rtol=0, atol=1e-9)


def test_a_disc_that_makes_the_iteration_overflow_is_an_error():
    with pytest.raises(LinearSolveError, match="finite products in Chebyshev") as caught:
        Chebyshev(disc=(1e-200, 1e-201)).invert(Dense(torch.eye(6, dtype=F64))).mv(randn(2, 6))
    assert bool(caught.value.state.isfinite().all())


def test_the_identity_takes_one_iteration():
    b = randn(N, 2)
    x, iterations, _ = Chebyshev().invert(Shifted(ScaledIdentity(-1.0), 0.5)).solve(b)
    torch.testing.assert_close(x, b / 1.5, rtol=0, atol=1e-15)
    assert bool((iterations == 1).all())


def test_iterations_run_out():
    with pytest.raises(LinearSolveError, match="did not converge in 3 iterations"):
        Chebyshev(max_iter=3).invert(diffusion(normalised_graph(), 5.0)).solve(randn(N, 1))


def test_columns_of_zeros_and_exact_guesses_take_no_iteration():
    inverse = Chebyshev().invert(diffusion(normalised_graph(), 2.0))
    b = randn(N, 3)
    b[:, 1] = 0.0
    x, iterations, _ = inverse.solve(b)
    assert iterations.view(-1).tolist()[1] == 0
    assert not bool(x[:, 1].any())
    assert not bool(inverse.solve(b, x).iterations.any())


def test_the_host_waits_a_fixed_number_of_times():
    counts = []
    for c in (0.2, 10.0):
        inverse, b = Chebyshev().invert(diffusion(normalised_graph(40), c)), randn(40, 3)
        with WaitsForDevice() as waits:
            iterations = inverse.solve(b).iterations
        counts.append((waits.count, int(iterations.max())))
    assert counts[0][0] == counts[1][0] <= 7
    assert counts[1][1] > 5 * counts[0][1]


# The default


@pytest.mark.parametrize(("J", "c", "solver"), [
    (normalised_graph() + ScaledIdentity(-1.0), 1.0, Chebyshev()),
    (stochastic() + ScaledIdentity(-1.0), 10.0, Chebyshev()),
    ((stochastic() + ScaledIdentity(-1.0)).T, 10.0, Chebyshev()),
    (stochastic() + ScaledIdentity(-1.0), 100.0, GMRES()),
    (Graph(*normalised(N), N, largest=1.0, radius=1.0) + ScaledIdentity(-1.0), 100.0, CG()),
    (stochastic(), 1.0, GMRES()),
], ids=str)
def test_it_is_the_default_where_a_disc_keeps_away_from_zero(J, c, solver):
    assert default(J, c) == solver


@pytest.mark.parametrize("implicit", ["attention", "laplacian"])
@pytest.mark.parametrize("stochastic", ["row", "column"])
def test_a_layer_integrates_as_with_gmres(implicit, stochastic):
    torch.manual_seed(0)
    edge_index, x = torch.randint(0, 30, (2, 90)), randn(30, 4)
    conv = SINODEConv(4, 4, heads=2, implicit=implicit, time=6.0, step_size=3.0,
                      stochastic=stochastic).double()
    results = []
    for solver in (Chebyshev(rtol=1e-13), GMRES(rtol=1e-13), None):
        conv.solver = solver
        conv.zero_grad()
        y = conv(x, edge_index)
        y.square().sum().backward()
        results.append([y, *(p.grad.clone() for p in conv.parameters())])
    for result, atol in ((results[0], 1e-11), (results[2], 1e-7)):
        for one, other in zip(result, results[1], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-7, atol=atol)
