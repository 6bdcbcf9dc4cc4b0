"""Delta, the law of what is certain, and Product, several laws decided together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from denoiserl.distributions.base import Distribution, count, no_density_error


@dataclass(frozen=True, eq=False)
class Delta:
    """A certain outcome: it can be drawn, and has no density."""

    value: Tensor
    event_dims: int
    mask: Tensor | None = None

    @property
    def has_density(self) -> bool:
        """Never."""
        return False

    @property
    def num_factors(self) -> Tensor:
        """[*batch], live factors."""
        return count(self.value.shape, self.event_dims, self.mask, self.value.device)

    def sample(self, noise: Any = None) -> Tensor:
        """The value itself."""
        return self.value

    def log_prob(self, x: Tensor, factors: bool = False) -> Tensor:
        """Refused: raises ``NoDensityError``."""
        raise no_density_error()

    def kl(self, other: Any) -> Tensor:
        """Refused: raises ``NoDensityError``."""
        raise no_density_error()


@dataclass(frozen=True, eq=False)
class Product:
    """Independent laws by name, decided together: states, noise and draws are dicts; log-probs and KLs add."""

    parts: dict[str, Distribution]

    @property
    def mask(self) -> Tensor | None:
        """None: which factors count is told to the parts."""
        return None

    @property
    def event_dims(self) -> int:
        """Product events are trees; their axes belong to the parts."""
        return 0

    @property
    def has_density(self) -> bool | None:
        """True when every part has a density, False when one has none."""
        known = [p.has_density for p in self.parts.values()]
        return False if False in known else (None if None in known else True)

    @property
    def num_factors(self) -> Tensor:
        """[*batch], live factors of all parts."""
        return torch.stack([p.num_factors for p in self.parts.values()]).sum(0)

    def sample(self, noise: dict[str, Any]) -> dict[str, Any]:
        """A dict of draws from a dict of noise."""
        return {k: p.sample(noise[k]) for k, p in self.parts.items()}

    def log_prob(self, x: dict[str, Any], factors: bool = False) -> Tensor:
        """The sum over parts [*batch]; ``factors=True`` stacks the parts' joints, [*batch, parts]."""
        each = torch.stack([p.log_prob(x[k]) for k, p in self.parts.items()], -1)
        return each if factors else each.sum(-1)

    def kl(self, other: Product) -> Tensor:
        """Σ over parts of KL, [*batch]."""
        return torch.stack([p.kl(other.parts[k]) for k, p in self.parts.items()]).sum(0)
