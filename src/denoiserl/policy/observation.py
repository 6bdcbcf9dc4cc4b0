"""Convert observations and conditions to batches of tensors: from tensors, arrays, lists, or dicts of these."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.tree import Tree, all_finite, holds_numbers, leaves, tensors, to_float32, to_tensor, tree_map


def to_batch(obs: Any, codec: Any, device: torch.device | str = "cpu") -> tuple[Tree, bool]:
    """Return observations as tensors [B, ...] on ``device``, and whether ``obs`` was one observation, which gets B = 1.

    Numbers become float32; images in bytes stay bytes. A codec may have a method ``is_batch(obs) -> bool``. Without it,
    an observation is a vector [o], or a dict with a vector "state". Raise InvalidInputError for anything else.
    """
    found = _to_tensors(obs, device)
    if not found if isinstance(found, dict) else found.ndim == 0:
        raise InvalidInputError(
            "an observation is empty, or a single number: give a vector [o] or a dict of arrays, the first that "
            "env.reset() returns"
        )
    one = not (codec.is_batch(found) if hasattr(codec, "is_batch") else _is_batch_of_vectors(found, codec))
    batch = tree_map(lambda v: _to_model_dtype(v[None] if one else v), found)
    if not all_finite(batch):
        raise InvalidInputError(
            "an observation holds NaN or an infinite number, so actions would be NaN: repair the sensor or the "
            "environment, or replace such numbers"
        )
    if len({v.shape[:1] for v in leaves(batch)}) > 1:
        raise InvalidInputError(
            f"the parts of the observations have different numbers of rows, {tree_map(lambda v: list(v.shape), batch)}"
            ": give each part one row per observation"
        )
    return batch, one


def to_condition(cond: Any, device: torch.device | str = "cpu") -> Tree:
    """Return conditions of ``generate`` as a tree of tensors: arrays and lists of numbers go to ``device``.

    Tensors and texts are returned as they are. Raise InvalidInputError for NaN, complex numbers, numbers beyond float32
    and tuples that environments return. Infinite numbers are refused too, except in dicts, which may hold masks.
    """
    _refuse_step_results(cond)
    if isinstance(cond, tuple) and holds_numbers(cond):
        cond = list(cond)
    found = cond if isinstance(cond, Tensor) else tensors(cond, device)
    for leaf in leaves(found):
        if isinstance(leaf, np.ndarray):
            raise InvalidInputError(
                f"a condition holds {_describe_array(leaf)}, not numbers: give numbers, and encode texts first"
            )
        if isinstance(leaf, Tensor):
            _require_real(leaf)
            if leaf.is_meta or all_finite(to_float32(leaf)):
                continue
            if not isinstance(found, dict) or bool(leaf.isnan().any()):
                raise InvalidInputError(
                    "a condition holds NaN or an infinite number, so samples would be NaN: repair its source, or "
                    "replace such numbers"
                )
    if isinstance(found, Tensor) and found.ndim == 0:
        raise InvalidInputError("a condition is a single number, without rows: give a batch [B, ...]")
    return found


def _refuse_step_results(obs: Any) -> None:
    """Raise InvalidInputError for the tuple that ``env.reset`` or ``env.step`` returns, and for a list of dicts."""
    if not isinstance(obs, tuple | list) or len(obs) < 2 or not isinstance(obs[-1], dict):
        return
    if isinstance(obs, list) and isinstance(obs[0], dict):
        raise InvalidInputError(
            "observations are a list of dicts, not one dict of batches: stack each part, "
            "{name: numpy.stack([o[name] for o in obs]) for name in obs[0]}"
        )
    call = "env.reset()" if len(obs) == 2 else "env.step(action)"
    raise InvalidInputError(
        f"this {type(obs).__name__} is what {call} returns, the observation first and information last: pass its "
        "first element, the observation"
    )


def _require_real(value: Tensor) -> None:
    """Raise InvalidInputError for complex, sparse, quantized and nested tensors."""
    if value.is_complex():
        raise InvalidInputError(
            "an observation holds complex numbers, and networks take real ones: join both parts, "
            "numpy.concatenate([x.real, x.imag], -1)"
        )
    if value.layout != torch.strided or value.is_quantized or value.is_nested:
        raise InvalidInputError(
            "an observation is a sparse, quantized or nested tensor: convert it with x.to_dense(), x.dequantize() or "
            "x.to_padded_tensor(0)"
        )


def _to_tensors(obs: Any, device: torch.device | str) -> Any:
    if isinstance(obs, dict):
        return {name: _to_tensors(part, device) for name, part in obs.items()}
    _refuse_step_results(obs)
    try:
        if isinstance(obs, tuple | list) and obs and all(isinstance(v, Tensor) for v in obs):
            obs = torch.stack(tuple(obs))
        made = obs if isinstance(obs, Tensor) else to_tensor(obs)
        if made is not None:
            _require_real(made)
            return to_float32(made).to(device)
    except (TypeError, RuntimeError):  # tensors of different shapes, or without data
        pass
    what = _describe_array(obs) if isinstance(obs, np.ndarray) else "None" if obs is None else f"a {type(obs).__name__}"
    raise InvalidInputError(
        f"an observation is numbers of one shape, not {what}: give a tensor, an array, a list or a dict of these, the "
        "first that env.reset() returns"
    )


def _describe_array(value: np.ndarray) -> str:
    return "a masked array" if np.ma.is_masked(value) else f"an array of {value.dtype}"


def _to_model_dtype(value: Tensor) -> Tensor:
    return value if value.dtype == torch.uint8 and value.ndim > 2 else value.float()


def _is_batch_of_vectors(obs: Any, codec: Any) -> bool:
    numbers = obs.get("state") if isinstance(obs, dict) else obs
    if isinstance(obs, dict) and not isinstance(numbers, Tensor):
        raise InvalidInputError(
            f"{type(codec).__name__} finds no array 'state' among the parts {', '.join(map(repr, obs))}: give one "
            "part's array alone, name it 'state', or give the codec a method is_batch(obs) -> bool"
        )
    if not isinstance(numbers, Tensor) or numbers.ndim not in (1, 2):
        shapes = tree_map(lambda v: list(v.shape), obs)
        raise InvalidInputError(
            f"{type(codec).__name__} does not say whether {shapes} is one observation or a batch: give a batch to "
            "generate(obs, rng), or the codec a method is_batch(obs) -> bool"
        )
    return numbers.ndim == 2
