"""The diagonal Gaussian: the distribution of a denoising step of every diffusion and flow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from denoiserl.distributions.base import count, no_density_error, sum_event

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True, eq=False)
class Gaussian:
    """N(mean, diag(std²)) over the last ``event_dims`` axes.

    log p(x) = Σ_i −½((x_i − mean_i)/std_i)² − log std_i − ½ log 2π over live factors. ``std`` broadcasts against
    ``mean``. ``has_density`` is False for a deterministic step (std = 0), which can be drawn and not scored. ``None``
    means unknown: scoring then reads the std (a host synchronisation on a GPU).
    """

    mean: Tensor
    std: Tensor
    event_dims: int
    has_density: bool | None = None
    mask: Tensor | None = None

    @property
    def num_factors(self) -> Tensor:
        """Return the number of live factors, [*batch]."""
        return count(self.mean.shape, self.event_dims, self.mask, self.mean.device)

    def sample(self, noise: Tensor | None) -> Tensor:
        """Return mean + std · noise, with standard normal noise shaped like the mean (None: 0). Differentiable."""
        return self.mean if noise is None else self.mean + self.std * noise

    def _scorable(self) -> None:
        if self.has_density is False or (self.has_density is None and bool((self.std <= 0).any())):
            raise no_density_error()

    def log_prob(self, x: Tensor, factors: bool = False) -> Tensor:
        """Return the joint log-density [*batch], or one number per factor. Raise NoDensityError if a std is 0."""
        self._scorable()
        per_factor = -0.5 * ((x - self.mean) / self.std) ** 2 - (self.std.log() + HALF_LOG_2PI)
        if factors:
            return per_factor if self.mask is None else torch.where(self.mask, per_factor, 0.0)
        return sum_event(per_factor, self.event_dims, self.mask)

    def kl(self, other: Gaussian) -> Tensor:
        """Return KL(self ‖ other) = Σ ½[(σ/σ')² − 1 − log(σ/σ')² + ((μ − μ')/σ')²], [*batch]."""
        self._scorable()
        other._scorable()
        ratio = (self.std / other.std) ** 2
        per_factor = 0.5 * (ratio - 1 - ratio.log() + ((self.mean - other.mean) / other.std) ** 2)
        return sum_event(per_factor.expand(self.mean.shape), self.event_dims, self.mask)

    def entropy(self) -> Tensor:
        """Return Σ log std + ½ log 2πe, [*batch]."""
        self._scorable()
        return sum_event((self.std.log() + HALF_LOG_2PI + 0.5).expand(self.mean.shape), self.event_dims, self.mask)


def stack(laws: Sequence[Gaussian]) -> Gaussian:
    """Join S Gaussians [batch] to one [batch, S]: scoring S steps together costs as much as scoring one."""
    head, means = laws[0], torch.stack([law.mean for law in laws], 1)
    if all(law.std.ndim == 0 for law in laws):
        std = torch.stack([law.std for law in laws]).view(-1, *(1,) * head.event_dims)
    else:
        std = torch.stack([law.std.expand_as(law.mean) for law in laws], 1)
    mask = [law.mask.expand_as(law.mean) for law in laws if law.mask is not None]
    return Gaussian(means, std, head.event_dims, head.has_density, torch.stack(mask, 1) if mask else None)
