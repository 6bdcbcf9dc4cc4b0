"""Logged transitions for off-policy learning: one row per decision.

``to_transitions`` turns an episode data set into rows

    (s_t, a_{t:t+H}, R, D, s_{t+m}),   R = Σ_{k<m} γ^k r_{t+k},   D = γ^m, 0 where the episode truly ended,

with m = n H steps, fewer where the episode ends sooner. ``Transitions.replay`` puts them into a ``ReplayBuffer``, which
online methods use too. ``transitions`` is the inverse: rows as an episode data set. ``denoiserl.data.formats.any.read``
reads files of all formats.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.tree import Tree, all_finite, describe_shapes, leaves, tree_map
from denoiserl.data.demos import Demonstrations
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.data.replay import ReplayBuffer

Map = Callable[[Any], Any]


@dataclass(frozen=True)
class Transitions:
    """N decisions of recorded episodes, in data units.

    ``obs``, ``next_obs`` [N, ...] (trees); ``action`` [N, H, d]; ``reward`` [N]: discounted over the row's steps;
    ``length`` [N]: steps until ``next_obs``; ``discount`` [N]: γ^length, 0 at a true end; ``terminated`` [N] bool.
    ``low``, ``high`` [d]: bounds of the actions, infinite if not known. ``gamma``: discount per step.
    """

    obs: Tree
    action: Tensor
    reward: Tensor
    discount: Tensor
    next_obs: Tree
    terminated: Tensor
    length: Tensor
    low: Tensor
    high: Tensor
    gamma: float
    name: str = ""

    def __len__(self) -> int:
        return len(self.reward)

    def __repr__(self) -> str:
        name = f"{self.name}, " if self.name else ""
        shapes = f"observation {describe_shapes(self.obs, 1)}, action {list(self.action.shape[1:])}"
        return f"Transitions({name}{len(self)} rows, {shapes}, gamma {self.gamma:g})"

    @property
    def real(self) -> Tensor:
        """executed actions of the chunks, [N, H] bool: others lie beyond the end of an episode"""
        return torch.arange(self.action.shape[1]) < self.length[:, None]

    def replay(self, batch: int = 1, device: str | torch.device = "cpu", done: Map | None = None) -> ReplayBuffer:
        """Return a replay buffer of all rows; sample from it with this ``gamma`` and ``steps=1``, as n is in the rows.

        ``done`` maps actions once (to model units, say). If some actions are not ``real``, that is a column too.
        Observations are not copied: do not change them in place. Raise InvalidInputError for fewer rows than a
        ``batch``: a minibatch would repeat them.
        """
        if len(self) < batch:
            raise InvalidInputError(
                f"{self.name or 'the data'} hold {len(self)} decisions, fewer than a batch of {batch}: record more, or "
                "take a smaller batch"
            )
        columns = {
            "obs": self.obs, "next_obs": self.next_obs, "action": self.action if done is None else done(self.action),
            "reward": self.reward, "terminated": self.terminated, "length": self.length,
        }  # fmt: skip
        return ReplayBuffer.of(columns if bool(self.real.all()) else {**columns, "real": self.real}, device)


@torch.no_grad()
def to_transitions(
    data: EpisodeDataset | Demonstrations, chunk: int = 1, n: int = 1, gamma: float = 0.99, seen: Map | None = None
) -> Transitions:
    """Return the rows of recorded episodes: every step starts a chunk of H = ``chunk`` actions and a return of n
    chunks.

    A chunk that reaches beyond its episode repeats the last action; the repeated ones are not executed. A time limit
    bootstraps from the last observation, a true end does not. ``seen`` maps observations [N, ...] once (to model units,
    say). Rows share memory with the data set where possible. If the source does not store

    - rewards, success is the reward: 1 in the last step of successful episodes (an error if success is missing too);
    - how episodes ended, success is a true end, and the others are cut by a time limit;
    - the last observations (LeRobot), rows that would bootstrap from there are left out.

    Raise InvalidInputError, with the row, for NaN and infinity and for actions outside known bounds. Raise it too for a
    discount of 1 on data without a true end, where no return is finite.
    """
    data = data if isinstance(data, EpisodeDataset) else EpisodeDataset.of(data)
    demos, name = data.demos, data.demos.name or "the data"
    if chunk < 1 or n < 1 or not 0 <= gamma <= 1:
        raise InvalidInputError(
            f"a row has a chunk and a return of at least one and a discount in [0, 1]; they are {chunk}, {n}, {gamma}"
        )
    rewards, ended = _told(data, name)
    _sound(data, rewards, name)
    if gamma == 1 and not bool(ended.any()):
        raise InvalidInputError(
            f"no episode of {name} truly ended, so no return at a discount of 1 is finite: take gamma < 1"
        )
    at = torch.arange(len(demos.actions))
    owner = torch.searchsorted(demos.ends, at, right=True)
    length = (demos.ends[owner] - at).clamp_max_(n * chunk)
    over = at + length == demos.ends[owner]
    terminated = over & ended[owner]
    if data.last is None:
        at = at[~over | terminated]
        if len(at) == 0:
            raise InvalidInputError(
                f"the episodes of {name} have at most {n * chunk} steps, and the observations after them are not "
                "stored: take a smaller chunk or n, or data with the last observations"
            )
        owner, length, over, terminated = (v[at] for v in (owner, length, over, terminated))
    reward = torch.zeros(len(at))
    for k in range(min(n * chunk, int(length.max()))):
        reward += torch.where(k < length, gamma**k * rewards[(at + k).clamp_max(len(rewards) - 1)], 0.0)
    every = len(at) == len(demos.actions)
    if chunk == 1:
        action = demos.actions[:, None] if every else demos.actions[at, None]
    else:
        action = demos.actions[torch.minimum(at[:, None] + torch.arange(chunk), (demos.ends[owner] - 1)[:, None])]
    observations, last = (v if seen is None or v is None else seen(v) for v in (demos.observations, data.last))
    obs = observations if every else tree_map(lambda v: v[at], observations)
    at += length.masked_fill(over, 0)  # rows at an end use ``last``, or are not used
    next_obs = tree_map(lambda v: v[at], observations)
    if last is not None:
        tree_map(lambda v, end: v.index_copy_(0, *_ends(over, owner, end.to(v.dtype))), next_obs, last)
    discount = gamma ** length.float() * ~terminated
    return Transitions(
        obs, action, reward, discount, next_obs, terminated, length, data.low, data.high, gamma, demos.name
    )


def _ends(over: Tensor, owner: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Return which rows [n] see the end of their episode, and the observation there."""
    rows = over.nonzero().flatten()
    return rows.to(last.device), last[owner[rows].to(last.device)]


def _told(data: EpisodeDataset, name: str) -> tuple[Tensor, Tensor]:
    """Return rewards [N], and which episodes truly ended [E] bool."""
    demos, rewards, ended = data.demos, data.rewards, data.terminated
    if ended is None:
        ended = torch.zeros(len(demos), dtype=torch.bool) if demos.success is None else demos.success.bool()
    if rewards is None:
        if demos.success is None:
            raise InvalidInputError(
                f"{name} store neither rewards nor success, so policies cannot be compared: imitate "
                "them (diffusion_policy), or record rewards"
            )
        rewards = torch.zeros(len(demos.actions))
        rewards[demos.ends - 1] = demos.success.float()
    return rewards.float(), ended


def _sound(data: EpisodeDataset, rewards: Tensor, name: str) -> None:
    """Raise InvalidInputError, with the row, for data that cannot be used."""
    parts = {"observations": data.demos.observations, "actions": data.demos.actions, "rewards": rewards}
    for what, tree in {**parts, **({} if data.last is None else {"last observations": data.last})}.items():
        for leaf in () if all_finite(tree) else leaves(tree):
            bad = ~leaf.flatten(1).isfinite().all(1) if leaf.ndim > 1 else ~leaf.isfinite()
            if bool(bad.any()):
                raise InvalidInputError(
                    f"row {int(bad.int().argmax())} of the {what} of {name} holds NaN or infinity: repair it, or leave "
                    "its episode out"
                )
    actions = data.demos.actions
    over = torch.maximum(data.low - actions, actions - data.high).amax(1)
    if bool((over > 1e-5).any()):
        row = int(over.argmax())
        raise InvalidInputError(
            f"row {row} of {name} acts {actions[row].tolist()}, outside the box of actions {data.low.tolist()} to "
            f"{data.high.tolist()}: are these other units? read(path, out_of_bounds_actions='clip') clips them"
        )


def has_reward_contrast(data: EpisodeDataset | Demonstrations) -> bool:
    """Return whether these rewards can distinguish policies.

    Equal rewards cannot, unless they are not zero and episodes truly end.
    """
    data = data if isinstance(data, EpisodeDataset) else EpisodeDataset.of(data)
    rewards, ended = _told(data, data.demos.name or "the data")
    equal = bool(rewards.min() == rewards.max())
    return not equal or (bool(rewards[0] != 0) and bool(ended.any()))


def transitions(
    obs: Tensor,
    action: Tensor,
    reward: Tensor,
    next_obs: Tensor,
    terminated: Tensor,
    low: Tensor | None = None,
    high: Tensor | None = None,
    name: str = "",
) -> EpisodeDataset:
    """Return single transitions as an episode data set of N episodes of one step each.

    ``obs``, ``next_obs`` [N, o], ``action`` [N, d], ``reward`` [N], ``terminated`` [N] bool; ``low``, ``high`` [d]:
    bounds of the actions, unknown by default. ``to_transitions`` returns the same rows, with n and chunk of 1 only.
    """
    count = len(action)
    for what, v, ndim in (
        ("obs", obs, 2), ("next_obs", next_obs, 2), ("action", action, 2), ("reward", reward, 1),
        ("terminated", terminated, 1),
    ):  # fmt: skip
        if len(v) != count or v.ndim != ndim:
            raise InvalidInputError(
                f"{what} has the shape {list(v.shape)}: transitions are [N, o], [N, d], [N], [N, o], [N]"
            )
    wide = torch.full((action.shape[1],), torch.inf)
    demos = Demonstrations(obs, action, torch.arange(1, count + 1), None, reward, name)
    return EpisodeDataset(
        demos, reward, next_obs, terminated.bool(), -wide if low is None else low, wide if high is None else high
    )
