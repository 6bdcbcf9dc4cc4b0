"""envpool's environments, which step in C++: ``Collector("envpool:Hopper-v5", num_envs)``.

They are Gymnasium's tasks (MuJoCo, Meta-World, Atari and more) with other random numbers and another MuJoCo. From equal
states, Hopper's steps agree to rounding until it lands, and differ by some percent of its velocities afterwards.
Compare results within one of the two only. Threads (``processes`` of a ``Collector``) share the work without worker
processes. For Hopper one thread is as fast as Gymnasium; for simulators written in Python it is many times faster.

Here they are a batched environment: each is sent to the pool alone. A chunk therefore stops where its episode ends, and
no step is lost to the automatic resets of envpool's vector interface.

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
    """``num_envs`` environments of envpool's task ``name``, stepped by ``threads``. A start depends on its seed
    alone."""

    steps_some = True
    """``step(actions, mask)`` moves the environments of the mask only"""

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
            raise InvalidInputError(
                f"{PREFIX}{name} observes a dict, which is not supported: use its Gymnasium id instead"
            )
        shape = (num_envs, *self.single_observation_space.shape)
        self.observation = np.zeros(shape, self.single_observation_space.dtype)

    def _open(self, seeds: list[int]) -> None:
        """Make the pool: it takes its seeds only here."""
        given = {"num_envs": self.num_envs, "batch_size": 1, "num_threads": self.threads, "env_seed": seeds}
        self.pool = self.envpool.make_gymnasium(self.name, seed=seeds[0], **given)
        self.seeds = seeds

    def _start(self, ids: np.ndarray) -> None:
        for i in ids:
            observation, info = self.pool.reset(np.array([i], np.int32))
            self.observation[int(info["env_id"][0])] = observation[0]

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Start new episodes, in all environments or in those of ``options["reset_mask"]`` [B]; ``seed`` is for all."""
        mask = np.ones(self.num_envs, bool)
        if options is not None and "reset_mask" in options:
            mask = np.asarray(options["reset_mask"], bool)
        if seed is not None:
            seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else [int(s) for s in seed]
            if len(seeds) != self.num_envs or not mask.all():
                raise InvalidInputError(
                    f"a pool of {self.num_envs} environments takes a seed for each, all at once; got {len(seeds)} seeds"
                )
            self.pool.close()
            self._open(seeds)
        self._start(np.flatnonzero(mask))
        return self.observation.copy(), {}

    def step(self, action: Any, mask: Any = None) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step the environments of ``mask`` [B] with actions [B, ...]; return Gymnasium's five values as arrays."""
        ids = np.arange(self.num_envs) if mask is None else np.flatnonzero(mask)
        self.pool.send(np.asarray(action, self.single_action_space.dtype)[ids], ids.astype(np.int32))
        reward, terminated, truncated = np.zeros(self.num_envs), *np.zeros((2, self.num_envs), bool)
        success = np.full(self.num_envs, -1.0)
        for _ in ids:  # in the order in which they are ready
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
