"""Do old public names go on working for a release, with a warning that names the new ones?"""

import importlib
import pickle

import pytest
import torch
from cases import double

import pyg_sinode
from pyg_sinode import Stats, controllers, imex_odeint, schemes, solvers, terms
from pyg_sinode.operators import Dense, Diagonal, LinearOperator


@pytest.mark.parametrize(("module", "old", "place", "new"), [
    ("operators", "Affine", terms, "Affine"),
    ("tableau", "IMEXTableau", schemes, "IMEXTableau"),
    ("tableau", "order_conditions", schemes, "order_conditions"),
    ("multistep", "IMEXMultistep", schemes, "IMEXMultistep"),
    ("multistep", "MULTISTEP", schemes, "MULTISTEP"),
    ("multistep", "get_method", schemes, "get_scheme"),
])
def test_what_has_moved_is_found_in_its_old_place(module, old, place, new):
    old_place = importlib.import_module(f"{pyg_sinode.__name__}.{module}")
    with pytest.warns(DeprecationWarning, match=rf"{module}\.{old} is now .*\.{new}"):
        found = getattr(old_place, old)
    assert found is getattr(place, new)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = old_place.nothing


def test_pickles_of_version_0_1_find_compositions_of_operators_in_their_old_place():
    J = 2.0 * (Diagonal(double([1.0, 2.0])) + Dense(torch.eye(2).double()))
    saved = pickle.dumps(J, protocol=0)
    for name in (b"scaled", b"sums"):
        assert b"cpyg_sinode.operators." + name in saved
        saved = saved.replace(b"cpyg_sinode.operators." + name, b"cpyg_sinode.operators.base")
    u = double([0.5, -1.0])
    assert torch.equal(pickle.loads(saved).mv(u), J.mv(u))
    inverse = (Diagonal(double([[1.0], [2.0]])) @ Dense(torch.eye(2).double())).resolvent(0.1)
    assert importlib.import_module("pyg_sinode.operators.base").Each is type(inverse)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = importlib.import_module("pyg_sinode.operators.base").nothing


def test_statistics_by_their_old_names():
    stats = Stats(factorizations=3, factorizations_reused=2)
    with pytest.warns(DeprecationWarning, match="Stats.setups is now Stats.factorizations"):
        assert stats.setups == 3
    with pytest.warns(DeprecationWarning, match="now Stats.factorizations_reused"):
        assert stats.setups_saved == 2


@pytest.mark.parametrize("kind", [controllers.I, controllers.PI, controllers.PID])
def test_a_controller_takes_keep_as_its_deadband(kind):
    with pytest.warns(DeprecationWarning, match="keep= of a controller is now deadband="):
        assert kind(keep=1.5) == kind(deadband=1.5)


def test_an_operator_s_methods_by_their_old_names():
    d = double([1.0, 2.0])
    with pytest.warns(DeprecationWarning, match="pointwise of an operator is now as_diagonal"):
        assert torch.equal(Diagonal(d).pointwise(), d)
    with pytest.warns(DeprecationWarning, match="entries of an operator is now to_coo"):
        assert Dense(torch.eye(2)).entries(-1, 2).row.tolist() == [0, 0, 1, 1]
    with pytest.warns(DeprecationWarning, match="pointwise of an operator"):
        assert torch.equal(Diagonal.pointwise(Diagonal(d)), d)
    with pytest.raises(AttributeError, match="'Diagonal' object has no attribute 'nothing'"):
        _ = Diagonal(d).nothing


def test_a_subclass_may_call_what_it_overrides_by_the_old_name():
    with pytest.warns(DeprecationWarning, match=r"Mine\.pointwise is now as_diagonal"):
        class Mine(Diagonal):
            def pointwise(self):
                return 2.0 * super().pointwise()

    with pytest.warns(DeprecationWarning, match="pointwise of an operator"):
        assert Mine(double([1.0])).as_diagonal().tolist() == [2.0]


def test_an_error_in_a_property_of_an_operator_of_ones_own_is_told():
    class Mine(LinearOperator):
        @property
        def tensors(self):
            return (self.weigth,)

    with pytest.raises(AttributeError, match="'Mine' object has no attribute 'weigth'"):
        _ = Mine().tensors


def test_an_operator_of_ones_own_may_still_define_the_old_names():
    with pytest.warns(DeprecationWarning, match="Mine.pointwise is now as_diagonal"):
        class Mine(LinearOperator):
            def __init__(self, d):
                self.tensors = (d,)

            def mv(self, u):
                return self.tensors[0] * u

            def pointwise(self):
                return self.tensors[0].detach()

    d, u0 = double([-1.0, -2.0]), double([1.0, 1.0])
    found = imex_odeint(None, Mine(d), u0, double([0.0, 1.0]), step_size=0.1)
    assert torch.equal(found, imex_odeint(None, Diagonal(d), u0, double([0.0, 1.0]), step_size=0.1))
    assert solvers.default(Mine(d)) == solvers.Direct()
