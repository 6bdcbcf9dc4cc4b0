"""Environments that return their last T_o observations, for policies with a history."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from denoiserl.core.errors import InvalidInputError, require
from denoiserl.core.tree import tree_map
from denoiserl.envs import ids
from denoiserl.envs.backends.answer import restart
from denoiserl.envs.backends.make import make_backend
from denoiserl.envs.backends.sync import Make
from denoiserl.envs.spaces import kind


class ObservationHistory:
    """``make()`` with its last ``n`` observations as one, oldest first; an episode begins with n times the first.

    Flat observations [o] become [n·o]; every other array, alone or in a dict, becomes [n, ...].
    """

    def __init__(self, make: Callable[[], Any], n: int) -> None:
        if n < 1:
            raise InvalidInputError(f"an observation history has at least one observation, not {n}")
        self.env, self.n = make(), n
        if hasattr(self.env, "num_envs"):
            raise InvalidInputError(
                f"{type(self.env).__name__} is a batched environment: an observation history needs single ones"
            )
        self.seen: deque[Any] = deque(maxlen=n)
        self.action_space = self.env.action_space
        self.observation_space = self._stacked(self.env.observation_space)

    def _stacked(self, space: Any, inner: bool = False) -> Any:
        spaces = require("gymnasium", "demo").spaces
        if kind(space) not in ("Dict", "Box"):
            raise InvalidInputError(
                f"an observation history takes arrays and dicts of them, not {type(space).__name__}: flatten it first"
            )
        if kind(space) == "Dict":
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
        """Start a new episode."""
        observation, info = restart(self.env, seed=seed, **({} if options is None else {"options": options}))
        self.seen.extend([_arrays(observation)] * self.n)
        return self._view(), info

    def step(self, action: Any) -> Any:
        """Take one step and return Gymnasium's five values."""
        result = self.env.step(action)
        if not isinstance(result, tuple | list) or len(result) != 5:
            return result  # the backend raises a clear error
        observation, *rest = result
        self.seen.append(_arrays(observation))
        return self._view(), *rest

    def __getattr__(self, name: str) -> Any:
        if name == "env":  # before it is made
            raise AttributeError(name)
        return getattr(self.env, name)


def _arrays(observation: Any) -> Any:
    """Return an observation as an array, or a dict of them."""
    if isinstance(observation, dict):
        return {k: _arrays(v) for k, v in observation.items()}
    return np.asarray(observation)


def history(policy: Any) -> int:
    """Return T_o, the number of observations that a policy takes at once: its codec's ``history``, else 1."""
    return int(getattr(policy.codec, "history", 1))


def with_policy_history(env: Any, policy: Any) -> Any:
    """Return ``env`` with its last T_o observations, if the policy's codec has such a ``history``.

    Return ``env`` itself if it already has them, or if the policy takes one observation.
    """
    n = history(policy)
    if n == 1:
        return env
    owner, spec = make_backend(env, 1)
    owner.close()
    if _shows(spec.obs, policy.codec.sizes, n):
        return env
    make: Make = partial(ids.make, env) if isinstance(env, str) else env
    made = partial(ObservationHistory, make, n)
    made.__name__ = owner.name  # type: ignore[attr-defined]  # its name in messages
    return made


def _shows(seen: Any, sizes: dict[str, int], n: int) -> bool:
    """Return whether observations of these shapes hold n frames of parts of these ``sizes``."""
    if isinstance(seen, dict):
        return any(seen.get(name, ()) in ((n * size,), (n, size)) for name, size in sizes.items())
    whole = sum(sizes.values())
    return seen in ((n * whole,), (n, whole))


def newest_frame(observations: Any, n: int, inner: bool = False) -> Any:
    """Return the newest frame of observations [B, ...] of ``ObservationHistory`` with n frames."""
    if isinstance(observations, dict):
        return {k: newest_frame(v, n, True) for k, v in observations.items()}
    flat = observations.ndim == 2 and not inner
    return observations[:, -(observations.shape[1] // n) :] if flat else observations[:, -1]
