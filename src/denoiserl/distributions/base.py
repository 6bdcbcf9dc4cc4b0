"""What every law has in common."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from denoiserl.core.errors import NoDensityError

NO_DENSITY_HELP = (
    "a deterministic step has no density: leave it out of replay (chain.rows skips it, a window trains around it), "
    "or give it noise (ddim(eta > 0), with_min_std(transition, std))"
)


@runtime_checkable
class Distribution(Protocol):
    """What a decision is drawn from. ``event`` trailing axes form one event; ``live`` masks factors that count."""

    @property
    def event_dims(self) -> int:
        """How many trailing axes form one event."""
        ...

    @property
    def mask(self) -> Tensor | None:
        """The factors that count (None: all)."""
        ...

    @property
    def has_density(self) -> bool | None:
        """Static: has it a density? ``None``: unknown until it is asked."""
        ...

    @property
    def num_factors(self) -> Tensor:
        """[*batch], live factors of the event."""
        ...

    def sample(self, noise: Any) -> Any:
        """A sample, as a pure function of noise."""
        ...

    def log_prob(self, x: Any, factors: bool = False) -> Tensor:
        """The joint log-probability [*batch], or one number a factor."""
        ...

    def kl(self, other: Any) -> Tensor:
        """KL(self ‖ other) [*batch]."""
        ...


def sum_event(per_factor: Tensor, event: int, live: Tensor | None = None) -> Tensor:
    """Sum over the event's factors: [*batch, *event] → [*batch]. Dead factors count nothing."""
    if live is not None:
        per_factor = torch.where(live, per_factor, 0.0)
    return per_factor if event == 0 else per_factor.flatten(per_factor.ndim - event).sum(-1)


def mean(per_factor: Tensor, event: int, live: Tensor | None = None) -> Tensor:
    """Mean over the event's live factors: [*batch, *event] → [*batch]; 0 where none is live."""
    size = count(per_factor.shape, event, live, per_factor.device)
    return sum_event(per_factor, event, live) / size.clamp_min(1)


def count(shape: torch.Size, event: int, live: Tensor | None, device: torch.device) -> Tensor:
    """The number of live factors of each event, [*batch], float32."""
    batch = shape[: len(shape) - event]
    if live is None:
        return torch.full(batch, float(shape[len(shape) - event :].numel()), device=device)
    return sum_event(live.expand(shape).float(), event)


def no_density_error() -> NoDensityError:
    """The error of a law without density."""
    return NoDensityError(NO_DENSITY_HELP)
