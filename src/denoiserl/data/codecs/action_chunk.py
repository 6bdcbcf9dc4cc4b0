"""The codec of a robot policy: observations and action chunks in model units."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.tree import leaves, require_tensor
from denoiserl.data.codecs.normalize import Normalizer
from denoiserl.data.demos import Demonstrations


def refusal(demos: Demonstrations) -> str:
    """Return why observations in parts are not supported, and what to do."""
    seen, name = demos.observations, demos.name or "the demonstrations"
    pictures = any(v.dtype == torch.uint8 or v.ndim > 3 for v in leaves(seen))
    parts = f"{name} observe {sorted(seen)}"
    if pictures:
        return (
            f"{parts}: images are supported as 'image' and 'state' alone. Rename them so, or keep one "
            "part of numbers, read(path, obs_keys=[NAME]) or --obs-keys NAME"
        )
    if len(seen) == 1:
        return (
            f"{parts}, numbers in a dict of one part: give its array alone, read(path, obs_keys={sorted(seen)}), "
            "and let gymnasium.wrappers.FlattenObservation do so in the environment"
        )
    return (
        f"{parts}: several parts of numbers are not supported. Keep one, read(path, obs_keys=[NAME]) or --obs-keys "
        "NAME;"
        " or concatenate them to [N, o], and let gymnasium.wrappers.FlattenObservation do so in the environment"
    )


@dataclass(frozen=True)
class ActionChunkCodec:
    """Actions [..., H, d] and observations [..., o] (or a dict with images and a "state"), each with its normaliser.

    Observations are clipped to ±``limit`` in model units, so unfamiliar ones stay near the training range. Actions are
    clipped to ±1 before decoding, so a plan never leaves the demonstrated range.
    """

    observation: Normalizer
    action: Normalizer
    limit: float = 3.0

    @staticmethod
    def fit(demos: Demonstrations, limit: float = 3.0) -> ActionChunkCodec:
        """Fit min-max normalisers to demonstrations: to flat observations, or to the "state" beside images."""
        seen, name = demos.observations, demos.name or "the demonstrations"
        if isinstance(seen, dict):
            if "state" not in seen:
                raise InvalidInputError(refusal(demos))
            seen = seen["state"]
        observation = Normalizer.fit(seen, name=f"the observations of {name}", ends=demos.ends)
        return ActionChunkCodec(
            observation, Normalizer.fit(demos.actions, name=f"the actions of {name}", ends=demos.ends), limit
        )

    def encode(self, data: Tensor) -> Tensor:
        """Convert actions to model units."""
        return self.action.normalize(data)

    def decode(self, sample: Tensor) -> Tensor:
        """Convert model units to actions."""
        return self.action.denormalize(sample.clamp(-1, 1))

    def condition(self, cond: Any) -> Any:
        """Convert observations to model units, clipped; images beside a "state" are unchanged.

        Several observations may follow each other, [..., n·o], as ``envs.frame_stack.ObservationHistory`` returns them.
        """
        if isinstance(cond, dict):
            if "state" not in cond:
                raise InvalidInputError(
                    f"this policy sees a dict with a 'state' of numbers; this one has {sorted(cond)}"
                )
            return {**cond, "state": self.condition(cond["state"])}
        cond = require_tensor(cond, f"[B, {self.observation.dim}]")
        if cond.shape[-1] > self.observation.dim and cond.shape[-1] % self.observation.dim == 0:
            return self.condition(cond.unflatten(-1, (-1, self.observation.dim))).flatten(-2)
        return self.observation.normalize(cond).clamp(-self.limit, self.limit)

    def initial_state(self, cond: Any) -> None:
        """Return None: plans start from noise."""
        return None
