"""Two denoisers in one chain: a frozen one for noisy times, a trainable one for the rest."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.tree import expand_right
from denoiserl.processes.denoiser import Denoiser, Estimate


class Relay(Denoiser):
    """``first`` at times above ``until``, ``last`` at all later steps.

        x̂₀(x, t, c) = first(x, t, c) for t > until,  last(x, t, c) for t ≤ until

    ``first`` is frozen. The border is a time, not a step, so that tables with other numbers of steps, ELBO terms and
    losses agree about it. ``first`` is copied if it shares trainable tensors with ``last``.
    """

    def __init__(self, first: Denoiser, last: Denoiser, until: float) -> None:
        super().__init__()
        if not 0 < until < 1:
            raise InvalidInputError(f"a relay changes denoisers inside the chain, at a time in (0, 1), not at {until}")
        learns = {id(p) for p in last.parameters() if p.requires_grad}
        if any(id(p) in learns for p in first.parameters()):
            first = copy.deepcopy(first, {id(p): p for p in first.parameters() if not p.requires_grad})
        self.first, self.last, self.until = first.requires_grad_(False).eval(), last, until

    @property
    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"first": self.first, "last": self.last, "until": self.until}

    @property
    def net(self) -> nn.Module:
        """Return the trainable network."""
        return self.last.net  # type: ignore[return-value]

    def train(self, mode: bool = True) -> Relay:
        """Set the mode of ``last``; ``first`` stays in eval mode."""
        super().train(mode)
        self.first.eval()
        return self

    def embed_condition(self, cond: Any) -> dict[str, Any]:
        """Return the embeddings of both denoisers."""
        return {"first": self.first.embed_condition(cond), "last": self.last.embed_condition(cond)}

    def embed_time(self, t: Tensor) -> dict[str, Any]:
        """Return the embeddings of both denoisers, and which times belong to ``last``."""
        return {"first": self.first.embed_time(t), "last": self.last.embed_time(t), "late": t <= self.until}

    def forward(self, x: Any, clock: dict[str, Any], context: dict[str, Any]) -> Estimate:
        """Return the estimate of the denoiser of each row's time; only denoisers with rows are called."""
        late: Tensor = clock["late"]
        if bool(late.all()):
            return self.last(x, clock["last"], context["last"])
        if not bool(late.any()):
            return self.first(x, clock["first"], context["first"])
        early = self.first(x, clock["first"], context["first"])
        made = self.last(x, clock["last"], context["last"])

        def pick(a: Tensor, b: Tensor) -> Tensor:
            return torch.where(expand_right(late, b) if b.ndim >= late.ndim else late, b, a)

        return Estimate(pick(early.mean, made.mean), {k: pick(early.extra[k], v) for k, v in made.extra.items()})
