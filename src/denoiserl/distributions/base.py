"""The interface of all distributions."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from denoiserl.core.errors import NoDensityError

NO_DENSITY_HELP = (
    "a deterministic step has no density: leave it out (chain.steps_at skips it, a window trains other steps), "
    "or give it noise (ddim(eta > 0), with_min_std(transition, std))"
)


@runtime_checkable
class Distribution(Protocol):
    """A distribution of decisions. ``event_dims`` trailing axes form one event; ``mask`` marks factors that count."""

    @property
    def event_dims(self) -> int:
        """Return the number of trailing axes that form one event."""
        ...

    @property
    def mask(self) -> Tensor | None:
        """Return the factors that count (None: all)."""
        ...

    @property
    def has_density(self) -> bool | None:
        """Return whether there is a density; ``None``: unknown without a look at the numbers."""
        ...

    @property
    def num_factors(self) -> Tensor:
        """Return the number of live factors of the event, [*batch]."""
        ...

    def sample(self, noise: Any) -> Any:
        """Return a sample, as a pure function of noise."""
        ...

    def log_prob(self, x: Any, factors: bool = False) -> Tensor:
        """Return the joint log-probability [*batch], or one number per factor."""
        ...

    def kl(self, other: Any) -> Tensor:
        """Return KL(self ‖ other), [*batch]."""
        ...


def sum_event(per_factor: Tensor, event: int, mask: Tensor | None = None) -> Tensor:
    """Sum over the event's factors: [*batch, *event] → [*batch]. Factors outside ``mask`` count 0."""
    if mask is not None:
        per_factor = torch.where(mask, per_factor, 0.0)
    return per_factor if event == 0 else per_factor.flatten(per_factor.ndim - event).sum(-1)


def mean(per_factor: Tensor, event: int, mask: Tensor | None = None) -> Tensor:
    """Return the mean over the event's live factors: [*batch, *event] → [*batch]; 0 where none is live."""
    size = count(per_factor.shape, event, mask, per_factor.device)
    return sum_event(per_factor, event, mask) / size.clamp_min(1)


def count(shape: torch.Size, event: int, mask: Tensor | None, device: torch.device) -> Tensor:
    """Count the live factors of each event: [*batch], float32."""
    batch = shape[: len(shape) - event]
    if mask is None:
        return torch.full(batch, float(shape[len(shape) - event :].numel()), device=device)
    return sum_event(mask.expand(shape).float(), event)


def no_density_error() -> NoDensityError:
    """Return the error of a distribution without density."""
    return NoDensityError(NO_DENSITY_HELP)
