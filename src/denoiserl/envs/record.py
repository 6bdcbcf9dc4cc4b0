"""Record episodes of a policy, an expert or any function.

``record`` returns an ``EpisodeDataset``: demonstrations with rewards, last observations and how episodes ended. Start
state and noise of episode i depend on (seed, i) alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from denoiserl.core.counters import count_usage
from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng
from denoiserl.core.tree import leaves, tree_map
from denoiserl.data.demos import Demonstrations
from denoiserl.data.recordings import EpisodeDataset, to_stored_tensor


def with_action_noise(act: Callable[[Any, Rng], Any], half: Tensor | float, std: float) -> Callable[[Any, Rng], Tensor]:
    """Return ``act`` with N(0, (``std`` · ``half``)²) added to every action; ``half`` [d]: half the action range."""

    def acted(obs: Any, rng: Rng) -> Tensor:
        answer = act(obs, rng)
        action = torch.as_tensor(answer[0] if isinstance(answer, tuple) else answer)
        return action + std * half * rng.normal(*action.shape).to(action.device)

    return acted


def record(
    env: Any,
    act: Callable[[Any, Rng], Any],
    episodes: int,
    seed: int = 0,
    num_envs: int = 32,
    max_episode_steps: int = 100_000,
    on_progress: Callable[[int, int], None] | None = None,
    first: int = 0,
) -> EpisodeDataset:
    """Play ``episodes`` episodes of ``env`` (what ``Collector`` takes) with ``act(obs, rng) -> action or (action, _)``.

    ``obs`` is a float32 tensor [B, ...] or a dict of them (images uint8). Actions are a tensor or array [B, d] in the
    environment's units; ``act(obs)`` works too. A chunk [B, T_a, d] is executed action by action. The executed action
    is recorded: clipped to the action space. ``max_episode_steps`` cuts an episode. ``on_progress(done, won)`` is
    called with the numbers of finished and of successful episodes; ``first``: number of the first one. Spends
    "env_steps".

    An episode that crashes is kept up to the step before, as failed and cut; one that crashes at once is left out. Warn
    (``Remark``) of that, and of start states that are equal, successful before the first action, or not repeated by
    their seed.
    """
    from denoiserl.envs import remarks
    from denoiserl.envs.backends.make import make_backend
    from denoiserl.envs.backends.sync import derive_seed
    from denoiserl.envs.spaces import as_actor

    if episodes < 1:
        raise InvalidInputError(f"a data set has at least one episode, not {episodes}")
    act = as_actor(act)
    owner, spec = make_backend(env, None if hasattr(env, "num_envs") else min(num_envs, episodes), 1, None)
    if spec.choices is not None or len(spec.action) != 1:
        raise InvalidInputError(
            f"{owner.name} takes discrete actions or actions {list(spec.action)}: demonstrations hold actions [L, d]"
        )
    rows: list[_Row] = []
    notes: list[str] = []
    try:
        for begin in range(0, episodes, owner.count):
            n = min(owner.count, episodes - begin)
            seeds = [derive_seed(seed, first + begin + i) for i in range(n)]
            seeds += [derive_seed(seed, -1 & 0xFFFF, i) for i in range(owner.count - n)]
            with torch.no_grad():
                more, said = _round(act, owner, spec, seeds, n, max_episode_steps, not rows)
            rows, notes = rows + more, notes + said
            if on_progress is not None:
                on_progress(len(rows), sum(bool(row.success) for row in rows))
    finally:
        if not hasattr(env, "num_envs"):
            owner.close()
    faults = {first + i: row.fault for i, row in enumerate(rows) if row.fault is not None}
    notes += remarks.crash_notes(faults, episodes, owner.name)
    lengths, returns = [len(row.done) for row in rows], [float(row.rewards.sum()) for row in rows]
    notes += remarks.equal_start_notes([row.start for row in rows], lengths, returns, owner.name)
    notes += remarks.early_success_notes(sum(row.solved for row in rows), episodes, owner.name)
    remarks.remark(notes)
    known, rows = any(row.success is not None for row in rows), [row for row in rows if len(row.done)]
    demos = Demonstrations.of(
        [(tree_map(to_stored_tensor, row.seen), torch.from_numpy(row.done)) for row in rows],
        [bool(row.success) for row in rows] if known else None,
        [float(row.rewards.sum()) for row in rows],
        owner.name,
    )
    count_usage("env_steps", len(demos.actions))
    low, high = (torch.from_numpy(np.broadcast_to(v, spec.action).astype(np.float32)) for v in (spec.low, spec.high))
    return EpisodeDataset(
        demos,
        torch.from_numpy(np.concatenate([row.rewards for row in rows]).astype(np.float32)),
        tree_map(
            lambda *v: torch.stack([to_stored_tensor(x) for x in v]), rows[0].last, *[row.last for row in rows[1:]]
        ),
        torch.tensor([row.terminated for row in rows]),
        low,
        high,
    )


def collect(
    env: Any, act: Callable[[Any, Rng], Any], episodes: int, seed: int = 0, num_envs: int = 32
) -> Demonstrations:
    """Return ``record``'s demonstrations: observations, executed actions, success where it is reported, and returns."""
    return record(env, act, episodes, seed, num_envs).demos


def batch_expert(decide: Callable[[np.ndarray], np.ndarray]) -> Callable[[Any, Rng], Tensor]:
    """Return ``act`` of an expert that takes one flat observation: ``batch_expert(expert("reach-v3").get_action)``."""

    def act(obs: Tensor, rng: Rng) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # Meta-World's experts say that they have to be clipped
            return torch.from_numpy(np.stack([np.asarray(decide(o), np.float32) for o in obs.double().numpy()]))

    return act


@dataclass(frozen=True)
class _Row:
    """One episode in NumPy: ``seen`` [L, ...], ``done`` [L, d], ``rewards`` [L], ``last`` [...]."""

    seen: Any
    done: np.ndarray
    rewards: np.ndarray
    last: Any
    terminated: bool
    success: bool | None
    start: bytes
    solved: bool
    fault: Any = None


def _round(
    act: Callable[[Any, Rng], Any], owner: Any, spec: Any, seeds: list[int], n: int, max_episode_steps: int, ask: bool
) -> tuple[list[_Row], list[str]]:
    """Play one episode in every environment; the first ``n`` are kept. ``ask``: check that the environment follows its
    seeds."""
    from denoiserl.envs import remarks
    from denoiserl.envs.backends.vector import assign_rows, copy
    from denoiserl.envs.spaces import prepare_actions, tensors

    obs, notes = remarks.compare_resets(owner, seeds, owner.reset) if ask else (owner.reset(seeds), [])
    rng, starts, solved = Rng.rows(seeds), [remarks.row(obs, i) for i in range(n)], owner.solved.copy()
    faults: dict[int, Any] = {}
    alive, terminated = np.arange(owner.count) < n, np.zeros(owner.count, bool)
    seen, done, gains, lived = [], [], [], []
    success: np.ndarray | None = None
    while alive.any() and len(done) < max_episode_steps:
        answer = act(tensors(obs, spec.obs, owner.name), rng)
        chunk, horizon = prepare_actions(
            answer[0] if isinstance(answer, tuple) else answer, spec, owner.count, owner.name
        )
        for i in range(horizon):
            if not alive.any() or len(done) >= max_episode_steps:
                break
            seen.append(copy(obs))
            out = owner.step_chunk(chunk[:, i : i + 1], alive, 1.0, False)
            for fault in out.faults:
                if fault.env is not None and alive[fault.env]:
                    faults[fault.env] = fault
            alive = alive & ~np.isin(np.arange(owner.count), list(faults))
            done.append(chunk[:, i].copy())
            gains.append(out.raw)
            lived.append(alive)
            if out.success is not None:
                success = (out.success & alive) | (False if success is None else success)
            obs = assign_rows(obs, alive, out.after)
            terminated = terminated | (alive & out.terminated)
            alive = alive & ~(out.terminated | out.truncated)
    lengths, actions, rewards = np.sum(lived, 0), np.stack(done).astype(np.float32), np.stack(gains)
    frames = tree_map(lambda *v: np.stack(v), seen[0], *seen[1:])
    rows = [
        _Row(
            tree_map(lambda v, i=i: v[: lengths[i], i], frames),
            actions[: lengths[i], i],
            rewards[: lengths[i], i],
            tree_map(lambda v, i=i: np.asarray(v[i]), obs),
            bool(terminated[i]),
            None if success is None else bool(success[i]) and i not in faults,
            starts[i],
            bool(solved[i]),
            faults.get(i),
        )
        for i in range(n)
    ]
    return rows, notes


def constant_dimensions(demos: Demonstrations) -> list[int]:
    """Return the dimensions of flat observations that never change: normalisers map them to 0."""
    parts = [v.flatten(1) for v in leaves(demos.observations)]
    flat = torch.cat([p.float() for p in parts], 1)
    return (flat == flat[:1]).all(0).nonzero().flatten().tolist()
