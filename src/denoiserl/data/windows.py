"""Chunk windows: the training samples of a policy with T_o observations of history and a horizon of H actions.

A window of an episode of length L starts at time i; its entry j is the step i + j - (T_o - 1). Observations are the
first T_o entries and actions all H, so entry T_o - 1 is *now*. Windows reach over the ends of their episode, where the
first or the last frame is repeated: by T_o - 1 entries before, by T_a - 1 after (Diffusion Policy, 2303.04137).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.tree import tree_map


@dataclass(frozen=True)
class Windows:
    """Windows in flat episode storage, two numbers each: first entry ``begin`` [N] int64 and ``episode`` [N].

    ``begin`` may lie before its episode. Frames are computed for an ``index`` [n] of windows. ``bounds`` [E, 2]: the
    first and the last frame of every episode.
    """

    begin: Tensor
    episode: Tensor
    bounds: Tensor
    horizon: int
    history: int

    def __len__(self) -> int:
        return len(self.begin)

    @property
    def all_indices(self) -> Tensor:
        """index of all windows, [N]"""
        return torch.arange(len(self))

    def frames(self, index: Tensor) -> Tensor:
        """Return the flat frames of some windows, [n, H] int64: beyond an episode its first or last one."""
        return self._placed(index, self.horizon)[0]

    @property
    def real(self) -> Tensor:
        """entries of all windows that lie in their episode, [W, H] bool: the others repeat a frame"""
        return self.valid(self.all_indices)

    def valid(self, index: Tensor) -> Tensor:
        """Return which entries of some windows lie in their episode, [n, H] bool: the others repeat a frame."""
        frame, place = self._placed(index, self.horizon)
        return frame == place

    def observations(self, data: Any, index: Tensor) -> Any:
        """Return the histories [n, T_o, ...] of some windows from flat observations [frames, ...] (any tree)."""
        frame = self._placed(index, self.history)[0]
        return tree_map(lambda v: v[frame], data)

    def actions(self, data: Any, index: Tensor) -> Any:
        """Return the chunks [n, H, ...] of some windows from flat actions [frames, ...]; entry T_o - 1 is now."""
        frame = self.frames(index)
        return tree_map(lambda v: v[frame], data)

    def _placed(self, index: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Return frames of the first ``size`` entries, and the frames without clamping to the episode: [n, size]
        each."""
        first, last = self.bounds[self.episode[index]].T[..., None]
        place = self.begin[index][:, None] + torch.arange(size)
        return place.clamp(first, last), place


def windows(ends: Tensor, horizon: int, history: int = 1, execute: int | None = None) -> Windows:
    """Return all windows of episodes that end (exclusively) at the flat frames ``ends`` [E].

    ``horizon`` is H, ``history`` is T_o, ``execute`` is T_a (default: the most, H - T_o + 1).
    """
    execute = horizon - history + 1 if execute is None else execute
    if not 1 <= history <= horizon:
        raise InvalidInputError(f"the history T_o must be in 1..H = {horizon}; it is {history}")
    if not 1 <= execute <= horizon - history + 1:
        raise InvalidInputError(f"T_a must be in 1..H - T_o + 1 = {horizon - history + 1}; it is {execute}")
    ends = torch.as_tensor(ends, dtype=torch.int64)
    if len(ends) == 0 or bool((ends.diff(prepend=ends.new_zeros(1)) <= 0).any()):
        raise InvalidInputError("ends must be increasing and no episode may be empty")
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    length = ends - starts
    # first entry of a window runs from -(T_o - 1) to L - H + (T_a - 1), counted in the episode
    before, after = history - 1, execute - 1
    count = (length + before + after - horizon + 1).clamp_min(0)
    if int(count.sum()) == 0:
        raise InvalidInputError(
            f"no episode is as long as a window: the longest has {int(length.max())} steps, "
            f"and a horizon of {horizon} with T_a = {execute} needs {horizon - before - after}"
        )
    episode = torch.repeat_interleave(torch.arange(len(ends)), count)
    offset = torch.arange(len(episode)) - (count.cumsum(0) - count)[episode]
    bounds = torch.stack([starts, ends - 1], 1)
    return Windows(starts[episode] + offset - before, episode, bounds, horizon, history)


class EpochSampler:
    """Endless shuffled minibatches of windows: every window once per epoch.

    ``sample(rng, n)`` returns indices [n]; the state is the rest of the current epoch.
    """

    def __init__(self, windows: Windows | Tensor | int) -> None:
        self.size = windows if isinstance(windows, int) else len(windows)
        self.rest = torch.empty(0, dtype=torch.int64)

    def sample(self, rng: Rng | int, n: int) -> Tensor:
        """Return the next ``n`` indices."""
        rng = as_rng(rng)
        while len(self.rest) < n:
            self.rest = torch.cat([self.rest, rng.permutation(self.size).cpu()])
        index, self.rest = self.rest[:n], self.rest[n:]
        return index

    def state_dict(self) -> dict[str, Any]:
        return {"size": self.size, "rest": self.rest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if int(state["size"]) != self.size:
            raise InvalidInputError(
                f"these batches are of {self.size} windows; the saved ones were of {int(state['size'])}"
            )
        self.rest = state["rest"]
