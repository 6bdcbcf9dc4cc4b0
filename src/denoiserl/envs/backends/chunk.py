"""A chunk of actions is one step: the semantics, on one environment.

A policy that plans T_a actions at once decides every T_a ticks. Its step executes up to T_a actions, stops where the
episode ends, and has the reward Σ_i γ^i r_i over the executed ticks (in-chunk γ, by default 1). What was not executed
did not happen: ``length`` says how far the step went.

Only numpy here: worker processes import this module, ``answer`` and ``single`` alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from denoiserl.data.rollout import Fault
from denoiserl.envs.backends.answer import answer, said_success


class ChunkResult(NamedTuple):
    """What a step did, for B copies. Observations are arrays [B, ...] or dicts of them.

    ``after``: the true next observation, also where the episode ended. ``start``: the observation to act on next
    (that of a new episode where one ended). ``raw``: the plain sum of rewards. ``first`` [B]: the tick of the step,
    counted from 1, that first reported success, 0 where none did. ``held`` [B]: the last report of the step, 1 or 0,
    and -1 where there was none; None where no copy reported. ``faults``: what went wrong and was mended; a decision
    lost to a fault has length 0, is truncated, and has what it started from as ``after``.
    """

    after: Any
    start: Any
    reward: np.ndarray
    raw: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    length: np.ndarray
    first: np.ndarray
    held: np.ndarray | None
    faults: tuple[Fault, ...] = ()

    @property
    def done(self) -> np.ndarray:
        """Return whether each episode ended in the step [B], by a time limit too."""
        return self.terminated | self.truncated

    @property
    def success(self) -> np.ndarray | None:
        """Return whether each copy reported success in the step [B], or None where no copy reported."""
        return None if self.held is None else self.first > 0


class SingleChunkResult(NamedTuple):
    """A chunk on one environment: the last observation and what ``ChunkResult`` says of one copy."""

    observation: Any
    reward: float
    raw: float
    terminated: bool
    truncated: bool
    length: int
    first: int
    held: int


class Interrupted(Exception):
    """The environment raised (the cause) in tick ``tick`` of a chunk, counted from 1."""

    def __init__(self, tick: int) -> None:
        super().__init__(tick)
        self.tick = tick


def step_chunk(env: Any, actions: Any, gamma: float = 1.0, watch: Any = None) -> SingleChunkResult:
    """Execute ``actions`` (a sequence of T_a) on one Gymnasium environment until they or the episode end.

    What the environment raises is the cause of an ``Interrupted``; an answer that cannot be read is a
    InvalidInputError.
    """
    reward = raw = 0.0
    weight = 1.0
    observation, terminated, truncated, length, first, held = None, False, False, 0, 0, -1
    for action in actions:
        try:
            told = env.step(action)
        except Exception as error:
            raise Interrupted(length + 1) from error
        try:
            observation, gain, terminated, truncated, info = told
            gain, over, said = float(gain), bool(terminated or truncated), said_success(info) if info else None
            if over and not (type(terminated) is bool and type(truncated) is bool):
                answer(told, env)  # a word such as "False" is true
        except (TypeError, ValueError):  # another form of the five values, or none
            observation, gain, terminated, truncated, info = answer(told, env)
            over, said = terminated or truncated, said_success(info)
        length += 1
        reward += weight * gain
        raw += gain
        weight *= gamma
        if said is not None:
            held = int(said)
            if said and not first:
                first = length
        if watch is not None:
            watch(env)
        if over:
            break
    return SingleChunkResult(observation, reward, raw, bool(terminated), bool(truncated), length, first, held)
