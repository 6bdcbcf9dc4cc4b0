"""Demonstrations: recorded episodes, stored flat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.core.serialization import store
from denoiserl.core.tree import Tree, cat, describe_shapes, leaves, tree_map

KIND = "denoiserl demonstrations"
FIELDS = ("observations", "actions", "ends", "success", "returns", "name")


@dataclass(frozen=True)
class Demonstrations:
    """Episodes one after another: ``observations`` [N, ...] (any tree), ``actions`` [N, d], ``ends`` [E] (exclusive).

    ``success`` [E] bool and ``returns`` [E] where they are known, else None.
    """

    observations: Tree
    actions: Tensor
    ends: Tensor
    success: Tensor | None = None
    returns: Tensor | None = None
    name: str = ""

    def __post_init__(self) -> None:
        frames = len(self.actions)
        if len(self.ends) == 0 or int(self.ends[-1]) != frames or bool((self.lengths <= 0).any()):
            raise InvalidInputError(
                f"ends must increase and finish at the {frames} frames; they are {self.ends.tolist()[-5:]}"
            )
        for leaf in leaves(self.observations):
            if len(leaf) != frames:
                raise InvalidInputError(
                    f"there are {frames} actions and {len(leaf)} observations: store one of each per frame"
                )
        for what, values in (("success", self.success), ("returns", self.returns)):
            if values is not None and len(values) != len(self.ends):
                raise InvalidInputError(f"{what} has {len(values)} entries for {len(self.ends)} episodes")

    @staticmethod
    def of(
        episodes: Sequence[tuple[Any, Tensor]],
        success: Sequence[bool] | None = None,
        returns: Sequence[float] | None = None,
        name: str = "",
    ) -> Demonstrations:
        """Return the demonstrations of a list of (observations [L, ...], actions [L, d]), one per episode."""
        if not episodes:
            raise InvalidInputError("there is no episode: record at least one")
        return Demonstrations(
            cat([o for o, _ in episodes]),
            torch.cat([a for _, a in episodes]),
            torch.tensor([len(a) for _, a in episodes]).cumsum(0),
            None if success is None else torch.tensor(list(success)),
            None if returns is None else torch.tensor(list(returns)),
            name,
        )

    def __len__(self) -> int:
        return len(self.ends)

    def __repr__(self) -> str:
        return f"Demonstrations({self.describe()})"

    def describe(self) -> str:
        """Return name, numbers of episodes and frames, and shapes in a few words."""
        name = f"{self.name}, " if self.name else ""
        shapes = f"observation {describe_shapes(self.observations, 1)}, action {list(self.actions.shape[1:])}"
        return f"{name}{len(self)} episodes, {len(self.actions)} frames, {shapes}"

    @property
    def lengths(self) -> Tensor:
        """frames of each episode, [E]"""
        return self.ends.diff(prepend=self.ends.new_zeros(1))

    def episode(self, i: int) -> tuple[Any, Tensor]:
        """Return observations and actions of one episode, views of the storage."""
        i = range(len(self))[i]
        part = slice(int(self.ends[i - 1]) if i else 0, int(self.ends[i]))
        return tree_map(lambda v: v[part], self.observations), self.actions[part]

    def take(self, keep: Tensor) -> Demonstrations:
        """Return the episodes of an index or mask [E]."""
        keep = keep.nonzero().flatten() if keep.dtype == torch.bool else keep
        if len(keep) == 0:
            raise InvalidInputError("no episode is left: record more, or filter less")
        keep = keep.to(torch.int64)
        length = self.lengths[keep]
        owner = torch.repeat_interleave(torch.arange(len(keep)), length)
        frame = (self.ends[keep] - length.cumsum(0))[owner] + torch.arange(len(owner))
        success, returns = (None if v is None else v[keep] for v in (self.success, self.returns))
        seen = tree_map(lambda v: v[frame], self.observations)
        return Demonstrations(seen, self.actions[frame], length.cumsum(0), success, returns, self.name)

    def successful(self) -> Demonstrations:
        """Return the episodes that succeeded. Raise InvalidInputError if that is not known, or none did."""
        if self.success is None:
            raise InvalidInputError("these demonstrations do not record which episodes succeeded: record success")
        if not bool(self.success.any()):
            raise InvalidInputError(
                f"none of the {len(self)} demonstrated episodes succeeded, and only those count: record some"
            )
        return self.take(self.success)

    def statistics(self) -> dict[str, float]:
        """Return numbers of episodes and frames, mean length, and success and return if known."""
        found = {
            "episodes": float(len(self)),
            "frames": float(len(self.actions)),
            "length": len(self.actions) / len(self),
        }
        if self.success is not None:
            found["success"] = float(self.success.float().mean())
        if self.returns is not None:
            found["return"] = float(self.returns.float().mean())
        return found

    def save(self, path: str | Path) -> Path:
        """Save to the folder ``path``, atomically."""
        return store.write(path, self.tree())

    def tree(self) -> dict[str, Any]:
        """Return all fields, and their kind."""
        return {"kind": KIND, **{f: getattr(self, f) for f in FIELDS}}

    @staticmethod
    def load(path: str | Path) -> Demonstrations:
        """Load what ``save`` saved."""
        tree = store.read(path)
        if not isinstance(tree, dict) or tree.get("kind") != KIND:
            raise RunError(f"{path} holds no demonstrations")
        return Demonstrations(**{f: tree[f] for f in FIELDS})

    @staticmethod
    def concat(parts: Sequence[Demonstrations]) -> Demonstrations:
        """Join demonstrations one after another; success and returns if all parts have them."""
        before = torch.tensor([0, *(len(part.actions) for part in parts)]).cumsum(0)
        success, returns = (
            None if any(v is None for v in values) else torch.cat([v for v in values if v is not None])
            for values in ([p.success for p in parts], [p.returns for p in parts])
        )
        return Demonstrations(
            cat([part.observations for part in parts]),
            torch.cat([part.actions for part in parts]),
            torch.cat([part.ends + n for part, n in zip(parts, before.tolist(), strict=False)]),
            success,
            returns,
            parts[0].name,
        )
