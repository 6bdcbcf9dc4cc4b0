"""Step Gymnasium vector environments.

``VectorEnvBackend`` supports each of the three autoreset modes of Gymnasium 1.x and gives the true next observation in
all of them:

    SAME_STEP   the step that ends an episode returns the next one's start; the true observation is in ``final_obs``
    NEXT_STEP   the following step ignores its action and returns the start: that step is masked
    DISABLED    the caller resets, with ``reset_mask``

Such an environment steps all its environments at once, so a chunk cannot stop in one of them. Chunks work as long as
episodes end on a chunk's last step; otherwise an error says what to do.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.data.rollout import Fault
from denoiserl.envs.backends.answer import close_env, said_by_all, solved_at_start
from denoiserl.envs.backends.chunk import ChunkResult
from denoiserl.envs.backends.faults import (
    EnvFault,
    check_on_fault,
    describe_exception,
    refuse,
    refuse_reward,
)

NEXT, SAME, DISABLED = "NextStep", "SameStep", "Disabled"


def assign_rows(target: Any, mask: np.ndarray, source: Any) -> Any:
    """Return ``target`` [B, ...] with the rows of ``mask`` taken from ``source`` [B, ...]."""
    if isinstance(target, dict):
        if not isinstance(source, dict) or target.keys() != source.keys():
            raise InvalidInputError(
                f"observations change from {_like(target)} to {_like(source)}: return the same parts always"
            )
        return {k: assign_rows(target[k], mask, source[k]) for k in target}
    if isinstance(source, dict) or target.shape != np.shape(source):
        raise InvalidInputError(
            f"observations change from {_like(target)} to {_like(source)}: an environment returns the same shape "
            "at every step"
        )
    return np.where(mask.reshape((-1,) + (1,) * (target.ndim - 1)), source, target)


def _like(observation: Any) -> Any:
    """Return the parts of an observation, or the shape of one row."""
    return sorted(observation) if isinstance(observation, dict) else list(np.shape(observation)[1:])


def copy(observation: Any) -> Any:
    """Return a copy: vector environments reuse their buffers."""
    if isinstance(observation, dict):
        return {k: copy(v) for k, v in observation.items()}
    return np.asarray(observation).copy()


TORCH = (
    "wrap it so that it gives NumPy arrays, 'final_obs' where episodes end, and metadata['autoreset_mode'] = "
    "gymnasium.vector.AutoresetMode.SAME_STEP; or give the function that makes one environment "
    "(ManiSkill: CPUGymWrapper)"
)


def _parts(observation: Any) -> list[Any]:
    """Return the arrays of an observation."""
    return [p for v in observation.values() for p in _parts(v)] if isinstance(observation, dict) else [observation]


def _mode(envs: Any) -> str:
    mode = (getattr(envs, "metadata", None) or {}).get("autoreset_mode")
    mode = getattr(mode, "value", mode)
    if mode not in (NEXT, SAME, DISABLED):
        raise InvalidInputError(
            f"{type(envs).__name__}, a vector environment, does not say how it resets (metadata['autoreset_mode'] is "
            f"{mode!r}): set it to gymnasium.vector.AutoresetMode.NEXT_STEP, SAME_STEP or DISABLED, whichever it does. "
            f"If it gives torch tensors, as simulators on a GPU do: {TORCH}"
        )
    return mode


def _success(info: dict[str, Any], ended: np.ndarray) -> np.ndarray | None:
    """Return the reported success [B], -1 for no report; None if no environment reports.

    For ``ended`` rows (SAME_STEP) it is that of the final info, if there is one: ``info`` belongs to the next episode.
    """
    if not info:
        return None
    if not ended.any() or "final_info" not in info:
        return said_by_all(info, np.ones(len(ended), bool))
    last, other = said_by_all(info["final_info"], ended), said_by_all(info, ~ended)
    return other if last is None else last if other is None else np.maximum(last, other)


def _final(info: dict[str, Any], after: Any, ended: np.ndarray) -> Any:
    """Return the last observations of episodes (SAME_STEP): ``final_obs`` holds one object per row, or arrays."""
    if "final_obs" not in info:
        raise InvalidInputError(
            "a SAME_STEP vector environment must give 'final_obs' where episodes end; this one did not"
        )
    final = info["final_obs"]
    if isinstance(final, dict) or not (isinstance(final, np.ndarray) and final.dtype.kind == "O"):
        return assign_rows(after, ended, final)
    merged = copy(after)
    for i in np.flatnonzero(ended):
        if isinstance(merged, dict):
            for key in merged:
                merged[key][i] = final[i][key]
        else:
            merged[i] = final[i]
    return merged


class VectorEnvBackend:
    """Step a Gymnasium vector environment."""

    def __init__(self, envs: Any, name: str = "the environment", on_fault: str = "error") -> None:
        if check_on_fault(on_fault) == "restart":
            raise InvalidInputError(
                f"{name} is a vector environment, which cannot make one of its rows again: give an environment id "
                "or a factory for on_fault='restart'"
            )
        self.envs, self.name = envs, name
        self.mode = _mode(envs)

    @property
    def count(self) -> int:
        return self.envs.num_envs

    def reset(self, seeds: list[int]) -> Any:
        """Start a new episode in every row, seeded if the environment takes seeds."""
        try:
            observation, info = self.envs.reset(seed=seeds)
        except TypeError:  # envpool takes its seed when it is made
            observation, info = self.envs.reset()
        if any(type(v).__module__ == "torch" and v.device.type != "cpu" for v in _parts(observation)):
            raise InvalidInputError(f"{self.name} gives torch tensors on a device: {TORCH}")
        self.start = copy(observation)
        self.solved = solved_at_start(info, self.count)
        self.pending = np.zeros(self.count, bool)  # rows that the next step will reset
        self.steps = np.zeros(self.count, np.int64)
        refuse(self.start, self.name)
        return self.start

    def first_observation(self, seeds: list[int]) -> Any:
        """Return the first observation of row 0 for its seed. All rows have to be reset afterwards."""
        one = self.reset(seeds)
        return {k: v[0] for k, v in one.items()} if isinstance(one, dict) else one[0]

    def _step(self, actions: np.ndarray) -> Any:
        try:
            return self.envs.step(actions)
        except Exception as error:
            fault = Fault(None, int(self.steps.max()) + 1, describe_exception(error))
            cure = "a vector environment does not say which row it was: give an environment id or a factory to know"
            raise EnvFault(fault, self.name, cure) from error

    def step_chunk(
        self, actions: np.ndarray, active: np.ndarray, gamma: float, restart: bool = True, on_step: Any = None
    ) -> ChunkResult:
        """Execute one chunk [B, T_a, ...]. Rows that are reset by this very step (NEXT_STEP) have length 0."""
        if on_step is not None:
            raise RunError("the rows of a vector environment cannot be watched: give an id or a factory")
        going = active & ~self.pending
        n, horizon = actions.shape[:2]
        reward, raw, length = np.zeros(n), np.zeros(n), np.zeros(n, np.int64)
        terminated, truncated = np.zeros(n, bool), np.zeros(n, bool)
        first, last_success = np.zeros(n, np.int64), np.full(n, -1, np.int8)
        after, start, weight, told = copy(self.start), copy(self.start), 1.0, False
        for i in range(horizon):
            seen, gain, term, trunc, info = self._step(actions[:, i])
            seen = copy(seen)
            over = np.asarray(term, bool) | np.asarray(trunc, bool)  # of every row, idle ones included
            term, trunc = np.asarray(term, bool) & going, np.asarray(trunc, bool) & going
            ended = term | trunc
            reward, raw = reward + np.where(going, weight * gain, 0.0), raw + np.where(going, gain, 0.0)
            weight *= gamma
            length += going
            self.steps += going
            terminated |= term
            truncated |= trunc
            true = _final(info, seen, ended) if self.mode == SAME and ended.any() else seen
            after = assign_rows(after, going | self.pending, true)
            start = assign_rows(start, going | self.pending, seen)
            said = _success(info, ended & (self.mode == SAME))
            if said is not None:
                told, first = True, np.where(going & (said > 0) & (first == 0), i + 1, first)
                last_success = np.where(going & (said >= 0), said, last_success)
            self.pending = np.zeros(n, bool)
            last = i == horizon - 1
            if ended.any() and not last and not ended[going].all():
                raise InvalidInputError(
                    f"an episode of environment {int(ended.argmax())} of {self.name} ended inside a chunk of {horizon} "
                    "actions, and a vector environment cannot stop one row: give Collector an environment id or a "
                    "factory instead, or end episodes on multiples of the chunk"
                )
            if self.mode == DISABLED and over.any():
                start = assign_rows(start, ended, copy(self.envs.reset(options={"reset_mask": over})[0]))
            elif self.mode == NEXT and ended.all() and restart:
                start = copy(self.envs.reset()[0])
            elif self.mode == NEXT:
                self.pending = ended
                if horizon > 1 and self.pending.any():
                    raise InvalidInputError(
                        f"episodes of {self.name} do not end together: with NEXT_STEP resets a chunk of {horizon} "
                        "actions would run into the next episode; give Collector an environment id or a "
                        "factory, or use SAME_STEP"
                    )
            if ended[going].all() or last:
                break
        self.start = start
        refuse(after, self.name, self.steps)
        refuse_reward(raw, self.name, self.steps)
        fresh = terminated | truncated
        if fresh.any():  # else it equals the observation after the step
            refuse(start, self.name)
            self.steps[fresh] = 0
        last_success = last_success if told and last_success.max() >= 0 else None
        return ChunkResult(after, start, reward, raw, terminated, truncated, length, first, last_success)

    def close(self) -> None:
        """Close the environment."""
        close_env(self.envs)
