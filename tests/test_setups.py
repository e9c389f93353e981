"""Is every inverse of I - cJ made once, and are few of them kept?"""

import numpy as np
import torch
from cases import states, stepper_by

from pyg_sinode import Stats, operators, solvers
from pyg_sinode.schemes import SCHEMES
from pyg_sinode.setups import KEPT, Setups

J = np.array([[-3.0, 1.0], [0.5, -40.0]])
U0 = np.array([0.7, -1.3])


def test_one_inverse_serves_all_stages_and_steps():
    stats, operator = Stats(), operators.Dense(torch.as_tensor(J))
    setups = Setups(operator, solvers.Direct().invert, None, stats)
    for name in ("ssp222", "ark436l2sa"):
        before = stats.setups
        stepper = stepper_by(SCHEMES[name], None, operator, setups.inverse, stats)
        states(stepper, [0.0, 1.0], 0.1, torch.as_tensor(U0))
        assert stats.setups == before + 1, name


def setups_of(operator):
    stats = Stats()
    return Setups(operator, solvers.Direct().invert, None, stats), stats


def test_the_inverse_is_that_of_the_scaled_operator():
    setups, stats = setups_of(operators.ScaledIdentity(-2.0))
    u = torch.ones(3)
    torch.testing.assert_close(setups.inverse(0.5).mv(u), u / 2)
    torch.testing.assert_close(setups.inverse(0.25, 2.0).mv(u), u / 2)
    torch.testing.assert_close(setups.inverse(0.5, torch.tensor(3.0)).mv(u), u / 4)
    assert stats.setups == 2


def test_of_many_step_sizes_the_last_ones_are_kept_in_a_call():
    trainable = torch.tensor(-2.0, requires_grad=True)
    setups, stats = setups_of(operators.ScaledIdentity(trainable))
    for c in range(1, 3 * KEPT):
        setups.inverse(float(c))
        setups.inverse(1.0)  # used again and again, so that it stays
    assert len(setups.made) == KEPT
    assert stats.setups == 3 * KEPT - 1
    setups.inverse(2.0)
    assert stats.setups == 3 * KEPT


def test_set_ups_kept_on_an_operator_share_one_copy_of_its_tensors():
    matrix = torch.eye(3) * -2
    operator = operators.Dense(matrix)
    setups, stats = setups_of(operator)
    for c in (1.0, 2.0, 3.0):
        setups.inverse(c)
    copies = {id(x) for own, _ in operator._factors.values() for x in own.tensors}
    assert len(copies) == 1
    matrix *= 2
    again, _ = setups_of(operator)
    torch.testing.assert_close(again.inverse(1.0).mv(torch.ones(3)), torch.ones(3) / 5)
    again.inverse(2.0)
    copies = {id(x) for own, _ in operator._factors.values() for x in own.tensors}
    assert len(copies) == 2
    assert stats.setups == 3
