"""Copies of a single environment, stepped one by one in this process.

This is the reference among the owners of copies: a chunk stops exactly where its episode ends, a finished copy is
reset at once, no step is lost to automatic resets, and it is as fast as Gymnasium's ``SyncVectorEnv``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from denoiserl.env.chunk import Outcome, play

Make = Callable[[], Any]


def batch(observations: list[Any]) -> Any:
    """Stack observations (arrays, or dicts of arrays)."""
    if isinstance(observations[0], dict):
        return {k: batch([o[k] for o in observations]) for k in observations[0]}
    return np.stack(observations)


def refuse_nan(observation: Any, copies: list[int], name: str, where: str = "") -> None:
    """Refuse NaN or infinity in [B, ...], naming the copy: a NaN observation silently becomes a NaN action."""
    if isinstance(observation, dict):
        for key, value in observation.items():
            refuse_nan(value, copies, name, f" ({key!r})")
        return
    if observation.dtype.kind == "f" and not np.isfinite(observation).all():
        bad = ~np.isfinite(observation.reshape(len(observation), -1))
        row = int(bad.any(1).argmax())
        raise FloatingPointError(
            f"copy {copies[row]} of {name} returned NaN or infinity in its observation{where}, "
            f"entries {np.flatnonzero(bad[row])[:8].tolist()}: the simulation has diverged: bound its actions"
        )


class Singles:
    """``count`` copies made by ``make``; ``first`` is the number of the first one (workers own a part each)."""

    def __init__(self, make: Make, count: int, name: str = "the environment", first: int = 0) -> None:
        self.envs = [make() for _ in range(count)]
        self.name = name
        self.numbers = list(range(first, first + count))

    @property
    def count(self) -> int:
        return len(self.envs)

    def reset(self, seeds: list[int]) -> Any:
        """A new episode in every copy, seeded: observations [B, ...]."""
        self.start: list[Any] = [env.reset(seed=seed)[0] for env, seed in zip(self.envs, seeds, strict=True)]
        observation = batch(self.start)
        refuse_nan(observation, self.numbers, self.name)
        return observation

    def play(
        self, actions: np.ndarray, alive: np.ndarray, gamma: float, restart: bool = True, watch: Any = None
    ) -> Outcome:
        """One chunk [B, T_a, ...] in every copy that is ``alive`` [B]; the others stand still with length 0.

        ``restart`` starts the next episode where one ended. ``watch(copy, env)`` is called after every tick.
        """
        after, start, rows = list(self.start), list(self.start), []
        for i, env in enumerate(self.envs):
            if not alive[i]:
                rows.append((0.0, 0.0, False, False, 0, None))
                continue
            look = None if watch is None else (lambda e, i=i: watch(i, e))
            done = play(env, actions[i], gamma, look)
            after[i] = start[i] = done.observation
            if restart and (done.terminated or done.truncated):
                start[i] = env.reset()[0]
            rows.append((done.reward, done.raw, done.terminated, done.truncated, done.length, done.success))
        self.start = start
        reward, raw, terminated, truncated, length, success = zip(*rows, strict=True)
        known = any(s is not None for s in success)
        outcome = Outcome(
            batch(after),
            batch(start),
            np.array(reward),
            np.array(raw),
            np.array(terminated, bool),
            np.array(truncated, bool),
            np.array(length, np.int64),
            np.array([bool(s) for s in success]) if known else None,
        )
        refuse_nan(outcome.after, self.numbers, self.name)
        refuse_nan(outcome.start, self.numbers, self.name)
        return outcome

    def close(self) -> None:
        """Close every copy."""
        for env in self.envs:
            env.close()
