"""A tanh-squashed Gaussian: the distribution of bounded actions and of bounded noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from denoiserl.core.errors import InvalidInputError
from denoiserl.distributions.base import sum_event
from denoiserl.distributions.gaussian import Gaussian


@dataclass(frozen=True, eq=False)
class Squashed:
    """x = b tanh u with u ~ ``base``, inside (−b, b) in every dimension; b is ``bound``.

    log p(x) = log N(u) − Σ_i [log b + log(1 − tanh² u_i)],   log(1 − tanh² u) = 2 (log 2 − u − softplus(−2u))

    (1812.05905, appendix C). A value that float32 rounds to the bound is scored at the last number inside; beyond the
    bound log p = −∞. ``sample_with_log_prob`` scores u itself, without the rounding of x.
    """

    base: Gaussian
    bound: float = 1.0

    @property
    def event_dims(self) -> int:
        """Return the number of trailing axes that form one event."""
        return self.base.event_dims

    @property
    def mask(self) -> Tensor | None:
        """Return the factors that count (None: all)."""
        return self.base.mask

    @property
    def has_density(self) -> bool | None:
        """Return that of the base."""
        return self.base.has_density

    @property
    def num_factors(self) -> Tensor:
        """Return the number of live factors, [*batch]."""
        return self.base.num_factors

    def sample(self, noise: Tensor) -> Tensor:
        """Return b tanh(mean + std · noise). Differentiable."""
        return self.bound * torch.tanh(self.base.sample(noise))

    def sample_with_log_prob(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return a sample and its log-probability [*batch], both differentiable, and exact close to the bound too."""
        u = self.base.sample(noise)
        return self.bound * torch.tanh(u), self.base.log_prob(u) - self._volume(u)

    def log_prob(self, x: Tensor, factors: bool = False) -> Tensor:
        """Return the joint log-density [*batch], or one number per factor."""
        last = 1 - torch.finfo(x.dtype).eps
        inside = (x / self.bound).clamp(-last, last)
        u = torch.atanh(inside)
        per_factor = self.base.log_prob(u, factors=True) - self._each(u)
        per_factor = torch.where(x.abs() > self.bound, -math.inf, per_factor)
        if factors:
            return per_factor if self.mask is None else torch.where(self.mask, per_factor, 0.0)
        return sum_event(per_factor, self.event_dims, self.mask)

    def kl(self, other: Squashed) -> Tensor:
        """Return KL(self ‖ other), [*batch]: that of the Gaussians. Raise InvalidInputError if the bounds differ."""
        if other.bound != self.bound:
            raise InvalidInputError(f"the KL needs equal bounds, got {self.bound} and {other.bound}")
        return self.base.kl(other.base)

    def _each(self, u: Tensor) -> Tensor:
        """Return log |dx/du| per factor."""
        return math.log(self.bound) + 2 * (math.log(2) - u - F.softplus(-2 * u))

    def _volume(self, u: Tensor) -> Tensor:
        return sum_event(self._each(u), self.event_dims, self.mask)
