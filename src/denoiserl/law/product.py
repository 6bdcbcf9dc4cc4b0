"""Delta, the law of what is certain, and Product, several laws decided together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from denoiserl.law.base import Law, count, refuse


@dataclass(frozen=True, eq=False)
class Delta:
    """A certain outcome: it can be drawn, and has no density."""

    value: Tensor
    event: int
    live: Tensor | None = None

    @property
    def dense(self) -> bool:
        """Never."""
        return False

    @property
    def size(self) -> Tensor:
        """[*batch], live factors."""
        return count(self.value.shape, self.event, self.live, self.value.device)

    def draw(self, noise: Any = None) -> Tensor:
        """The value itself."""
        return self.value

    def log_prob(self, x: Tensor, factors: bool = False) -> Tensor:
        """Refused: raises ``NoDensity``."""
        raise refuse()

    def kl(self, other: Any) -> Tensor:
        """Refused: raises ``NoDensity``."""
        raise refuse()


@dataclass(frozen=True, eq=False)
class Product:
    """Independent laws by name, decided together: states, noise and draws are dicts; log-probs and KLs add."""

    parts: dict[str, Law]

    @property
    def live(self) -> Tensor | None:
        """None: which factors count is told to the parts."""
        return None

    @property
    def event(self) -> int:
        """Product events are trees; their axes belong to the parts."""
        return 0

    @property
    def dense(self) -> bool | None:
        """True when every part has a density, False when one has none."""
        known = [p.dense for p in self.parts.values()]
        return False if False in known else (None if None in known else True)

    @property
    def size(self) -> Tensor:
        """[*batch], live factors of all parts."""
        return torch.stack([p.size for p in self.parts.values()]).sum(0)

    def draw(self, noise: dict[str, Any]) -> dict[str, Any]:
        """A dict of draws from a dict of noise."""
        return {k: p.draw(noise[k]) for k, p in self.parts.items()}

    def log_prob(self, x: dict[str, Any], factors: bool = False) -> Tensor:
        """The sum over parts [*batch]; ``factors=True`` stacks the parts' joints, [*batch, parts]."""
        each = torch.stack([p.log_prob(x[k]) for k, p in self.parts.items()], -1)
        return each if factors else each.sum(-1)

    def kl(self, other: Product) -> Tensor:
        """Σ over parts of KL, [*batch]."""
        return torch.stack([p.kl(other.parts[k]) for k, p in self.parts.items()]).sum(0)
