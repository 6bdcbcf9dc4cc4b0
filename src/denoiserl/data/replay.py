"""Replay buffer: collected decisions for off-policy learning.

A row is one decision (an action, or a chunk of them). Rows lie in a ring in the order of collection, each with the
index of its successor in the episode. So n-step returns are computed when a minibatch is sampled.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.tree import Tree, all_finite, leaves, tree_map
from denoiserl.data.append_log import RowFile

if TYPE_CHECKING:  # only for the annotation
    from denoiserl.data.rollout import Rollout

OWN = ("obs", "next_obs", "action", "reward", "terminated", "length", "before")


class ReplayBuffer:
    """The newest ``capacity`` decisions. Adding costs one write per row, a minibatch one gather per column.

    ``folder``: where rows are kept beside a saved state, which then holds counters only. Every save appends the new
    rows, and a resumed run has the rows of the saved state. Without a folder the rows are part of the state. Rows live
    on ``device``. It has a state: name it in ``run.loop``.
    """

    def __init__(self, capacity: int, device: str | torch.device = "cpu", folder: Path | str | None = None) -> None:
        if capacity < 1:
            raise RunError(f"a replay buffer holds at least one decision, not {capacity}")
        self.capacity, self.device, self.count = capacity, torch.device(device), 0
        self.columns: dict[str, Any] = {}
        self.next_row = torch.full((capacity,), -1, dtype=torch.int64, device=self.device)
        self.open_rows: Tensor | None = None
        self.file = None if folder is None else RowFile(Path(folder), capacity)

    @classmethod
    @torch.no_grad()
    def of(cls, rows: dict[str, Any], device: str | torch.device = "cpu") -> ReplayBuffer:
        """Return a full buffer of unrelated decisions; it takes the columns over without a copy.

        ``rows``: "obs", "next_obs", "action", "reward", "terminated", "length" and further columns, [N, ...].
        """
        made = cls(len(rows["reward"]), device)
        made._fits(rows)
        made.columns = tree_map(lambda v: v.to(made.device), rows)
        made.columns["before"] = torch.full((made.capacity,), -1, dtype=torch.int64, device=made.device)
        made.count = made.capacity
        return made

    def __len__(self) -> int:
        """Return the number of decisions that can be sampled."""
        return min(self.count, self.capacity)

    def __repr__(self) -> str:
        return f"ReplayBuffer({len(self)} of {self.capacity} decisions, {self.device})"

    @torch.no_grad()
    def add(self, ep: Rollout, **more: Tree) -> int:
        """Add the valid decisions of a rollout, and return their number.

        ``more``: further columns [T, B, ...], sampled as they were given; ``action=`` replaces the rollout's actions.
        Add rollouts of one collector in the order of collection. An n-step return continues in the next rollout if that
        begins in the state in which the last one stopped. Raise InvalidInputError for NaN and infinity, rows of other
        shapes than before, and more rows at once than the buffer holds.
        """
        given: dict[str, Any] = {
            "obs": ep.obs, "next_obs": ep.next_obs, "action": ep.action, "reward": ep.reward,
            "terminated": ep.terminated, "length": ep.num_executed, **more,
        }  # fmt: skip
        alive = ep.valid.to(self.device)
        flat = alive.flatten()
        total = int(flat.sum())
        if total > self.capacity:
            raise InvalidInputError(
                f"{total} decisions were collected at once and the buffer holds {self.capacity}"
                ": raise buffer_size (--buffer-size), or collect fewer steps at a time"
            )
        index = torch.nonzero(flat).flatten()
        rows = {k: tree_map(lambda v: v.to(self.device).flatten(0, 1)[index], v) for k, v in given.items()}
        self._fits(rows)
        if total == 0:
            return 0
        before, tails = self._linked(ep, alive, flat)
        rows["before"] = before[index]
        if not self.columns:
            self.columns = {k: tree_map(self._room, v) for k, v in rows.items()}
        at = (self.count + torch.arange(total, device=self.device)) % self.capacity
        tree_map(lambda column, v: column.index_copy_(0, at, v), self.columns, rows)
        self.count += total
        self._link(at, rows["before"])
        self.open_rows = tails
        return total

    def sample(
        self, n: int, rng: Rng | int, gamma: float, steps: int = 1, batches: int | None = None
    ) -> dict[str, Any]:
        """Sample n decisions uniformly with replacement, [n, ...]; with ``batches``, [batches, n, ...] in one gather.

            reward = Σ_{k<m} γ^{τ_k} r_k,   discount = γ^{τ_m} (0 where row m − 1 truly ended),   τ_k steps before row k

        The return has m ≤ ``steps`` rows: it stops where the episode does, at the newest row, and at a reset.
        ``next_obs`` is the true successor of its last row, also at a time limit, so that a learner bootstraps there;
        ``terminated`` marks where it must not. ``obs``, ``action`` and further columns are the first row's. The
        discount inside a chunk is the collector's. Raise InvalidInputError for fewer decisions than a minibatch.
        """
        rng = as_rng(rng, self.device)
        if len(self) < n:
            raise InvalidInputError(
                f"the buffer holds {len(self)} decisions, fewer than a batch of {n}: collect more before learning"
            )
        if steps < 1 or not 0 <= gamma <= 1:
            raise InvalidInputError(
                f"a return has at least one step and a discount in [0, 1]; they are {steps} and {gamma}"
            )
        shape = (n,) if batches is None else (batches, n)
        at = rng.integers(0, len(self), *shape).flatten().to(self.device)
        c, last = self.columns, at
        reward, discount = c["reward"][at], gamma ** c["length"][at].float()
        for _ in range(steps - 1):
            after = self.next_row[last]
            goes = after >= 0
            last = torch.where(goes, after, last)
            reward = torch.where(goes, reward + discount * c["reward"][last], reward)
            discount = torch.where(goes, discount * gamma ** c["length"][last].float(), discount)
        over = c["terminated"][last]
        drawn = {k: tree_map(lambda v: v[at], v) for k, v in c.items() if k not in OWN or k in ("obs", "action")}
        drawn |= {"next_obs": tree_map(lambda v: v[last], c["next_obs"]), "terminated": over}
        drawn |= {"reward": reward, "discount": discount * ~over}
        return tree_map(lambda v: v.unflatten(0, shape), drawn)

    def state_dict(self) -> dict[str, Any]:
        """Return the counters, and the rows themselves without a folder."""
        state: dict[str, Any] = {"count": self.count, "capacity": self.capacity}
        state["tails"] = None if self.open_rows is None else self.open_rows.cpu()
        if self.file is None:
            held = len(self)
            return {**state, "rows": tree_map(lambda v: v[:held].clone(), self.columns), "file": None}
        return {**state, "rows": None, "file": self.file.append(self._rows, self.count)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a saved state. Raise RunError if it does not fit."""
        if state["capacity"] != self.capacity:
            raise RunError(f"the saved buffer has a capacity of {state['capacity']}, this one of {self.capacity}")
        if (state["file"] is None) != (self.file is None):
            raise RunError("the saved buffer and this one differ in whether rows are in a folder: make both the same")
        rows = state["rows"] if self.file is None else self.file.restore(state["file"], state["count"])
        self.count = state["count"]
        self.open_rows = None if state["tails"] is None else state["tails"].to(self.device)
        self.next_row.fill_(-1)
        self.columns = {}
        if not self.count:
            return
        self.columns = tree_map(lambda v: self._room(v.to(self.device)), rows)
        held = len(self)
        tree_map(lambda column, v: column[:held].copy_(v), self.columns, rows)
        self._link(torch.arange(held, device=self.device), self.columns["before"][:held])

    def _room(self, like: Tensor) -> Tensor:
        return torch.empty(self.capacity, *like.shape[1:], dtype=like.dtype, device=self.device)

    def _rows(self, at: Tensor) -> Tree:
        """Return rows by their number since the beginning."""
        return tree_map(lambda v: v[at.to(self.device) % self.capacity].cpu(), self.columns)

    def _fits(self, rows: dict[str, Any]) -> None:
        for name, tree in rows.items():
            if not all_finite(tree):
                raise InvalidInputError(
                    f"{name} holds NaN or infinity, which would be sampled many times: repair the environment"
                )
        if not self.columns:
            return
        if rows.keys() | {"before"} != self.columns.keys():
            raise InvalidInputError(
                f"the buffer has the columns {sorted(self.columns)}, these rows {sorted(rows)}: give the same columns"
            )
        for name, tree in rows.items():
            shapes = [(tuple(v.shape[1:]), v.dtype) for v in leaves(tree)]
            known = [(tuple(v.shape[1:]), v.dtype) for v in leaves(self.columns[name])]
            if shapes != known:
                raise InvalidInputError(
                    f"{name} is {shapes} per row, the buffer holds {known}: use one buffer per kind of row"
                )

    def _linked(self, ep: Rollout, alive: Tensor, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Return for every decision [T·B] the number of the one before it in its episode, or −1; and the last ones
        [B]."""
        number = (self.count + flat.long().cumsum(0) - 1).view(alive.shape)
        done = ep.done.to(self.device)
        open_, before = self._continued(ep), torch.full_like(number, -1)
        for t in range(len(alive)):
            before[t] = torch.where(alive[t], open_, -1)
            open_ = torch.where(done[t], -1, torch.where(alive[t], number[t], open_))  # a lost decision is done too
        return before.flatten(), open_

    def _continued(self, ep: Rollout) -> Tensor:
        """Return the last rows [B] of unfinished episodes that this rollout continues, −1 where it does not."""
        num_envs = ep.reward.shape[1]
        ends = torch.full((num_envs,), -1, dtype=torch.int64, device=self.device)
        if self.open_rows is None or len(self.open_rows) != num_envs:
            return ends
        known = self.open_rows >= max(0, self.count - self.capacity)
        at = self.open_rows.clamp_min(0) % self.capacity
        for old, new in zip(leaves(self.columns["next_obs"]), leaves(ep.obs), strict=True):
            known &= (old[at] == new[0].to(self.device)).flatten(1).all(1)
        return torch.where(known, self.open_rows, ends)

    def _link(self, at: Tensor, before: Tensor) -> None:
        """Set the successors of the rows before the rows ``at``, if they are still in the buffer."""
        self.next_row[at] = -1
        known = before >= max(0, self.count - self.capacity)
        self.next_row[before[known] % self.capacity] = at[known]
