"""Windows of trajectories: which steps they hold, and which transitions come out of made ones."""

from __future__ import annotations

import pytest
import torch

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng
from denoiserl.data.trajectories import StepLayout, slice_windows, windows_to_transitions

LENGTHS = torch.tensor([6, 3, 7])
ENDED = torch.tensor([False, True, True])


def steps() -> dict[str, torch.Tensor]:
    """Three episodes; what is seen is the number of the step, what is done tells it too."""
    at = torch.arange(16).float()
    return {"obs": at[:, None], "action": (at / 8 - 1)[:, None], "reward": -at[:, None]}


def windowed(length: int = 4, stride: int = 1) -> dict[str, torch.Tensor]:
    return slice_windows(steps(), LENGTHS.cumsum(0), ENDED, length, stride)


def test_windows_stay_in_their_episode_and_tell_true_ends() -> None:
    made = windowed()
    seen, done = made["obs"][..., 0].int().tolist(), made["done"][..., 0].int().tolist()
    found = dict(zip(map(tuple, seen), done, strict=True))
    assert found[(0, 1, 2, 3)] == [0, 0, 0, 0] and found[(2, 3, 4, 5)] == [0, 0, 0, 0]  # cut by a time limit
    assert not any(row[0] in (3, 4, 5) for row in seen), "nothing is known beyond a time limit"
    assert found[(6, 7, 8, 8)] == [0, 0, 1, 1] and found[(8, 8, 8, 8)] == [1, 1, 1, 1]
    assert found[(12, 13, 14, 15)] == [0, 0, 0, 1] and len(seen) == 3 + 3 + 7
    assert len(windowed(stride=4)["obs"]) == 4
    with pytest.raises(InvalidInputError, match="shorter windows"):
        slice_windows(steps(), LENGTHS.cumsum(0), torch.zeros(3, dtype=torch.bool), 8)


def test_the_transitions_of_real_windows_are_those_of_their_episodes() -> None:
    made = windowed()
    track = StepLayout.fit(made)
    rows = windows_to_transitions(track.decode(track.encode(made)), -torch.ones(1), torch.ones(1), 0.9)
    columns = (rows.obs, rows.next_obs, rows.terminated)
    pairs = {(round(float(o)), round(float(n)), bool(t)) for o, n, t in zip(*columns, strict=True)}
    inside = {(i, i + 1, False) for i in [0, 1, 2, 3, 4, 6, 7, 9, 10, 11, 12, 13, 14]}
    ends = {(8, True), (15, True)}
    assert {p for p in pairs if not p[2]} == inside and {(p[0], p[2]) for p in pairs if p[2]} == ends
    torch.testing.assert_close(rows.action[:, 0], (rows.obs / 8 - 1).clamp(-0.999, 0.999), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(rows.reward[:, None], -rows.obs, atol=1e-4, rtol=1e-4)
    assert torch.equal(rows.discount, 0.9 * ~rows.terminated)


def test_nothing_is_taken_beyond_a_step_that_is_unsure_of_the_end() -> None:
    parts = {k: v[:1].clone() for k, v in windowed().items()} | {"sure": torch.ones(1, 4, 1, dtype=torch.bool)}
    whole = windows_to_transitions(parts, -torch.ones(1), torch.ones(1), 0.9)
    assert whole.obs.flatten().tolist() == [0, 1, 2]
    parts["sure"][0, 1] = False
    assert windows_to_transitions(parts, -torch.ones(1), torch.ones(1), 0.9).obs.flatten().tolist() == [0]
    parts["sure"][0, 0] = False
    with pytest.raises(InvalidInputError, match="no step with a clear end flag"):
        windows_to_transitions(parts, -torch.ones(1), torch.ones(1), 0.9)


def test_decisions_lie_in_the_box_and_have_gradients() -> None:
    made = windowed()
    track = StepLayout.fit(made)
    z = (5 * Rng(0).normal(3, 4, track.size)).requires_grad_()
    seen, done = track.decision(z)
    assert bool((done.abs() <= 1).all())
    (slope,) = torch.autograd.grad(done.sum(), z)
    assert bool((slope[..., track.acts] > 0).any())
    outside = [i for i in range(track.size) if not track.acts.start <= i < track.acts.stop]
    assert not bool(slope[..., outside].any())
    assert torch.equal(seen[..., 0], track.obs.decode(z.flatten(0, 1)[:, :1]).view(3, 4))
