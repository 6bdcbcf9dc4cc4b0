"""The scale of rewards is the spread of discounted returns, summed up from their definition."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from denoiserl.core.rng import Rng
from denoiserl.envs.reward_scale import RewardScale


def spread(reward: Tensor, gamma: Tensor, done: Tensor) -> float:
    """The std of R_t = Σ_{s ≤ t} r_s Π_{s < j ≤ t} γ_j over the steps s of t's episode, by double sums."""
    steps, copies = reward.shape
    returns = [
        sum(
            float(reward[s, b]) * math.prod(gamma[s + 1 : t + 1, b].tolist())
            for s in range(t + 1)
            if not bool(done[s:t, b].any())
        )
        for b in range(copies)
        for t in range(steps)
    ]
    mean = math.fsum(returns) / len(returns)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in returns) / len(returns))


def experience() -> tuple[Tensor, Tensor, Tensor]:
    rng = Rng(0)
    return rng.normal(20, 3) + 1, rng.uniform(20, 3), rng.uniform(20, 3) < 0.2


def test_the_scale_is_the_spread_of_returns_with_a_discount_for_each_step() -> None:
    reward, gamma, done = experience()
    scale = RewardScale()
    scaled = scale(reward, gamma, done)
    assert scale.std == pytest.approx(spread(reward, gamma, done), rel=1e-5)
    torch.testing.assert_close(scaled * scale.std, reward)


def test_returns_go_on_from_one_part_of_an_episode_to_the_next() -> None:
    reward, gamma, done = experience()
    whole, parts = RewardScale(), RewardScale()
    whole(reward, gamma, done)
    for part in (slice(0, 7), slice(7, 8), slice(8, 20)):
        parts(reward[part], gamma[part], done[part])
    assert parts.std == pytest.approx(whole.std, rel=1e-6) and parts.mean == pytest.approx(whole.mean, rel=1e-6)
    assert parts.count == whole.count == 60


def test_a_border_forgets_running_returns_and_keeps_the_statistics() -> None:
    """After it, returns begin anew: as if every episode had ended there."""
    reward, gamma, done = experience()
    bordered, ended = RewardScale(), RewardScale()
    bordered(reward[:9], gamma[:9], done[:9])
    bordered.on_checkpoint(1)
    other = RewardScale()
    other.load_state_dict(bordered.state_dict())
    cut = done.clone()
    cut[8] = True
    for made in (bordered, other):
        made(reward[9:], gamma[9:], done[9:])
    ended(reward, gamma, cut)
    assert bordered.std == other.std == pytest.approx(ended.std, rel=1e-6)


def test_rewards_that_are_all_zero_are_not_magnified() -> None:
    scale, zero = RewardScale(0.01), torch.zeros(5, 2)
    assert torch.equal(scale(zero, zero, zero.bool()), zero) and scale.std == 0.01
