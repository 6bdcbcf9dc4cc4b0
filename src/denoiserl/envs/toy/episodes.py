"""Start episodes of batched environments: episode k of environment i depends on (seed_i, k) alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng


def starting_mask_and_streams(
    world: Any, seed: int | list[int] | None, options: dict[str, Any] | None
) -> tuple[Tensor, Rng]:
    """Return which environments start an episode, [B] bool, and a random stream for each.

    They are those of ``options["reset_mask"]``, or all. ``world`` has ``num_envs``, ``seeds`` [B] and ``episode`` [B].
    A seed restarts an environment's sequence of episodes (an integer seeds environment i with seed + i); without one
    the sequence continues. The world increments ``episode`` after the start.
    """
    mask = torch.ones(world.num_envs, dtype=torch.bool)
    if options is not None and "reset_mask" in options:
        mask = torch.as_tensor(options["reset_mask"], dtype=torch.bool)
    if seed is not None:
        seeds = [seed + i for i in range(world.num_envs)] if isinstance(seed, int) else list(seed)
        if len(seeds) != world.num_envs:
            raise InvalidInputError(
                f"there are {world.num_envs} environments and {len(seeds)} seeds: give one seed each"
            )
        world.seeds = torch.where(mask, torch.tensor(seeds), world.seeds)
        world.episode = world.episode.masked_fill(mask, 0)
    return mask, Rng.rows(world.seeds * 1_000_003 + world.episode)
