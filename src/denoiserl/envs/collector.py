"""Environment experience: copies of an environment as a stream, and what was collected as a ``Rollout``.

``Collector`` takes a Gymnasium id, a factory, a Gymnasium vector environment or one of our batched worlds, and keeps
four promises that training code usually breaks: ``terminated`` and ``done`` are apart; ``next_obs`` is the true
successor where an episode ended; steps that an automatic reset swallowed are masked; a chunk of actions is one step.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from denoiserl.core.counters import count_usage
from denoiserl.core.errors import DenoiseRLError, InvalidInputError
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.tree import tree_map
from denoiserl.data.rollout import Fault, Rollout
from denoiserl.envs import ids
from denoiserl.envs.backends.answer import check_env, shut, vector
from denoiserl.envs.backends.chunk import ChunkResult
from denoiserl.envs.backends.envpool import PREFIX, EnvPool
from denoiserl.envs.backends.faults import IN_A_ROW, EnvFault, OnFault, describe_exception
from denoiserl.envs.backends.subproc import SubprocBackend
from denoiserl.envs.backends.sync import SyncBackend, derive_seed, require_separate_envs
from denoiserl.envs.backends.vector import BatchedBackend, VectorEnvBackend
from denoiserl.envs.spaces import Spec, env_spec, flat_size, prepare_actions, tensors
from denoiserl.policy import chain as chains
from denoiserl.policy.chain import Chain

Act = Callable[[Any, Rng], tuple[Tensor, Chain | None]]
"""``act(obs [B, ...], rng) -> (action [B, d] or chunk [B, T_a, d], its chain or None)``, in the environment's units."""


EPISODES, LEAST, MOST = 4, 500, 20_000
"""whole episodes and ticks of every copy before copies start afresh; and the most ticks"""


class VectorBackend(Protocol):
    """Whoever steps the copies: ``SyncBackend``, ``SubprocBackend``, ``VectorEnvBackend`` or ``BatchedBackend``."""

    name: str

    @property
    def count(self) -> int: ...
    @property
    def solved(self) -> np.ndarray: ...
    def reset(self, seeds: list[int]) -> Any: ...
    def play(
        self, actions: np.ndarray, alive: np.ndarray, gamma: float, restart: bool = True, watch: Any = None
    ) -> ChunkResult: ...
    def close(self) -> None: ...


def _called(make: Any) -> str:
    """What a factory says its environment is called."""
    return getattr(make, "__name__", None) or getattr(getattr(make, "func", make), "__name__", "the environment")


def make_backend(
    env: Any,
    copies: int | None = None,
    processes: int = 1,
    on_fault: OnFault | None = "error",
    patience: float | None = None,
) -> tuple[VectorBackend, Spec]:
    """The owner of copies of ``env`` and their spec. ``env``: an id, a factory, a vector environment or a world.

    ``on_fault=None`` is "restart" wherever a copy can be made anew, and "error" for a vector environment.
    A ``Collector`` lends its own; its episodes are lost, so it begins anew at a border.
    """
    if isinstance(env, Collector):
        return env.owner, env.spec
    if patience is not None and (processes == 1 or not patience > 0):
        raise InvalidInputError(
            f"patience={patience}: a copy that hangs can be watched only from another process, for more than no time: "
            "give an environment id or a factory, and processes=2 or more"
        )
    if not callable(env) and not isinstance(env, str):
        vector(env)
        if copies not in (None, env.num_envs):
            raise InvalidInputError(f"the vector environment has {env.num_envs} copies, not {copies}: leave copies out")
        name = getattr(getattr(env, "spec", None), "id", None) or type(env).__name__
        seen = getattr(env, "single_observation_space", None) or env.observation_space
        acts = getattr(env, "single_action_space", None) or env.action_space
        if getattr(env, "steps_some", False):
            return BatchedBackend(env, name, on_fault or "restart"), env_spec(seen, acts, name)
        owner = VectorEnvBackend(env, name, on_fault or "error")
        return owner, env_spec(seen, acts, name)
    copies = 1 if copies is None else copies
    if copies < 1 or processes < 1:
        raise InvalidInputError(f"copies and processes start at 1; they are {copies} and {processes}")
    if isinstance(env, str) and env.startswith(PREFIX):
        if patience is not None:
            raise InvalidInputError(
                "the threads of envpool cannot be watched: leave patience out, or give a Gymnasium id"
            )
        pool = EnvPool(env.removeprefix(PREFIX), copies, processes)
        return BatchedBackend(pool, env, on_fault or "restart"), env_spec(
            pool.single_observation_space, pool.single_action_space, env
        )
    name = env if isinstance(env, str) else _called(env)
    make: Any = partial(ids.make, env) if isinstance(env, str) else env
    try:
        probe: Any = make()
    except DenoiseRLError:
        raise
    except Exception as error:
        raise InvalidInputError(
            f"{name} cannot be made ({describe_exception(error)}): make one copy by itself to see where (or --debug)"
        ) from error
    if hasattr(probe, "num_envs"):
        return make_backend(probe, on_fault=on_fault)
    check_env(probe, name)
    found = env_spec(probe.observation_space, probe.action_space, name)
    shut(probe)
    if processes == 1:
        made = SyncBackend(make, copies, name, on_fault=on_fault or "restart")
        require_separate_envs([probe, made.envs[0]], name)
        return made, found
    return SubprocBackend(make, copies, processes, name, on_fault or "restart", patience), found


class Collector:
    """``copies`` of an environment, each in the middle of an episode.

    ``env``: a Gymnasium id, a factory, a Gymnasium vector environment (then ``copies`` is its own number), a batched
    world, or "envpool:" and an id. ``processes`` > 1 steps the copies of an id or factory in that many worker
    processes, with the same numbers, and those of envpool in as many threads.
    ``gamma`` is the discount inside a chunk (None: that of the method that learns here, else 1). ``on_fault``: a copy
    that raises or gives NaN stops the stream by name, or is made anew while its lost decision is masked and counted
    ("restart"). ``patience``: seconds after which a worker process that does not answer is a fault too (300 by default;
    in one process a copy that hangs cannot be told).
    """

    def __init__(
        self,
        env: Any,
        copies: int | None = None,
        seed: int = 0,
        processes: int = 1,
        gamma: float | None = None,
        on_fault: OnFault = "error",
        patience: float | None = None,
    ) -> None:
        self.owner, self.spec = make_backend(env, copies, processes, on_fault, patience)
        self.seed, self.gamma, self._own_gamma = seed, 1.0 if gamma is None else gamma, gamma
        self.obs: Any = None
        self._ended, self._life = False, 0  # has any episode ended in all ticks so far?

    def __repr__(self) -> str:
        return f"Collector({self.name}, {self.copies} copies, observation {self.spec.obs}, action {self.spec.action})"

    @property
    def copies(self) -> int:
        """B."""
        return self.owner.count

    num_envs = copies
    """B, as vector environments call it"""

    @property
    def name(self) -> str:
        """What the environment is called."""
        return self.owner.name

    @property
    def action_dim(self) -> int:
        """Numbers in one action (1 of a discrete environment)."""
        return math.prod(self.spec.action)

    @property
    def obs_dim(self) -> int:
        """Numbers in one flat observation."""
        return flat_size(self.spec.obs, self.name)

    def discount(self, gamma: float) -> None:
        """Discount inside a chunk by ``gamma`` a tick, as the method that learns here does between chunks.

        Raises InvalidInputError if the stream was made with another ``gamma``.
        """
        if self._own_gamma not in (None, gamma):
            raise InvalidInputError(
                f"the stream discounts by {self._own_gamma} a tick inside a chunk and the method by {gamma} between "
                "chunks: give both one gamma, or leave it out of the stream"
            )
        self.gamma = gamma

    def on_checkpoint(self, iteration: int) -> None:
        """Reset all copies with seeds made from (seed, iteration, copy).

        A simulator cannot be saved. Resetting every run, resumed or not, at the same iterations makes both the same.
        """
        if self._ended is False and self._life >= LEAST:
            warnings.warn(
                f"{self.name}: no episode has ended in {self._life} ticks of a copy, so nothing is known of returns: "
                "train for longer, restart later, or give the environment a time limit",
                stacklevel=2,
            )
            self._ended = True  # one word is enough
        seeds = [derive_seed(self.seed, iteration, copy) for copy in range(self.copies)]
        self.obs = tensors(self.owner.reset(seeds), self.spec.obs, self.name)
        self._returns = np.zeros(self.copies)
        self._ticks = np.zeros(self.copies, np.int64)
        self._streak = np.zeros(self.copies, np.int64)  # decisions lost in a row
        self._success, self._reports = np.zeros(self.copies, bool), False
        self._all = np.ones(self.copies, bool)
        self._played, self._episodes = np.zeros(self.copies, np.int64), np.zeros(self.copies, np.int64)

    def may_restart(self) -> bool:
        """Say whether a border takes little away: every copy has finished some episodes since the last one.

        4 episodes and 500 ticks of every copy, or 20000 ticks; and where nothing was played.
        """
        whole = int(self._episodes.min()) >= EPISODES and int(self._played.min()) >= LEAST
        return whole or int(self._played.max()) >= MOST or not self._played.any()

    def collect(self, act: Act, steps: int, rng: Rng | int) -> Rollout:
        """``steps`` decisions of every copy."""
        rng = as_rng(rng)
        if self.obs is None:
            self.on_checkpoint(0)
        if steps < 1:
            raise InvalidInputError(f"collect takes at least one step, not {steps}")
        seen: list[Any] = []
        after: list[Any] = []
        actions: list[Tensor] = []
        outs: list[ChunkResult] = []
        made: list[Chain] = []
        planned = 0
        try:
            for _ in range(steps):
                answer = act(self.obs, rng)
                action, record = answer if isinstance(answer, tuple) else (answer, None)
                if record is not None:
                    made.append(record)
                numbers, planned = prepare_actions(action, self.spec, self.copies, self.name)
                out = self.owner.play(numbers, self._all, self.gamma)
                outs.append(out)
                seen.append(self.obs)
                actions.append(action if isinstance(action, Tensor) else torch.as_tensor(action))
                after.append(tensors(out.after, self.spec.obs, self.name))
                self.obs = after[-1] if out.start is out.after else tensors(out.start, self.spec.obs, self.name)
                if out.faults or np.count_nonzero(self._streak):
                    self._check_faults(out)
        finally:  # an interrupted rollout counts too: the next one goes on in the middle of its episodes
            terminated, truncated = (np.array([getattr(o, k) for o in outs], bool) for k in ("terminated", "truncated"))
            over, length = terminated | truncated, np.array([out.length for out in outs])
            info = self._count(outs, over, length)
        if made and len(made) != steps:
            raise InvalidInputError("act returned a chain for some steps only: return one for all, or None")
        count_usage("env_steps", int(length.sum()))
        lengths = torch.from_numpy(length)
        join: Callable[..., Any] = lambda *v: torch.stack(v)  # noqa: E731
        with torch.no_grad():
            action = torch.stack(actions)
        return Rollout(
            tree_map(join, *seen),
            tree_map(join, *after),
            action,
            torch.from_numpy(np.array([out.reward for out in outs]).astype(np.float32)),
            torch.from_numpy(terminated),
            torch.from_numpy(over),
            lengths,
            torch.arange(planned) < lengths[..., None],
            chains.stack(made) if made else None,
            info,
            tuple(fault for out in outs for fault in out.faults),
        )

    def _count(self, outs: list[ChunkResult], over: np.ndarray, length: np.ndarray) -> dict[str, Tensor]:
        """Return the episodes' return, ticks and success (if reported) after every step [T, B], and keep the last.

        ``over``, ``length`` [T, B]: whether the step ended an episode, and its ticks.
        """
        if not outs:
            return {}
        raw = np.array([out.raw for out in outs])
        told, none = [out.success for out in outs], np.zeros(self.copies, bool)
        self._reports = self._reports or any(v is not None for v in told)  # some report only at an end
        success = np.array([none if v is None else v for v in told])
        returns, ticks, ends = np.empty_like(raw), np.empty_like(length), np.flatnonzero(over.any(1))
        for begin, end in pairwise([0, *(ends[ends < len(outs) - 1] + 1).tolist(), len(outs)]):
            part, last = slice(begin, end), over[end - 1]  # no episode ends before the last step of a part
            raw[begin] += self._returns
            returns[part] = raw[part].cumsum(0)
            ticks[part] = self._ticks + length[part].cumsum(0)
            success[part] = self._success | np.logical_or.accumulate(success[part], 0)
            self._returns, self._ticks = np.where(last, 0.0, returns[end - 1]), np.where(last, 0, ticks[end - 1])
            self._success = success[end - 1] & ~last
        self._played += length.sum(0)
        self._episodes += over.sum(0)
        if not self._ended:
            self._life += int(length.max(1).sum())
            self._ended = len(ends) > 0
        info = {
            "return": torch.from_numpy(returns.astype(np.float32)),
            "success": torch.from_numpy(success),
            "length": torch.from_numpy(ticks),
        }
        return info if self._reports else {k: v for k, v in info.items() if k != "success"}

    def _check_faults(self, out: ChunkResult) -> None:
        """Count what went wrong; a copy that never gets through a decision is not mended by starting it again."""
        lost = out.truncated & (out.length == 0)
        self._streak = np.where(lost, self._streak + 1, np.where(out.length > 0, 0, self._streak))
        if (self._streak >= IN_A_ROW).any():
            copy = int(self._streak.argmax())
            last = next((f for f in reversed(out.faults) if f.copy == copy), Fault(copy, 0, "lost its decision"))
            cure = (
                f"it has lost {IN_A_ROW} decisions in a row, so starting it again does not help: repair the environment"
            )
            raise EnvFault(last, self.name, cure)

    def close(self) -> None:
        """Close the environment."""
        self.owner.close()
