"""The codec of a robot policy: observations and action chunks in the units that the network likes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from denoiserl.data.demos import Demos
from denoiserl.data.normal import Normalizer
from denoiserl.errors import BadSignal


@dataclass(frozen=True)
class Robot:
    """Actions [..., H, d] and flat observations [..., o], each with its normaliser.

    Observations are clipped to ±``limit`` in model units: what the demonstrations never saw stays within reach of the
    network. Actions are clipped to ±1 before they are decoded, so a plan never leaves the demonstrated range.
    """

    observation: Normalizer
    action: Normalizer
    limit: float = 3.0

    @staticmethod
    def fit(demos: Demos, limit: float = 3.0) -> Robot:
        """Min-max normalisers of demonstrations."""
        if not isinstance(demos.observations, Tensor):
            raise BadSignal("a Robot codec takes flat observations: concatenate the parts first")
        return Robot(Normalizer.fit(demos.observations), Normalizer.fit(demos.actions), limit)

    def encode(self, data: Tensor) -> Tensor:
        """Actions to model units."""
        return self.action.norm(data)

    def decode(self, sample: Tensor) -> Tensor:
        """Model units to actions."""
        return self.action.unnorm(sample.clamp(-1, 1))

    def condition(self, cond: Tensor) -> Tensor:
        """Observations to model units, clipped."""
        return self.observation.norm(cond).clamp(-self.limit, self.limit)

    def start(self, cond: Tensor) -> None:
        """Plans start from noise."""
        return None
