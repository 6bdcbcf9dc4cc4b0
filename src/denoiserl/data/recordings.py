"""Episode data sets: demonstrations with rewards, last observations and how episodes ended, and their validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.serialization import store
from denoiserl.core.tree import Tree, cat, tree_map
from denoiserl.data.demos import Demonstrations


@dataclass(frozen=True)
class EpisodeDataset:
    """Demonstrations with rewards and ends; N frames in E episodes.

    ``rewards`` [N]; ``last`` [E, ...]: the observation after the last action; ``terminated`` [E] bool: a true end
    (otherwise a time limit cut the episode). Each is None if the source does not store it. ``low``, ``high`` [d]:
    bounds of the actions, infinite if not known.
    """

    demos: Demonstrations
    rewards: Tensor | None
    last: Tree
    terminated: Tensor | None
    low: Tensor
    high: Tensor

    def __repr__(self) -> str:
        known = {"rewards": self.rewards, "last observations": self.last, "ends": self.terminated}
        found = [name for name, value in known.items() if value is not None]
        return f"EpisodeDataset({self.demos.describe()}, with {' and '.join(found) or 'actions alone'})"

    def take(self, keep: Tensor) -> EpisodeDataset:
        """Return the episodes of an index or mask [E]."""
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

    def successful(self) -> EpisodeDataset:
        """Return the episodes that succeeded. Raise InvalidInputError if that is not known."""
        if self.demos.success is None:
            raise InvalidInputError("this environment does not report which episodes succeeded: add info['success']")
        return self.take(self.demos.success)

    @staticmethod
    def of(demos: Demonstrations, rewards: Tensor | None = None) -> EpisodeDataset:
        """Return an episode data set of demonstrations alone, with rewards if given."""
        wide = torch.full((demos.actions.shape[1],), torch.inf)
        return EpisodeDataset(demos, rewards, None, None, -wide, wide)

    def save(self, path: str | Path) -> Path:
        """Save to the folder ``path``, atomically. ``Demonstrations.load`` reads its demonstrations."""
        return store.write(path, {**self.demos.tree(), **{f: getattr(self, f) for f in REST}})

    @staticmethod
    def load(path: str | Path) -> EpisodeDataset:
        """Load what ``save`` saved, or demonstrations alone."""
        demos, tree = Demonstrations.load(path), store.read(path)
        if not all(f in tree for f in REST):
            return EpisodeDataset.of(demos)
        return EpisodeDataset(demos, *(tree[f] for f in REST))

    @staticmethod
    def concat(parts: Sequence[EpisodeDataset]) -> EpisodeDataset:
        """Join the episodes of data sets of one environment, one after another."""
        one, *_ = parts

        def all_of(f: str) -> Any:
            values = [getattr(part, f) for part in parts]
            return None if any(v is None for v in values) else cat(values)

        demos = Demonstrations.concat([part.demos for part in parts])
        return EpisodeDataset(demos, all_of("rewards"), all_of("last"), all_of("terminated"), one.low, one.high)


REST = ("rewards", "last", "terminated", "low", "high")
"""fields beside the demonstrations"""


def validate_episode(
    name: str, i: int, observations: Any, actions: np.ndarray, low: Any = None, high: Any = None, **columns: Any
) -> None:
    """Raise InvalidInputError for a bad episode, with its number and row.

    Checked are: empty, columns of unequal length, NaN or infinity, actions [L, d] outside the bounds [low, high].
    """
    where = f"episode {i} of {name}"
    if actions.ndim != 2:
        raise InvalidInputError(f"{where} has actions of shape {list(actions.shape)}: demonstrations hold [L, d]")
    if len(actions) == 0:
        raise InvalidInputError(f"{where} is empty: leave it out with exclude_episodes=({i},)")
    parts = {**dict(_named("observations", observations)), "actions": actions, **columns}
    for what, value in parts.items():
        if len(value) != len(actions):
            raise InvalidInputError(
                f"{where} is ragged, {len(actions)} actions and {len(value)} of {what}: repair it, or leave it out "
                f"with exclude_episodes=({i},)"
            )
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            row = int(np.argmax(~np.isfinite(value.reshape(len(value), -1)).all(1)))
            raise InvalidInputError(
                f"row {row} of {what} of {where} holds NaN or infinity: repair it, or leave it out with "
                f"exclude_episodes=({i},)"
            )
    if low is not None and high is not None:
        over = np.maximum(np.asarray(low) - actions, actions - np.asarray(high))
        if over.max() > 1e-5:
            row, d = (int(n) for n in np.unravel_index(over.argmax(), over.shape))
            raise InvalidInputError(
                f"row {row} of {where} acts {actions[row, d]:g} in dimension {d}, outside the action space's "
                f"[{np.broadcast_to(low, actions.shape)[row, d]:g}, {np.broadcast_to(high, actions.shape)[row, d]:g}]: "
                "are these other units? out_of_bounds_actions='clip' clips them"
            )


def _named(name: str, tree: Any) -> list[tuple[str, Any]]:
    """Return the leaves of a tree of dicts with their paths."""
    if isinstance(tree, dict):
        return [pair for k, v in tree.items() for pair in _named(f"{name}/{k}", v)]
    return [(name, tree)]


def to_stored_tensor(value: np.ndarray) -> Tensor:
    """Return the stored form: float32, and bytes (images) unchanged."""
    return torch.from_numpy(np.array(value, dtype=np.uint8 if value.dtype == np.uint8 else np.float32))
