"""Step single environments one by one in this process.

This is the reference backend. A chunk stops exactly where its episode ends, a finished environment is reset at once,
and no step is lost to automatic resets. It is as fast as Gymnasium's ``SyncVectorEnv``. It knows which environment
raised or diverged, and can make that one again. An environment that hangs also blocks this process (see ``subproc``).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from operator import is_not
from typing import Any

import numpy as np

from denoiserl.core.errors import InvalidInputError
from denoiserl.data.rollout import Fault
from denoiserl.envs.backends.answer import close_env, reset_env
from denoiserl.envs.backends.chunk import ChunkResult, Interrupted, step_chunk
from denoiserl.envs.backends.faults import IN_A_ROW, EnvFault, check_on_fault, describe_exception, find_nonfinite

Make = Callable[[], Any]

FEW = 64
"""largest number of entries of a small observation"""

Row = tuple[float, float, bool, bool, int, int, int]
ROW = np.dtype(
    [
        ("reward", float), ("raw", float), ("terminated", bool), ("truncated", bool), ("length", np.int64),
        ("first", np.int64), ("last_success", np.int8),
    ]
)  # fmt: skip
COLUMNS = ROW.names or ()
STILL: Row = (0.0, 0.0, False, False, 0, 0, -1)
LOST: Row = (0.0, 0.0, False, True, 0, 0, -1)
"""reward, raw, terminated, truncated, length, first, held of an idle environment, and of one that lost its decision"""


def derive_seed(*numbers: int) -> int:
    """Return a 31-bit seed made from integers; environments, checkpoints and episodes get separate streams."""
    return int(np.random.SeedSequence([int(n) for n in numbers]).generate_state(1)[0] & 0x7FFFFFFF)


def batch(observations: list[Any]) -> Any:
    """Stack observations (arrays, or dicts of arrays). Raise InvalidInputError if shapes differ or they are no
    arrays."""
    try:
        if isinstance(observations[0], dict):
            return {k: batch([o[k] for o in observations]) for k in observations[0]}
        few = isinstance(observations[0], np.ndarray) and observations[0].size <= FEW
        return np.array(observations) if few else np.stack(observations)  # the first is quicker for few numbers
    except InvalidInputError:
        raise
    except (TypeError, ValueError, KeyError, IndexError, RuntimeError) as error:
        raise InvalidInputError(
            f"observations cannot be stacked ({type(error).__name__}: {error}): an environment returns arrays of one "
            "shape, or dicts of them with the same keys, at every step"
        ) from error


def require_separate_envs(envs: Sequence[Any], name: str) -> None:
    """Raise InvalidInputError if two environments are one object, bare or wrapped: they would share their state."""
    inner = [getattr(env, "unwrapped", None) for env in envs]
    if len({id(env if core is None else core) for env, core in zip(envs, inner, strict=True)}) < len(envs):
        raise InvalidInputError(f"{name}: the factory returned the same environment twice: make a new one in each call")


class SyncBackend:
    """``count`` environments made by ``make``; ``first`` is the number of the first one (each worker owns a block).

    ``heartbeat``: two integers shared with the process that waits: the environment that is being stepped, and its step.
    """

    def __init__(
        self,
        make: Make,
        count: int,
        name: str = "the environment",
        first: int = 0,
        on_fault: str = "error",
        heartbeat: Any = None,
    ) -> None:
        self.make, self.name, self.on_fault = make, name, check_on_fault(on_fault)
        self.heartbeat = [-1, 0] if heartbeat is None else heartbeat
        self.envs = [make() for _ in range(count)]
        require_separate_envs(self.envs, name)
        self.numbers = list(range(first, first + count))
        self.steps = [0] * count
        self.renewed = [0] * count
        self.seeds = self.numbers
        self.start: list[Any] = [None] * count
        self.faults: list[Fault] = []
        self.solved = np.zeros(count, bool)

    @property
    def count(self) -> int:
        return len(self.envs)

    def reset(self, seeds: list[int]) -> Any:
        """Start a new episode in every environment, seeded; return observations [B, ...].

        ``solved`` [B]: which ones report success already.
        """
        self.seeds, self.renewed, self.steps = list(seeds), [0] * self.count, [0] * self.count
        self.faults = []  # faults of resets are reported with the next decision
        for i, seed in enumerate(seeds):
            self.heartbeat[0], self.heartbeat[1] = self.numbers[i], 0
            self._begin(i, seed=seed)
        for i, what in find_nonfinite(batch(self.start)).items():
            self._mend(i, what)
        self.heartbeat[0] = -1
        return batch(self.start)

    def first_observation(self, seeds: list[int]) -> Any:
        """Return the first observation of environment 0 for its seed, None if its reset fails.

        It has to be reset afterwards.
        """
        try:
            return reset_env(self.envs[0], seed=seeds[0])[0]
        except InvalidInputError:
            raise
        except Exception:  # reported when it is reset
            return None

    def step_chunk(
        self, actions: np.ndarray, active: np.ndarray, gamma: float, restart: bool = True, on_step: Any = None
    ) -> ChunkResult:
        """Execute one chunk [B, T_a, ...] in every environment that is ``active`` [B]; the others are idle with length
        0.

        ``restart`` starts the next episode where one ended. ``on_step(index, env)`` is called after every step.
        """
        after, before, rows = list(self.start), list(self.start), [STILL] * self.count
        over, reports = [], False
        for i in range(self.count):
            if not active[i]:
                continue
            self.heartbeat[0], self.heartbeat[1] = self.numbers[i], self.steps[i]
            look = None if on_step is None else (lambda e, i=i: on_step(i, e))
            try:
                done = step_chunk(self.envs[i], actions[i], gamma, look)
            except Interrupted as stop:
                self.steps[i] += stop.step
                self._mend(i, describe_exception(stop.__cause__ or stop), stop.__cause__)
                rows[i] = LOST
                continue
            self.steps[i] += done.length
            if not math.isfinite(done.raw):
                self._mend(i, "gave a reward of NaN or infinity")
                rows[i] = LOST
                continue
            after[i] = self.start[i] = done.observation
            rows[i] = done[1:]
            reports = reports or done.last_success >= 0
            if done.terminated or done.truncated:
                over.append(i)
        ended = batch(after)
        if bad := find_nonfinite(ended):  # one check for all: a check per environment and step would cost more
            for i, what in bad.items():
                self._mend(i, what)
                after[i], rows[i] = before[i], LOST
            ended = batch(after)
        for i in over if restart else ():
            if rows[i] is not LOST:
                self.steps[i], self.heartbeat[0] = 0, self.numbers[i]
                self._begin(i)
        begun = ended  # without a reset, the last observation is the next one to act on
        if any(map(is_not, after, self.start)):
            begun = batch(self.start)
            if bad := find_nonfinite(begun):
                for i, what in bad.items():
                    self._mend(i, what)
                begun = batch(self.start)
        faults, self.faults, self.heartbeat[0] = tuple(self.faults), [], -1
        table = np.array(rows, ROW)  # one array, and a view per column
        reward, raw, terminated, truncated, length, first, last_success = map(table.__getitem__, COLUMNS)
        return ChunkResult(
            ended, begun, reward, raw, terminated, truncated, length, first, last_success if reports else None, faults
        )

    def _begin(self, i: int, **seed: int) -> None:
        """Start a new episode in environment i."""
        try:
            self.start[i], self.solved[i] = reset_env(self.envs[i], **seed)
        except InvalidInputError:
            raise
        except Exception as error:
            self._mend(i, f"{describe_exception(error)} when it was reset", error)

    def _mend(self, i: int, what: str, cause: BaseException | None = None) -> None:
        """Raise EnvFault, or make environment i again and start an episode in it."""
        fault = Fault(self.numbers[i], self.steps[i], what)
        if self.on_fault == "error":
            raise EnvFault(fault, self.name) from cause
        self.faults.append(fault)
        with contextlib.suppress(Exception):  # a broken environment may fail to close
            close_env(self.envs[i])
        self.steps[i] = 0
        for left in reversed(range(IN_A_ROW)):  # another start state may work
            self.renewed[i] += 1
            try:
                self.envs[i] = self.make()
                self.start[i], self.solved[i] = reset_env(
                    self.envs[i], seed=derive_seed(self.seeds[i], self.renewed[i])
                )
                if not find_nonfinite(batch([self.start[i]])):
                    return
                again, cause = "begins with NaN or infinity", None
            except Exception as error:
                again, cause = describe_exception(error), error
            if not left:
                fault = fault._replace(what=f"{what}; made again {IN_A_ROW} times, it {again}")
                raise EnvFault(fault, self.name, "repair the environment") from cause

    def close(self) -> None:
        """Close every environment."""
        for env in self.envs:
            close_env(env)
