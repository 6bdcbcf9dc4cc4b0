"""Step our own batched environments, which can step some of their rows alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from denoiserl.data.rollout import Fault
from denoiserl.envs.backends.answer import close_env, said_by_all, solved_at_start
from denoiserl.envs.backends.chunk import ChunkResult
from denoiserl.envs.backends.faults import EnvFault, check_on_fault, describe_exception, find_nonfinite, refuse
from denoiserl.envs.backends.vector import assign_rows, copy


class BatchedBackend:
    """Step one of our batched environments (``envs.toy.fork2d``): ``step(actions, mask)`` moves the masked rows
    only."""

    def __init__(self, world: Any, name: str = "the world", on_fault: str = "error") -> None:
        self.world, self.name, self.on_fault = world, name, check_on_fault(on_fault)

    @property
    def count(self) -> int:
        return self.world.num_envs

    def reset(self, seeds: list[int]) -> Any:
        """Start a new episode in every environment, seeded."""
        observation, info = self.world.reset(seed=seeds)
        self.start = copy(observation)
        self.solved = solved_at_start(info, self.count)
        self.steps = np.zeros(self.count, np.int64)
        refuse(self.start, self.name)
        return self.start

    def step_chunk(
        self, actions: np.ndarray, active: np.ndarray, gamma: float, restart: bool = True, on_step: Any = None
    ) -> ChunkResult:
        """Execute one chunk [B, T_a, ...] in every environment that is ``active`` [B].

        ``on_step(None, world)`` is called after every step.
        """
        n, horizon = actions.shape[:2]
        reward, raw, length = np.zeros(n), np.zeros(n), np.zeros(n, np.int64)
        terminated, truncated = np.zeros(n, bool), np.zeros(n, bool)
        first, last_success = np.zeros(n, np.int64), np.full(n, -1, np.int8)
        going, after, weight = active.copy(), copy(self.start), 1.0
        before = self.start
        for i in range(horizon):
            if not going.any():
                break
            try:
                seen, gain, term, trunc, info = self.world.step(actions[:, i], going)
            except Exception as error:
                fault = Fault(None, int(self.steps.max()) + 1, describe_exception(error))
                raise EnvFault(fault, self.name, "a batched environment does not say which row it was") from error
            after = assign_rows(after, going, copy(seen))
            gain = np.where(going, np.asarray(gain, np.float64), 0.0)
            reward, raw, weight = reward + weight * gain, raw + gain, weight * gamma
            length += going
            self.steps += going
            said = said_by_all(info, going)
            if said is not None:
                first, last_success = (
                    np.where((said > 0) & (first == 0), i + 1, first),
                    np.where(said >= 0, said, last_success),
                )
            terminated |= np.asarray(term, bool) & going
            truncated |= np.asarray(trunc, bool) & going
            going = going & ~(terminated | truncated)
            if on_step is not None:
                on_step(None, self.world)
        lost, faults = self._lost(after, raw)
        if lost.any():
            after = assign_rows(after, lost, before)
            reward, raw = np.where(lost, 0.0, reward), np.where(lost, 0.0, raw)
            terminated, truncated, length = terminated & ~lost, truncated | lost, np.where(lost, 0, length)
            first, last_success = np.where(lost, 0, first), np.where(lost, -1, last_success)
        fresh, start = (terminated | truncated) if restart else lost, after
        if fresh.any():
            start = assign_rows(after, fresh, copy(self.world.reset(options={"reset_mask": fresh})[0]))
            refuse(start, self.name)
        self.start, self.steps = start, np.where(terminated | truncated, 0, self.steps)
        last_success = last_success if last_success.max() >= 0 else None
        return ChunkResult(after, start, reward, raw, terminated, truncated, length, first, last_success, faults)

    def _lost(self, after: Any, raw: np.ndarray) -> tuple[np.ndarray, tuple[Fault, ...]]:
        """Return which environments [B] gave NaN or infinity, and their faults."""
        wrong = dict.fromkeys(np.flatnonzero(~np.isfinite(raw)).tolist(), "gave a reward of NaN or infinity")
        wrong = wrong | find_nonfinite(after)
        faults = tuple(Fault(row, int(self.steps[row]), what) for row, what in sorted(wrong.items()))
        if faults and self.on_fault == "error":
            raise EnvFault(faults[0], self.name)
        return np.isin(np.arange(self.count), list(wrong)), faults

    def close(self) -> None:
        """Close the environment if it has ``close``."""
        close_env(self.world)
