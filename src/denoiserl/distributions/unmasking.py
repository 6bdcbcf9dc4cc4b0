"""The distribution of one unmasking step: which masked positions are revealed, and with which tokens.

The state shows both decisions, tokens and remaining masks, so their joint probability is exact. Confidence decoding,
the usual sampler, draws a candidate y_j ~ p_j at every open position and commits the n with the highest confidence.
With S the committed set and (c*, i*) the weakest commitment in the order (confidence down, position up),

    P(S, y_S | x) = Π_{i∈S} p_i(y_i) · Π_{j open, j∉S} F_j,    F_j = Σ_v p_j(v) [ (c_j(v), j) ranks below (c*, i*) ]

so the order costs no further network call. Methods that score only the revealed tokens leave F out, an error of more
than a nat. The probability is exact; its gradient ignores the jumps of the ranking.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError, unknown_name_message
from denoiserl.distributions.base import sum_event
from denoiserl.distributions.categorical import invert, token_log_prob

Order = Literal["independent", "confidence", "random", "left", "margin", "entropy"]
ORDERS: tuple[Order, ...] = ("independent", "confidence", "random", "left", "margin", "entropy")
NEVER = -torch.inf


@dataclass(frozen=True, eq=False)
class Unmasking:
    """Reveal some masked positions of ``x`` [*batch, L].

    ``logits`` [*batch, L, V]: the policy's token logits after temperature, top-k and top-p. ``is_open`` [*batch, L]:
    positions that may be revealed now (masked, and inside the current block). By ``order``:

    - ``independent``: every open position is revealed with probability ``rate`` [*batch] (ancestral sampling);
    - ``confidence``: the ``count`` [*batch] most confident candidates are committed, and with ``threshold`` every
      candidate above it too; ``score`` [*batch, L, V] is the log-confidence of every token;
    - ``random``: ``count`` positions, uniformly; ``left``: the ``count`` leftmost;
    - ``margin``, ``entropy``: the ``count`` positions with the largest gap of the two best tokens, or least entropy.

    ``mask`` [*batch, L]: the factors that count, by default all. Open positions outside it (text behind the end) add
    neither tokens nor F_j to log-probs, whose probabilities then no longer sum to one.

    The noise is two uniforms per position, [*batch, L, 2]: token and order.
    """

    logits: Tensor
    x: Tensor
    is_open: Tensor
    mask_token: int
    order: Order
    count: Tensor | None = None
    rate: Tensor | None = None
    score: Tensor | None = None
    threshold: float | None = None
    mask: Tensor = None  # type: ignore[assignment]  # by default: is_open

    def __post_init__(self) -> None:
        if self.mask is None:
            object.__setattr__(self, "mask", self.is_open)
        if self.order not in ORDERS:
            raise InvalidInputError(unknown_name_message(self.order, ORDERS, "order of unmasking"))
        if (self.rate if self.order == "independent" else self.count) is None:
            raise InvalidInputError(f"order {self.order!r} needs {'rate' if self.order == 'independent' else 'count'}")
        if self.threshold is not None and not (self.order == "confidence" and 0 < self.threshold < 1):
            raise InvalidInputError(
                f"a threshold lies in (0, 1) and belongs to order='confidence', not to {self.order!r}"
            )

    @property
    def event_dims(self) -> int:
        """Return 1: the sequence."""
        return 1

    @property
    def has_density(self) -> bool:
        """Return True: a probability mass always exists."""
        return True

    @property
    def num_factors(self) -> Tensor:
        """Return the number of live tokens revealed, [*batch]; for ``independent``, of live open positions."""
        alive = (self.is_open & self.mask).sum(-1)
        if self.order == "independent":
            return alive.float()
        assert self.count is not None
        return torch.minimum(self.count.expand(alive.shape), alive).float()

    def _scores(self) -> Tensor:
        """Return the log-confidence of every token, [*batch, L, V]: the ranking in both drawing and scoring."""
        return (self.logits if self.score is None else self.score).float().log_softmax(-1)

    def _priority(self, noise: Tensor) -> Tensor:
        """Return the priority of positions, [*batch, L]: the highest first, ties from the left."""
        p = self.logits.float().log_softmax(-1)
        if self.order == "left":
            value = -torch.arange(self.x.shape[-1], device=self.x.device).expand(self.x.shape).float()
        elif self.order == "random":
            value = noise
        elif self.order == "margin":
            best = p.exp().topk(min(2, p.shape[-1]), -1).values
            value = best[..., 0] - best[..., -1]
        else:
            value = (p.exp() * torch.where(p > NEVER, p, 0.0)).sum(-1)
        return value

    def _committed(self, token: Tensor, noise: Tensor) -> Tensor:
        """Return the positions that are revealed, [*batch, L] bool, given candidates and order noise."""
        if self.order == "independent":
            assert self.rate is not None
            return self.is_open & (noise < self.rate[..., None])
        assert self.count is not None
        confident = self.order == "confidence"
        value = self._scores().gather(-1, token[..., None])[..., 0] if confident else self._priority(noise)
        value = torch.where(self.is_open, value, NEVER)
        rank = value.sort(dim=-1, descending=True, stable=True).indices.argsort(-1)
        chosen = rank < self.count[..., None]
        if confident and self.threshold is not None:
            chosen = chosen | (value > math.log(self.threshold))
        return chosen & self.is_open

    def sample(self, noise: Tensor) -> Tensor:
        """Return the next state [*batch, L] from uniforms [*batch, L, 2]."""
        token = invert(self.logits, noise[..., 0], self.is_open)
        return torch.where(self._committed(token, noise[..., 1]), token, self.x)

    def token_log_prob(self, y: Tensor) -> Tensor:
        """Return log p_i(y_i) at the live positions that y reveals, 0 elsewhere: [*batch, L]."""
        revealed = (self.x == self.mask_token) & (y != self.mask_token) & self.mask
        logp = token_log_prob(self.logits, torch.where(revealed, y, 0))
        return torch.where(revealed, logp, 0.0)

    def order_log_prob(self, y: Tensor) -> Tensor:
        """Return the log-probability of the positions given the revealed tokens, [*batch]; −∞ if impossible."""
        revealed = (self.x == self.mask_token) & (y != self.mask_token)
        legal = ((self.x == y) | revealed).all(-1) & (self.is_open | ~revealed).all(-1)
        left_out = self.is_open & ~revealed
        if self.order == "independent":
            assert self.rate is not None
            yes, no = self.rate.log()[..., None], torch.log1p(-self.rate)[..., None]
            logp = sum_event(torch.where(revealed, yes, torch.where(left_out, no, 0.0)), 1, self.mask)
        elif self.order == "confidence":
            logp = self._confidence_order(y, revealed, left_out & self.mask)
        else:
            assert self.count is not None
            n, m = revealed.sum(-1), self.is_open.sum(-1)
            legal = legal & (n == torch.minimum(self.count, m))
            if self.order == "random":
                logp = torch.lgamma(n + 1.0) + torch.lgamma(m - n + 1.0) - torch.lgamma(m + 1.0)
            else:
                expected = self._committed(y, torch.zeros_like(self.x, dtype=torch.float32))
                logp = torch.where((expected == revealed).all(-1), 0.0, NEVER)
        return torch.where(legal, logp, NEVER)

    def _confidence_order(self, y: Tensor, revealed: Tensor, left_out: Tensor) -> Tensor:
        """Return log Π F_j over open positions that were left out; −∞ for a set that confidence cannot choose."""
        assert self.count is not None
        score = self._scores()
        conf = torch.where(revealed, score.gather(-1, torch.where(revealed, y, 0)[..., None])[..., 0], torch.inf)
        n, needed = revealed.sum(-1), torch.minimum(self.count, self.is_open.sum(-1))
        weakest = conf.min(-1, keepdim=True).values
        place = torch.arange(y.shape[-1], device=y.device)
        where = torch.where(conf == weakest, place, -1).max(-1, keepdim=True).values
        below = (score < weakest[..., None]) | ((score == weakest[..., None]) & (place[:, None] > where[..., None]))
        legal = n == needed
        if self.threshold is not None:
            least = math.log(self.threshold)
            sure = ((conf > least) | ~revealed).all(-1)
            below = torch.where(sure[..., None, None], score <= least, below)
            legal = legal | ((n > needed) & sure)
        p = self.logits.float().log_softmax(-1)
        below = below & (p > NEVER)
        loses = below.any(-1)
        # A logsumexp over nothing has a NaN gradient, which a later mask cannot stop: sum such rows in full.
        lost = torch.where(below | ~(left_out & loses)[..., None], p, NEVER).logsumexp(-1)
        lost = torch.where(loses, lost, NEVER)
        return torch.where(legal, torch.where(left_out, lost, 0.0).sum(-1), NEVER)

    def log_prob(self, x: Tensor, factors: bool = False) -> Tensor:
        """Return the exact joint of tokens and order, [*batch]; ``factors=True``: [*batch, L + 1], the order last."""
        tokens, order = self.token_log_prob(x), self.order_log_prob(x)
        return torch.cat([tokens, order[..., None]], -1) if factors else sum_event(tokens, 1) + order

    def kl(self, other: Unmasking) -> Tensor:
        """Return KL(self ‖ other), [*batch], in closed form for orders that do not depend on the network.

        ``independent``: Σ_open [kl(rates) + rate · KL(p_i ‖ q_i)]; ``random``: (n/m) Σ_open KL(p_i ‖ q_i); ``left``:
        the sum over the n leftmost. Raise InvalidInputError for confidence, margin and entropy: estimate it from
        samples.
        """
        if self.order not in ("independent", "random", "left") or other.order != self.order:
            raise InvalidInputError(
                f"order {self.order!r} has no closed-form KL: estimate it from draws, (p.log_prob(y) - q.log_prob(y))"
            )
        p, q = self.logits.float().log_softmax(-1), other.logits.float().log_softmax(-1)
        each = (p.exp() * torch.where(p > NEVER, p - q, 0.0)).sum(-1)
        each = torch.where(self.is_open & self.mask, each, 0.0)
        if self.order == "independent":
            assert self.rate is not None and other.rate is not None
            a, b = self.rate, other.rate
            flip = torch.special.xlogy(a, a / b) + torch.special.xlogy(1 - a, (1 - a) / (1 - b))
            return a * each.sum(-1) + torch.where(a == b, 0.0, flip) * (self.is_open & self.mask).sum(-1)
        if self.order == "left":
            chosen = self._committed(self.x, torch.zeros_like(self.x, dtype=torch.float32))
            return torch.where(chosen, each, 0.0).sum(-1)
        assert self.count is not None
        m = self.is_open.sum(-1).clamp_min(1)
        return torch.minimum(self.count, m) / m * each.sum(-1)
