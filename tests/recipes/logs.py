"""Recorded episodes in which every term counts, the decisions that learning makes of them, and critics near zero.

Episodes end truly or are cut, at ticks that are no multiple of a chunk; rewards have both signs; actions fill a box
that is not [−1, 1]; and observations leave the range at which a policy clips them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from denoiserl.data import ActionChunkCodec, Demonstrations, Normalizer
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.nn import Critics
from tests.recipes.kit import Tape

LENGTHS = (5, 4, 1, 3, 2, 7, 1)
ENDED = (True, False, False, True, False, False, True)
"""of every episode its ticks, and whether it truly ended"""
LOW, HIGH = torch.tensor([-1.0, 0.0]), torch.tensor([3.0, 2.0])
CENTRE, HALF = torch.tensor([1.0, 1.0]), torch.tensor([2.0, 1.0])
MEAN, STD, LIMIT = torch.tensor([0.3, -0.2, 0.1]), torch.tensor([0.7, 1.4, 1.0]), 1.2
"""of observations, in the units of a policy, and where those are clipped"""


def recording(seed: int = 5, times: int = 1) -> EpisodeDataset:
    """Return episodes of these lengths, ``times`` over: observations [3], actions [2], rewards around −1."""
    torch.manual_seed(seed)
    n, episodes = sum(LENGTHS) * times, len(LENGTHS) * times
    ends = torch.tensor(LENGTHS * times).cumsum(0)
    actions = CENTRE + HALF * (2.4 * torch.rand(n, 2) - 1.2).clamp(-1, 1)
    demos = Demonstrations(torch.randn(n, 3), actions, ends, name="the episodes")
    ended = torch.tensor(ENDED * times)
    return EpisodeDataset(demos, 2 * torch.randn(n) - 1, torch.randn(episodes, 3), ended, LOW, HIGH)


def robot() -> ActionChunkCodec:
    """Return what turns data into these units, for policies whose decisions are actions in [−1, 1]."""
    seen = replace(Normalizer.identity(3), centre=MEAN, scale=STD)
    return ActionChunkCodec(seen, replace(Normalizer.identity(2), centre=CENTRE, scale=HALF, low=LOW, high=HIGH), LIMIT)


def units(obs: Tensor) -> Tensor:
    """Observations as a policy sees them."""
    return ((obs - MEAN) / STD).clamp(-LIMIT, LIMIT)


def decisions(data: EpisodeDataset, H: int, n: int, gamma: float) -> list[dict[str, Any]]:
    """Return the decision of every tick, with a return of n chunks of H ticks, R = Σ_{k<m} γ^k r_{t+k}.

    ``discount`` is γ^m, or 0 where the episode truly ended within the m ticks. ``chunk`` [H, 2] holds actions in
    [−1, 1], and ``real`` [H] tells which of them were taken. ``next_obs`` was seen after the last of the m ticks.
    """
    assert data.rewards is not None and data.terminated is not None
    rows, at = [], 0
    for episode, end in enumerate(data.demos.ends.tolist()):
        for t in range(at, end):
            m = min(n * H, end - t)
            over = t + m == end
            reward = sum(gamma**k * float(data.rewards[t + k]) for k in range(m))
            chunk = torch.stack([data.demos.actions[min(t + k, end - 1)] for k in range(H)])
            rows.append({
                "obs": units(data.demos.observations[t]),
                "next_obs": units(data.last[episode] if over else data.demos.observations[t + m]),
                "chunk": (chunk - CENTRE) / HALF,
                "real": torch.tensor([t + k < end for k in range(H)]),
                "reward": reward,
                "discount": 0.0 if over and bool(data.terminated[episode]) else gamma**m,
                "cut": over and not bool(data.terminated[episode]),
            })  # fmt: skip
        at = end
    return rows


def batch(rows: list[dict[str, Any]], index: Tensor, filler: Tensor) -> tuple[Tensor, ...]:
    """Return rows ``index`` [B] side by side: s, a, r, γ^m, s', and which actions were taken [B, H, 2].

    Actions that were not taken are ``filler`` [B, H, 2], even in [0, 1), as even numbers in [−1, 1).
    """
    picked = [rows[i] for i in index.tolist()]
    s, a, after, real = (torch.stack([r[k] for r in picked]) for k in ("obs", "chunk", "next_obs", "real"))
    reward, discount = (torch.tensor([r[k] for r in picked]) for k in ("reward", "discount"))
    real = real[:, :, None].expand(a.shape)
    a = torch.where(real, a, 2 * filler - 1)
    assert 0.0 in discount.tolist() and any(r["cut"] for r in picked), "true ends and time limits"
    assert a.shape[1] == 1 or not bool(real.all()), "chunks that end early"
    return s, a, reward, discount, after, real


class Level(Tape):
    """A tape beside which critics start with values of both signs, which rise and fall with the first observation."""

    size = 1.0

    def init(self, make: Callable[..., Any], *given: Any, **more: Any) -> Any:
        """Make a module, as the stream does."""
        made = super().init(make, *given, **more)
        if isinstance(made, Critics):
            enter, middle, leave = made.weights
            with torch.no_grad():
                for unit, sign in ((0, 1.0), (1, -1.0)):
                    enter[:, 0, unit] += 3 * sign
                    middle[:, unit, unit] += 1
                    leave[:, unit] += 2 * sign
                leave.mul_(self.size)
                made.biases[-1].mul_(self.size)
        return made


class Faint(Level):
    """A tape beside which critics start with values of 1e-5: less than the floor under the pace of an actor."""

    size = 1e-5
