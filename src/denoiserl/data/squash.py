"""The codec of policies that decide inside a box: actions are the hyperbolic tangent of what a Gaussian draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from denoiserl.data.normal import Normalizer
from denoiserl.errors import BadSignal

EDGE = 1e-3
"""how far from the edge of the box, in units of its half width, an action is taken when it is turned into a decision"""


@dataclass(frozen=True)
class Squash:
    """a = centre + half · tanh(u) per dimension [d]; u is the decision, ``half`` the half width of the actions' box.

    ``observation``: the normaliser of what is seen, clipped to ±``limit``; None: as it comes. An action on the edge of
    the box has no finite decision, so ``encode`` takes it ``EDGE`` from there.
    """

    centre: Tensor
    half: Tensor
    observation: Normalizer | None = None
    limit: float = 10.0

    @staticmethod
    def box(low: Any, high: Any, observation: Normalizer | None = None) -> Squash:
        """Of actions between ``low`` and ``high`` [d], as ``Stream.spec`` has them.

        A dimension with low = high is constant: whatever is decided, its action is that number. Raise BadSignal, with
        the dimensions, for infinite ends and for low above high.
        """
        low, high = (torch.as_tensor(v, dtype=torch.float32) for v in (low, high))
        if low.ndim != 1 or low.shape != high.shape:
            raise BadSignal(f"a box of actions is low [d] and high [d]; they are {list(low.shape)}, {list(high.shape)}")
        for bad, said in ((~(high - low).isfinite(), "infinite"), (high < low, "empty")):
            if bool(bad.any()):
                dims = bad.nonzero().flatten().tolist()
                raise BadSignal(
                    f"the box of actions is {said} in dimension(s) {dims}, {low.tolist()} to {high.tolist()}: bound "
                    "them, low <= high"
                )
        return Squash((low + high) / 2, (high - low) / 2, observation)

    def encode(self, data: Tensor) -> Tensor:
        """Actions to decisions."""
        return torch.atanh(self.unit(data).clamp(EDGE - 1, 1 - EDGE))

    def decode(self, sample: Tensor) -> Tensor:
        """Decisions to actions."""
        return self.boxed(torch.tanh(sample))

    def boxed(self, unit: Tensor) -> Tensor:
        """[−1, 1] to actions."""
        return self.centre + self.half * unit

    def unit(self, data: Tensor) -> Tensor:
        """Actions to [−1, 1]; 0 in constant dimensions."""
        return (data - self.centre) / torch.where(self.half > 0, self.half, torch.inf)

    def condition(self, cond: Tensor) -> Tensor:
        """Observations to model units."""
        return cond if self.observation is None else self.observation.norm(cond).clamp(-self.limit, self.limit)

    def start(self, cond: Tensor) -> None:
        """Nothing has been decided."""
        return None
