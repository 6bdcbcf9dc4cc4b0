"""Execute a chunk of actions as one decision, on one environment.

A policy that plans T_a actions at once decides every T_a steps. One decision executes up to T_a actions and stops where
the episode ends. Its reward is Σ_i γ^i r_i over the executed steps (γ inside the chunk, by default 1); ``length`` is
their number.

This module imports only NumPy: worker processes import it, ``answer`` and ``sync`` alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from denoiserl.data.rollout import Fault
from denoiserl.envs.backends.answer import answer, said_success


class ChunkResult(NamedTuple):
    """The result of one decision in B environments. Observations are arrays [B, ...] or dicts of them.

    ``after``: the true next observation, also where the episode ended. ``start``: the observation to act on next (of a
    new episode where one ended). ``raw``: the undiscounted sum of rewards. ``first`` [B]: the first step of the
    decision that reported success, counted from 1; 0 for none. ``last_success`` [B]: the last report of the decision, 1
    or 0, and -1 for none; None if no environment reported.

    ``faults``: faults that were repaired. A decision lost to a fault has length 0, is truncated, and has its own
    observation as ``after``.
    """

    after: Any
    start: Any
    reward: np.ndarray
    raw: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    length: np.ndarray
    first: np.ndarray
    last_success: np.ndarray | None
    faults: tuple[Fault, ...] = ()

    @property
    def done(self) -> np.ndarray:
        """Return whether each episode ended in the decision [B], time limits included."""
        return self.terminated | self.truncated

    @property
    def success(self) -> np.ndarray | None:
        """Return whether each environment reported success in the decision [B], or None if none reported."""
        return None if self.last_success is None else self.first > 0


class SingleChunkResult(NamedTuple):
    """A chunk on one environment: the last observation, and the fields of ``ChunkResult`` for it."""

    observation: Any
    reward: float
    raw: float
    terminated: bool
    truncated: bool
    length: int
    first: int
    last_success: int


class Interrupted(Exception):
    """The environment raised (the cause) in step ``step`` of a chunk, counted from 1."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


def step_chunk(env: Any, actions: Any, gamma: float = 1.0, on_step: Any = None) -> SingleChunkResult:
    """Execute ``actions`` (a sequence of T_a) on one Gymnasium environment until they or the episode end.

    Raise Interrupted if the environment raises (its cause), InvalidInputError if its result cannot be read.
    """
    reward = raw = 0.0
    weight = 1.0
    observation, terminated, truncated, length, first, last_success = None, False, False, 0, 0, -1
    for action in actions:
        try:
            result = env.step(action)
        except Exception as error:
            raise Interrupted(length + 1) from error
        try:
            observation, gain, terminated, truncated, info = result
            gain, over, said = float(gain), bool(terminated or truncated), said_success(info) if info else None
            if over and not (type(terminated) is bool and type(truncated) is bool):
                answer(result, env)  # a string such as "False" is true
        except (TypeError, ValueError):  # another form of the five values, or none
            observation, gain, terminated, truncated, info = answer(result, env)
            over, said = terminated or truncated, said_success(info)
        length += 1
        reward += weight * gain
        raw += gain
        weight *= gamma
        if said is not None:
            last_success = int(said)
            if said and not first:
                first = length
        if on_step is not None:
            on_step(env)
        if over:
            break
    return SingleChunkResult(observation, reward, raw, bool(terminated), bool(truncated), length, first, last_success)
