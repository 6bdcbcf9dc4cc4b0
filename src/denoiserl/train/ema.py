"""A moving average of a module's weights, with a window that grows during training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from denoiserl.core.averages import update_average
from denoiserl.core.errors import RunError

STATISTICS = ("running_mean", "running_var")
"""buffers of normalisation layers that are averaged"""


class EMA:
    """A moving average of weights: θ̄ ← d θ̄ + (1 - d) θ, with d_n = min(1 - (1 + n)^(-power), max_decay) at the n-th
    update.

    The first update (n = 0) copies, so the average does not contain the initialisation. The window grows with training
    up to 1 / (1 - max_decay). Trainable parameters and the running statistics of normalisation layers are averaged.
    Other buffers (the unit vectors of spectral norm, counters) are copied, because their mean is meaningless. Averages
    of bf16 and fp16 are kept in float32.
    """

    def __init__(self, source: nn.Module, power: float = 0.75, max_decay: float = 0.9999) -> None:
        self.source, self.power, self.max_decay, self.n = source, power, max_decay, 0
        self.values = {k: v.detach().clone() for k, v in _tensors(source).items()}
        self.masters: dict[str, Tensor] = {}

    def decay(self) -> float:
        """Return the decay of the next update."""
        return min(1 - (1 + self.n) ** -self.power, self.max_decay)

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
