"""Convert observations to batches of tensors: one observation or many, in tensors, arrays, lists or dicts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.tree import Tree, leaves, tree_map


def to_batch(obs: Any, codec: Any, device: torch.device | str = "cpu") -> tuple[Tree, bool]:
    """Return observations as tensors [B, ...] on ``device``, and whether ``obs`` was one observation, which gets B = 1.

    Numbers become float32; images in bytes stay bytes. A codec may have a method ``is_batch(obs) -> bool``. Without it,
    an observation is a vector [o], or a dict with a vector "state". Raise InvalidInputError for anything else.
    """
    found = _to_tensors(obs, device)
    if not all(bool(v.isfinite().all()) for v in leaves(found)):
        raise InvalidInputError(
            "an observation holds NaN or an infinite number, so its actions would be NaN: repair the sensor or the "
            "environment, or replace such numbers"
        )
    one = not (codec.is_batch(found) if hasattr(codec, "is_batch") else _is_batch_of_vectors(found, codec))
    return tree_map(lambda v: _to_model_dtype(v[None] if one else v), found), one


def _to_tensors(obs: Any, device: torch.device | str) -> Any:
    if isinstance(obs, dict):
        return {name: _to_tensors(part, device) for name, part in obs.items()}
    try:
        return (obs if isinstance(obs, Tensor) else torch.from_numpy(np.array(obs))).to(device)
    except (TypeError, ValueError, RuntimeError) as error:  # None, texts, lists of different lengths
        raise InvalidInputError(
            f"an observation is a tensor, an array or a list of numbers, or a dict of these, and this "
            f"{type(obs).__name__} is not: give what the environment's reset and step return"
        ) from error


def _to_model_dtype(value: Tensor) -> Tensor:
    return value if value.dtype == torch.uint8 and value.ndim > 2 else value.float()


def _is_batch_of_vectors(obs: Any, codec: Any) -> bool:
    numbers = obs.get("state") if isinstance(obs, dict) else obs
    if not isinstance(numbers, Tensor) or numbers.ndim not in (1, 2):
        shapes = tree_map(lambda v: list(v.shape), obs)
        raise InvalidInputError(
            f"{type(codec).__name__} does not say whether {shapes} is one observation or a batch: give a batch "
            "[B, ...] to generate(obs, rng), or give the codec a method is_batch(obs) -> bool"
        )
    return numbers.ndim == 2
