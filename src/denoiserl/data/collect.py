"""Recording episodes: ``collect`` plays a policy, an expert or any function, and keeps what it did.

``record`` keeps all that data formats ask for, as a ``Recording``: beside the demonstrations the rewards, what was seen
last and how episodes ended. Episode i starts from a state, and draws noise, that depend on (seed, i) alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from denoiserl import store
from denoiserl.data.demos import Demos
from denoiserl.errors import BadSignal
from denoiserl.meter import spend
from denoiserl.rng import Rng
from denoiserl.tree import Tree, cat, leaves, tree_map


@dataclass(frozen=True)
class Recording:
    """Demonstrations with the rest of what happened; N frames in E episodes.

    ``rewards`` [N]; ``last`` [E, ...]: the observation after the last action; ``terminated`` [E] bool: the episode
    truly ended (otherwise a time limit cut it). None of what a source does not tell. ``low``, ``high`` [d]: the box of
    actions, infinite where it is not known.
    """

    demos: Demos
    rewards: Tensor | None
    last: Tree
    terminated: Tensor | None
    low: Tensor
    high: Tensor

    def take(self, keep: Tensor) -> Recording:
        """The episodes of an index or mask [E]."""
        index = keep.nonzero().flatten() if keep.dtype == torch.bool else keep
        demos = self.demos.take(index)
        rewards = None
        if self.rewards is not None:
            ends, lengths = self.demos.ends, self.demos.lengths
            rewards = torch.cat([self.rewards[int(ends[i] - lengths[i]) : int(ends[i])] for i in index])
        terminated = None if self.terminated is None else self.terminated[index]
        return replace(
            self, demos=demos, rewards=rewards, last=tree_map(lambda v: v[index], self.last), terminated=terminated
        )

    def successful(self) -> Recording:
        """The episodes that succeeded."""
        if self.demos.success is None:
            raise BadSignal("this environment does not say which episodes succeeded (info['success'])")
        return self.take(self.demos.success)

    @staticmethod
    def of(demos: Demos, rewards: Tensor | None = None) -> Recording:
        """Demonstrations of which nothing else is known, but rewards perhaps."""
        wide = torch.full((demos.actions.shape[1],), torch.inf)
        return Recording(demos, rewards, None, None, -wide, wide)

    def save(self, path: str | Path) -> Path:
        """Store in the folder ``path``, whole or not at all. ``Demos.load`` reads its demonstrations."""
        return store.write(path, {**self.demos.tree(), **{f: getattr(self, f) for f in REST}})

    @staticmethod
    def load(path: str | Path) -> Recording:
        """Read what ``save`` stored; of demonstrations alone, nothing else is known."""
        demos, tree = Demos.load(path), store.read(path)
        if not all(f in tree for f in REST):
            return Recording.of(demos)
        return Recording(demos, *(tree[f] for f in REST))

    @staticmethod
    def joined(parts: Sequence[Recording]) -> Recording:
        """The episodes of recordings of one environment, one after another."""
        one, *_ = parts

        def all_of(f: str) -> Any:
            told = [getattr(part, f) for part in parts]
            return None if any(v is None for v in told) else cat(told)

        demos = Demos.joined([part.demos for part in parts])
        return Recording(demos, all_of("rewards"), all_of("last"), all_of("terminated"), one.low, one.high)


REST = ("rewards", "last", "terminated", "low", "high")
"""what a recording has beside its demonstrations"""


def whole(
    name: str, i: int, observations: Any, actions: np.ndarray, low: Any = None, high: Any = None, **columns: Any
) -> None:
    """Refuse a bad episode, by its number and row.

    Empty, columns of unequal length, NaN or infinity, actions [L, d] outside the box [low, high].
    """
    where = f"episode {i} of {name}"
    if actions.ndim != 2:
        raise BadSignal(f"{where} has actions of shape {list(actions.shape)}: demonstrations hold [L, d]")
    if len(actions) == 0:
        raise BadSignal(f"{where} is empty: leave it out with without=({i},)")
    parts = {**dict(_named("observations", observations)), "actions": actions, **columns}
    for what, value in parts.items():
        if len(value) != len(actions):
            raise BadSignal(
                f"{where} is ragged, {len(actions)} actions and {len(value)} of {what}: repair it, or leave it out "
                f"with without=({i},)"
            )
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            row = int(np.argmax(~np.isfinite(value.reshape(len(value), -1)).all(1)))
            raise BadSignal(
                f"row {row} of {what} of {where} holds NaN or infinity: repair it, or leave it out with without=({i},)"
            )
    if low is not None and high is not None:
        over = np.maximum(np.asarray(low) - actions, actions - np.asarray(high))
        if over.max() > 1e-5:
            row, d = (int(n) for n in np.unravel_index(over.argmax(), over.shape))
            raise BadSignal(
                f"row {row} of {where} acts {actions[row, d]:g} in dimension {d}, outside the action space's "
                f"[{np.broadcast_to(low, actions.shape)[row, d]:g}, {np.broadcast_to(high, actions.shape)[row, d]:g}]: "
                "are these other units? outside='clip' clips them"
            )


def _named(name: str, tree: Any) -> list[tuple[str, Any]]:
    """The leaves of a tree of dicts with their paths."""
    if isinstance(tree, dict):
        return [pair for k, v in tree.items() for pair in _named(f"{name}/{k}", v)]
    return [(name, tree)]


def numbers(value: np.ndarray) -> Tensor:
    """What is stored: float32, and bytes (pictures) as they are."""
    return torch.from_numpy(np.array(value, dtype=np.uint8 if value.dtype == np.uint8 else np.float32))


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
) -> Recording:
    """Play ``episodes`` episodes of ``env`` (what ``Stream`` takes) with ``act(obs, rng) -> action or (action, _)``.

    ``obs`` is a float32 tensor [B, ...] or a dict of them (pictures uint8), actions are a tensor or array [B, d] in the
    environment's units; ``act(obs)`` does too. A chunk [B, T_a, d] is executed action by action. What is kept is what
    was executed: clipped to the action space. ``limit`` ticks cut an episode. ``told(done, won)`` hears how many
    episodes are through; ``first`` is the number of the first one. Spends "env steps".

    An episode that crashes is kept up to the tick before, as one that failed and was cut; one that crashes at once is
    left out. Warns (``Remark``) of that, of starts that are alike, solved before acting, or not repeated by their seed.
    """
    from denoiserl.env import remarks
    from denoiserl.env.spaces import decides
    from denoiserl.env.stream import derived, own

    if episodes < 1:
        raise BadSignal(f"a recording has at least one episode, not {episodes}")
    act = decides(act)
    owner, spec = own(env, None if hasattr(env, "num_envs") else min(copies, episodes), 1, None)
    if spec.choices is not None or len(spec.action) != 1:
        raise BadSignal(f"{owner.name} acts in {list(spec.action)} or by choice: demonstrations hold actions [L, d]")
    rows: list[_Row] = []
    notes: list[str] = []
    try:
        for begin in range(0, episodes, owner.count):
            n = min(owner.count, episodes - begin)
            seeds = [derived(seed, first + begin + i) for i in range(n)]
            seeds += [derived(seed, -1 & 0xFFFF, i) for i in range(owner.count - n)]
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
    demos = Demos.of(
        [(tree_map(numbers, row.seen), torch.from_numpy(row.done)) for row in rows],
        [bool(row.success) for row in rows] if known else None,
        [float(row.rewards.sum()) for row in rows],
        owner.name,
    )
    spend("env steps", len(demos.actions))
    low, high = (torch.from_numpy(np.broadcast_to(v, spec.action).astype(np.float32)) for v in (spec.low, spec.high))
    return Recording(
        demos,
        torch.from_numpy(np.concatenate([row.rewards for row in rows]).astype(np.float32)),
        tree_map(lambda *v: torch.stack([numbers(x) for x in v]), rows[0].last, *[row.last for row in rows[1:]]),
        torch.tensor([row.terminated for row in rows]),
        low,
        high,
    )


def collect(env: Any, act: Callable[[Any, Rng], Any], episodes: int, seed: int = 0, copies: int = 32) -> Demos:
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
    from denoiserl.env import remarks
    from denoiserl.env.stream import executable, tensors
    from denoiserl.env.vector import copy, put

    obs, notes = remarks.compare_resets(owner, seeds, owner.reset) if ask else (owner.reset(seeds), [])
    rng, starts, solved = Rng.rows(seeds), [remarks.row(obs, i) for i in range(n)], owner.solved.copy()
    faults: dict[int, Any] = {}
    alive, terminated = np.arange(owner.count) < n, np.zeros(owner.count, bool)
    seen, done, gains, lived = [], [], [], []
    success: np.ndarray | None = None
    while alive.any() and len(done) < limit:
        answer = act(tensors(obs, spec.obs, owner.name), rng)
        chunk, ticks = executable(answer[0] if isinstance(answer, tuple) else answer, spec, owner.count, owner.name)
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
            obs = put(obs, alive, out.after)
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


def constant(demos: Demos) -> list[int]:
    """The dimensions of flat observations that never change: normalisers map them to 0."""
    parts = [v.flatten(1) for v in leaves(demos.observations)]
    flat = torch.cat([p.float() for p in parts], 1)
    return (flat == flat[:1]).all(0).nonzero().flatten().tolist()
