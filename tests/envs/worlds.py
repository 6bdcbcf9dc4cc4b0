"""Hand-written environments whose every number is known."""

from __future__ import annotations

import os
import time
from typing import Any

import gymnasium
import numpy as np


class Counting(gymnasium.Env[Any, Any]):
    """Observes (episode start s, ticks). The start s comes from the seed. Terminates after ``life`` ticks when s is
    even and is truncated then when s is odd. The reward is the tick's number plus the first action."""

    def __init__(self, life: int = 5, low: int = 0, high: int = 100_000, vary: bool = False) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.life, self.low, self.high, self.vary = life, low, high, vary

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.start = int(self.np_random.integers(self.low, self.high))
        self.limit = self.life + (self.start % 3 if self.vary else 0)
        self.ticks = 0
        return self.observe(), {}

    def observe(self) -> Any:
        return np.array([self.start, self.ticks], np.float64)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self.ticks += 1
        over = self.ticks >= self.limit
        even = self.start % 2 == 0
        info = {"success": over and even}
        return self.observe(), self.ticks + float(action[0]), over and even, over and not even, info


class Blind(Counting):
    """Never says whether it succeeded."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        *rest, _ = super().step(action)
        return *rest, {}  # type: ignore[return-value]


class Sick(Counting):
    """One start in ``one_in`` is sick: something goes wrong in tick ``tick`` of such an episode, or in its reset."""

    def __init__(
        self, kind: str, tick: int = 3, life: int = 5, low: int = 0, high: int = 100_000, one_in: int = 2
    ) -> None:
        super().__init__(life, low, high)
        self.kind, self.tick, self.one_in = kind, tick, one_in

    @property
    def sick(self) -> bool:
        return self.start % self.one_in == 1

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        told = super().reset(seed=seed)
        if self.kind == "reset" and self.sick:
            raise OSError("the simulator is busy")
        return told

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        if self.sick and self.ticks == self.tick:
            if self.kind == "raise":
                raise ZeroDivisionError("the wheel came off")
            if self.kind == "hang":
                time.sleep(60)
            if self.kind == "die":
                os._exit(7)
            observation = observation * (np.nan if self.kind == "nan" else 1.0)
            reward = np.nan if self.kind == "reward" else reward
        return observation, reward, terminated, truncated, info


class Broken(Counting):
    """Its observation becomes NaN at the third tick."""

    def observe(self) -> Any:
        return super().observe() * (np.nan if self.ticks == 3 else 1.0)


class Choices(Counting):
    """Takes one of three actions and gives its number as the reward."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = gymnasium.spaces.Discrete(3)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.ticks += 1
        return self.observe(), float(action), False, self.ticks >= self.life, {}


class Parts(Counting):
    """Observes a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gymnasium.spaces.Dict(
            {
                "start": gymnasium.spaces.Box(-np.inf, np.inf, (1,)),
                "image": gymnasium.spaces.Box(0, 255, (2, 2), np.uint8),
            }
        )

    def observe(self) -> Any:
        return {"start": np.array([self.start], np.float32), "image": np.full((2, 2), self.ticks, np.uint8)}
