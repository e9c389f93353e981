"""Are reactions those of their papers, on either side, with all gradients?"""

import pytest
import torch
from cases import EDGES, NODES
from conv_cases import (
    WEIGHT,
    distance,
    entries,
    every_split,
    features,
    gradients,
    loss_of,
    make,
)
from torch import nn

from pyg_sinode import SINODE, NonFiniteStateError, SINODEConv
from pyg_sinode.reaction import POINTWISE, REACTIONS
from pyg_sinode.terms import Nonlinear

FORMULAS = {
    "fisher": lambda u, x0, A: u * (1 - u), "allen_cahn": lambda u, x0, A: u * (1 - u**2),
    "zeldovich": lambda u, x0, A: u**2 - u**3, "acmp": lambda u, x0, A: u - u**3,
    "source": lambda u, x0, A: x0, "blurring_sharpening": lambda u, x0, A: A @ u - A @ A @ u}
SIDES = [(kind, False) for kind in REACTIONS] + [(kind, True) for kind in POINTWISE]
every_side = pytest.mark.parametrize(("kind", "implicit"), SIDES)


def reacting(split="decay", kind="allen_cahn", implicit=False, **options):
    """A layer with a reaction of another strength in each channel."""
    options = {"solver": None} | options
    conv = make(split, reaction=kind, implicit_reaction=implicit, **options)
    if isinstance(kind, str):
        with torch.no_grad():
            conv.term.reaction.weight.copy_(torch.linspace(-2, 1, 4))
            if conv.term.repulsion is not None:
                conv.term.repulsion.fill_(0.6)
    return conv


def matrices(conv, u):
    """The attention, and each edge's share of the weights into its node."""
    edges, weight = entries()
    p = conv.equation(features(), EDGES, WEIGHT).args[3]
    alpha = conv.term.attention.coefficients(u, p, weight[p.perm])
    places = (p.row.long(), p.col.long())
    dense = [torch.zeros(NODES, NODES, dtype=torch.float64).index_put(places, x, accumulate=True)
             for x in (alpha, weight[p.perm])]
    assert edges.size(1) == p.num_entries
    return dense[0], dense[1] / dense[1].sum(dim=1, keepdim=True)


@every_split
@every_side
def test_both_sides_together_are_the_diffusion_and_the_reaction_of_the_paper(split, kind, implicit):
    conv, u = reacting(split, kind, implicit), features(4).flip(0)
    G, H, x0, args = conv.equation(features(), EDGES, WEIGHT)
    assert isinstance(H, Nonlinear) == implicit
    of_h = H.value(0.0, u) if implicit else H.mv(u)
    A, P = matrices(conv, u)
    alpha, beta = torch.sigmoid(conv.term.alpha), conv.term.beta
    repelled = conv.term.repulsion * (P @ u - u) if kind == "acmp" else 0.0
    expected = alpha * (A @ u - u - repelled) + beta * x0 + torch.sigmoid(
        conv.term.reaction.weight) * FORMULAS[kind](u, x0, A)
    assert distance(G(torch.tensor(0.0), u, *args) + of_h, expected) < 1e-13


@pytest.mark.parametrize("split", ["decay", "attention"])
@pytest.mark.parametrize("kind", POINTWISE)
def test_with_small_steps_either_side_gives_the_same(split, kind):
    out = [reacting(split, kind, implicit, method="imex_rk4", step_size=0.03, time=0.6)(
        features() / 2, EDGES, WEIGHT) for implicit in (False, True)]
    assert distance(*out) < 1e-6


@pytest.mark.parametrize("split", ["decay", "laplacian"])
@every_side
def test_gradients_reach_everything_and_equal_backpropagation(split, kind, implicit):
    conv = reacting(split, kind, implicit, time=0.2, step_size=0.1)
    found, expected = gradients(conv), gradients(conv, "backprop")
    for name, gradient in expected.items():
        if name == "term.attention.lin_key.bias":  # no softmax changes by it
            continue
        assert float(gradient.abs().max()) > 1e-7, name
        assert distance(found[name], gradient) < 1e-6, name


def test_a_stiff_reaction_is_bounded_on_the_implicit_side_only():
    torch.manual_seed(0)
    x = 5 * torch.randn(NODES, 4)
    explicit, implicit = (SINODEConv(4, 4, reaction="allen_cahn", implicit_reaction=side, time=8.0,
                                     method="imex_rk3") for side in (False, True))
    for conv in (explicit, implicit):
        nn.init.constant_(conv.term.reaction.weight, 3.0)
    with pytest.raises(NonFiniteStateError):
        explicit(x, EDGES)
    assert float(implicit(x, EDGES).detach().abs().max()) < 3.0


class Own(nn.Module):
    """A reaction of the user's, which mixes the channels of a node."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4).double()

    def forward(self, t, x, x0):
        return torch.tanh(self.lin(x)) - 0.1 * x0 * t


@pytest.mark.parametrize("implicit", [False, True])
def test_a_module_of_the_users_is_a_reaction_too(implicit):
    conv = reacting(kind=Own(), implicit=implicit)
    found, expected = gradients(conv), gradients(conv, "backprop")
    assert float(expected["term.reaction.lin.weight"].abs().max()) > 1e-3
    for name in ("x", "edge_weight", "term.reaction.lin.weight", "term.alpha"):
        assert distance(found[name], expected[name]) < 1e-7, name


class OfTime(nn.Module):
    """A reaction that depends on the time."""

    def forward(self, t, x, x0):
        return torch.cos(3 * t) * torch.ones_like(x)


@pytest.mark.parametrize("implicit", [False, True])
def test_a_reaction_sees_the_time_of_its_graph_and_of_a_trained_time(implicit):
    conv = reacting(kind=OfTime(), implicit=implicit, step_size=0.3)
    x, ends = features() / 2, torch.tensor([0.3, 0.9], dtype=torch.float64)
    both = conv(torch.cat([x, x]), torch.cat([EDGES, EDGES + NODES], dim=1),
                batch=torch.arange(2).repeat_interleave(NODES), end_times=ends)
    for k, step in ((0, 0.1), (1, 0.3)):
        conv.time, conv.step_size = float(ends[k]), step
        assert distance(both[NODES * k:NODES * (k + 1)], conv(x, EDGES)) < 1e-9
    conv.step_size, losses = 0.3, []
    for conv.time in (0.9 + 1e-6, 0.9 - 1e-6):
        conv.step_size = conv.time / 3
        losses.append(loss_of(conv(x, EDGES)).detach())
    conv.time, conv.step_size = torch.tensor(0.9, dtype=torch.float64, requires_grad=True), 0.3
    (found,) = torch.autograd.grad(loss_of(conv(x, EDGES)), conv.time)
    assert float(found) == pytest.approx(float(losses[0] - losses[1]) / 2e-6, rel=1e-5)


def test_end_times_scale_the_reaction_too():
    ends = torch.tensor([0.9], dtype=torch.float64)
    for implicit in (False, True):
        conv = reacting(implicit=implicit, step_size=0.3)
        x = features() / 2
        both = conv(torch.cat([x, x]), torch.cat([EDGES, EDGES + NODES], dim=1),
                                    batch=torch.arange(2).repeat_interleave(NODES),
                                    end_times=torch.cat([ends / 3, ends]))
        conv.time = 0.9
        assert distance(both[NODES:], conv(x, EDGES)) < 1e-9
        conv.time, conv.step_size = 0.3, 0.1
        assert distance(both[:NODES], conv(x, EDGES)) < 1e-9


def test_a_network_learns_with_a_reaction():
    torch.manual_seed(0)
    model = SINODE(3, 4, 2, reaction="acmp", implicit_reaction=True, time=2.0, source=True)
    x, target = features(dtype=torch.float32), torch.tensor([0, 1, 0, 1, 1, 0])
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=0.05), []
    for _ in range(40):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x, EDGES), target)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]
    assert float(model.conv.term.repulsion.detach().abs()) > 0
    assert "Reaction(acmp)" in str(model.conv.term)
    loss_of(model(x, EDGES)).backward()


def test_resetting_starts_the_reaction_anew():
    conv = reacting(kind="acmp")
    conv.reset_parameters()
    assert bool((conv.term.reaction.weight == -2.0).all())
    assert not bool(conv.term.repulsion.any())


@pytest.mark.parametrize(("options", "message"), [
    ({"reaction": "fischer"}, r"reaction as one of fisher, .*, a module .* \(got 'fischer'\)"),
    ({"reaction": 3}, r"reaction as one of fisher"),
    ({"implicit_reaction": True}, r"implicit_reaction only with a module .* \(got None\)"),
    ({"reaction": "source", "implicit_reaction": True}, r"\(got Reaction\(source\)\)"),
])
def test_reactions_that_are_none_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SINODEConv(4, 4, **options)


def test_a_module_of_the_users_is_implicit_beside_a_decay_only():
    conv = reacting("laplacian", Own(), implicit=True)
    with pytest.raises(ValueError, match='implicit="decay" with implicit_reaction and a module'):
        conv(features(), EDGES)
