"""A Gaussian pressed into a box: the law of bounded actions and of bounded noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from denoiserl.distributions.base import sum_event
from denoiserl.distributions.gaussian import Gaussian


@dataclass(frozen=True, eq=False)
class Squashed:
    """x = b tanh u with u ~ ``base``, inside (−b, b) in every dimension; b is ``bound``.

    log p(x) = log N(u) − Σ_i [log b + log(1 − tanh² u_i)],   log(1 − tanh² u) = 2 (log 2 − u − softplus(−2u))

    (1812.05905, appendix C). What float32 rounds onto the edge is scored at the last number inside it; nothing lies
    outside, log p = −∞ there. Where u is at hand, ``sample_with_log_prob`` scores it without the detour over x.
    """

    base: Gaussian
    bound: float = 1.0

    @property
    def event_dims(self) -> int:
        """How many trailing axes form one event."""
        return self.base.event_dims

    @property
    def mask(self) -> Tensor | None:
        """The factors that count."""
        return self.base.mask

    @property
    def has_density(self) -> bool | None:
        """As the Gaussian inside."""
        return self.base.has_density

    @property
    def num_factors(self) -> Tensor:
        """[*batch], live factors."""
        return self.base.num_factors

    def sample(self, noise: Tensor) -> Tensor:
        """b tanh(mean + std · noise). Differentiable."""
        return self.bound * torch.tanh(self.base.sample(noise))

    def sample_with_log_prob(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """A draw and its log-probability [*batch], both differentiable and exact however close to the edge."""
        u = self.base.sample(noise)
        return self.bound * torch.tanh(u), self.base.log_prob(u) - self._volume(u)

    def log_prob(self, x: Tensor, factors: bool = False) -> Tensor:
        """Joint log-density [*batch], or one number a factor."""
        last = 1 - torch.finfo(x.dtype).eps
        inside = (x / self.bound).clamp(-last, last)
        u = torch.atanh(inside)
        found = self.base.log_prob(u, factors=True) - self._each(u)
        found = torch.where(x.abs() > self.bound, -math.inf, found)
        if factors:
            return found if self.mask is None else torch.where(self.mask, found, 0.0)
        return sum_event(found, self.event_dims, self.mask)

    def kl(self, other: Squashed) -> Tensor:
        """KL(self ‖ other) [*batch]: that of the Gaussians, for both are pressed into the same box."""
        if other.bound != self.bound:
            raise ValueError(f"laws in boxes of {self.bound} and {other.bound} do not cover each other")
        return self.base.kl(other.base)

    def _each(self, u: Tensor) -> Tensor:
        """log |dx/du| a factor."""
        return math.log(self.bound) + 2 * (math.log(2) - u - F.softplus(-2 * u))

    def _volume(self, u: Tensor) -> Tensor:
        return sum_event(self._each(u), self.event_dims, self.mask)
