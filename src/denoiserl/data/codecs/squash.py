"""The codec of policies with bounded actions: an action is the tanh of a Gaussian sample."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.tree import require_tensor
from denoiserl.data.codecs.normalize import Normalizer

EDGE = 1e-3
"""least distance of an action from its bounds, in units of the half width, when it is converted to a decision"""


def box_centre_and_half(low: Any, high: Any) -> tuple[Tensor, Tensor]:
    """Return centre and half width [d] of the action bounds; a constant dimension (low = high) has half width 0.

    Raise InvalidInputError that names the dimension if a bound is infinite or NaN, low is above high, or all are
    constant.
    """
    low, high = (torch.as_tensor(v, dtype=torch.float32) for v in (low, high))
    if low.ndim != 1 or low.shape != high.shape:
        raise InvalidInputError(
            f"a box of actions has bounds [d]; low is {list(low.shape)} and high {list(high.shape)}"
        )
    for d, (least, most) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
        if not (math.isfinite(least) and math.isfinite(most)):
            raise InvalidInputError(
                f"actions lie in a box without infinities, and dimension {d} is [{least:g}, {most:g}]: bound it"
            )
        if least > most:
            raise InvalidInputError(
                f"the box of actions is empty in dimension {d}, [{least:g}, {most:g}]: exchange its bounds"
            )
    if bool((low == high).all()):
        raise InvalidInputError(
            f"all dimensions of the actions are constant, {low.tolist()}: there is nothing to decide"
        )
    return low / 2 + high / 2, high / 2 - low / 2


@dataclass(frozen=True)
class TanhCodec:
    """a = centre + half · tanh(u) per dimension [d]; u is the decision, ``half`` the half width of the action bounds.

    ``half`` is 0 in a constant dimension. ``observation``: normaliser of observations, clipped to ±``limit``; None:
    unchanged. An action on its bounds has no finite decision, so ``encode`` moves it ``EDGE`` inside.
    """

    centre: Tensor
    half: Tensor
    observation: Normalizer | None = None
    limit: float = 10.0

    @staticmethod
    def from_box(low: Any, high: Any, observation: Normalizer | None = None) -> TanhCodec:
        """Return the codec of actions between ``low`` and ``high`` [d], as in ``Collector.spec`` (see
        ``box_centre_and_half``)."""
        centre, half = box_centre_and_half(low, high)
        return TanhCodec(centre, half, observation)

    def encode(self, data: Tensor) -> Tensor:
        """Convert actions to decisions."""
        return torch.atanh(self.unit(data).clamp(EDGE - 1, 1 - EDGE))

    def unit(self, action: Tensor) -> Tensor:
        """Convert actions to [−1, 1], those of constant dimensions to 0: the inverse of ``to_action_box``."""
        still = self.half == 0
        return ((action - self.centre) / self.half.masked_fill(still, 1.0)).masked_fill(still, 0.0)

    def decode(self, sample: Tensor) -> Tensor:
        """Convert decisions to actions."""
        return self.to_action_box(torch.tanh(sample))

    def to_action_box(self, unit: Tensor) -> Tensor:
        """Convert [−1, 1] to actions."""
        return self.centre + self.half * unit

    def condition(self, cond: Tensor) -> Tensor:
        """Convert observations to model units."""
        if self.observation is None:
            return cond
        seen = require_tensor(cond, f"[B, {self.observation.dim}]")
        return self.observation.normalize(seen).clamp(-self.limit, self.limit)

    def initial_state(self, cond: Tensor) -> None:
        """Return None: decisions start from noise."""
        return None
