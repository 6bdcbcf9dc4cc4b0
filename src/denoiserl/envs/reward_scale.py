"""Reward scaling: divide rewards by the running standard deviation of the discounted return."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class RewardScale:
    """r / std(R), where R_t = r_t + γ_t (1 − done_{t−1}) R_{t−1} runs per environment (PPO's usual reward scaling).

    Mean and variance are Welford's over all steps so far; the divisor is at least ``min_std``. It has a state: name it
    in ``run.loop``.
    """

    def __init__(self, min_std: float = 1e-3) -> None:
        self.min_std, self.count, self.mean, self.squares = min_std, 0.0, 0.0, 0.0
        self.running: Tensor | None = None

    @property
    def std(self) -> float:
        """the divisor"""
        return max((self.squares / max(self.count, 1.0)) ** 0.5, self.min_std)

    def __call__(self, reward: Tensor, gamma: Tensor, done: Tensor, alive: Tensor | None = None) -> Tensor:
        """Return scaled rewards [T, B]; ``gamma`` [T, B]: discount of each step, ``done``: where an episode ended.

        ``active`` [T, B] bool: the valid steps (None: all). The others do not enter the statistics.
        """
        if self.running is None or self.running.shape != reward.shape[1:]:
            self.running = torch.zeros(reward.shape[1:], device=reward.device)
        seen = []
        for t in range(len(reward)):
            self.running = reward[t] + gamma[t] * self.running
            seen.append(self.running)
            self.running = torch.where(done[t], 0.0, self.running)
        batch = torch.stack(seen).double()
        batch = batch if alive is None else batch[alive]
        if batch.numel() == 0:
            return reward / self.std
        n, mean = float(batch.numel()), float(batch.mean())
        total, gap = self.count + n, mean - self.mean
        self.squares += float(((batch - mean) ** 2).sum()) + gap**2 * self.count * n / total
        self.mean, self.count = self.mean + gap * n / total, total
        return reward / self.std

    def on_checkpoint(self, iteration: int) -> None:
        """Reset the running returns: the environments are reset here."""
        self.running = None

    def state_dict(self) -> dict[str, Any]:
        """Return the statistics."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load saved statistics."""
        self.count, self.mean, self.squares = state["count"], state["mean"], state["squares"]
