"""Are graphs sorted, turned around and multiplied right, and differentiated without messages?"""

import copy
import subprocess
import sys

import pytest
import torch
from cases import EDGES, NODES
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from pyg_sinode.operators import Graph
from pyg_sinode.sparse import (
    Pattern,
    as_edges,
    check_range,
    gather_rows,
    reduced,
    sampled_product,
    segment_sum,
    sparse_product,
)

E = EDGES.size(1)
beta_notice_expected = pytest.mark.filterwarnings("ignore:Sparse CS. tensor support is in beta")


def the_pattern():
    return Pattern(EDGES[1], EDGES[0], NODES)


def empty_pattern(num_nodes=3):
    none = torch.empty(0, dtype=torch.long)
    return Pattern(none, none, num_nodes)


def reals(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, requires_grad=True)


def dense_of(pattern, value):
    matrix = value.new_zeros(pattern.num_nodes, pattern.num_nodes)
    return matrix.index_put(places(pattern), value, accumulate=True)


def places(pattern):
    return pattern.row.long(), pattern.col.long()


PATTERNS = {
    "graph": the_pattern,
    "transposed": lambda: the_pattern().T,
    "empty": empty_pattern,
    "no_nodes": lambda: empty_pattern(0),
}
every_pattern = pytest.mark.parametrize("pattern", [p() for p in PATTERNS.values()], ids=PATTERNS)


# Patterns


def test_a_pattern_is_sorted_by_row_and_keeps_the_given_order_within_a_row():
    p = the_pattern()
    for pattern in (p, p.T.T):
        assert torch.equal(pattern.edge_index(), EDGES[:, pattern.perm])
    assert torch.equal(p.T.edge_index().flip(0), EDGES[:, p.T.perm])
    assert p.row.tolist() == sorted(EDGES[1].tolist())
    assert p.col.tolist() == [3, 1, 0, 0, 4, 2, 1, 4, 3]
    assert p.pointer.tolist() == [0, 2, 5, 6, 8, 9, 9]
    assert (p.num_entries, p.num_nodes) == (E, NODES)


def test_the_transpose_of_the_transpose_is_the_pattern_itself():
    p = the_pattern()
    assert p.T.T.row is p.row
    assert p.T.T.col is p.col
    assert p.T.row is p.T.row  # made once


ASKED_FIRST = {
    "the_pattern": lambda p: p.to_transpose,
    "the_transpose": lambda p: p.T.to_transpose,
    "the_transpose_of_a_copy": lambda p: copy.deepcopy(p.T).to_transpose,
}


@pytest.mark.parametrize("ask", ASKED_FIRST.values(), ids=ASKED_FIRST)
def test_values_are_carried_to_the_transpose_and_back_whichever_is_asked_first(ask):
    p = the_pattern()
    ask(p)
    value = torch.randn(p.num_entries)
    turned = value[p.to_transpose]
    assert torch.equal(dense_of(p.T, turned), dense_of(p, value).t())
    assert torch.equal(turned[p.T.to_transpose], value)
    assert sorted(p.T.row.tolist()) == p.T.row.tolist()


def test_indices_of_32_bits_make_the_same_pattern():
    p, q = the_pattern(), Pattern(EDGES[1].int(), EDGES[0].int(), NODES)
    assert torch.equal(p.row, q.row)
    assert torch.equal(p.col, q.col)
    assert p.edge_index().dtype == torch.int64
    assert all(part.dtype == torch.int64 for part in as_edges(EDGES.int())[:2])


@pytest.mark.parametrize("turn", [False, True])
def test_products_of_heads_are_those_of_each_head(turn):
    p = the_pattern().T if turn else the_pattern()
    value, x, y = (torch.randn(*shape, dtype=torch.float64)
                   for shape in ((3, E), (NODES, 3, 4), (NODES, 3, 4)))
    product, sampled = sparse_product(p, value, x), sampled_product(p, x, y)
    for h in range(3):
        torch.testing.assert_close(product[:, h], dense_of(p, value[h]) @ x[:, h])
        torch.testing.assert_close(sampled[h], (x[:, h] @ y[:, h].t())[places(p)])


@pytest.mark.parametrize(("value", "x"), [((2, E), (NODES, 3)), ((E,), (NODES, 2, 3)),
                                          ((2, E), (NODES, 3, 3)), ((1, 2, E), (NODES, 1, 2, 3))])
def test_heads_of_the_entries_and_of_the_nodes_are_as_many(value, x):
    with pytest.raises(ValueError, match="as many heads in both"):
        sparse_product(the_pattern(), torch.ones(value), torch.ones(x))
    with pytest.raises(ValueError, match="as many heads in both"):
        sampled_product(the_pattern(), torch.ones(NODES, 2, 3), torch.ones(NODES, 3))


def test_indices_take_32_bits_in_a_pattern_and_its_transpose():
    p = Pattern(*torch.randint(0, 50, (2, 1000)), 50)
    parts = [p.row, p.col, p.perm, p.to_transpose, p.T.row, p.T.col, p.pointer, p.starts(8)]
    assert {part.dtype for part in parts} == {torch.int32}


def test_sums_and_maxima_go_by_column_too_and_by_head():
    p, value = the_pattern(), torch.randn(3, E, dtype=torch.float64)
    for columns, index in ((False, p.row), (True, p.col)):
        sums, tops = segment_sum(p, value, columns), reduced("max", p, value, columns)
        for i in range(NODES):
            own = value[:, index == i]
            torch.testing.assert_close(sums[:, i], own.sum(dim=1))
            largest = own.amax(1) if own.numel() else own.new_full((3,), -torch.inf)
            assert tops[:, i].tolist() == largest.tolist()
        assert torch.equal(gather_rows(p, sums, columns), sums[:, index.long()])


def test_a_pattern_first_used_under_inference_mode_serves_training_afterwards():
    with torch.inference_mode():
        p = the_pattern()
        assert p.to_transpose.numel() == p.T.to_transpose.numel() == E
        segment_sum(p, torch.ones(2, p.num_entries, dtype=torch.float64))
    value = reals(p.num_entries)
    turned = value[p.perm][p.to_transpose]
    x = reals(p.num_nodes, 2)
    back = turned[p.T.to_transpose]
    (sparse_product(p.T, turned, x) + sparse_product(p, back, x)).square().sum().backward()
    assert value.grad.any()
    assert x.grad.any()
    assert not any(part.is_inference() for part in (p.row, p.col, p.T.row, p.starts(2)))


# Products


@every_pattern
@pytest.mark.parametrize("channels", [0, 1, 5])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-14), (torch.float32, 1e-5)])
def test_products_equal_the_dense_ones(pattern, channels, dtype, atol):
    n = pattern.num_nodes
    value = torch.randn(pattern.num_entries, dtype=dtype)
    x, y = torch.randn(2, n, channels, dtype=dtype)
    matrix = dense_of(pattern, value)
    close = {"rtol": 0, "atol": atol}
    torch.testing.assert_close(sparse_product(pattern, value, x), matrix @ x, **close)
    sampled = (x @ y.t())[places(pattern)]
    torch.testing.assert_close(sampled_product(pattern, x, y), sampled, **close)
    torch.testing.assert_close(segment_sum(pattern, value), matrix.sum(dim=1), **close)


def test_products_take_tensors_that_are_not_contiguous():
    p, value = the_pattern(), torch.randn(E, 2, dtype=torch.float64)[:, 0]
    x, y = torch.randn(2, 4, NODES, dtype=torch.float64).transpose(1, 2)
    matrix = dense_of(p, value)
    torch.testing.assert_close(sparse_product(p, value, x), matrix @ x)
    torch.testing.assert_close(sampled_product(p, x, y), (x @ y.t())[places(p)])
    torch.testing.assert_close(segment_sum(p, value), matrix.sum(dim=1))
    ones = torch.ones((), dtype=torch.float64).expand(E)
    torch.testing.assert_close(segment_sum(p, ones), p.pointer.diff().double())


def test_row_maxima_are_minus_infinity_where_a_row_is_empty():
    p, value = the_pattern(), reals(E)
    top = reduced("max", p, value.detach())
    expected = [max(value[p.row == i].tolist(), default=-torch.inf) for i in range(NODES)]
    assert top.tolist() == expected
    assert reduced("max", empty_pattern(), torch.empty(0)).tolist() == [-torch.inf] * 3


# Gradients


def functions(pattern):
    """Each differentiable function of a pattern, with its inputs."""
    n, e = pattern.num_nodes, pattern.num_entries
    return {
        "sparse_product": (lambda v, x: sparse_product(pattern, v, x), reals(e), reals(n, 3)),
        "sampled_product": (
            lambda a, b: sampled_product(pattern, a, b), reals(n, 3), reals(n, 3)
        ),
        "segment_sum": (lambda v: segment_sum(pattern, v), reals(e)),
        "segment_sum_of_columns": (lambda v: segment_sum(pattern, v, True), reals(2, e)),
        "gather_rows": (lambda z: gather_rows(pattern, z), reals(n)),
        "gather_columns": (lambda z: gather_rows(pattern, z, True), reals(2, n)),
        "sparse_products_of_heads": (
            lambda v, x: sparse_product(pattern, v, x), reals(2, e), reals(n, 2, 3)
        ),
        "sampled_products_of_heads": (
            lambda a, b: sampled_product(pattern, a, b), reals(n, 2, 3), reals(n, 2, 3)
        ),
    }  # fmt: skip


GRADIENTS = [
    pytest.param(name, function, id=f"{name}-{function}")
    for name, make in PATTERNS.items()
    for function in functions(make())
]


@pytest.mark.parametrize(("name", "function"), GRADIENTS)
def test_gradients_of_both_orders_equal_difference_quotients(name, function):
    call, *inputs = functions(PATTERNS[name]())[function]
    assert gradcheck(call, inputs)
    assert gradgradcheck(call, inputs)


class LargestTensor(TorchDispatchMode):
    """Records the size of the largest tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                strided = tensor.layout == torch.strided
                self.size = max(self.size, tensor.numel() if strided else tensor.values().numel())
        return result


def largest_tensor_of_two_gradients(call, *inputs):
    with LargestTensor() as largest:
        grads = torch.autograd.grad(call(*inputs).square().sum(), inputs, create_graph=True)
        torch.autograd.grad(sum(g.square().sum() for g in grads), inputs)
    return largest.size


def test_no_tensor_of_edges_by_channels_is_formed_for_any_gradient():
    n, e, channels = 40, 700, 32
    row, col = torch.randint(n, (2, e))
    p = Pattern(row, col, n)
    value, x, y = reals(e), reals(n, channels), reals(n, channels)
    bound = max(e, n * channels)
    assert bound < e * channels / 10

    def product(v, x):
        return sparse_product(p, v, x)

    def sampled(a, b):
        return sampled_product(p, a, b)

    assert largest_tensor_of_two_gradients(product, value, x) == bound
    assert largest_tensor_of_two_gradients(sampled, x, y) == bound

    def gathered(v, x):
        return torch.zeros_like(x).index_add(0, p.row, v.unsqueeze(1) * x[p.col])

    # The measure is one that a gather and scatter fails.
    assert largest_tensor_of_two_gradients(gathered, value, x) >= e * channels


# Graphs in all their forms


def matrix_and_values():
    """A matrix without duplicates, and its values in row-major order as a leaf."""
    row = torch.tensor([0, 1, 2, 2, 3, 4, 5])
    col = torch.tensor([3, 0, 2, 4, 1, 5, 3])
    return row, col, reals(7)


def as_edge_index(row, col, value):
    shuffled = torch.randperm(row.numel())
    return torch.stack([col, row])[:, shuffled], value[shuffled]


def as_coo(row, col, value):
    at = torch.stack([row, col])
    return (torch.sparse_coo_tensor(at, value, (6, 6), check_invariants=True).coalesce(),)


def as_uncoalesced_coo(row, col, value):
    at, halves = torch.stack([row, col]), torch.cat([value / 4, 3 * value / 4])
    return (torch.sparse_coo_tensor(at.repeat(1, 2), halves, (6, 6), check_invariants=True),)


def as_csr(row, col, value):
    pointer = torch._convert_indices_from_coo_to_csr(row, 6)
    return (torch.sparse_csr_tensor(pointer, col, value, (6, 6), check_invariants=True),)


def as_csr_of_32_bits(row, col, value):
    pointer = torch._convert_indices_from_coo_to_csr(row, 6).int()
    return (torch.sparse_csr_tensor(pointer, col.int(), value, (6, 6), check_invariants=True),)


def as_csc(row, col, value):
    order = torch.argsort(col, stable=True)
    pointer = torch._convert_indices_from_coo_to_csr(col[order], 6)
    entries = pointer, row[order], value[order]
    return (torch.sparse_csc_tensor(*entries, (6, 6), check_invariants=True),)


def as_sparse_tensor(row, col, value):
    torch_sparse = pytest.importorskip("torch_sparse", reason="torch_sparse is not installed")
    return (torch_sparse.SparseTensor(row=row, col=col, value=value, sparse_sizes=(6, 6)),)


FORMS = [as_edge_index, as_coo, as_uncoalesced_coo, as_csr, as_csr_of_32_bits, as_csc,
         as_sparse_tensor]  # fmt: skip
every_form = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__[3:])


@beta_notice_expected
@every_form
def test_every_form_of_a_graph_is_the_same_matrix_and_passes_gradients_to_its_values(form):
    row, col, value = matrix_and_values()
    matrix = torch.zeros(6, 6, dtype=torch.float64).index_put((row, col), value)
    entry_row, entry_col, entry_value, _ = as_edges(*form(row, col, value))
    read = torch.zeros(6, 6, dtype=torch.float64)
    read = read.index_put((entry_row, entry_col), entry_value, accumulate=True)
    torch.testing.assert_close(read, matrix, rtol=0, atol=1e-15)
    weights = torch.randn(6, 6, dtype=torch.float64)
    (expected,) = torch.autograd.grad((matrix * weights).sum(), value)
    (got,) = torch.autograd.grad((read * weights).sum(), value)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-15)


@beta_notice_expected
@every_form
def test_only_an_edge_index_leaves_the_number_of_nodes_open(form):
    known = as_edges(*form(*matrix_and_values()))[3]
    assert known == (None if form is as_edge_index else 6)


def test_edges_without_weights_have_none():
    torch_sparse = pytest.importorskip("torch_sparse", reason="torch_sparse is not installed")
    assert as_edges(EDGES)[2] is None
    adjacency = torch_sparse.SparseTensor(row=EDGES[1], col=EDGES[0], sparse_sizes=(6, 6))
    row, _, value, _ = as_edges(adjacency)
    assert value is None
    assert row.numel() == E  # the duplicate is kept


def test_the_number_of_nodes_is_the_one_given_or_the_largest_index_and_one():
    assert check_range(*EDGES, None) == 5
    assert check_range(*EDGES, 8) == 8
    assert check_range(*EDGES, None, 7) == 7
    none = torch.empty(0, dtype=torch.long)
    assert check_range(none, none, None) == 0
    assert check_range(none, none, 4) == 4


# Bad input


def sparse(shape, entries):
    return torch.sparse_coo_tensor(entries, torch.ones(entries.size(1)), shape,
                                   check_invariants=True)  # fmt: skip


NO_GRAPHS = {
    "list": ([[0], [1]], None, TypeError, r"edge_index tensor.*got list"),
    "none": (None, None, TypeError, "got NoneType"),
    "float": (EDGES.float(), None, TypeError, "integer dtype.*got torch.float32"),
    "bool": (EDGES.bool(), None, TypeError, "integer dtype.*got torch.bool"),
    "pairs": (EDGES.t(), None, ValueError, r"shape \(2, num_edges\) \(got \(9, 2\)\)"),
    "one_row": (EDGES[0], None, ValueError, r"shape \(2, num_edges\) \(got \(9,\)\)"),
    "weights": (EDGES, torch.ones(8), ValueError, r"edge_weight of shape \(9,\).*got \(8,\)"),
    "columns": (EDGES, torch.ones(9, 1), ValueError, r"one number per edge \(got \(9, 1\)\)"),
    "not_square": (sparse((6, 7), EDGES), None, ValueError, "square adjacency.*got 6 x 7"),
    "three_dimensions": (
        sparse((6, 6, 6), torch.cat([EDGES, EDGES[:1]])), None, ValueError, "one number per entry"
    ),
    "vectors_as_entries": (
        torch.sparse_coo_tensor(EDGES, torch.ones(9, 2), (6, 6, 2), check_invariants=True),
        None, ValueError, r"one number per entry \(got shape \(6, 6, 2\)\)",
    ),
    "weights_twice": (sparse((6, 6), EDGES), torch.ones(9), ValueError, "no edge_weight beside"),
}  # fmt: skip


@pytest.mark.parametrize(("graph", "weight", "error", "match"), NO_GRAPHS.values(), ids=NO_GRAPHS)
def test_what_is_not_a_graph_is_refused(graph, weight, error, match):
    with pytest.raises(error, match=match):
        as_edges(graph, weight)


@beta_notice_expected
def test_a_block_sparse_matrix_is_refused():
    blocks = torch.sparse_bsr_tensor([0, 1], [0], torch.ones(1, 2, 2), (2, 2),
                                     check_invariants=True)  # fmt: skip
    with pytest.raises(TypeError, match=r"COO, CSR or CSC layout.*to_sparse_csr"):
        as_edges(blocks)


def test_a_sparse_tensor_of_another_shape_or_with_weights_beside_it_is_refused():
    torch_sparse = pytest.importorskip("torch_sparse", reason="torch_sparse is not installed")
    row, col = EDGES[1], EDGES[0]
    oblong = torch_sparse.SparseTensor(row=row, col=col, sparse_sizes=(6, 7))
    with pytest.raises(ValueError, match=r"square adjacency.*got 6 x 7"):
        as_edges(oblong)
    vectors = torch_sparse.SparseTensor(row=row, col=col, value=torch.ones(9, 2),
                                        sparse_sizes=(6, 6))  # fmt: skip
    with pytest.raises(ValueError, match="one number per entry"):
        as_edges(vectors)
    with pytest.raises(ValueError, match="no edge_weight beside"):
        as_edges(torch_sparse.SparseTensor(row=row, col=col, sparse_sizes=(6, 6)), torch.ones(9))


@pytest.mark.parametrize(
    ("edges", "num_nodes", "known", "match"),
    [
        ([[0, 1], [1, 6]], 6, None, r"from 0 to 5 in edge_index \(got 0 to 6\)"),
        ([[0, -1], [1, 2]], 6, None, r"from 0 to 5 in edge_index \(got -1 to 2\)"),
        ([[0, -1], [1, 2]], None, None, r"got -1 to 2"),
        ([[0, 1], [1, 2]], 5, 6, r"size of the adjacency matrix, 6 \(got 5\)"),
        ([[], []], -1, None, r"num_nodes from 0 up \(got -1\)"),
    ],
)
def test_node_indices_out_of_range_are_refused(edges, num_nodes, known, match):
    row, col = torch.tensor(edges, dtype=torch.long)
    with pytest.raises(ValueError, match=match):
        check_range(row, col, num_nodes, known)


# Warnings

FIRST_USES = """
import os, sys, warnings
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
    from pyg_sinode.operators import Graph
    from pyg_sinode.sparse import *
warnings.simplefilter("error")

edges = torch.tensor([[0, 1], [1, 0]])
p = Pattern(edges[1], edges[0], 2)
x = torch.ones(2, 3)
uses = [
    lambda: sparse_product(p, torch.ones(2), x),
    lambda: sampled_product(p, x, x),
    lambda: segment_sum(p, torch.ones(2)),
    lambda: sampled_product(p, torch.ones(2, 2, 3), torch.ones(2, 2, 3)),
    lambda: Graph(edges).symmetric(),
    lambda: Graph(edges).T.mv(x),
    lambda: (Graph(edges) @ Graph(edges)).to_coo(-2, 2),
]
failed = 0
for use in uses:  # each in a process of its own, for PyTorch warns once in each
    if os.fork() == 0:
        use()
        sys.stdout.flush()
        os._exit(0)
    failed += os.wait()[1] != 0
print("failed:", failed, "of", len(uses))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="forks, which Windows does not")
def test_the_notice_about_sparse_tensors_never_reaches_the_user():
    run = subprocess.run([sys.executable, "-c", FIRST_USES], capture_output=True, text=True)
    assert run.stdout.endswith("failed: 0 of 7\n"), run.stdout + run.stderr


def test_the_graph_operator_reads_graphs_as_this_module_does():
    row, col, value = matrix_and_values()
    x = torch.randn(6, 2, dtype=torch.float64)
    expected = Graph(torch.stack([col, row]), value).mv(x)
    torch.testing.assert_close(Graph(*as_coo(row, col, value)).mv(x), expected)
    assert torch.equal(expected[0], value[0] * x[3])  # M[target, source]
