"""Decode Minari's observations: dict spaces and JPEG images."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from denoiserl.core.errors import InvalidInputError, require, unknown_name_message

SMALLEST = 32
"""arrays of bytes with a smaller side are no images to Minari"""


def choose(observations: Any, obs_keys: Sequence[str] | None, name: str) -> Any:
    """Return the parts to keep of dict observations (None: all). Raise InvalidInputError for a missing part."""
    if obs_keys is None:
        return observations
    if not isinstance(observations, dict):
        raise InvalidInputError(f"the observations of {name} have no parts: leave parts out")
    for part in obs_keys:
        if part not in observations:
            raise InvalidInputError(unknown_name_message(part, observations, f"part of the observations of {name}"))
    return {part: observations[part] for part in obs_keys}


def kept_space(space: Any, obs_keys: Sequence[str] | None) -> Any:
    """Return the space of the parts to keep."""
    if obs_keys is None or space is None:
        return space
    return {**space, "subspaces": {part: _subspaces(space).get(part) for part in obs_keys}}


def _subspaces(space: Any) -> dict[str, Any]:
    """Return the spaces of a Dict's parts, and of a Tuple's by Minari's names."""
    found = (space or {}).get("subspaces", {})
    return {f"_index_{k}": v for k, v in enumerate(found)} if isinstance(found, list) else found


def decode_observations(value: Any, space: Any, jpeg: bool, i: int, name: str) -> Any:
    """Return the arrays of a tree; images are decoded to [L, H, W, C]."""
    if isinstance(value, dict):
        subs = _subspaces(space)
        return {k: decode_observations(v, subs.get(k), jpeg, i, name) for k, v in value.items()}
    if space is not None and space["type"] in ("Discrete", "MultiDiscrete"):
        raise InvalidInputError(
            f"{name} observes a {space['type']}, labels and no quantities: choose other parts with obs_keys=, or store "
            "it one-hot in a Box"
        )
    if jpeg and _picture(space):
        image = require("PIL.Image", "demo")
        return np.stack([np.asarray(image.open(io.BytesIO(bytes(frame)))) for frame in value])
    if value.dtype.kind not in "fiub":
        raise InvalidInputError(
            f"episode {i} of {name} observes {value.dtype}, not numbers: choose the parts to keep with obs_keys="
        )
    return value


def _picture(space: Any) -> bool:
    """Return whether Minari stores this space as JPEG."""
    if space is None or space["type"] != "Box" or space["dtype"] != "uint8" or len(space["shape"]) not in (2, 3):
        return False
    return min(space["shape"][:2]) >= SMALLEST and np.max(space["high"]) == 255 and np.min(space["low"]) == 0
