"""Are entries dropped with the right probability, in dense and in sparse features?"""

import pytest
import torch
import torch.nn.functional as nnf
from cases import EDGES, NODES
from test_sparse import beta_notice_expected

from pyg_sinode import SINODE, SINODEConv
from pyg_sinode.dropout import dropped

WORDS = (torch.arange(NODES * 5).view(NODES, 5) % 3 == 0).double() * torch.arange(1.0, 6.0)
FORMS = {"coo": torch.Tensor.to_sparse_coo, "csr": torch.Tensor.to_sparse_csr}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_law_is_that_of_pytorch(p, dtype):
    torch.manual_seed(0)
    x = torch.full((200, 500), 3.0, dtype=dtype)
    found = dropped(x, p, training=True)
    assert found.dtype == dtype
    kept = float(x.max() / (1.0 - p))
    assert set(found.unique().tolist()) == {0.0, kept}
    assert kept == pytest.approx(nnf.dropout(x, p).max().item(), rel=2 * torch.finfo(dtype).eps)
    share = (found == 0).double().mean().item()
    assert abs(share - p) < 5 * (p * (1 - p) / x.numel()) ** 0.5  # five standard deviations
    assert not torch.equal(found, dropped(x, p, training=True))
    torch.manual_seed(0)
    assert torch.equal(found, dropped(x, p, training=True))


def test_nothing_is_dropped_in_evaluation_or_with_a_probability_of_zero():
    x = torch.ones(3, 2)
    assert dropped(x, 0.5, training=False) is x
    assert dropped(x, 0.0, training=True) is x


def test_the_gradient_is_that_of_the_kept_entries():
    x = torch.ones(40, 5, dtype=torch.float64, requires_grad=True)
    out = dropped(x, 0.25, training=True)
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(grad, out)
    assert 0 < int((grad == 0).sum()) < grad.numel()


@beta_notice_expected
@pytest.mark.parametrize("form", FORMS)
def test_sparse_features_keep_their_zeros_and_their_form(form):
    torch.manual_seed(0)
    x = torch.ones(300, 40)
    x[:, ::2] = 0.0
    out = dropped(FORMS[form](x), 0.3, training=True)
    assert out.layout == FORMS[form](x).layout
    dense = out.to_dense()
    assert float(dense[:, ::2].abs().max()) == 0.0
    assert set(dense[:, 1::2].unique().tolist()) == {0.0, torch.tensor(1 / 0.7).item()}
    assert float(dense[:, 1::2].mean()) == pytest.approx(1.0, abs=0.05)


@beta_notice_expected
@pytest.mark.parametrize("form", FORMS)
def test_a_network_takes_sparse_features(form):
    torch.manual_seed(0)
    model = SINODE(5, 8, 3, time=2.0, batch_norm=True).double()
    found = []
    for x in (WORDS, FORMS[form](WORDS)):
        model.zero_grad()
        out = model(x, EDGES)
        nnf.cross_entropy(out, torch.arange(NODES) % 3).backward()
        found.append([out.detach(), *(p.grad.clone() for p in model.parameters())])
    for sparse, dense in zip(*reversed(found), strict=True):
        torch.testing.assert_close(sparse, dense, rtol=1e-12, atol=1e-14)


@beta_notice_expected
@pytest.mark.parametrize("form", FORMS)
def test_sparse_features_are_dropped_in_training_and_computed_in_float32_under_autocast(form):
    model, x = SINODE(5, 8, 3, input_dropout=0.5, time=2.0), FORMS[form](WORDS.float())
    torch.manual_seed(1)
    one = model(x, EDGES)
    assert not torch.equal(model(x, EDGES), one)
    torch.manual_seed(1)
    assert torch.equal(model(x, EDGES), one)
    model.eval()
    full = model.encode(x.to_dense())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        encoded = model.encode(x)
        assert encoded.dtype == torch.float32
        torch.testing.assert_close(encoded, full, rtol=1e-6, atol=1e-6)  # 16 bits differ by 1e-3
        found = model(x, EDGES)
    torch.testing.assert_close(found.float(), model(x, EDGES), rtol=0.05, atol=0.05)


@beta_notice_expected
def test_other_sparse_forms_are_refused_where_entries_are_dropped():
    model = SINODE(5, 8, 3, input_dropout=0.5)
    rows = torch.sparse_coo_tensor(torch.tensor([[0, 2]]), torch.ones(2, 5), (NODES, 5),
                                   check_invariants=True)
    with pytest.raises(ValueError, match=r"got torch.sparse_coo of dense rows"):
        model.eval()(rows, EDGES)
    with pytest.raises(ValueError, match=r"in COO or CSR form \(got torch.sparse_csc\); use "
                                         r"x.to_sparse_csr"):
        model(WORDS.float().to_sparse_csc(), EDGES)


@beta_notice_expected
@pytest.mark.parametrize("form", FORMS)
def test_a_layer_takes_sparse_features_unless_they_are_its_state(form):
    torch.manual_seed(0)
    conv = SINODEConv(5, 8, residual=True).double()
    torch.testing.assert_close(conv(FORMS[form](WORDS), EDGES), conv(WORDS, EDGES),
                               rtol=1e-12, atol=1e-14)
    conv = SINODEConv(5, 5).double()
    for call in (conv, conv.equation):
        with pytest.raises(TypeError, match=r"Expected dense features where in_channels is "
                                            r"out_channels .* use x.to_dense"):
            call(FORMS[form](WORDS), EDGES)


def test_encode_and_decode_are_the_ends_of_the_network():
    torch.manual_seed(0)
    model = SINODE(5, 8, 3, batch_norm=True, input_dropout=0.4, dropout=0.4).eval()
    x = WORDS.float()
    expected = model.decoder(model.conv(model.norm(model.encoder(x)), EDGES).relu())
    assert torch.equal(model.decode(model.conv(model.encode(x), EDGES)), expected)
    assert torch.equal(model(x, EDGES), expected)
