"""What a critic makes of an episode of five decisions, and what is told of it, worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from denoiserl.control.acting import AdvantageEstimate, normalise_minibatch, rollout_metrics
from denoiserl.control.value_baseline import estimate_advantages
from denoiserl.data.rollout import Fault, Rollout
from denoiserl.envs.reward_scale import RewardScale


def experience() -> Rollout:
    """Chunks of 1 tick, 2, 2, none (lost to a fault) and 1: a time limit ends the second, a true end the last."""
    column = lambda *v: torch.tensor(v)[:, None]  # noqa: E731
    ticks, fault = column(1, 2, 2, 0, 1), (Fault(0, 2, "lost"),)
    over, done = column(False, False, False, False, True), column(False, True, False, True, True)
    info = {"return": column(1.0, 3.0, 4.0, 4.0, 7.0), "length": column(1, 3, 2, 2, 5)}
    seen, after = column(0.0, 1.0, 2.0, 5.0, 1.0), column(1.0, 7.0, 3.0, 9.0, 100.0)
    reward, mask = column(1.0, 2.0, 4.0, 0.0, 3.0), torch.arange(2) < ticks[..., None]
    return Rollout(
        seen[..., None], after[..., None], torch.zeros(5, 1, 2, 1), reward, over, done, ticks, mask, None, info, fault
    )


def test_advantages_are_discounted_by_the_ticks_of_their_chunks() -> None:
    """γ = λ = ½. Returns while acting: 1, then 2 + ¼ · 1; after the limit 4; after the fault 3."""
    critic = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Flatten(0))  # the value of a feature is itself
    critic[0].weight.data.fill_(1.0)  # type: ignore[union-attr]
    found = estimate_advantages(experience(), critic, lambda o: o, RewardScale(), 0.5, 0.5)
    std = float(torch.tensor([1.0, 2.25, 4.0, 3.0]).std(correction=0))
    second = 2 / std + 0.25 * 7 - 1
    lost = 1 * 9 - 5  # of no ticks: not discounted, and to be left out
    wanted = [
        1 / std + 0.5 * 1 - 0 + 0.5 * 0.5 * second, second, 4 / std + 0.25 * 3 - 2 + 0.25 * 0.5 * lost, lost,
        3 / std - 1,
    ]  # fmt: skip
    assert found.advantages.flatten().tolist() == pytest.approx(wanted, rel=1e-5)
    assert found.features.flatten().tolist() == found.values.flatten().tolist() == [0.0, 1.0, 2.0, 5.0, 1.0]
    assert found.returns.tolist() == pytest.approx(
        [a + v for a, v in zip(wanted, [0, 1, 2, 5, 1], strict=True)], rel=1e-5
    )
    assert not found.returns.requires_grad


def test_metrics_are_means_over_what_happened() -> None:
    """Two episodes ended, of 3 and 7; of the values the lost decision's alone was far off."""
    ep = experience()
    told = {
        "rollout/num_episodes": 2.0,
        "rollout/return": 5.0,
        "rollout/length": 4.0,
        "rollout/num_faults": 1.0,
        "rollout/reward": 2.5,
    }
    assert rollout_metrics(ep) == told
    values, zero = torch.tensor([[1.0], [-3.0], [1.0], [100.0], [3.0]]), torch.zeros(5)
    judged = AdvantageEstimate(zero[:, None], values, values, zero)
    assert rollout_metrics(ep, judged) == told | {"loss/value": (1 + 9 + 1 + 9) / 4}


def test_a_minibatch_of_one_is_left_as_it_is_and_others_are_standardised() -> None:
    assert normalise_minibatch(torch.tensor([5.0])).tolist() == [5.0]
    assert normalise_minibatch(torch.tensor([1.0, 5.0])).tolist() == [-1.0, 1.0]
