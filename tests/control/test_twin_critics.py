"""Critics recover the TD target that they are given; their targets follow, and a saved copy goes on bitwise."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from denoiserl import Rng
from denoiserl.control.twin_critics import TwinCritics


def make(seed: int = 0, **more: Any) -> TwinCritics:
    return TwinCritics(3, (2, 1), 1e-2, 0.25, Rng(seed), width=32, **more)


def batch(rows: int, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    rng = Rng(seed)
    cond, action = rng.normal(rows, 3), rng.normal(rows, 2, 1)
    return cond, action, cond[:, 0] - 2 * action[:, 1, 0] - 5


def test_the_target_is_recovered_by_each_critic() -> None:
    critics, (cond, action, y) = make(), batch(256)
    for _ in range(400):
        critics.td_update(cond, action, y)
    error = (critics(cond, action).detach() - y).square().mean(1) / y.var()
    assert error.shape == (2,) and float(error.max()) < 0.05


def test_what_an_update_tells_is_of_the_critics_before_it() -> None:
    critics, (cond, action, y) = make(), batch(16)
    value = critics(cond, action).detach()
    row = critics.td_update(cond, action, y)
    assert row["q/data"] == pytest.approx(float(value.mean()), rel=1e-6)
    assert row["loss/critic"] == pytest.approx(float(sum(0.5 * (v - y).square().mean() for v in value)), rel=1e-5)


def test_targets_start_equal_stand_still_and_follow_by_tau() -> None:
    critics, (cond, action, y) = make(), batch(16)
    start = critics.target(cond, action)
    assert torch.equal(start, critics(cond, action)) and not start.requires_grad
    for _ in range(5):
        critics.td_update(cond, action, y)
    assert torch.equal(critics.target(cond, action), start)
    own, follows = critics.net.state_dict(), {k: v.clone() for k, v in critics.target_net.state_dict().items()}
    critics.update_target()
    for name, value in critics.target_net.state_dict().items():
        torch.testing.assert_close(value, follows[name] + 0.25 * (own[name] - follows[name]))
    for _ in range(100):
        critics.update_target()
    torch.testing.assert_close(critics.target(cond, action), critics(cond, action))


def test_the_norm_of_a_gradient_is_limited() -> None:
    """The moments of the optimiser after a step show the gradient that it took."""

    def first_moment(**more: Any) -> float:
        critics = make(**more)
        critics.td_update(*batch(16))
        return float(sum(s["exp_avg"].square().sum() for s in critics.optimizer.state.values()) ** 0.5) / 0.1

    assert first_moment() > 1.0
    assert first_moment(max_grad_norm=0.5) == pytest.approx(0.5, rel=1e-3)


def test_a_restored_copy_goes_on_bitwise() -> None:
    one, other, (cond, action, y) = make(0), make(7), batch(16)
    one.td_update(cond, action, y)
    one.update_target()
    other.load_state_dict(deepcopy(one.state_dict()))
    for critics in (one, other):
        critics.td_update(cond, action, y)
        critics.update_target()
    assert torch.equal(one(cond, action), other(cond, action))
    assert torch.equal(one.target(cond, action), other.target(cond, action))


def test_the_seed_decides_the_critics() -> None:
    cond, action, _ = batch(4)
    assert torch.equal(make(3)(cond, action), make(3)(cond, action))
    assert not torch.equal(make(3)(cond, action), make(4)(cond, action))
    assert len(make(num_critics=5)(cond, action)) == 5
