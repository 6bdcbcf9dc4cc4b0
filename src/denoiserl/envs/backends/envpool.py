"""envpool's environments, which step in C++: ``Collector("envpool:Hopper-v5", copies)``.

They are Gymnasium's tasks (MuJoCo, Meta-World, Atari and more) with other random numbers and a MuJoCo of their own:
from equal states Hopper's ticks agree to rounding until it lands, and to some percent of its velocities from then on,
so compare numbers within one of the two. Threads (``processes`` of a ``Collector``) share the work without a worker
process. For a hopper one thread is no faster than Gymnasium's copies; for simulators that are Python at home it is many
times so.

Here they are a batched world: copies are sent to the pool one by one, so a chunk stops where its episode ends, and no
step is lost to the automatic resets of envpool's own vector interface.

Needs ``pip install 'denoiserl[fast]'``.
"""

from __future__ import annotations

import difflib
from typing import Any

import numpy as np

from denoiserl.core.errors import InvalidInputError, require, unknown_name_message
from denoiserl.envs.backends.answer import said_by_all

PREFIX = "envpool:"


class EnvPool:
    """``num_envs`` copies of envpool's task ``name``, stepped by ``threads``. A start depends on its seed alone."""

    steps_some = True
    """``step(actions, live)`` moves the live copies only"""

    def __init__(self, name: str, num_envs: int, threads: int = 1) -> None:
        self.name, self.num_envs, self.threads = name, num_envs, threads
        self.envpool = require("envpool", "fast")
        known = self.envpool.list_all_envs()
        if name not in known:
            close = difflib.get_close_matches(name, known, 8, 0.4)  # of more than a thousand
            raise InvalidInputError(unknown_name_message(name, close, "envpool task"))
        self._open(list(range(num_envs)))
        self.single_observation_space, self.single_action_space = self.pool.observation_space, self.pool.action_space
        if getattr(self.single_observation_space, "shape", None) is None:
            raise InvalidInputError(f"{PREFIX}{name} observes a dict: give its Gymnasium id instead")
        shape = (num_envs, *self.single_observation_space.shape)
        self.observation = np.zeros(shape, self.single_observation_space.dtype)

    def _open(self, seeds: list[int]) -> None:
        """A pool takes its seeds when it is made."""
        given = {"num_envs": self.num_envs, "batch_size": 1, "num_threads": self.threads, "env_seed": seeds}
        self.pool = self.envpool.make_gymnasium(self.name, seed=seeds[0], **given)
        self.seeds = seeds

    def _start(self, ids: np.ndarray) -> None:
        for i in ids:
            observation, info = self.pool.reset(np.array([i], np.int32))
            self.observation[int(info["env_id"][0])] = observation[0]

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """New episodes, of all copies or of those in ``options["reset_mask"]`` [B]; ``seed`` is of all copies."""
        mask = np.ones(self.num_envs, bool)
        if options is not None and "reset_mask" in options:
            mask = np.asarray(options["reset_mask"], bool)
        if seed is not None:
            seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else [int(s) for s in seed]
            if len(seeds) != self.num_envs or not mask.all():
                raise InvalidInputError(
                    f"a pool of {self.num_envs} copies is seeded whole; there are {len(seeds)} seeds"
                )
            self.pool.close()
            self._open(seeds)
        self._start(np.flatnonzero(mask))
        return self.observation.copy(), {}

    def step(self, action: Any, live: Any = None) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One tick of the ``live`` copies [B] with actions [B, ...]: Gymnasium's five, as arrays."""
        ids = np.arange(self.num_envs) if live is None else np.flatnonzero(live)
        self.pool.send(np.asarray(action, self.single_action_space.dtype)[ids], ids.astype(np.int32))
        reward, terminated, truncated = np.zeros(self.num_envs), *np.zeros((2, self.num_envs), bool)
        success = np.full(self.num_envs, -1.0)
        for _ in ids:  # they come back as they are ready
            seen, gain, term, trunc, info = self.pool.recv()
            i = int(info["env_id"][0])
            self.observation[i], reward[i], terminated[i], truncated[i] = seen[0], gain[0], term[0], trunc[0]
            said = said_by_all(info, np.ones(1, bool))
            success[i] = -1 if said is None else said[0]
        told = {"success": success, "_success": success >= 0}
        return self.observation.copy(), reward, terminated, truncated & ~terminated, told

    def close(self) -> None:
        """Stop the pool."""
        self.pool.close()
