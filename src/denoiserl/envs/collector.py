"""Collect experience from environments that run side by side.

``Collector`` takes a Gymnasium id, a factory, a Gymnasium vector environment or a batched environment. It keeps four
promises that training code often breaks: ``terminated`` and ``done`` are separate; ``next_obs`` is the true successor
where an episode ended; steps lost to an automatic reset are masked; a chunk of actions is one decision.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from denoiserl.core.counters import count_usage
from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.tree import tree_map
from denoiserl.data.rollout import Fault, Rollout
from denoiserl.envs.backends.chunk import ChunkResult
from denoiserl.envs.backends.faults import IN_A_ROW, EnvFault, OnFault
from denoiserl.envs.backends.make import make_backend
from denoiserl.envs.backends.sync import derive_seed
from denoiserl.envs.remarks import PATIENCE, endless_note
from denoiserl.envs.spaces import flat_size, prepare_actions, tensors
from denoiserl.policy import chain as chains
from denoiserl.policy.chain import Chain

Act = Callable[[Any, Rng], tuple[Tensor, Chain | None]]
"""``act(obs [B, ...], rng) -> (action [B, d] or chunk [B, T_a, d], its chain or None)``, in the environment's units."""


EPISODES, LEAST, MOST = 4, 500, 20_000
"""finished episodes and steps of every environment before a reset; and the most steps"""


class Collector:
    """Run ``num_envs`` environments and collect rollouts; each keeps its episode between two calls.

    ``env``: a Gymnasium id, a factory, a Gymnasium vector environment (``num_envs`` is then its own), a batched
    environment, or "envpool:" and an id. ``processes`` > 1: for an id or a factory, that many worker processes, with
    the same numbers; for envpool, that many threads. ``gamma``: discount per step inside a chunk (None: that of the
    method, else 1).

    ``on_fault``: what to do if an environment raises or returns NaN. "error" raises ``EnvFault``; "restart" makes
    it again, and masks and counts the lost decision. ``timeout``: seconds after which a worker process that does not
    answer counts as a fault (default 300; needs ``processes`` > 1).
    """

    def __init__(
        self,
        env: Any,
        num_envs: int | None = None,
        seed: int = 0,
        processes: int = 1,
        gamma: float | None = None,
        on_fault: OnFault = "error",
        timeout: float | None = None,
    ) -> None:
        self.owner, self.spec = make_backend(env, num_envs, processes, on_fault, timeout)
        self.seed, self.gamma, self._own_gamma = seed, 1.0 if gamma is None else gamma, gamma
        self.obs: Any = None
        self._ended, self._life = False, 0  # whether any episode has ended, and the steps so far

    def __repr__(self) -> str:
        spec = self.spec
        return f"Collector({self.name}, {self.num_envs} environments, observation {spec.obs}, action {spec.action})"

    @property
    def num_envs(self) -> int:
        """number of environments, B"""
        return self.owner.count

    @property
    def name(self) -> str:
        """the environment's name"""
        return self.owner.name

    @property
    def action_dim(self) -> int:
        """numbers per action (1 for a discrete environment)"""
        return math.prod(self.spec.action)

    @property
    def obs_dim(self) -> int:
        """numbers per flat observation"""
        return flat_size(self.spec.obs, self.name)

    def discount(self, gamma: float) -> None:
        """Set the discount inside a chunk to ``gamma`` per step, as the method uses it between chunks.

        Raise InvalidInputError if the collector was made with another ``gamma``.
        """
        if self._own_gamma not in (None, gamma):
            raise InvalidInputError(
                f"the collector discounts by {self._own_gamma} per step inside a chunk and the method by {gamma} "
                "between chunks: give both the same gamma, or leave it out of the collector"
            )
        self.gamma = gamma

    def on_checkpoint(self, iteration: int) -> None:
        """Reset all environments with seeds made from (seed, iteration, index).

        A simulator cannot be saved. Every run resets at the same iterations, so a resumed run gives the same numbers.
        """
        if self._ended is False and self._life >= LEAST:
            warnings.warn(
                f"{self.name}: no episode has ended in {self._life} steps of an environment, so no return is known: "
                "train for longer, reset later, or give the environment a time limit",
                stacklevel=2,
            )
            self._ended = True  # warn once
        seeds = [derive_seed(self.seed, iteration, i) for i in range(self.num_envs)]
        self.obs = tensors(self.owner.reset(seeds), self.spec.obs, self.name)
        self._returns = np.zeros(self.num_envs)
        self._length = np.zeros(self.num_envs, np.int64)
        self._streak = np.zeros(self.num_envs, np.int64)  # decisions lost in a row
        self._success, self._reports = np.zeros(self.num_envs, bool), False
        self._all = np.ones(self.num_envs, bool)
        self._played, self._episodes = np.zeros(self.num_envs, np.int64), np.zeros(self.num_envs, np.int64)

    def may_restart(self) -> bool:
        """Return True if a reset of the environments loses little experience.

        That is after 4 episodes and 500 steps of every environment since the last reset. It is also after 20000 steps,
        or if nothing was collected.
        """
        whole = int(self._episodes.min()) >= EPISODES and int(self._played.min()) >= LEAST
        return whole or int(self._played.max()) >= MOST or not self._played.any()

    def collect(self, act: Act, steps: int, rng: Rng | int) -> Rollout:
        """Return a rollout of ``steps`` decisions per environment. ``act``: see ``Act``."""
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
                numbers, planned = prepare_actions(action, self.spec, self.num_envs, self.name)
                out = self.owner.step_chunk(numbers, self._all, self.gamma)
                outs.append(out)
                seen.append(self.obs)
                actions.append(action if isinstance(action, Tensor) else torch.as_tensor(action))
                after.append(tensors(out.after, self.spec.obs, self.name))
                self.obs = after[-1] if out.start is out.after else tensors(out.start, self.spec.obs, self.name)
                if out.faults or np.count_nonzero(self._streak):
                    self._check_faults(out)
        finally:  # count an interrupted rollout too: the next one continues its episodes
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
        """Return return, length and success (if reported) of the episode so far after every decision [T, B].

        ``over``, ``length`` [T, B]: whether the decision ended an episode, and its steps.
        """
        if not outs:
            return {}
        raw = np.array([out.raw for out in outs])
        reported, none = [out.success for out in outs], np.zeros(self.num_envs, bool)
        self._reports = self._reports or any(v is not None for v in reported)  # some report only at an end
        success = np.array([none if v is None else v for v in reported])
        returns, lengths, ends = np.empty_like(raw), np.empty_like(length), np.flatnonzero(over.any(1))
        for begin, end in pairwise([0, *(ends[ends < len(outs) - 1] + 1).tolist(), len(outs)]):
            part, last = slice(begin, end), over[end - 1]  # no episode ends before the last step of a part
            raw[begin] += self._returns
            returns[part] = raw[part].cumsum(0)
            lengths[part] = self._length + length[part].cumsum(0)
            success[part] = self._success | np.logical_or.accumulate(success[part], 0)
            self._returns, self._length = np.where(last, 0.0, returns[end - 1]), np.where(last, 0, lengths[end - 1])
            self._success = success[end - 1] & ~last
        self._played += length.sum(0)
        self._episodes += over.sum(0)
        if not self._ended:
            self._life += int(length.max(1).sum())
            self._ended = len(ends) > 0
            if not self._ended and self._life >= PATIENCE:
                warnings.warn(endless_note(self.name), stacklevel=4)
                self._ended = True  # warn once
        info = {
            "return": torch.from_numpy(returns.astype(np.float32)),
            "success": torch.from_numpy(success),
            "length": torch.from_numpy(lengths),
        }
        return info if self._reports else {k: v for k, v in info.items() if k != "success"}

    def _check_faults(self, out: ChunkResult) -> None:
        """Count lost decisions. Raise EnvFault if an environment lost several in a row: restarting it does not help."""
        lost = out.truncated & (out.length == 0)
        self._streak = np.where(lost, self._streak + 1, np.where(out.length > 0, 0, self._streak))
        if (self._streak >= IN_A_ROW).any():
            env = int(self._streak.argmax())
            last = next((f for f in reversed(out.faults) if f.env == env), Fault(env, 0, "lost its decision"))
            cure = (
                f"it has lost {IN_A_ROW} decisions in a row, so starting it again does not help: repair the environment"
            )
            raise EnvFault(last, self.name, cure)

    def close(self) -> None:
        """Close the environments."""
        self.owner.close()
