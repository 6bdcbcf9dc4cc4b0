"""What credit and objectives ask of their tensors: equal shapes, finite numbers, constants without a gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError


def same_shape(**tensors: Tensor) -> None:
    """Refuse tensors of different shapes: [B] against [B, 1] would broadcast to [B, B] and train on nonsense."""
    shapes = {tuple(x.shape) for x in tensors.values()}
    if len(shapes) > 1:
        found = ", ".join(f"{name} {list(x.shape)}" for name, x in tensors.items())
        raise InvalidInputError(
            f"Shapes must be equal, nothing is broadcast: {found}. "
            "Spread a credit a sample over denoising steps with over_denoising; otherwise reshape or expand first."
        )


def check_broadcastable(shape: torch.Size, **tensors: Tensor | float | None) -> None:
    """Refuse a table (a clip range a step) that does not broadcast *to* ``shape``."""
    for name, x in tensors.items():
        if isinstance(x, Tensor):
            fits = x.ndim <= len(shape) and all(n in (1, m) for n, m in zip(x.shape[::-1], shape[::-1], strict=False))
            if not fits:
                raise InvalidInputError(
                    f"{name} {list(x.shape)} does not fit elements of shape {list(shape)}: give a number, one value a "
                    "trailing step, or a table gathered at the step of every row."
                )


def require_no_grad(**tensors: Tensor) -> None:
    """Refuse tensors that carry a gradient where the equation has a constant."""
    for name, x in tensors.items():
        if x.requires_grad:
            raise InvalidInputError(
                f"{name} is a constant here but carries a gradient: compute it under no_grad, or detach it."
            )


def boolean(**tensors: Tensor) -> None:
    """Refuse masks that are not boolean: a 0/1 float silently weights, an index silently gathers."""
    for name, x in tensors.items():
        if x.dtype != torch.bool:
            raise InvalidInputError(
                f"{name} must be a boolean tensor, got {x.dtype}: write the comparison that made it."
            )


def finite(valid: Tensor | None = None, **tensors: Tensor) -> None:
    """Refuse NaN and infinity (at ``valid`` places), naming where the first ones are."""
    for name, x in tensors.items():
        bad = ~torch.isfinite(x) if valid is None else ~torch.isfinite(x) & valid
        if bool(bad.any()):
            where = [tuple(i) for i in bad.nonzero()[:3].tolist()]
            values = ", ".join(f"{name}{list(i)} = {x[i].item()}" for i in where)
            raise InvalidInputError(
                f"{int(bad.sum())} of {bad.numel()} values of {name} are not finite: {values}. Repair the source, or "
                "leave them out with mask_invalid_rewards(reward, invalid_rewards='drop'), and pass its valid mask on."
            )


def as_float(x: Tensor) -> Tensor:
    """At least float32: verifier rewards come as booleans, integers and half precision."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def resolution(largest: Tensor) -> Tensor:
    """Return 4 units in the last place of ``largest`` (not negative), shaped like it.

    Rewards that are closer together than this are a tie: their difference is rounding.
    """
    largest = as_float(largest)
    return torch.ldexp(torch.full_like(largest, 4 * torch.finfo(largest.dtype).eps), torch.frexp(largest).exponent - 1)
