"""Observations standardised by running statistics: the codec of policies that learn without demonstrations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.tree import require_tensor


@dataclass(frozen=True)
class RunningNormCodec:
    """z = clip((o − mean) / √(variance + 10⁻⁸), ±limit) per dimension; actions are ``centre`` + ``scale`` · decision.

    ``scale`` and ``centre`` are numbers, or one per dimension of the action [d]; a dimension of scale 0 is constant.

    ``update`` adds observations in place (mean and variance are those of all so far, by Chan's update), so they are
    saved with the policy. It has a state: name it in ``run.loop``. Before the first update it changes nothing. Chains
    record conditions as they were standardised when they were sampled, so later updates do not change rescored chains.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor
    scale: float | Tensor = 1.0
    limit: float = 10.0
    centre: float | Tensor = 0.0

    @staticmethod
    def without_statistics(
        size: int, scale: float | Tensor = 1.0, limit: float = 10.0, centre: float | Tensor = 0.0
    ) -> RunningNormCodec:
        """Return a codec of observations [..., size] without statistics."""
        return RunningNormCodec(torch.zeros(size), torch.ones(size), torch.zeros(()), scale, limit, centre)

    @torch.no_grad()
    def update(self, obs: Tensor) -> None:
        """Update the statistics with observations [..., size]."""
        self._check_size(obs)
        rows = obs.reshape(-1, obs.shape[-1]).to(self.mean)
        n, total = len(rows), self.count + len(rows)
        gap = rows.mean(0) - self.mean
        squares = self.variance * self.count + rows.var(0, correction=0) * n + gap**2 * self.count * n / total
        self.mean.add_(gap * n / total)
        self.variance.copy_(squares / total)
        self.count.copy_(total)

    def _check_size(self, obs: Tensor) -> None:
        if obs.shape[-1] != len(self.mean):
            raise InvalidInputError(f"this codec takes observations of {len(self.mean)} numbers; got {list(obs.shape)}")

    def encode(self, data: Tensor) -> Tensor:
        """Convert actions to decisions; those of constant dimensions are 0."""
        if not isinstance(self.scale, Tensor):
            return (data - self.centre) / self.scale
        still = self.scale == 0
        return ((data - self.centre) / self.scale.masked_fill(still, 1.0)).masked_fill(still, 0.0)

    def decode(self, sample: Tensor) -> Tensor:
        """Convert decisions to actions; the environment clips them to its bounds."""
        return self.centre + sample * self.scale

    def condition(self, cond: Tensor) -> Tensor:
        """Return observations, standardised and clipped."""
        self._check_size(require_tensor(cond, f"[B, {len(self.mean)}]"))
        return ((cond - self.mean) / (self.variance + 1e-8).sqrt()).clamp(-self.limit, self.limit)

    def initial_state(self, cond: Tensor) -> None:
        """Return None: decisions start from noise."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return mean, variance and count."""
        return {"mean": self.mean, "variance": self.variance, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load saved statistics."""
        for name in ("mean", "variance", "count"):
            getattr(self, name).copy_(state[name])


@dataclass(frozen=True)
class DiscreteActionCodec(RunningNormCodec):
    """Observations as ``RunningNormCodec``; decisions [B, H, 1] are discrete actions [B, H], counted from ``first``."""

    first: int = 0

    @staticmethod
    def for_choices(size: int, first: int = 0) -> DiscreteActionCodec:
        """Return a codec of observations [..., size] without statistics."""
        return DiscreteActionCodec(torch.zeros(size), torch.ones(size), torch.zeros(()), first=first)

    def encode(self, data: Tensor) -> Tensor:
        """Convert actions to decisions."""
        return (data - self.first).long().unsqueeze(-1)

    def decode(self, sample: Tensor) -> Tensor:
        """Convert decisions to actions."""
        return sample.squeeze(-1) + self.first
