"""Optimiser steps that check the loss and gradients, clip, and sum the parts of a batch."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from denoiserl.core.averages import has_low_precision
from denoiserl.core.counters import count_usage
from denoiserl.core.errors import InvalidInputError
from denoiserl.losses import masked_sum


def optimizer_step(opt: Optimizer, loss: Tensor, clip: float | None = None, params: Iterable[Tensor] | None = None):
    """Take one optimiser step on the scalar ``loss`` and return {"loss", "grad_norm"}, the norm before clipping.

    ``clip`` is the largest 2-norm of the gradient over ``params`` (default: all that ``opt`` holds). Raise
    InvalidInputError for a loss or gradient that is not finite, before the parameters change.
    """
    _scalar(loss)
    opt.zero_grad(set_to_none=True)
    loss.backward()
    return _descend(opt, loss.detach(), clip, params)


def accumulate(
    opt: Optimizer,
    pieces: Iterable[Tensor],
    total: int,
    clip: float | None = None,
    params: Iterable[Tensor] | None = None,
) -> dict[str, float]:
    """Take an ``optimizer_step`` on (1/total) Σ losses, where the losses come in ``pieces`` that fit into memory.

    A piece holds the losses of its rows (any shape); ``total`` is the number of losses in all pieces. So the gradient
    is that of the mean over all, for any sizes of the pieces. Pass a generator: each piece's graph is freed before the
    next piece is computed.
    """
    opt.zero_grad(set_to_none=True)
    count, loss = 0, None
    low = [p for group in opt.param_groups for p in group["params"] if has_low_precision(p)]
    sums: dict[Tensor, Tensor] = {}
    for piece in pieces:
        part = piece.sum() / total
        _scalar(part)
        part.backward()
        _take_in(low, sums)
        count += piece.numel()
        loss = part.detach() if loss is None else loss + part.detach()
    if loss is None or count != total:
        raise InvalidInputError(f"The pieces held {count} losses, not total={total}: pass their true number.")
    for p, whole in sums.items():
        p.grad = whole.to(p.dtype)
    return _descend(opt, loss, clip, params)


def accumulate_masked(
    opt: Optimizer,
    pieces: Iterable[tuple[Tensor, Tensor]],
    clip: float | None = None,
    params: Iterable[Tensor] | None = None,
) -> dict[str, float] | None:
    """Take an ``optimizer_step`` on the mean of the losses that count, in ``pieces`` of (losses, bool mask).

    The gradient is that of the mean over all pieces, for any sizes; the number that counts need not be known before. If
    no loss counts, take no step, keep the momentum, and return None.
    """
    opt.zero_grad(set_to_none=True)
    held = [p for group in opt.param_groups for p in group["params"]] if params is None else list(params)
    count, total = 0, 0.0
    low, sums = [p for p in held if has_low_precision(p)], {}
    for losses, counts in pieces:
        n = int(counts.sum())
        if n:
            loss = masked_sum(losses, counts)
            _scalar(loss)
            loss.backward()
            _take_in(low, sums)
            count, total = count + n, total + loss.detach()
            del loss
        del losses, counts  # free them before the next piece is computed
    if not isinstance(total, Tensor):
        return None
    for p, whole in sums.items():
        p.grad = whole.to(p.dtype)
    for p in held:
        if p.grad is not None:
            p.grad.div_(count)
    return _descend(opt, total / count, clip, held)


def _take_in(low: Iterable[Tensor], sums: dict[Tensor, Tensor]) -> None:
    """Move the gradients of ``low`` into float32 ``sums``: many small terms are lost in a sum of bf16."""
    for p in low:
        if p.grad is not None:
            sums[p] = sums[p].add_(p.grad) if p in sums else p.grad.float()
            p.grad = None


def _scalar(loss: Tensor) -> None:
    if loss.ndim:
        raise InvalidInputError(f"The loss has shape {tuple(loss.shape)}: reduce it to one number, as in loss.mean().")
    if not loss.requires_grad:
        raise InvalidInputError(
            "The loss depends on no trainable parameter: compute it outside no_grad, from trainable weights."
        )


def _descend(opt: Optimizer, loss: Tensor, clip: float | None, params: Iterable[Tensor] | None) -> dict[str, float]:
    held = [p for group in opt.param_groups for p in group["params"]] if params is None else list(params)
    held = [p for p in held if p.grad is not None]
    if not held:
        raise InvalidInputError(
            "The loss depends on none of the optimiser's parameters: check them with check_optimizer_covers()."
        )
    norm = get_total_norm([p.grad for p in held if p.grad is not None])
    kind = torch.promote_types(torch.promote_types(loss.dtype, norm.dtype), torch.float32)
    value, size = torch.stack((loss.to(norm.device, kind), norm.to(kind))).tolist()  # one wait for the device
    for what, number in (("loss", value), ("gradient's norm", size)):
        if not math.isfinite(number):
            opt.zero_grad(set_to_none=True)
            raise InvalidInputError(
                f"The {what} is {number}: look for rewards or data that are not finite, or lower the learning rate."
            )
    if clip is not None:
        clip_grads_with_norm_(held, clip, norm)
    opt.step()
    count_usage("updates")
    return {"loss": value, "grad_norm": size}
