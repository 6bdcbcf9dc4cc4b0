"""From one loss an element to fewer: means and sums over what counts."""

from __future__ import annotations

import torch
from torch import Tensor

from denoiserl.advantages.shapes import boolean, same_shape
from denoiserl.core.errors import InvalidInputError

Dim = int | tuple[int, ...] | None


def masked_sum(x: Tensor, mask: Tensor | None, dim: Dim = None) -> Tensor:
    """Σ x over the elements of ``mask`` (all if None) along ``dim`` (all axes if None). Masked-out NaNs do not count.

    Divided by a constant length it is the reduction of Dr. GRPO and of TraceRL's block models.
    """
    if mask is not None:
        same_shape(x=x, mask=mask)
        boolean(mask=mask)
        x = x.masked_fill(~mask, 0.0)
    return x.sum(_axes(x, dim))


def masked_mean(x: Tensor, mask: Tensor | None, dim: Dim = None) -> Tensor:
    """Mean of x over the elements of ``mask`` (all if None) along ``dim`` (all axes if None).

    ``masked_mean(loss, mask)`` weighs every token alike (DAPO); ``masked_mean(loss, mask, -1).mean()`` every sample
    alike (GRPO). A slice of which nothing counts is refused: its mean is not 0.
    """
    mask = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
    total = masked_sum(x, mask, dim)
    count = mask.sum(_axes(mask, dim))
    if bool((count == 0).any()):
        empty = int((count == 0).sum())
        raise InvalidInputError(
            f"{empty} of {count.numel()} means have no element left by the mask: drop these rows first."
        )
    return total / count


def _axes(x: Tensor, dim: Dim) -> tuple[int, ...]:
    return tuple(range(x.ndim)) if dim is None else (dim,) if isinstance(dim, int) else dim
