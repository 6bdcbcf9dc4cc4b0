"""An environment in which every episode of four steps succeeds."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box


class Easy(gymnasium.Env):
    """Observes the step and the last action; the reward is minus the action's distance from 0.3."""

    observation_space, action_space = Box(-1, 4, (2,), np.float32), Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.ticks, self.last = 0, float(self.np_random.uniform(-1, 1))
        return np.array([self.ticks, self.last], np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.ticks, self.last = self.ticks + 1, float(np.clip(action[0], -1, 1))
        over = self.ticks == 4
        seen = np.array([self.ticks, self.last], np.float32)
        return seen, -abs(self.last - 0.3), over, False, {"success": over}
