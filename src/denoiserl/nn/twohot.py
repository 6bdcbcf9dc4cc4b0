"""Critics that answer a distribution over bins: regression by classification, indifferent to the unit of returns.

A number becomes weight on the two bins beside it, so that its mean is the number itself; a critic answers logits over
bins, learns by cross-entropy and is read by its mean.

    y = Σ_i p_i b_i,   p = two-hot(y),   loss = −Σ_i p_i log softmax(l)_i,   Q = Σ_i softmax(l)_i b_i

The minimiser over many targets is their average two-hot, whose mean is the mean of the targets: for even bins, and for
those that ``symlog`` spreads (b = sign(u) (exp |u| − 1) at even u, as in DreamerV3, 2301.04104, where the mean is taken
after the exponential). MuZero (1911.08265) and TD-MPC2 (2310.16828) have such critics; Farebrother et al. (2403.03950)
say when they help.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from denoiserl.advantages.shapes import require_no_grad, same_shape
from denoiserl.core.errors import InvalidInputError
from denoiserl.nn.critic import Critics, _uniform
from denoiserl.nn.embed import Shape


@dataclass(frozen=True)
class Bins:
    """``count`` bins from ``low`` to ``high``, evenly spaced, with ``symlog`` in sign(b) log(1 + |b|).

    What lies outside is taken for the nearest end: choose ends that hold every return.
    """

    low: float = 0.0
    high: float = 1.0
    count: int = 51
    symlog: bool = False

    def __post_init__(self) -> None:
        if self.count < 2 or not self.low < self.high:
            raise InvalidInputError(f"bins are at least two, from low to a higher high; they are {self}")

    def places(self, device: torch.device | str = "cpu") -> Tensor:
        """Where the bins are, [count], increasing."""
        ends = torch.tensor([self.low, self.high], dtype=torch.float64)
        if not self.symlog:
            return torch.linspace(self.low, self.high, self.count, dtype=torch.float64).float().to(device)
        u = ends.sign() * ends.abs().log1p()
        even = torch.linspace(float(u[0]), float(u[1]), self.count, dtype=torch.float64)
        return (even.sign() * even.abs().expm1()).float().to(device)

    def encode(self, value: Tensor) -> Tensor:
        """Numbers [*] as weights [*, count] on the two bins beside them."""
        places = self.places(value.device)
        value = value.clamp(places[0], places[-1])
        right = torch.searchsorted(places, value.contiguous()).clamp(1, self.count - 1)
        gap = places[right] - places[right - 1]
        share = (value - places[right - 1]) / gap
        made = value.new_zeros(*value.shape, self.count)
        made.scatter_(-1, (right - 1)[..., None], (1 - share)[..., None])
        return made.scatter_(-1, right[..., None], share[..., None])

    def mean(self, logits: Tensor) -> Tensor:
        """The mean of softmax(logits) [*, count], [*]; exact where the bins lie symmetrically and nothing is known."""
        return (logits.softmax(-1) * self.places(logits.device)).sum(-1)


def cross_entropy(logits: Tensor, value: Tensor, bins: Bins) -> Tensor:
    """−Σ_i two-hot(value)_i log softmax(logits)_i: logits [*, count], numbers [*] (constants) -> [*]."""
    same_shape(logits=logits[..., 0], value=value)
    require_no_grad(value=value)
    return F.cross_entropy(logits.movedim(-1, 1), bins.encode(value).movedim(-1, 1), reduction="none")


class Binned(nn.Module):
    """``Critics`` over bins: ``forward`` is their mean [count, B], ``logits`` [count, B, bins] is what learns."""

    def __init__(
        self,
        cond: Shape,
        action: Shape,
        bins: Bins,
        count: int = 2,
        width: int = 256,
        depth: int = 2,
        activation: str = "relu",
        layer_norm: bool = True,
    ) -> None:
        super().__init__()
        self.bins = bins
        self.config = {
            "cond": cond, "action": action, "bins": bins, "count": count, "width": width, "depth": depth,
            "activation": activation, "layer_norm": layer_norm,
        }  # fmt: skip
        self.net = Critics(cond, action, count, width, depth, activation, layer_norm)
        self.net.weights[-1] = _uniform(count, width, bins.count, width)
        self.net.biases[-1] = nn.Parameter(torch.zeros(count, 1, bins.count))

    def logits(self, cond: Tensor, action: Tensor) -> Tensor:
        """[count, B, bins]."""
        return self.net(cond, action)

    def forward(self, cond: Tensor, action: Tensor) -> Tensor:
        """Values [count, B]."""
        return self.bins.mean(self.logits(cond, action))

    def loss(self, cond: Tensor, action: Tensor, value: Tensor) -> Tensor:
        """Cross-entropy with targets [B] (constants), the same for all critics: [count, B]."""
        logits = self.logits(cond, action)
        return cross_entropy(logits, value.expand(logits.shape[:-1]), self.bins)
