"""Environments that show their last observations: what policies with a memory of T_o observations see."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from denoiserl.errors import BadSignal, need
from denoiserl.tree import tree_map


class Remembering:
    """``make()`` with its last ``n`` observations as one, oldest first; an episode begins with n times the first.

    Flat observations [o] become [n·o], and every other array, alone or in a dict, [n, ...].
    """

    def __init__(self, make: Callable[[], Any], n: int) -> None:
        if n < 1:
            raise BadSignal(f"an environment shows its last observation at least, not its last {n}")
        self.env, self.n = make(), n
        if hasattr(self.env, "num_envs"):
            raise BadSignal(f"{type(self.env).__name__} is a batched world: only single environments remember")
        self.seen: deque[Any] = deque(maxlen=n)
        self.action_space = self.env.action_space
        self.observation_space = self._stacked(self.env.observation_space)

    def _stacked(self, space: Any, inner: bool = False) -> Any:
        spaces = need("gymnasium", "demo").spaces
        if isinstance(space, spaces.Dict):
            return spaces.Dict({k: self._stacked(v, True) for k, v in space.spaces.items()})
        low, high = (self._joined([v] * self.n, inner) for v in (space.low, space.high))
        return spaces.Box(low, high, dtype=space.dtype)

    def _joined(self, parts: list[np.ndarray], inner: bool) -> np.ndarray:
        return np.concatenate(parts) if parts[0].ndim == 1 and not inner else np.stack(parts)

    def _view(self) -> Any:
        parts = list(self.seen)
        inner = isinstance(parts[0], dict)
        return tree_map(lambda *v: self._joined(list(v), inner), parts[0], *parts[1:])

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """A new episode."""
        observation, info = self.env.reset(seed=seed, options=options)
        self.seen.extend([observation] * self.n)
        return self._view(), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One tick."""
        observation, *rest = self.env.step(action)
        self.seen.append(observation)
        return self._view(), *rest

    def __getattr__(self, name: str) -> Any:
        if name == "env":  # before it is made
            raise AttributeError(name)
        return getattr(self.env, name)
