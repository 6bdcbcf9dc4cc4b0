"""AdamW for weights of any precision, its learning-rate schedule, and the check that it holds all parameters."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from denoiserl.core.averages import has_low_precision
from denoiserl.core.errors import RunError


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
