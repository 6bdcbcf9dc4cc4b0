"""Small worlds in which every term counts: several dimensions, a box that is not [−1, 1], negative rewards, episodes
that truly end and episodes that a time limit cuts, at ticks that are no multiple of a chunk."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np


class Drift(gymnasium.Env):
    """s' = s + a / 2 (d = 2), reward −|s|² − |a|² / 4 − 1. Ends truly where |s| > 1.5; cut after ``LIMIT`` ticks."""

    LIMIT = 5

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = gymnasium.spaces.Box(np.array([-1, 0], np.float32), np.array([3, 2], np.float32))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.s, self.ticks = self.np_random.uniform(-1, 1, 2), 0
        return self.s.astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        a = np.asarray(action, float)
        self.s, self.ticks = self.s + 0.5 * (a - 1), self.ticks + 1
        reward = -float(self.s @ self.s) - float(a @ a) / 4 - 1
        return self.s.astype(np.float32), reward, bool(np.linalg.norm(self.s) > 1.5), self.ticks >= self.LIMIT, {}
