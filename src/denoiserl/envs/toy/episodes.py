"""How batched worlds begin episodes: copy i, in its k-th one, has random numbers that depend on (seed_i, k) alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng


def begun(world: Any, seed: int | list[int] | None, options: dict[str, Any] | None) -> tuple[Tensor, Rng]:
    """Which copies begin an episode, [B] bool: those of ``options["reset_mask"]``, or all; and a stream a copy for it.

    ``world`` has ``num_envs``, ``seeds`` [B] and ``episode`` [B]. A seed begins a copy's sequence of episodes anew (an
    integer seeds copy i with seed + i); without one it goes on. The world counts ``episode`` up when it has begun.
    """
    mask = torch.ones(world.num_envs, dtype=torch.bool)
    if options is not None and "reset_mask" in options:
        mask = torch.as_tensor(options["reset_mask"], dtype=torch.bool)
    if seed is not None:
        seeds = [seed + i for i in range(world.num_envs)] if isinstance(seed, int) else list(seed)
        if len(seeds) != world.num_envs:
            raise InvalidInputError(f"there are {world.num_envs} copies and {len(seeds)} seeds")
        world.seeds = torch.where(mask, torch.tensor(seeds), world.seeds)
        world.episode = world.episode.masked_fill(mask, 0)
    return mask, Rng.rows(world.seeds * 1_000_003 + world.episode)
