"""Optimiser steps, with coverage checks, clipping, micro-batches, moving averages and schedules."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from denoiserl.core.averages import has_low_precision, update_average
from denoiserl.core.counters import count_usage
from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.losses import masked_sum


def adamw(
    params: Iterable[Tensor], lr: float = 1e-3, decay: float = 0.0, betas: tuple[float, float] = (0.9, 0.999)
) -> torch.optim.AdamW:
    """Return AdamW (1711.05101), fused if every parameter's device supports it. ``decay=0``: Adam (1412.6980).

    Parameters in bf16 or fp16 learn through float32 copies (1710.03740): a step of 1e-5 is lost in bf16, whose numbers
    near 1 are 8e-3 apart. The copies cost four bytes per parameter and are part of ``state_dict``.
    """
    params = list(params)
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in params)
    if any(p.dtype is torch.float16 for p in params):
        warnings.warn(
            "these weights are in float16, where gradients below 6e-8 vanish: make them bf16 or float32 before they "
            "learn, as in policy.weights.module.bfloat16()",
            stacklevel=2,
        )
    kind = MasterAdamW if any(has_low_precision(p) for p in params) else torch.optim.AdamW
    return kind(params, lr=lr, betas=betas, weight_decay=decay, fused=fused)


class MasterAdamW(torch.optim.AdamW):
    """AdamW that steps on float32 copies of low-precision parameters and writes them back, rounded.

    Its groups hold the parameters themselves. A parameter that was changed elsewhere (loaded, averaged) is copied
    again.
    """

    def __init__(self, params: Iterable[Tensor], **options: Any) -> None:
        self._masters: dict[Tensor, Tensor] = {}
        super().__init__(params, **options)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Step, as AdamW does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with self._swap() as pairs:
            for p, master in pairs:
                master.copy_(torch.where(master.to(p.dtype) == p, master, p.float()))
                master.grad = None if p.grad is None else p.grad.float()
            super().step()
            for p, master in pairs:
                p.copy_(master)
                master.grad = None
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the state of AdamW, and the copies."""
        with self._swap() as pairs:
            return {**super().state_dict(), "masters": [master for _, master in pairs]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a saved state."""
        state = dict(state_dict)
        with self._swap() as pairs, torch.no_grad():
            for (_, master), saved in zip(pairs, state.pop("masters"), strict=True):
                master.copy_(saved)
            super().load_state_dict(state)

    @contextmanager
    def _swap(self) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Put the copies in place of low-precision parameters inside; yields pairs (parameter, copy)."""
        held = [list(group["params"]) for group in self.param_groups]
        low = [p for params in held for p in params if has_low_precision(p)]
        for p in low:
            if p not in self._masters:
                self._masters[p] = p.detach().float()
        for group, params in zip(self.param_groups, held, strict=True):
            group["params"] = [self._masters[p] if has_low_precision(p) else p for p in params]
        try:
            yield [(p, self._masters[p]) for p in low]
        finally:
            for group, params in zip(self.param_groups, held, strict=True):
                group["params"] = params


def check_optimizer_covers(optimizer: Optimizer | Sequence[Optimizer], *modules: nn.Module) -> None:
    """Raise RunError unless the optimisers hold every trainable parameter of ``modules`` exactly once.

    The error names parameters that are missing, held twice, or of none of the modules. The usual cause: a module was
    copied or replaced after the optimiser was made.
    """
    several = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
    held = [id(p) for o in several for group in o.param_groups for p in group["params"]]
    names: dict[int, str] = {}
    for at, module in enumerate(modules):
        prefix = f"{type(module).__name__}." if len(modules) == 1 else f"{type(module).__name__}[{at}]."
        for name, p in module.named_parameters():
            names.setdefault(id(p), prefix + name)
    trainable = {id(p) for module in modules for p in module.parameters() if p.requires_grad}
    missing = [names[i] for i in names if i in trainable and i not in set(held)]
    twice = [names.get(i, "a foreign parameter") for i in dict.fromkeys(held) if held.count(i) > 1]
    foreign = sum(i not in names for i in set(held))
    faults = [f"misses {', '.join(missing)}"] if missing else []
    faults += [f"holds {', '.join(twice)} more than once"] if twice else []
    faults += [f"holds {foreign} parameter(s) of no given module"] if foreign else []
    if faults:
        raise RunError(f"The optimiser {' and '.join(faults)}: make it after the modules, from all their parameters.")
    rounds = [p for o in several if not isinstance(o, MasterAdamW) for g in o.param_groups for p in g["params"]]
    if low := sorted({names[id(p)] for p in rounds if has_low_precision(p)}):
        warnings.warn(
            f"{', '.join(low[:3])}{' and others' * (len(low) > 3)} learn in lower precision, where small steps are "
            "lost: use train.adamw, which has float32 copies, or make the module float()",
            stacklevel=2,
        )


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


STATISTICS = ("running_mean", "running_var")
"""buffers of normalisation layers that are averaged"""


class EMA:
    """A moving average of weights: θ̄ ← d θ̄ + (1 - d) θ, with d_n = min(1 - (1 + n)^(-power), most) at the n-th
    update.

    The first update (n = 0) copies, so the average does not contain the initialisation. The window grows with training
    up to 1 / (1 - most). Trainable parameters and the running statistics of normalisation layers are averaged. Other
    buffers (the unit vectors of spectral norm, counters) are copied, because their mean is meaningless. Averages of
    bf16 and fp16 are kept in float32.
    """

    def __init__(self, source: nn.Module, power: float = 0.75, most: float = 0.9999) -> None:
        self.source, self.power, self.most, self.n = source, power, most, 0
        self.values = {k: v.detach().clone() for k, v in _tensors(source).items()}
        self.masters: dict[str, Tensor] = {}

    def decay(self) -> float:
        """Return the decay of the next update."""
        return min(1 - (1 + self.n) ** -self.power, self.most)

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the source's current weights."""
        now = _tensors(self.source)
        means = {k: self.values[k] for k, v in now.items() if _mean(k, v)}
        update_average(means, now, 1 - self.decay(), self.masters)
        for name in self.values.keys() - means.keys():
            self.values[name].copy_(now[name])
        self.n += 1

    @torch.no_grad()
    def copy_to(self, target: nn.Module) -> None:
        """Overwrite the weights of ``target`` (the source, or a copy of it) with the average."""
        found = target.state_dict(keep_vars=True)
        if missing := self.values.keys() - found.keys():
            raise RunError(f"The target lacks {', '.join(sorted(missing))}: give the averaged module or a copy of it.")
        for name, value in self.values.items():
            found[name].copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of updates and the average."""
        masters = {"masters": dict(self.masters)} if self.masters else {}
        return {"n": self.n, "values": dict(self.values), **masters}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state. Raise RunError if its tensors have other names."""
        if differ := self.values.keys() ^ state["values"].keys():
            raise RunError(f"The saved average and this one differ in {', '.join(sorted(differ))}.")
        self.n, self.masters = state["n"], {k: v.clone() for k, v in state.get("masters", {}).items()}
        for name, value in state["values"].items():
            self.values[name].copy_(value)


def _tensors(source: nn.Module) -> dict[str, Tensor]:
    """Return trainable parameters and buffers by name."""
    state = source.state_dict(keep_vars=True)
    return {k: v for k, v in state.items() if v.requires_grad or not isinstance(v, nn.Parameter)}


def _mean(name: str, value: Tensor) -> bool:
    """Return whether a tensor is averaged: weights and running statistics; the mean of other buffers is meaningless."""
    averaged = isinstance(value, nn.Parameter) or name.split(".")[-1] in STATISTICS
    return averaged and (value.is_floating_point() or value.is_complex())


def warmup_cosine(opt: Optimizer, warmup: int, total: int, last: float = 0.0) -> LambdaLR:
    """Return the schedule lr_n = lr (n + 1) / warmup, then lr (last + (1 - last) ½ (1 + cos(π (n - warmup) / (total -
    warmup)))).

    It rises to the peak in ``warmup`` updates and falls to ``last`` times the peak at ``total`` (1608.03983). The peak
    is each group's own lr. Call ``step()`` after each ``opt.step()``.
    """
    if not 0 <= warmup <= total:
        raise RunError(f"warmup={warmup} and total={total}: give 0 <= warmup <= total.")

    def factor(n: int) -> float:
        if n < warmup:
            return (n + 1) / warmup
        done = min((n - warmup) / max(total - warmup, 1), 1.0)
        return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * done))

    return LambdaLR(opt, factor)
