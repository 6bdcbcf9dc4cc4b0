"""The categorical distribution, for large vocabularies: scored by gather and logsumexp, never normalised as a whole."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError
from denoiserl.distributions.base import count, sum_event


def invert(logits: Tensor, uniform: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the token at which the cumulative probability passes ``uniform`` [*], from logits [*, V].

    Tokens of probability zero (logit −∞) are never drawn. Computed in float32: low-precision Gumbel noise is a known
    fault of public samplers. Raise InvalidInputError if a token that counts (``mask`` [*]; None: all) has no
    distribution: a logit is NaN or +∞, or all are −∞.
    """
    p = logits.float().softmax(-1)
    cumulative = p.cumsum(-1)
    total = cumulative[..., -1:]
    _lawful(total[..., 0], mask)
    target = torch.minimum(uniform[..., None] * total, torch.nextafter(total, torch.zeros_like(total)))
    token = torch.searchsorted(cumulative, target.contiguous(), right=True).clamp_max(p.shape[-1] - 1)
    # A parallel cumulative sum (GPU) can rise by a rounding error at an impossible token: then take the likeliest.
    return torch.where(p.gather(-1, token) > 0, token, p.argmax(-1, keepdim=True)).squeeze(-1)


def _lawful(total: Tensor, mask: Tensor | None) -> None:
    """Raise InvalidInputError if the sum of the probabilities [*] is NaN at a token that counts.

    On an accelerator the check does not synchronise: the error comes later, and without positions.
    """
    wrong = total.isnan() if mask is None else total.isnan() & mask
    fault = "have no distribution: a logit is NaN or +inf, or every token is excluded (-inf)"
    remedy = "Look at the network's weights, or ban fewer tokens."
    try:
        torch._assert_async(~wrong.any(), f"Tokens to draw {fault}. {remedy}")
    except RuntimeError as error:
        place, many = torch.nonzero(wrong)[0].tolist(), int(wrong.sum())
        raise InvalidInputError(
            f"{many} of {wrong.numel()} tokens to draw {fault}; the first is at {place}. {remedy}"
        ) from error


def token_log_prob(logits: Tensor, token: Tensor) -> Tensor:
    """Return log softmax(logits)[token], [*]: a gather and a logsumexp, in float32."""
    logits = logits.float()
    return logits.gather(-1, token[..., None]).squeeze(-1) - logits.logsumexp(-1)


@dataclass(frozen=True, eq=False)
class Categorical:
    """Independent tokens over the last ``event_dims`` axes; ``logits`` [*batch, *event, V], −∞ for impossible tokens.

    The noise is one uniform per token (inverse of the cumulative probability).
    """

    logits: Tensor
    event_dims: int = 0
    mask: Tensor | None = None

    @property
    def has_density(self) -> bool:
        """Return True: a probability mass always exists."""
        return True

    @property
    def num_factors(self) -> Tensor:
        """Return the number of live tokens, [*batch]."""
        return count(self.logits.shape[:-1], self.event_dims, self.mask, self.logits.device)

    def sample(self, noise: Tensor) -> Tensor:
        """Return tokens [*batch, *event] int64 from uniforms of the same shape."""
        return invert(self.logits, noise, self.mask)

    def log_prob(self, x: Tensor, factors: bool = False) -> Tensor:
        """Return the joint log-probability [*batch], or one number per token."""
        per_factor = token_log_prob(self.logits, x)
        if factors:
            return per_factor if self.mask is None else torch.where(self.mask, per_factor, 0.0)
        return sum_event(per_factor, self.event_dims, self.mask)

    def kl(self, other: Categorical) -> Tensor:
        """Return KL(self ‖ other) = Σ_i Σ_v p_i(v) (log p_i(v) − log q_i(v)), [*batch]; 0 log 0 = 0."""
        p, q = self.logits.float().log_softmax(-1), other.logits.float().log_softmax(-1)
        gap = torch.where(p > -torch.inf, p - q, 0.0)
        return sum_event((p.exp() * gap).sum(-1), self.event_dims, self.mask)

    def entropy(self) -> Tensor:
        """Return −Σ p log p, [*batch]."""
        p = self.logits.float().log_softmax(-1)
        return sum_event(-(p.exp() * torch.where(p > -torch.inf, p, 0.0)).sum(-1), self.event_dims, self.mask)
