"""Delta, the distribution of a certain value, and Product, several independent distributions together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from denoiserl.distributions.base import Distribution, count, no_density_error


@dataclass(frozen=True, eq=False)
class Delta:
    """A certain value: it can be drawn and has no density."""

    value: Tensor
    event_dims: int
    mask: Tensor | None = None

    @property
    def has_density(self) -> bool:
        """Return False."""
        return False

    @property
    def num_factors(self) -> Tensor:
        """Return the number of live factors, [*batch]."""
        return count(self.value.shape, self.event_dims, self.mask, self.value.device)

    def sample(self, noise: Any = None) -> Tensor:
        """Return the value itself."""
        return self.value

    def log_prob(self, x: Tensor, factors: bool = False) -> Tensor:
        """Raise NoDensityError."""
        raise no_density_error()

    def kl(self, other: Any) -> Tensor:
        """Raise NoDensityError."""
        raise no_density_error()


@dataclass(frozen=True, eq=False)
class Product:
    """Independent distributions by name: states, noise and samples are dicts; log-probs and KLs add."""

    parts: dict[str, Distribution]

    @property
    def mask(self) -> Tensor | None:
        """Return None: the parts have the masks."""
        return None

    @property
    def event_dims(self) -> int:
        """Return 0: events are trees, and their axes belong to the parts."""
        return 0

    @property
    def has_density(self) -> bool | None:
        """Return True if every part has a density, False if one has none, else None."""
        known = [p.has_density for p in self.parts.values()]
        return False if False in known else (None if None in known else True)

    @property
    def num_factors(self) -> Tensor:
        """Return the number of live factors of all parts, [*batch]."""
        return torch.stack([p.num_factors for p in self.parts.values()]).sum(0)

    def sample(self, noise: dict[str, Any]) -> dict[str, Any]:
        """Return a dict of samples from a dict of noise."""
        return {k: p.sample(noise[k]) for k, p in self.parts.items()}

    def log_prob(self, x: dict[str, Any], factors: bool = False) -> Tensor:
        """Return the sum over parts [*batch]; ``factors=True`` stacks the parts' joints, [*batch, parts]."""
        each = torch.stack([p.log_prob(x[k]) for k, p in self.parts.items()], -1)
        return each if factors else each.sum(-1)

    def kl(self, other: Product) -> Tensor:
        """Return Σ over parts of KL, [*batch]."""
        return torch.stack([p.kl(other.parts[k]) for k, p in self.parts.items()]).sum(0)
