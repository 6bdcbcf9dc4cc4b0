"""Rewards that differ by rounding are equal: no advantage, and dead, wherever there is a division."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from denoiserl.advantages import PerPromptStatTracker, dead_groups, group_relative, leave_one_out, normalise
from denoiserl.advantages.checks import resolution
from denoiserl.doctor.signal import check_rewards
from denoiserl.recipes.generators.rwr import top_share_weights
from denoiserl.rewards import evaluate_reward, rate

LEVELS = (0.35, -0.35, 1.0, 1e8, -3e-7, 0.1)


def remembered(reward: Tensor) -> Tensor:
    return PerPromptStatTracker(64, 2).update(["a"] * len(reward), reward)


def unknown(reward: Tensor) -> Tensor:
    """A prompt without a memory: the batch's statistics."""
    return PerPromptStatTracker(64, 64).update(["a"] * len(reward), reward)


WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    **{scale: lambda r, s=scale: group_relative(r[None], s)[0] for scale in ("std", "sample_std", "batch", "none")},
    "leave one out": lambda r: leave_one_out(r[None])[0],
    "normalise": normalise,
    "prompt": remembered,
    "unknown prompt": unknown,
}


def ulps(level: float, steps: int, dtype: torch.dtype) -> Tensor:
    """``level`` and the number ``steps`` representable numbers nearer to 0."""
    x = torch.tensor([level, level], dtype=dtype)
    for _ in range(steps):
        x[1] = torch.nextafter(x[1], torch.zeros((), dtype=dtype))
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("way", WAYS)
def test_rounding_is_no_preference(way: str, level: float, dtype: torch.dtype) -> None:
    """Three representable numbers apart is a tie; sixteen are a preference, as large as any other."""
    for steps in (1, 3):
        near = ulps(level, steps, dtype).repeat(4)
        assert torch.equal(WAYS[way](near), torch.zeros(8, dtype=dtype))
        assert bool(dead_groups(near[None]))
    apart = WAYS[way](ulps(level, 16, dtype).repeat(4))
    assert bool((apart.sign() == (torch.tensor([1, -1] * 4) if level > 0 else torch.tensor([-1, 1] * 4))).all())


@pytest.mark.parametrize("x", [1.0, 1.5, 2.0, 0.7, 1e-20, 3e20])
def test_four_units_in_the_last_place(x: float) -> None:
    """From the definition: the next number above x, four times."""
    for dtype in (torch.float32, torch.float64):
        at = torch.tensor(x, dtype=dtype)
        assert resolution(at) == 4 * (torch.nextafter(at, torch.full_like(at, torch.inf)) - at)


def test_a_tie_is_judged_within_its_group() -> None:
    """A spread that is rounding beside large rewards is a preference beside small ones."""
    reward = torch.tensor([[1000.0, 1000.0 + 1e-4], [1e-4, 2e-4]])
    assert dead_groups(reward).tolist() == [True, False]
    for scale in ("std", "batch"):
        advantage = group_relative(reward, scale)
        assert torch.equal(advantage[0], torch.zeros(2)) and float(advantage[1, 1]) > 0


def test_a_sample_that_is_dropped_decides_no_tie() -> None:
    reward, valid = torch.tensor([[1e-4, 2e-4, 1e6]]), torch.tensor([[True, True, False]])
    assert group_relative(reward, valid=valid).tolist() == [[-1.0, 1.0, 0.0]]


def test_parts_that_cancel_are_zero() -> None:
    """0.1 + 0.2 - 0.3 is no reward of 3e-8, neither in one sample nor in the other."""
    x, parts = torch.zeros(4, 1), torch.tensor([1.0, 0.0, 3.0, 0.5])
    weights = {"a": 0.1, "b": 0.2, "c": -0.3}
    total = evaluate_reward(lambda *_: dict.fromkeys(weights, parts), x, x, weights).total
    assert torch.equal(total, torch.zeros(4))
    kept = evaluate_reward(lambda *_: {"a": [1.0, 0.0], "b": [-1.0 + 1e-5, 1e-9]}, x[:2], x[:2]).total
    torch.testing.assert_close(kept, torch.tensor([1e-5, 1e-9]), rtol=1e-2, atol=0.0)


def test_a_constant_beside_parts_that_cancel_is_a_tie() -> None:
    """Every true total is 0.1; float32 keeps no more of 1000 - 999.9 than 6e-5, so nobody is better."""
    x = 1000 * (1 + torch.rand(64, generator=torch.Generator().manual_seed(0)))
    few, parts = torch.zeros(64, 1), {"a": x, "b": 3 * x, "c": torch.full((64,), 0.1)}
    total, _ = rate(lambda sample, prompts: parts, few, None, {"a": 0.3, "b": -0.1, "c": 1.0})
    assert torch.allclose(total, torch.full((64,), 0.1), atol=1e-3)
    assert torch.count_nonzero(group_relative(total.view(1, 64))) == 0
    better = {**parts, "c": torch.arange(64.0) / 64}  # 0.016 apart: a preference
    total, _ = rate(lambda sample, prompts: better, few, None, {"a": 0.3, "b": -0.1, "c": 1.0})
    assert bool((total.diff() > 0).all())


def test_totals_of_parts_that_do_not_cancel_stay_as_they_are() -> None:
    near = torch.tensor([1.0, 1.0 + 2**-23, 2.0, -1.0])
    total, _ = rate(lambda sample, prompts: {"a": near, "b": 0 * near}, torch.zeros(4, 1), None)
    assert torch.equal(total, near)


def test_the_best_share_takes_ties() -> None:
    """Rewards that are equal up to rounding are learned from alike, in the whole row and at the threshold."""
    near = torch.cat([ulps(0.35, 2, torch.float32), ulps(0.35, 1, torch.float32)])[None]
    whole = torch.ones(1, 4, dtype=torch.bool)
    assert torch.equal(top_share_weights(near, 0.25, whole), torch.ones(1, 4))
    row = torch.cat([near[0, :2], torch.tensor([0.1, 0.2])])[None]
    assert top_share_weights(row, 0.25, whole).tolist() == [[2.0, 2.0, 0.0, 0.0]]


def test_the_doctor_calls_a_tie_constant() -> None:
    assert check_rewards(ulps(0.35, 1, torch.float32).repeat(4, 2)).level == "error"
