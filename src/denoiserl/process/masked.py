"""Masked diffusion of tokens: positions are hidden one by one and revealed again (MDLM 2406.07524, LLaDA 2502.09992).

Tokens are 0 ... vocab − 1; ``vocab`` is the mask (or any other id that a model uses). At time t each position is
masked with probability t. What a decoder does beyond the model, temperature, top-k, top-p, the order, is part of the
policy: the law has it all, so the probability that is scored is that of the sampler that ran.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from denoiserl.denoiser import Denoiser, Estimate
from denoiserl.errors import nearest
from denoiserl.law import Delta, Unmasking
from denoiserl.law.base import joint
from denoiserl.law.categorical import token_log_prob
from denoiserl.law.unmasking import ORDERS, Order
from denoiserl.precision import called
from denoiserl.process.base import Noised, Process, Step, Steps
from denoiserl.rng import Rng


def decodable(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Refuse a decoder that leaves no token."""
    if not temperature > 0:
        raise ValueError(f"the temperature must be positive, not {temperature}: for greedy tokens use top_k=1")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, not {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p lies in (0, 1], not {top_p}")


def truncate(logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """The policy's logits: divided by the temperature, then only the top-k and the smallest set of mass ≥ top-p kept.

    Ties with the k-th token are kept. The mass is that of what temperature and top-k left.
    """
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k, -1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p is not None and top_p < 1:
        value, order = logits.sort(dim=-1, descending=True, stable=True)
        p = value.softmax(-1)
        before = p.cumsum(-1) - p
        keep = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before < top_p)
        logits = logits.masked_fill(~keep, -torch.inf)
    return logits


@final
@dataclass(frozen=True)
class Masked(Process):
    """Masked diffusion over ``vocab`` tokens with a decoder.

    ``order``: ``independent`` is ancestral sampling (each position is revealed with probability (t − s)/t); the others
    reveal an exact number: ``tokens`` a step, or, when it is None, the share (t − s)/t of what is still masked, rounded
    up. ``confidence`` ranks candidates by the model's own probability, untempered, as published; with ``threshold``
    every candidate above it is committed too. ``block``: only the leftmost block of that length that still has masks
    is open (semi-autoregressive). ``mask``: the mask's id, by default ``vocab``.
    """

    vocab: int
    order: Order = "independent"
    tokens: int | None = None
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    threshold: float | None = None
    block: int | None = None
    mask_id: int | None = None

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ValueError(nearest(self.order, ORDERS, "order of unmasking"))
        decodable(self.temperature, self.top_k, self.top_p)
        if self.threshold is not None and not (self.order == "confidence" and 0 < self.threshold < 1):
            raise ValueError("a threshold lies in (0, 1) and belongs to order='confidence'")
        for name in ("vocab", "tokens", "block"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if self.tokens is not None and self.order == "independent":
            raise ValueError(
                "ancestral sampling reveals a random number of tokens: choose another order for tokens=..."
            )
        if self.block is not None and self.tokens is None:
            raise ValueError("block decoding needs tokens=...: how many a step inside the block")

    @property
    def mask(self) -> int:
        """The mask's id."""
        return self.vocab if self.mask_id is None else self.mask_id

    def steps(self, times: Tensor) -> Steps:
        """One column: the share of masked positions that a step keeps masked, s/t."""
        times = times.double().cpu()
        return Steps(times, {"keep": times[1:] / times[:-1]}, tuple([True] * (len(times) - 1)))

    def prior(self, shape: tuple[int, ...], device: torch.device | str = "cpu") -> Delta:
        """Everything is masked."""
        return Delta(torch.full(shape, self.mask, dtype=torch.int64, device=device), len(shape) - 1)

    def noise_shape(self, event: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
        """Two uniforms a position."""
        return "uniform", (*event, 2)

    def hide(self, x0: Tensor, hidden: Tensor, t: Tensor, live: Tensor | None, weight: Tensor) -> Noised:
        """x₀ with the positions ``hidden`` masked."""
        if bool((x0 == self.mask).any()):
            raise ValueError("clean data contains the mask token: a position would be taken for a hole")
        return Noised(torch.where(hidden, self.mask, x0), t, x0, None, live, weight)

    def noise(self, x0: Tensor, t: Tensor, rng: Rng, live: Tensor | None = None) -> Noised:
        """Every live position is masked with probability t; its ELBO weight is 1/t."""
        hidden = rng.uniform(*x0.shape) < t[..., None]
        return self.hide(x0, hidden if live is None else hidden & live, t, live, 1 / t)

    def renoise(self, x0: Tensor, n: int, rng: Rng, live: Tensor | None = None) -> Noised:
        """n exact-count maskings, [batch, n]: k of the row's M live positions, k stratified in 1 ... M, weight M/k."""
        many = x0[:, None].expand(-1, n, x0.shape[-1])
        alive = torch.ones_like(x0, dtype=torch.bool) if live is None else live.expand(x0.shape)
        total = alive.sum(-1, keepdim=True)
        if bool((total == 0).any()):
            raise ValueError("a row has no live position: there is nothing to mask and score")
        order = rng.uniform(x0.shape[0], n).argsort(-1)
        u = (order + rng.uniform(x0.shape[0], n)) / n
        k = (u * total).floor().long().clamp_max(total - 1) + 1
        score = rng.uniform(*many.shape).masked_fill(~alive[:, None], 2.0)
        hidden = score.argsort(-1).argsort(-1) < k[..., None]
        where = None if live is None else alive[:, None].expand(many.shape)
        return self.hide(many, hidden, k / total, where, total / k)

    def token_log_probs(self, denoise: Denoiser, noised: Noised, context: Any) -> Tensor:
        """log p(x₀_i | x_t) at masked positions, 0 elsewhere: [*batch, L]."""
        estimate = denoise(noised.x, denoise.clock(noised.t), context)
        hidden = noised.x == self.mask
        return torch.where(hidden, token_log_prob(estimate.mean, torch.where(hidden, noised.x0, 0)), 0.0)

    def loss(self, denoise: Denoiser, noised: Noised, context: Any) -> Tensor:
        """(1/t) Σ masked cross-entropy / number of live positions, [*batch] (2406.07524)."""
        size = noised.x.shape[-1] if noised.live is None else noised.live.sum(-1).clamp_min(1)
        return -self.elbo(denoise, noised, context) / size

    def elbo(self, denoise: Denoiser, noised: Noised, context: Any) -> Tensor:
        """weight · Σ over masked positions of log p(x₀_i | x_t), [*batch]: its mean over draws bounds log p(x₀)."""
        weight = 1 / noised.t if noised.weight is None else noised.weight
        return weight * joint(self.token_log_probs(denoise, noised, context), 1)

    def reverse(self, estimate: Estimate, x: Tensor, step: Step) -> Unmasking:
        """The unmasking law: how many, where, and which tokens."""
        raw = estimate.mean
        hidden = x == self.mask
        opened = hidden
        if self.block is not None:
            place = torch.arange(x.shape[-1], device=x.device) // self.block
            first = torch.where(hidden, place, x.shape[-1]).min(-1, keepdim=True).values
            opened = hidden & (place == first)
        keep = step.table["keep"]
        keep = keep if isinstance(keep, Tensor) else torch.tensor(keep, dtype=torch.float32, device=x.device)
        rate = n = None
        if self.order == "independent":
            rate = (1 - keep).expand(x.shape[:-1])
        elif self.tokens is not None:
            n = opened.sum(-1).clamp_max(self.tokens)
        else:
            n = (opened.sum(-1) * (1 - keep) - 1e-4).ceil().long()
        policy = truncate(raw, self.temperature, self.top_k, self.top_p)
        return Unmasking(policy, x, opened, self.mask, self.order, n, rate, raw, self.threshold)


def step_map(states: Tensor, mask: int) -> Tensor:
    """The step at which each position was revealed, [*batch, L]; −1 where it was never masked.

    ``states`` [*batch, S + 1, L]. Raises when a position is still masked at the end: a trace is incomplete.
    """
    hidden = states == mask
    if bool(hidden[..., -1, :].any()):
        raise ValueError("a position was never revealed: the chain has too few steps for its holes")
    return hidden.sum(-2) - 1


class Logits(Denoiser):
    """A raw network as a denoiser of tokens: posterior logits [*, L, V] in float32.

    ``shift``: the network's row i speaks about token i + 1 (models made from left-to-right ones, Dream): rows move
    right by one and the first stays: the first token must then be given (a prompt, a start symbol). ``start``: the
    network reads this id before the tokens and its row i speaks about token i, so that a left-to-right model can
    write the first token too. ``vocab`` cuts surplus rows of the vocabulary; ``banned`` ids are never predicted (the
    mask itself, for models that have a row for it).
    """

    def __init__(
        self,
        net: nn.Module,
        shift: bool = False,
        vocab: int | None = None,
        banned: tuple[int, ...] = (),
        start: int | None = None,
    ) -> None:
        super().__init__()
        if shift and start is not None:
            raise ValueError("shift=True moves the network's rows, start=... its input: choose one")
        self.net, self.shift, self.vocab, self.banned, self.start = net, shift, vocab, tuple(banned), start

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"net": self.net, "shift": self.shift, "vocab": self.vocab, "banned": self.banned, "start": self.start}

    def encode(self, cond: Any) -> Any:
        """The network's own encoding of the condition."""
        return self.net.encode(cond) if hasattr(self.net, "encode") else cond  # type: ignore[operator]

    def clock(self, t: Tensor) -> Any:
        """The network's clock."""
        return self.net.clock(t) if hasattr(self.net, "clock") else t  # type: ignore[operator]

    def forward(self, x: Tensor, clock: Any, context: Any) -> Estimate:
        """Posterior logits; visible positions are the law's business."""
        flat = x.flatten(0, -2) if x.ndim > 2 else x
        if self.start is not None:
            flat = torch.cat([torch.full_like(flat[:, :1], self.start), flat[:, :-1]], 1)
        logits = called(self.net, flat, clock, context).float()
        if self.shift:
            logits = torch.cat([logits[:, :1], logits[:, :-1]], 1)
        if self.vocab is not None:
            logits = logits[..., : self.vocab]
        if self.banned:
            logits = logits.index_fill(-1, torch.tensor(self.banned, device=logits.device), -torch.inf)
        return Estimate(logits.reshape(*x.shape, logits.shape[-1]))
