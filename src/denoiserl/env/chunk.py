"""A chunk of actions is one step: the semantics, on one environment.

A policy that plans T_a actions at once decides every T_a ticks. Its step executes up to T_a actions, stops where the
episode ends, and has the reward Σ_i γ^i r_i over the executed ticks (in-chunk γ, by default 1). What was not executed
did not happen: ``length`` says how far the step went.

Only numpy here: worker processes import this module and ``single`` alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from denoiserl.env.faults import Fault


@dataclass(frozen=True)
class Outcome:
    """What a step did, for B copies. Observations are arrays [B, ...] or dicts of them.

    ``after``: the true next observation, also where the episode ended. ``start``: the observation to act on next
    (that of a new episode where one ended). ``success``: whether the environment reported success by the end of the
    step, or None if it never reports. ``raw``: the plain sum of rewards. ``faults``: what went wrong and was mended;
    a decision lost to a fault has length 0, is truncated, and has what it started from as ``after``.
    """

    after: Any
    start: Any
    reward: np.ndarray
    raw: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    length: np.ndarray
    success: np.ndarray | None
    faults: tuple[Fault, ...] = ()


def said_success(info: dict[str, Any]) -> bool | None:
    """Success as environments spell it (``success`` or ``is_success``), or None."""
    for key in ("success", "is_success"):
        if key in info:
            return bool(info[key])
    return None


@dataclass(frozen=True)
class Played:
    """A chunk on one environment: the last observation and what ``Outcome`` says of one copy."""

    observation: Any
    reward: float
    raw: float
    terminated: bool
    truncated: bool
    length: int
    success: bool | None


class Interrupted(Exception):
    """The environment raised (the cause) in tick ``tick`` of a chunk, counted from 1."""

    def __init__(self, tick: int) -> None:
        super().__init__(tick)
        self.tick = tick


def play(env: Any, actions: Any, gamma: float = 1.0, watch: Any = None) -> Played:
    """Execute ``actions`` (a sequence of T_a) on one Gymnasium environment until they or the episode end.

    What the environment raises is the cause of an ``Interrupted``.
    """
    reward = raw = 0.0
    weight = 1.0
    success: bool | None = None
    observation, terminated, truncated, length = None, False, False, 0
    for action in actions:
        try:
            observation, gain, terminated, truncated, info = env.step(action)
        except Exception as error:
            raise Interrupted(length + 1) from error
        length += 1
        reward += weight * float(gain)
        raw += float(gain)
        weight *= gamma
        said = said_success(info)
        success = said if success is None else success or bool(said)
        if watch is not None:
            watch(env)
        if terminated or truncated:
            break
    return Played(observation, reward, raw, bool(terminated), bool(truncated), length, success)
