"""A Gaussian policy with mean and std from the network: the actor of maximum-entropy learning."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.core.precision import run_in_precision
from denoiserl.processes.denoiser import Denoiser, Estimate


class Actor(Denoiser):
    """A Gaussian policy: ``net`` returns [B, ..., 2 d], μ and y of decisions [B, ..., d].

        a ~ N(μ(c), diag(σ(c)²)),   log σ = log min_std + (log max_std − log min_std) (1 + tanh(y + y₀)) / 2

    The bounds keep the density finite. y = 0, near the output of untrained networks, is a std of ``start`` (None: 1,
    whose tanh covers most of the action range, or the geometric mean of bounds that do not contain 1). For a σ that
    does not depend on the condition use ``GaussianHead``.
    Perceptrons need no time: ``MLP((1, d), out=(1, 2 * d), time=0)``.
    """

    def __init__(self, net: nn.Module, min_std: float = 7e-3, max_std: float = 7.0, start: float | None = None) -> None:
        super().__init__()
        if not 0 < min_std < max_std:
            raise RunError(f"the bounds of a std are 0 < min_std < max_std, not {min_std} and {max_std}")
        if start is None:
            start = 1.0 if min_std < 1 < max_std else math.sqrt(min_std * max_std)
        if not min_std < start < max_std:
            raise RunError(f"a std starts between its bounds {min_std} and {max_std}, not at {start}")
        self.config = {"net": net, "min_std": min_std, "max_std": max_std, "start": start}
        self.net, self.min_std, self.max_std, self.start = net, min_std, max_std, start
        low, high = math.log(min_std), math.log(max_std)
        self.shift = math.atanh(2 * (math.log(start) - low) / (high - low) - 1)

    def embed_condition(self, cond: Any) -> Any:
        """Return the network's own embedding of the condition."""
        return self.net.embed_condition(cond) if hasattr(self.net, "embed_condition") else cond  # type: ignore[operator]

    def embed_time(self, t: Tensor) -> Any:
        """Return the network's own embedding of the times."""
        return self.net.embed_time(t) if hasattr(self.net, "embed_time") else t  # type: ignore[operator]

    def forward(self, x: Tensor, clock: Any, context: Any) -> Estimate:
        """Return the mean, and ``extra["std"]`` of the same shape."""
        out = run_in_precision(self.net, x, clock, context).float()
        if out.shape[:-1] != x.shape[:-1] or out.shape[-1] != 2 * x.shape[-1]:
            raise InvalidInputError(
                f"the network returns {list(out.shape)} for decisions {list(x.shape)}: mean and std need a last axis "
                f"of {2 * x.shape[-1]}"
            )
        mean, spread = out.chunk(2, -1)
        low, high = math.log(self.min_std), math.log(self.max_std)
        return Estimate(mean, {"std": (low + 0.5 * (high - low) * (1 + torch.tanh(spread + self.shift))).exp()})
