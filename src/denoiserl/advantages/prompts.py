"""Advantages relative to earlier rewards of a prompt: the running statistics of DDPO."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, final

import torch
from torch import Tensor

from denoiserl.advantages.checks import as_float, boolean, finite, resolution, same_shape
from denoiserl.core.errors import InvalidInputError, RunError


@final
class PerPromptStatTracker:
    """Advantages from a window of recent rewards per prompt.

        Âᵢ = (rᵢ − mean_w) / std_w,   w = the last ``stat_window`` rewards of the prompt, the new ones included

    A prompt with fewer than ``min_count`` rewards so far uses mean and std of the whole batch. Both std are population
    std (1/n). Rewards within 4 units in the last place of the largest one are a tie, and their advantage is 0. If a
    batch holds more than ``stat_window`` rewards of a prompt, the oldest leave the window, but get an advantage too;
    ``forgotten`` is their number in the last batch. Use it when prompts come once or twice per batch; with groups of
    equal size ``group_relative`` needs no state. A run saves the state with its checkpoints.

    Prompts are strings, integers or tuples of them (or an integer tensor ``[B]``). DDPO, arXiv 2305.13301.
    """

    def __init__(self, stat_window: int = 32, min_count: int = 16) -> None:
        if not 2 <= min_count <= stat_window:
            raise InvalidInputError(
                f"Need 2 <= min_count <= stat_window, got min_count={min_count} and stat_window={stat_window}."
            )
        self.stat_window, self.min_count, self.forgotten = stat_window, min_count, 0
        self._seen: dict[Hashable, deque[float]] = {}

    def update(self, prompts: Sequence[Hashable] | Tensor, reward: Tensor, valid: Tensor | None = None) -> Tensor:
        """Add the rewards ``[B]`` of ``prompts`` and return their advantages ``[B]``.

        Samples outside ``valid`` are not added and get 0. A call that raises adds nothing.
        """
        keys = [_key(p) for p in (prompts.tolist() if isinstance(prompts, Tensor) else prompts)]
        reward = as_float(reward)
        if reward.shape != (len(keys),):
            raise InvalidInputError(f"Give one reward per prompt: {len(keys)} prompts, reward {list(reward.shape)}.")
        counted = torch.ones_like(reward, dtype=torch.bool) if valid is None else valid
        same_shape(reward=reward, valid=counted)
        boolean(valid=counted)
        finite(counted, reward=reward)

        fresh: dict[Hashable, list[float]] = {}
        for key, r, ok in zip(keys, reward.tolist(), counted.tolist(), strict=True):
            if ok:
                fresh.setdefault(key, []).append(r)
        if not fresh:
            raise InvalidInputError("No valid reward in the batch.")
        for key, new in fresh.items():
            self._seen.setdefault(key, deque(maxlen=self.stat_window)).extend(new)

        self.forgotten = sum(max(len(new) - self.stat_window, 0) for new in fresh.values())
        batch = _moments([r for new in fresh.values() for r in new], reward.dtype)
        at = {
            k: _moments(self._seen[k], reward.dtype) if len(self._seen[k]) >= self.min_count else batch for k in fresh
        }
        out = [
            (r - at[k][0]) / at[k][1] if ok and at[k][1] > 0 else 0.0
            for k, r, ok in zip(keys, reward.tolist(), counted.tolist(), strict=True)
        ]
        return torch.tensor(out, dtype=reward.dtype, device=reward.device)

    def state_dict(self) -> dict[str, Any]:
        """Return stat_window, min_count and the rewards in the window; JSON keeps them exactly."""
        seen = [[k, list(v)] for k, v in self._seen.items()]
        return {"stat_window": self.stat_window, "min_count": self.min_count, "seen": seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state_dict()``. Raise RunError if stat_window or min_count differ from this object's."""
        if (state["stat_window"], state["min_count"]) != (self.stat_window, self.min_count):
            raise RunError(
                f"Saved with stat_window={state['stat_window']}, min_count={state['min_count']}; this run has "
                f"stat_window={self.stat_window}, min_count={self.min_count}. Use the saved values or start fresh."
            )
        self._seen = {_key(k): deque(v, maxlen=self.stat_window) for k, v in state["seen"]}


def _key(prompt: Any) -> Hashable:
    """Return a prompt as a key that JSON keeps; JSON turns tuples into lists, so lists become tuples."""
    if isinstance(prompt, str | int):
        return prompt
    if isinstance(prompt, list | tuple):
        return tuple(_key(p) for p in prompt)
    raise InvalidInputError(
        f"A prompt must be a string, an integer or a tuple of them, got {type(prompt).__name__}: give it a name."
    )


def _moments(x: Iterable[float], dtype: torch.dtype) -> tuple[float, float]:
    """Return mean and population std of numbers of precision ``dtype``; the std of a tie is exactly 0."""
    x = list(x)
    least, most = min(x), max(x)
    if most - least < float(resolution(torch.tensor(max(-least, most), dtype=dtype))):
        return least, 0.0
    mean = math.fsum(v - least for v in x) / len(x)
    return least + mean, math.sqrt(math.fsum((v - least - mean) ** 2 for v in x) / len(x))
