"""Checks of the inputs of advantages and losses: equal shapes, finite numbers, constants without a gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError


def same_shape(**tensors: Tensor) -> None:
    """Raise InvalidInputError if shapes differ: [B] and [B, 1] would broadcast to [B, B] without notice."""
    shapes = {tuple(x.shape) for x in tensors.values()}
    if len(shapes) > 1:
        found = ", ".join(f"{name} {list(x.shape)}" for name, x in tensors.items())
        raise InvalidInputError(
            f"Shapes must be equal, nothing is broadcast: {found}. "
            "Expand an advantage per sample to denoising steps with over_denoising; otherwise reshape or expand first."
        )


def check_broadcastable(shape: torch.Size, **tensors: Tensor | float | None) -> None:
    """Raise InvalidInputError if a tensor (a clip range per step) does not broadcast *to* ``shape``."""
    for name, x in tensors.items():
        if isinstance(x, Tensor):
            fits = x.ndim <= len(shape) and all(n in (1, m) for n, m in zip(x.shape[::-1], shape[::-1], strict=False))
            if not fits:
                raise InvalidInputError(
                    f"{name} {list(x.shape)} does not fit elements of shape {list(shape)}: give a number, one value "
                    "per trailing step, or a table gathered at the step of every row."
                )


def require_no_grad(**tensors: Tensor) -> None:
    """Raise InvalidInputError if a tensor requires a gradient where the equation has a constant."""
    for name, x in tensors.items():
        if x.requires_grad:
            raise InvalidInputError(
                f"{name} is a constant here but carries a gradient: compute it under no_grad, or detach it."
            )


def boolean(**tensors: Tensor) -> None:
    """Raise InvalidInputError if a mask is not boolean: floats would act as weights, integers as indices."""
    for name, x in tensors.items():
        if x.dtype != torch.bool:
            raise InvalidInputError(
                f"{name} must be a boolean tensor, got {x.dtype}: pass the comparison itself, as in x > 0."
            )


def finite(valid: Tensor | None = None, **tensors: Tensor) -> None:
    """Raise InvalidInputError if a number (at ``valid`` places) is NaN or infinite, and name the first ones."""
    for name, x in tensors.items():
        bad = ~torch.isfinite(x) if valid is None else ~torch.isfinite(x) & valid
        if bool(bad.any()):
            where = [tuple(i) for i in bad.nonzero()[:3].tolist()]
            values = ", ".join(f"{name}{list(i)} = {x[i].item()}" for i in where)
            raise InvalidInputError(
                f"{int(bad.sum())} of {bad.numel()} values of {name} are not finite: {values}. Repair the source, or "
                "leave them out: --invalid-rewards drop of a recipe, or mask_invalid_rewards(reward, 'drop') in your "
                "own code, with its valid mask."
            )


def as_float(x: Tensor) -> Tensor:
    """Convert to float32 or keep float64: verifier rewards are also booleans, integers and half precision."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def resolution(largest: Tensor) -> Tensor:
    """Return 4 units in the last place of ``largest`` (not negative), shaped like it.

    Rewards that are closer together than this are a tie: their difference is rounding.
    """
    largest = as_float(largest)
    return torch.ldexp(torch.full_like(largest, 4 * torch.finfo(largest.dtype).eps), torch.frexp(largest).exponent - 1)
