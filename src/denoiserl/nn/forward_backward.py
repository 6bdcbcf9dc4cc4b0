"""Forward-backward representations of successor measures: F of decisions, B of states reached (2103.07945)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.nn.embed import Shape, check_event_shape, shape

TOKENS = 4
"""number of tokens into which B splits an observation for attention"""


class ForwardBackward(nn.Module):
    """F(s, a, z) [count, B, d] and B(s) [B, d], so that F(s, a, z)ᵀ B(s') is the density of the successor measure.

    ``cond``: the size of a state; ``action``: the shape of a decision, in [−1, 1]; ``size``: d, of z, F and B. F embeds
    (s, a) and (s, z) separately and has ``count`` heads on both; ‖B‖ = √d, as for z. ``attention``: layers of
    self-attention between the two embeddings of F, and between ``TOKENS`` parts of B's input (BREEZE, 2510.15382); 0:
    perceptrons (2209.14935). Both have layer norm, and no dropout, since the same network computes targets.
    """

    def __init__(
        self,
        cond: int,
        action: Shape,
        size: int = 50,
        width: int = 256,
        attention: int = 0,
        count: int = 2,
        heads: int = 4,
    ) -> None:
        super().__init__()
        shape((cond, size, width, count, heads))
        if attention < 0 or (attention and width % heads):
            raise RunError(f"{attention} layers of attention with {heads} heads do not share a width of {width} evenly")
        self.cond, self.action, self.size = cond, shape(action), size
        self.config = {
            "cond": cond, "action": self.action, "size": size, "width": width, "attention": attention, "count": count,
            "heads": heads,
        }  # fmt: skip
        acts = math.prod(self.action)
        self.acting, self.wanting = _embedding(cond + acts, width), _embedding(cond + size, width)
        self.mix = _attention(width, heads, attention)
        self.leave = nn.ModuleList(
            nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, size)) for _ in range(count)
        )
        tokens = TOKENS if attention else 1
        self.arriving = _embedding(cond, tokens * width)
        self.gather = _attention(width, heads, attention)
        self.name = nn.Sequential(nn.Linear(tokens * width, width), nn.ReLU(), nn.Linear(width, size))

    def forward_embedding(self, cond: Tensor, action: Tensor, z: Tensor) -> Tensor:
        """Return F(s, a, z), [count, B, d], of states [B, cond], decisions [B, *action] and tasks [B, d]."""
        check_event_shape(cond, (self.cond,))
        check_event_shape(action, self.action)
        check_event_shape(z, (self.size,))
        parts = self.acting(torch.cat([cond, action.flatten(1)], 1)), self.wanting(torch.cat([cond, z], 1))
        both = self.mix(torch.stack(parts, 1)).flatten(1)
        return torch.stack([head(both) for head in self.leave])

    def backward_embedding(self, cond: Tensor) -> Tensor:
        """Return B(s), [B, d], of norm √d."""
        check_event_shape(cond, (self.cond,))
        parts = self.gather(self.arriving(cond).unflatten(1, (-1, self.config["width"])))
        return math.sqrt(self.size) * F.normalize(self.name(parts.flatten(1)), dim=1)

    def value(self, cond: Tensor, action: Tensor, z: Tensor) -> Tensor:
        """Return Q(s, a, z) = F(s, a, z)ᵀ z, [count, B]."""
        return (self.forward_embedding(cond, action, z) * z).sum(-1)


def _embedding(enter: int, width: int) -> nn.Module:
    """Make an input block; layer norm and tanh bound its features."""
    return nn.Sequential(nn.Linear(enter, width), nn.LayerNorm(width), nn.Tanh(), nn.Linear(width, width), nn.ReLU())


def _attention(width: int, heads: int, layers: int) -> nn.Module:
    """Make self-attention over tokens [B, n, width]; the identity for 0 layers."""
    if not layers:
        return nn.Identity()
    layer = nn.TransformerEncoderLayer(width, heads, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)


def effective_rank(back: Tensor) -> float:
    """Return the effective rank of B [n, d]: exp(H(p)), p the shares of the eigenvalues of E[B Bᵀ]; from 1 to d.

    If B maps different states to the same embedding, no reward that distinguishes them can be represented. Roy &
    Vetterli 2007, on the uncentred covariance.
    """
    if back.ndim != 2 or not bool(back.isfinite().all()):
        raise InvalidInputError(f"the effective rank needs finite rows [n, d]; got {list(back.shape)}")
    share = torch.linalg.eigvalsh((back.mT @ back).double()).clamp_min(0)
    share = share / share.sum()
    return float(torch.special.entr(share).sum().exp())
