"""The diagonal Gaussian: the law of a denoising step of every diffusion and flow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from denoiserl.law.base import count, joint, refuse

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True, eq=False)
class Gaussian:
    """N(mean, diag(std²)) over the last ``event`` axes.

    log p(x) = Σ_i −½((x_i − mean_i)/std_i)² − log std_i − ½ log 2π over live factors. ``std`` broadcasts against
    ``mean``. ``dense`` is False for a deterministic step (std = 0): it can be drawn and not scored. ``None`` means
    that nobody knows: scoring then looks (a host synchronisation on a GPU).
    """

    mean: Tensor
    std: Tensor
    event: int
    dense: bool | None = None
    live: Tensor | None = None

    @property
    def size(self) -> Tensor:
        """[*batch], live factors."""
        return count(self.mean.shape, self.event, self.live, self.mean.device)

    def draw(self, noise: Tensor | None) -> Tensor:
        """mean + std · noise, with standard normal noise shaped like the mean; None: the mean. Differentiable."""
        return self.mean if noise is None else self.mean + self.std * noise

    def _scorable(self) -> None:
        if self.dense is False or (self.dense is None and bool((self.std <= 0).any())):
            raise refuse()

    def log_prob(self, x: Tensor, factors: bool = False) -> Tensor:
        """Joint log-density [*batch], or one number a factor. Raises ``NoDensity`` for a deterministic step."""
        self._scorable()
        per_factor = -0.5 * ((x - self.mean) / self.std) ** 2 - (self.std.log() + HALF_LOG_2PI)
        if factors:
            return per_factor if self.live is None else torch.where(self.live, per_factor, 0.0)
        return joint(per_factor, self.event, self.live)

    def kl(self, other: Gaussian) -> Tensor:
        """KL(self ‖ other) = Σ ½[(σ/σ')² − 1 − log(σ/σ')² + ((μ − μ')/σ')²], [*batch]."""
        self._scorable()
        other._scorable()
        ratio = (self.std / other.std) ** 2
        per_factor = 0.5 * (ratio - 1 - ratio.log() + ((self.mean - other.mean) / other.std) ** 2)
        return joint(per_factor.expand(self.mean.shape), self.event, self.live)

    def entropy(self) -> Tensor:
        """Σ log std + ½ log 2πe, [*batch]."""
        self._scorable()
        return joint((self.std.log() + HALF_LOG_2PI + 0.5).expand(self.mean.shape), self.event, self.live)


def stack(laws: Sequence[Gaussian]) -> Gaussian:
    """Laws of one kind, [batch] each, as one law [batch, S]: scoring S steps together costs what one costs."""
    head, means = laws[0], torch.stack([law.mean for law in laws], 1)
    if all(law.std.ndim == 0 for law in laws):
        std = torch.stack([law.std for law in laws]).view(-1, *(1,) * head.event)
    else:
        std = torch.stack([law.std.expand_as(law.mean) for law in laws], 1)
    live = [law.live.expand_as(law.mean) for law in laws if law.live is not None]
    return Gaussian(means, std, head.event, head.dense, torch.stack(live, 1) if live else None)
