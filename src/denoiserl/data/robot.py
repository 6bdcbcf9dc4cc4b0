"""The codec of a robot policy: observations and action chunks in the units that the network likes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from denoiserl.data.demos import Demos
from denoiserl.data.normal import Normalizer
from denoiserl.errors import BadSignal


@dataclass(frozen=True)
class Robot:
    """Actions [..., H, d] and observations [..., o] (or a dict with pictures and a "state"), each with its normaliser.

    Observations are clipped to ±``limit`` in model units: what the demonstrations never saw stays within reach of the
    network. Actions are clipped to ±1 before they are decoded, so a plan never leaves the demonstrated range.
    """

    observation: Normalizer
    action: Normalizer
    limit: float = 3.0

    @staticmethod
    def fit(demos: Demos, limit: float = 3.0) -> Robot:
        """Min-max normalisers of demonstrations: of flat observations, or of the "state" beside pictures."""
        seen = demos.observations
        if isinstance(seen, dict):
            if "state" not in seen:
                raise BadSignal(f"observations are numbers, or a dict with a 'state' of them; this has {sorted(seen)}")
            seen = seen["state"]
        return Robot(Normalizer.fit(seen), Normalizer.fit(demos.actions), limit)

    def encode(self, data: Tensor) -> Tensor:
        """Actions to model units."""
        return self.action.norm(data)

    def decode(self, sample: Tensor) -> Tensor:
        """Model units to actions."""
        return self.action.unnorm(sample.clamp(-1, 1))

    def condition(self, cond: Any) -> Any:
        """Observations to model units, clipped; pictures beside a "state" stay as they are.

        Several observations may stand one after another, [..., n·o], as ``env.history.Remembering`` shows them.
        """
        if isinstance(cond, dict):
            if "state" not in cond:
                raise BadSignal(f"this policy sees a dict with a 'state' of numbers; this one has {sorted(cond)}")
            return {**cond, "state": self.condition(cond["state"])}
        if cond.shape[-1] > self.observation.dim and cond.shape[-1] % self.observation.dim == 0:
            return self.condition(cond.unflatten(-1, (-1, self.observation.dim))).flatten(-2)
        return self.observation.norm(cond).clamp(-self.limit, self.limit)

    def start(self, cond: Any) -> None:
        """Plans start from noise."""
        return None
