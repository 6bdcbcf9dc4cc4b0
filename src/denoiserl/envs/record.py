"""Recording episodes: ``collect`` plays a policy, an expert or any function, and keeps what it did.

``record`` keeps all that data formats ask for, as a ``EpisodeDataset``: beside the demonstrations the rewards, what was
seen last and how episodes ended. Episode i starts from a state, and draws noise, that depend on (seed, i) alone.
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


def noisy(act: Callable[[Any, Rng], Any], half: Tensor | float, std: float) -> Callable[[Any, Rng], Tensor]:
    """``act`` with N(0, (``std`` · ``half``)²) added to every action; ``half`` [d] is half the range of the actions."""

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
    copies: int = 32,
    limit: int = 100_000,
    told: Callable[[int, int], None] | None = None,
    first: int = 0,
) -> EpisodeDataset:
    """Play ``episodes`` episodes of ``env`` (what ``Collector`` takes) with ``act(obs, rng) -> action or (action, _)``.

    ``obs`` is a float32 tensor [B, ...] or a dict of them (pictures uint8), actions are a tensor or array [B, d] in the
    environment's units; ``act(obs)`` does too. A chunk [B, T_a, d] is executed action by action. What is kept is what
    was executed: clipped to the action space. ``limit`` ticks cut an episode. ``told(done, won)`` hears how many
    episodes are through; ``first`` is the number of the first one. Spends "env_steps".

    An episode that crashes is kept up to the tick before, as one that failed and was cut; one that crashes at once is
    left out. Warns (``Remark``) of that, of starts that are alike, solved before acting, or not repeated by their seed.
    """
    from denoiserl.envs import remarks
    from denoiserl.envs.backends.sync import derive_seed
    from denoiserl.envs.collector import make_backend
    from denoiserl.envs.spaces import decides

    if episodes < 1:
        raise InvalidInputError(f"a recording has at least one episode, not {episodes}")
    act = decides(act)
    owner, spec = make_backend(env, None if hasattr(env, "num_envs") else min(copies, episodes), 1, None)
    if spec.choices is not None or len(spec.action) != 1:
        raise InvalidInputError(
            f"{owner.name} acts in {list(spec.action)} or by choice: demonstrations hold actions [L, d]"
        )
    rows: list[_Row] = []
    notes: list[str] = []
    try:
        for begin in range(0, episodes, owner.count):
            n = min(owner.count, episodes - begin)
            seeds = [derive_seed(seed, first + begin + i) for i in range(n)]
            seeds += [derive_seed(seed, -1 & 0xFFFF, i) for i in range(owner.count - n)]
            with torch.no_grad():
                more, said = _round(act, owner, spec, seeds, n, limit, not rows)
            rows, notes = rows + more, notes + said
            if told is not None:
                told(len(rows), sum(bool(row.success) for row in rows))
    finally:
        if not hasattr(env, "num_envs"):
            owner.close()
    faults = {first + i: row.fault for i, row in enumerate(rows) if row.fault is not None}
    notes += remarks.crash_notes(faults, episodes, owner.name)
    ticks, returns = [len(row.done) for row in rows], [float(row.rewards.sum()) for row in rows]
    notes += remarks.alike([row.start for row in rows], ticks, returns, owner.name)
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


def collect(env: Any, act: Callable[[Any, Rng], Any], episodes: int, seed: int = 0, copies: int = 32) -> Demonstrations:
    """``record``'s demonstrations: observations, executed actions, success where it is reported, and returns."""
    return record(env, act, episodes, seed, copies).demos


def each(decide: Callable[[np.ndarray], np.ndarray]) -> Callable[[Any, Rng], Tensor]:
    """An expert that decides on one flat observation at a time, as ``act``: ``each(expert("reach-v3").get_action)``."""

    def act(obs: Tensor, rng: Rng) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # Meta-World's experts say that they have to be clipped
            return torch.from_numpy(np.stack([np.asarray(decide(o), np.float32) for o in obs.double().numpy()]))

    return act


@dataclass(frozen=True)
class _Row:
    """One episode in numpy: ``seen`` [L, ...], ``done`` [L, d], ``rewards`` [L], ``last`` [...]."""

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
    act: Callable[[Any, Rng], Any], owner: Any, spec: Any, seeds: list[int], n: int, limit: int, ask: bool
) -> tuple[list[_Row], list[str]]:
    """One episode in every copy; the first ``n`` are kept. ``ask``: whether the environment follows its seeds."""
    from denoiserl.envs import remarks
    from denoiserl.envs.backends.vector import assign_rows, copy
    from denoiserl.envs.spaces import prepare_actions, tensors

    obs, notes = remarks.compare_resets(owner, seeds, owner.reset) if ask else (owner.reset(seeds), [])
    rng, starts, solved = Rng.rows(seeds), [remarks.row(obs, i) for i in range(n)], owner.solved.copy()
    faults: dict[int, Any] = {}
    alive, terminated = np.arange(owner.count) < n, np.zeros(owner.count, bool)
    seen, done, gains, lived = [], [], [], []
    success: np.ndarray | None = None
    while alive.any() and len(done) < limit:
        answer = act(tensors(obs, spec.obs, owner.name), rng)
        chunk, ticks = prepare_actions(
            answer[0] if isinstance(answer, tuple) else answer, spec, owner.count, owner.name
        )
        for tick in range(ticks):
            if not alive.any() or len(done) >= limit:
                break
            seen.append(copy(obs))
            out = owner.play(chunk[:, tick : tick + 1], alive, 1.0, False)
            for fault in out.faults:
                if fault.copy is not None and alive[fault.copy]:
                    faults[fault.copy] = fault
            alive = alive & ~np.isin(np.arange(owner.count), list(faults))
            done.append(chunk[:, tick].copy())
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


def constant(demos: Demonstrations) -> list[int]:
    """The dimensions of flat observations that never change: normalisers map them to 0."""
    parts = [v.flatten(1) for v in leaves(demos.observations)]
    flat = torch.cat([p.float() for p in parts], 1)
    return (flat == flat[:1]).all(0).nonzero().flatten().tolist()
