"""Do parallel edges add up, whatever their number, and are sizes proven before a kernel runs?"""

import pytest
import torch
from cases import double

from pyg_sinode import GRANDAttention, SINODEConv, imex_odeint
from pyg_sinode.operators import Dense, Diagonal, Graph, LinearOperator, ScaledIdentity, Shifted
from pyg_sinode.operators.results import Entries
from pyg_sinode.solvers import CG, GMRES, Direct, default
from pyg_sinode.sparse import (
    Pattern,
    gather_rows,
    reduced,
    sampled_product,
    segment_sum,
    sparse_product,
)

GRAPHS = {
    "three_of_one": (2, [[0, 0, 0], [1, 1, 1]]),
    "28_on_3_nodes": (3, torch.randint(0, 3, (2, 28), generator=torch.Generator().manual_seed(0))),
    "1000_on_2_nodes": (2, torch.randint(0, 2, (2, 1000),
                                         generator=torch.Generator().manual_seed(1))),
    "two_loops_of_one_node": (1, [[0, 0], [0, 0]]),
    "as_many_as_pairs": (2, [[0, 0, 1, 1], [0, 1, 0, 1]]),
    "one_more_than_pairs": (2, [[0, 0, 1, 1, 1], [0, 1, 0, 1, 1]]),
    "none": (3, [[], []]),
}  # fmt: skip
every_graph = pytest.mark.parametrize(("n", "edges"), [
    (n, torch.as_tensor(edges, dtype=torch.long)) for n, edges in GRAPHS.values()], ids=GRAPHS)


def merged(n, edges, weight):
    """The same graph with its parallel edges added up."""
    dense = torch.zeros(n, n, dtype=weight.dtype).index_put_(
        (edges[0], edges[1]), weight, accumulate=True)
    return torch.ones(n, n).nonzero().t(), dense.reshape(-1)


@every_graph
def test_products_sums_and_their_gradients_are_those_of_the_dense_matrix(n, edges):
    p = Pattern(edges[1], edges[0], n)
    E, (col, row) = edges.size(1), p.edge_index()
    value, x = torch.randn(E).double().requires_grad_(), torch.randn(n, 4).double().requires_grad_()
    a, b = (torch.randn(n, 4).double().requires_grad_() for _ in range(2))
    matrix = torch.zeros(n, n).double().index_put((row, col), value, accumulate=True)
    g, h = torch.randn(n, 4).double(), torch.randn(E).double()
    for found, expected, inputs, weight in (
            (sparse_product(p, value, x), matrix @ x, (value, x), g),
            (sampled_product(p, a, b), (a[row] * b[col]).sum(1), (a, b), h),
            (segment_sum(p, value), matrix.sum(1), (value,), g[:, 0]),
            (segment_sum(p, value, True), matrix.sum(0), (value,), g[:, 0]),
            (gather_rows(p, x[:, 0].clone()), x[row, 0], (x,), h)):
        torch.testing.assert_close(found, expected)
        for one, other in zip(torch.autograd.grad(found, inputs, weight, retain_graph=True),
                              torch.autograd.grad(expected, inputs, weight, retain_graph=True),
                              strict=True):
            torch.testing.assert_close(one, other)
    if E:
        assert torch.autograd.gradgradcheck(lambda a, b: sampled_product(p, a, b), (a, b))
        tops = reduced("max", p, value.detach())
        for i in range(n):
            mine = value.detach()[p.row == i]
            assert float(tops[i]) == (float(mine.max()) if mine.numel() else -torch.inf)


@every_graph
@pytest.mark.parametrize("heads", [1, 2, 3])
def test_heads_are_products_of_their_own(n, edges, heads):
    p = Pattern(edges[1], edges[0], n)
    a, b = (torch.randn(n, heads, 2).double().requires_grad_() for _ in range(2))
    found, expected = sampled_product(p, a, b), (a[p.row] * b[p.col]).sum(-1).t()
    torch.testing.assert_close(found, expected)
    w = torch.randn_like(expected)
    for one, other in zip(torch.autograd.grad(found, (a, b), w),
                          torch.autograd.grad(expected, (a, b), w), strict=True):
        torch.testing.assert_close(one, other)


@every_graph
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("implicit", ["decay", "laplacian", "attention"])
def test_a_layer_counts_parallel_edges_as_their_number(n, edges, heads, implicit):
    conv = SINODEConv(4, 4, heads=heads, implicit=implicit, time=2.0,
                      add_self_loops=False).double()
    results = []
    ones = torch.ones(edges.size(1)).double()
    for edge_index, weight in ((edges, ones), merged(n, edges, ones)):
        x = torch.linspace(-1, 1, 4 * n).double().view(n, 4).requires_grad_()
        conv.zero_grad()
        y = conv(x, edge_index, weight)
        y.square().sum().backward()
        results.append([y, x.grad, *(p.grad.clone() for p in conv.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@every_graph
def test_attention_is_the_same_by_messages(n, edges):
    x = torch.randn(n, 4).double()
    for heads in (1, 2):
        fused = GRANDAttention(4, heads=heads).double()
        plain = GRANDAttention(4, heads=heads, fused=False).double()
        plain.load_state_dict(fused.state_dict())
        torch.testing.assert_close(fused(x, edges), plain(x, edges))


@every_graph
def test_an_operator_on_parallel_edges_has_the_gradient_of_its_dense_matrix(n, edges):
    weight = (0.1 * torch.rand(edges.size(1)).double()).requires_grad_()
    u0, t = torch.randn(n, 2).double(), double([0.0, 1.0])
    grads = []
    for make in (lambda: Graph(edges, weight, n),
                 lambda: Graph(*merged(n, edges, weight), n)):
        u = imex_odeint(None, make() + ScaledIdentity(-1.0), u0, t, step_size=0.25)
        weight.grad = None
        u[-1].square().sum().backward()
        grads.append(weight.grad)
    torch.testing.assert_close(*grads, rtol=1e-7, atol=1e-9)


# Proven sizes


def test_values_that_are_not_one_per_entry_are_refused_before_a_kernel_runs():
    p = Pattern(torch.tensor([0, 1, 1]), torch.tensor([1, 0, 1]), 2)
    x = torch.randn(2, 3)
    for length in (2, 4):
        for run in (lambda v: sparse_product(p, v, x), lambda v: segment_sum(p, v),
                    lambda v: reduced("max", p, v), p.matrix):
            with pytest.raises(ValueError, match="one value for each of the 3 entries"):
                run(torch.ones(length))
    with pytest.raises(ValueError, match="one weight for each of the 3 edges of Graph"):
        Graph(torch.tensor([[0, 1, 1], [1, 0, 1]])).with_tensors([torch.ones(4)])
    with pytest.raises(ValueError, match="as many heads in both"):
        sparse_product(p, torch.ones(2, 3), x)
    for rows in (1, 3):
        for run in (lambda y: sparse_product(p, torch.ones(3), y),
                    lambda y: sampled_product(p, y, x), lambda y: sampled_product(p, x, y)):
            with pytest.raises(ValueError, match="one row for each of the 2 nodes"):
                run(torch.ones(rows, 3))


@pytest.mark.parametrize("wrong", [-1, 2])
def test_a_pattern_refuses_indices_outside_it(wrong):
    for row, col in (([0, wrong], [0, 1]), ([0, 1], [0, wrong])):
        with pytest.raises(ValueError, match="node indices from 0 to 1"):
            Pattern(torch.tensor(row), torch.tensor(col), 2)


@pytest.mark.parametrize("pointer", [[0, 50, 2, 3], [1, 1, 2, 3], [0, 1, 2, 2], [0, 2, 1, 3]])
@pytest.mark.parametrize("layout", ["csr", "csc"])
def test_compressed_indices_that_are_wrong_are_refused(pointer, layout):
    make = torch.sparse_csr_tensor if layout == "csr" else torch.sparse_csc_tensor
    bad = make(torch.tensor(pointer), torch.tensor([0, 1, 2]), torch.ones(3), (3, 3),
               check_invariants=False)
    for run in (lambda: SINODEConv(4, 4)(torch.randn(3, 4), bad), lambda: Graph(bad)):
        with pytest.raises(ValueError, match="compressed indices that rise from 0"):
            run()


class WrongEntries(LinearOperator):
    """An operator whose entries lie outside its matrix."""

    dims = (-1,)

    def mv(self, u):
        return -u

    def symmetric(self):
        return False

    def to_coo(self, dim, size):
        at = torch.arange(size) + 1
        return Entries(at, at, -torch.ones(size))

    def size_along(self, dim):
        return 2


def test_entries_outside_the_matrix_reach_no_kernel():
    with pytest.raises((RuntimeError, IndexError), match=r"size|bounds"):
        (WrongEntries() + WrongEntries()).symmetric()
    for dense in (True, False):
        with pytest.raises((RuntimeError, IndexError, ValueError), match=r"bounds|exceeds|index"):
            Direct(dense).invert(Shifted(WrongEntries(), 0.1)).solve(torch.ones(2))


# What is known of a sum


def undirected(n=30, count=80, seed=0):
    generator = torch.Generator().manual_seed(seed)
    edges = torch.randint(0, n, (2, count), generator=generator)
    weight = torch.rand(count, generator=generator, dtype=torch.float64)
    degree = torch.zeros(n, dtype=torch.float64)
    degree.index_add_(0, edges[1], weight).index_add_(0, edges[0], weight)
    return n, edges, weight, degree


def laplacians():
    n, edges, weight, degree = undirected()
    both, twice = torch.cat([edges, edges.flip(0)], dim=1), weight.repeat(2)
    there, back = Graph(edges, weight, n), Graph(edges.flip(0), weight, n)
    decay = Diagonal(-degree.unsqueeze(1))
    loops = torch.arange(n).expand(2, n)
    return {
        "one_graph": Graph(torch.cat([both, loops], dim=1), torch.cat([twice, -degree]), n),
        "with_a_diagonal": Graph(both, twice, n) + decay,
        "diagonal_first": decay + Graph(both, twice, n),
        "two_directions": there + back + decay,
        "scaled": 0.5 * (Graph(both, twice, n) + decay),
        "negative_of_the_negative": -((-1.0 * Graph(both, twice, n)) - decay),
        "with_a_number": Graph(both, twice, n) - ScaledIdentity(float(degree.max())),
        "transposed": (there + back + decay).T,
    }


@pytest.mark.parametrize("name", laplacians())
def test_a_graph_laplacian_in_parts_is_known_to_be_definite(name):
    J = laplacians()[name]
    assert J.symmetric()
    for c in (0.1, 1.0, 100.0):
        assert Shifted(J, c).positive_definite()
        assert isinstance(default(J, c), CG)
    assert isinstance(default(-J, 100.0), GMRES)
    assert isinstance(default(-J, -100.0), CG)
    assert J.largest_eigenvalue() <= 1e-12


def test_bounds_of_terms_that_are_not_symmetric_say_nothing_of_their_sum():
    star = Graph(torch.stack([torch.zeros(100).long(), torch.arange(1, 101)]),
                 torch.ones(100).double(), 101)
    J = star + star.T
    assert J.symmetric()
    assert J.largest_eigenvalue() >= 10.0
    assert isinstance(default(J, 0.2), GMRES)


def test_what_is_not_symmetric_or_not_definite_is_not_said_to_be():
    n, edges, weight, degree = undirected()
    there, back = Graph(edges, weight, n), Graph(edges.flip(0), weight, n)
    assert not (there + Diagonal(-degree.unsqueeze(1))).symmetric()
    assert not (there + 0.5 * back).symmetric()
    assert isinstance(default(there + back, 100.0), GMRES)
    assert isinstance(default(there + back + Diagonal(-0.4 * degree.unsqueeze(1)), 100.0), GMRES)


def test_bounds_do_not_cancel():
    matrix = torch.tensor([[1e8, 3.0], [3.0, 1e8]])
    J = Dense(matrix) + Diagonal(torch.full((2,), -1e8))
    assert J.largest_eigenvalue() >= 3.0
    assert not Shifted(J, 1.0).positive_definite()


def test_the_parts_and_the_whole_take_as_many_iterations():
    operators = laplacians()
    u0 = torch.randn(30, 2).double()
    counts = {}
    for name in ("one_graph", "with_a_diagonal", "two_directions"):
        u, stats = imex_odeint(None, operators[name], u0, double([0.0, 1.0]), step_size=0.25,
                               return_stats=True)
        counts[name] = stats.linear_iterations
        expected = torch.linalg.matrix_exp(
            operators["one_graph"].mv(torch.eye(30).double())) @ u0
        torch.testing.assert_close(u[-1], expected, rtol=0.0, atol=2e-2)
    most, least = max(counts.values()), min(counts.values())
    assert most <= 1.1 * least + 2
