"""Masked means and sums of losses."""

from __future__ import annotations

import torch
from torch import Tensor

from denoiserl.advantages.checks import boolean, same_shape
from denoiserl.core.errors import InvalidInputError

Dim = int | tuple[int, ...] | None


def masked_sum(x: Tensor, mask: Tensor | None, dim: Dim = None) -> Tensor:
    """Return Σ x over elements of ``mask`` (None: all) along ``dim`` (None: all axes). Masked NaNs are ignored.

    Divided by a constant length, it is the reduction of Dr. GRPO and of TraceRL's block models.
    """
    if mask is not None:
        same_shape(x=x, mask=mask)
        boolean(mask=mask)
        x = x.masked_fill(~mask, 0.0)
    return x.sum(_axes(x, dim))


def masked_mean(x: Tensor, mask: Tensor | None, dim: Dim = None) -> Tensor:
    """Return the mean of x over elements of ``mask`` (None: all) along ``dim`` (None: all axes).

    ``masked_mean(loss, mask)`` gives every token equal weight (DAPO); ``masked_mean(loss, mask, -1).mean()`` every
    sample (GRPO). Raise InvalidInputError if a slice has no element in the mask.
    """
    mask = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
    total = masked_sum(x, mask, dim)
    count = mask.sum(_axes(mask, dim))
    if bool((count == 0).any()):
        empty = int((count == 0).sum())
        raise InvalidInputError(f"{empty} of {count.numel()} means have no element in the mask: drop these rows first.")
    return total / count


def _axes(x: Tensor, dim: Dim) -> tuple[int, ...]:
    return tuple(range(x.ndim)) if dim is None else (dim,) if isinstance(dim, int) else dim
