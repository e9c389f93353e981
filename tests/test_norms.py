"""Does every component keep its tolerance, however many others there are?"""

import math
import pickle

import pytest
import torch
from cases import double

from pyg_sinode import imex_odeint, norms
from pyg_sinode.schemes import RUNGE_KUTTA

ADAPTIVE = [name for name, scheme in RUNGE_KUTTA.items()
            if scheme.embedded_order > 0 and scheme.stiffly_accurate]


def stiff_rate(where, k=50.0):
    """G = -k (u - cos t) in the given places, 0 elsewhere."""
    def G(t, u):
        rate = torch.zeros_like(u)
        rate[where] = -k * (u[where] - torch.cos(t))
        return rate

    return G


def exact(t, k=50.0):
    """The solution of u' = -k (u - cos t) from u(0) = 1."""
    c = k**2 / (k**2 + 1)
    return c * (math.cos(t) + math.sin(t) / k) + (1 - c) * math.exp(-k * t)


@pytest.mark.parametrize("quiet", [0, 1, 1000, 100_000])
@pytest.mark.parametrize("method", [None, *ADAPTIVE])
def test_one_stiff_entry_among_quiet_ones_keeps_its_tolerance(method, quiet):
    u0 = torch.zeros(1 + quiet, dtype=torch.float64)
    u0[0] = 1.0
    u = imex_odeint(stiff_rate(0), None, u0, double([0.0, 1.0]), method=method)
    tolerance = 1e-6 + 1e-3 * abs(exact(1.0))
    assert abs(float(u[-1, 0]) - exact(1.0)) < 10 * tolerance
    assert not u[-1, 1:].any()


@pytest.mark.parametrize("method", ADAPTIVE)
def test_at_no_rate_do_unstable_steps_pass_for_exact_ones(method):
    # 120: the two results of ark436l2sa agree where both grow 14-fold; 170.88: of ark324l2sa.
    for k in (120.0, 170.88, *torch.linspace(20.0, 900.0, 12).tolist()):
        for other in ([], [1.0]):  # one that is quiet, and as large
            u = imex_odeint(stiff_rate(0, k), None, double([1.0, *other]), double([0.0, 1.0]),
                            method=method)
            tolerance = 1e-6 + 1e-3 * abs(exact(1.0, k))
            assert abs(float(u[-1, 0]) - exact(1.0, k)) < 10 * tolerance


def test_a_step_that_blows_up_where_the_estimate_vanishes_is_not_accepted_again_and_again():
    # At h lambda = -6.59 the two results of ark324l2sa agree, and both grow 22-fold.
    k, end = 2000.0, 0.9
    u = imex_odeint(lambda t, u: -k * (u - torch.cos(t)), None, double([1.0]), double([0.0, end]),
                    method="ark324l2sa")
    assert abs(float(u[-1]) - math.cos(end)) < 0.05


@pytest.mark.parametrize("norm", [None, "per_graph"])
def test_one_stiff_graph_among_easy_ones_keeps_its_tolerance(norm):
    batch = torch.arange(500).repeat_interleave(4)
    u0 = torch.zeros(2000, 3, dtype=torch.float64)
    u0[:4] = 1.0
    chosen = norms.per_graph(batch) if norm else None
    u = imex_odeint(stiff_rate(slice(4)), None, u0, double([0.0, 1.0]), norm=chosen)
    assert float((u[-1, :4] - exact(1.0)).abs().max()) < 10 * (1e-6 + 1e-3 * abs(exact(1.0)))


def test_the_root_mean_square_dilutes_and_may_be_asked_for():
    u0 = torch.zeros(1001, dtype=torch.float64)
    u0[0] = 1.0
    errors = [abs(float(imex_odeint(stiff_rate(0), None, u0, double([0.0, 1.0]), rtol=1e-5,
                                    norm=norm)[-1, 0]) - exact(1.0))
              for norm in (norms.rms, norms.maximum)]
    assert errors[0] > 5 * errors[1]


def test_norms_are_what_they_say():
    x = double([[3.0, -4.0], [0.0, 0.0], [1.0, 1.0]])
    assert float(norms.maximum(x)) == 4.0
    assert float(norms.rms(x)) == pytest.approx(math.sqrt(27 / 6))
    by_graph = norms.per_graph(torch.tensor([0, 0, 1]))
    assert float(by_graph(x)) == pytest.approx(math.sqrt(25 / 4))
    assert float(by_graph(x.expand(2, 3, 2))) == pytest.approx(math.sqrt(25 / 4))
    unsorted = norms.per_graph(torch.tensor([2, 0, 2]))
    assert float(unsorted(x)) == pytest.approx(math.sqrt(27 / 4))
    assert float(norms.per_graph(torch.tensor([0, 0, 1]), node_dim=-1)(x.t())) == pytest.approx(
        math.sqrt(25 / 4))
    for norm in (norms.maximum, norms.rms):
        assert float(norm(x[:0])) == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("norm", [norms.maximum, norms.rms, norms.per_graph(torch.tensor([0, 1]))])
def test_what_is_not_finite_has_no_finite_norm(norm, bad):
    assert not math.isfinite(float(norm(torch.tensor([[0.0, bad], [1.0, 2.0]]))))


def test_a_graph_s_norm_does_not_depend_on_the_others():
    x = torch.randn(4, 2, dtype=torch.float64)
    alone = norms.per_graph(torch.zeros(4, dtype=torch.long))(x)
    rest = torch.zeros(1000, 2, dtype=torch.float64)
    batch = torch.cat([torch.zeros(4), 1 + torch.arange(1000)]).long()
    among = norms.per_graph(batch)(torch.cat([x, rest]))
    torch.testing.assert_close(among, alone)
    assert "1001 graphs" in repr(norms.per_graph(batch))
    copied = pickle.loads(pickle.dumps(norms.per_graph(batch)))
    assert torch.equal(copied(torch.cat([x, rest])), among)


def test_a_norm_of_ones_own_is_used_for_the_first_step_too():
    seen = []

    def weighted(x):
        seen.append(x.shape)
        return x.abs().max() * 2.0

    imex_odeint(lambda t, u: -u, None, torch.ones(3), double([0.0, 0.1]), norm=weighted)
    assert len(seen) >= 4  # three for the first step, one for each step
    assert set(seen) == {(3,)}


@pytest.mark.parametrize(("norm", "error", "message"), [
    ("maximum", TypeError, "norm as a function such as pyg_sinode.norms.rms"),
    (torch.abs, TypeError, r"norm to give a 0-dim tensor \(got \(3,\)\)"),
    (lambda x: 1.0, TypeError, r"norm to give a 0-dim tensor \(got float\)"),
    (norms.per_graph(torch.tensor([0, 0])), ValueError, "state with 2 nodes along dimension -2"),
])
def test_norms_that_do_not_fit_are_refused(norm, error, message):
    with pytest.raises(error, match=message):
        imex_odeint(lambda t, u: -u, None, torch.ones(3), double([0.0, 1.0]), norm=norm)


@pytest.mark.parametrize(("batch", "options", "error", "message"), [
    (torch.tensor([0.0]), {}, TypeError, "batch as a tensor of integers"),
    ([0, 1], {}, TypeError, r"\(got list\)"),
    (torch.tensor([[0]]), {}, ValueError, r"batch of shape \(num_nodes,\)"),
    (torch.tensor([-1]), {}, ValueError, "from 0 up"),
    (torch.tensor([0]), {"node_dim": 0}, ValueError, "node_dim counted from the end"),
])
def test_batches_that_do_not_fit_are_refused(batch, options, error, message):
    with pytest.raises(error, match=message):
        norms.per_graph(batch, **options)


def test_a_norm_with_equal_steps_is_refused():
    with pytest.raises(ValueError, match="no norm with a step_size"):
        imex_odeint(lambda t, u: -u, None, torch.ones(3), double([0.0, 1.0]), step_size=0.1,
                    norm=norms.rms)
