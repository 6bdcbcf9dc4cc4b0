"""Masked diffusion of tokens: positions are masked and revealed again (MDLM 2406.07524, LLaDA 2502.09992).

Tokens are 0 ... vocab − 1; ``vocab`` is the mask (or any other id that a model uses). At time t each position is masked
with probability t. The settings of the decoder (temperature, top-k, top-p, order) are part of the policy. The
distribution of a step contains them, so log-probs are those of the sampler that drew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError, unknown_name_message
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.tree import Tree
from denoiserl.distributions import Delta, Unmasking
from denoiserl.distributions.base import sum_event
from denoiserl.distributions.categorical import token_log_prob
from denoiserl.distributions.unmasking import ORDERS, Order
from denoiserl.processes.base import Noised, Process, Step, StepTable
from denoiserl.processes.denoiser import Denoiser, Estimate
from denoiserl.processes.tokens import (
    answer,
    check_canvas,
    check_rows,
    check_tokens,
    close,
    decodable,
    known_tokens,
    truncate,
    with_holes,
)


@final
@dataclass(frozen=True)
class Masked(Process):
    """Masked diffusion over ``vocab`` tokens with a decoder.

    ``order``: ``independent`` is ancestral sampling (each position is revealed with probability (t − s)/t). The other
    orders reveal an exact number: ``tokens`` per step; if it is None, the share (t − s)/t of the masked positions,
    rounded up. ``confidence`` ranks candidates by the model's probability without temperature, as published; with
    ``threshold`` every candidate above it is committed too. ``block``: only the leftmost block of that length with
    masks left is open (semi-autoregressive). Blocks are counted from the first open position of the canvas that a
    chain starts from. ``mask_id``: the mask's id, by default ``vocab``. It is never drawn, nor is any id from
    ``vocab`` on.

    ``end``: the id that ends an answer. Positions behind a written ``end`` are closed: no step writes them, and
    ``finish`` fills them with ``end``. An ``end`` in the prompt ends nothing. Blocks and ends need the canvas:
    ``condition`` adds it to the condition, and ``TokenDenoiser`` returns it as ``extra["hole"]``. Any other denoiser
    must do the same.
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
    end: int | None = None

    def __post_init__(self) -> None:
        if self.end is not None and (not 0 <= self.end < self.vocab or self.end == self.mask_token):
            raise InvalidInputError(
                f"end={self.end} is no token: they are 0 to {self.vocab - 1}, without the mask {self.mask_token}"
            )
        if self.order not in ORDERS:
            raise InvalidInputError(unknown_name_message(self.order, ORDERS, "order of unmasking"))
        decodable(self.temperature, self.top_k, self.top_p)
        if self.threshold is not None and not (self.order == "confidence" and 0 < self.threshold < 1):
            raise InvalidInputError("a threshold lies in (0, 1) and belongs to order='confidence'")
        for name in ("vocab", "tokens", "block"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidInputError(f"{name} must be at least 1, not {value}")
        if self.tokens is not None and self.order == "independent":
            raise InvalidInputError(
                "ancestral sampling reveals a random number of tokens: choose another order for tokens=..."
            )
        if self.block is not None and self.tokens is None:
            raise InvalidInputError("block decoding needs tokens=...: the number of tokens per step inside the block")

    @property
    def mask_token(self) -> int:
        """Return the mask's id."""
        return self.vocab if self.mask_id is None else self.mask_id

    def steps(self, times: Tensor) -> StepTable:
        """Return the table of a grid. Its column is s/t, the share of masked positions that a step keeps masked."""
        times = times.double().cpu()
        return StepTable(times, {"keep": times[1:] / times[:-1]}, tuple([True] * (len(times) - 1)))

    def prior(self, shape: tuple[int, ...], device: torch.device | str = "cpu") -> Delta:
        """Return the fully masked sequence, with certainty."""
        return Delta(torch.full(shape, self.mask_token, dtype=torch.int64, device=device), len(shape) - 1)

    def noise_shape(self, event: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
        """Return two uniforms per position."""
        return "uniform", (*event, 2)

    def mask_positions(self, x0: Tensor, hidden: Tensor, t: Tensor, loss_mask: Tensor | None, weight: Tensor) -> Noised:
        """Return x₀ with the positions ``hidden`` masked. Raise InvalidInputError if x₀ contains the mask."""
        if bool((x0 == self.mask_token).any()):
            raise InvalidInputError(
                "clean data contains the mask token, which would count as a hole: replace it by a token"
            )
        check_tokens(x0, self.vocab, loss_mask)
        return Noised(torch.where(hidden, self.mask_token, x0), t, x0, None, loss_mask, weight)

    def noise(self, x0: Tensor, t: Tensor, rng: Rng | int, loss_mask: Tensor | None = None) -> Noised:
        """Mask every live position with probability t; the ELBO weight is 1/t."""
        rng = as_rng(rng, x0.device)
        hidden = rng.uniform(*x0.shape) < t[..., None]
        return self.mask_positions(x0, hidden if loss_mask is None else hidden & loss_mask, t, loss_mask, 1 / t)

    def renoise(self, x0: Tensor, n: int, rng: Rng | int, loss_mask: Tensor | None = None) -> Noised:
        """Mask every row n times, [batch, n]: k of its M live positions, k stratified in 1 ... M, weight M/k."""
        rng = as_rng(rng, x0.device)
        many = x0[:, None].expand(-1, n, x0.shape[-1])
        alive = torch.ones_like(x0, dtype=torch.bool) if loss_mask is None else loss_mask.expand(x0.shape)
        total = alive.sum(-1, keepdim=True)
        if bool((total == 0).any()):
            raise InvalidInputError("a row has no live position to mask and score: leave it out")
        order = rng.uniform(x0.shape[0], n).argsort(-1)
        u = (order + rng.uniform(x0.shape[0], n)) / n
        k = (u * total).floor().long().clamp_max(total - 1) + 1
        score = rng.uniform(*many.shape).masked_fill(~alive[:, None], 2.0)
        hidden = score.argsort(-1).argsort(-1) < k[..., None]
        where = None if loss_mask is None else alive[:, None].expand(many.shape)
        return self.mask_positions(many, hidden, k / total, where, total / k)

    def token_log_probs(self, denoise: Denoiser, noised: Noised, context: Any) -> Tensor:
        """Return log p(x₀_i | x_t) at masked positions, 0 elsewhere: [*batch, L]."""
        check_rows(denoise, noised.x, self.mask_token)
        estimate = denoise(noised.x, denoise.embed_time(noised.t), context)
        hidden = noised.x == self.mask_token
        logits = known_tokens(estimate.mean, self.vocab, self.mask_token)
        return torch.where(hidden, token_log_prob(logits, torch.where(hidden, noised.x0, 0)), 0.0)

    def loss(self, denoise: Denoiser, noised: Noised, context: Any) -> Tensor:
        """Return (1/t) Σ masked cross-entropy / number of live positions, [*batch] (2406.07524)."""
        size = noised.x.shape[-1] if noised.mask is None else noised.mask.sum(-1).clamp_min(1)
        return -self.elbo(denoise, noised, context) / size

    def elbo(self, denoise: Denoiser, noised: Noised, context: Any) -> Tensor:
        """Return weight · Σ log p(x₀_i | x_t) over masked positions, [*batch]: its mean over draws bounds log p(x₀)."""
        weight = 1 / noised.t if noised.weight is None else noised.weight
        return weight * sum_event(self.token_log_probs(denoise, noised, context), 1)

    def condition(self, cond: Tree, start: Tensor) -> Tree:
        """Return the condition with the holes of the canvas if blocks or ends need them: see ``with_holes``."""
        return cond if self.block is None and self.end is None else with_holes(cond, start, self.mask_token)

    def check(self, start: Tensor | None, n: int, event: tuple[int, ...]) -> None:
        """Raise InvalidInputError if a canvas has another length, or more holes than n steps are sure to fill."""
        if start is None:
            start = torch.full((1, *event), self.mask_token)
        check_canvas(start, event)
        if self.tokens is None or self.threshold is not None:
            return  # the number of revealed tokens is not known in advance
        hole = start == self.mask_token
        block = self.block or hole.shape[-1]
        place = self._place(hole).clamp_min(0)
        each = torch.zeros_like(hole, dtype=torch.int64).scatter_add(-1, place, hole.long())
        needed = (each + self.tokens - 1).div(self.tokens, rounding_mode="floor").sum(-1)
        if bool((needed > n).any()):
            i = int(needed.argmax())
            cut = "" if self.block is None else f" in blocks of {block}"
            raise InvalidInputError(
                f"canvas {i} has {int(hole[i].sum())} holes{cut} and needs {int(needed[i])} steps of {self.tokens} "
                f"tokens; this decoder takes {n}: give it more steps or more tokens per step"
            )

    def finish(self, x: Tensor, start: Tensor | None) -> Tensor:
        """Return the sequence, filled with ``end`` behind its end. Raise InvalidInputError if a mask is left."""
        return close(x, start, self.mask_token, self.end)

    def _place(self, hole: Tensor) -> Tensor:
        """Return the block of every position, [*batch, L], counted from the first hole of its row."""
        at = torch.arange(hole.shape[-1], device=hole.device)
        return (at - hole.int().argmax(-1, keepdim=True)).div(self.block or hole.shape[-1], rounding_mode="floor")

    def reverse(self, estimate: Estimate, x: Tensor, step: Step) -> Unmasking:
        """Return the unmasking distribution: number, positions and values of the tokens."""
        raw = known_tokens(estimate.mean, self.vocab, self.mask_token)
        hidden = x == self.mask_token
        hole = estimate.extra.get("hole", torch.ones_like(hidden))
        opened = hidden & answer(x, hole, self.end)
        if self.block is not None:
            place = self._place(hole)
            first = torch.where(opened, place, x.shape[-1]).min(-1, keepdim=True).values
            opened = opened & (place == first)
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
        return Unmasking(policy, x, opened, self.mask_token, self.order, n, rate, raw, self.threshold)


def step_map(states: Tensor, mask: int) -> Tensor:
    """Return the step at which each position was revealed, [*batch, L]; −1 where it was never masked.

    ``states`` [*batch, S + 1, L]. Raise InvalidInputError if a position is still masked at the end.
    """
    hidden = states == mask
    if bool(hidden[..., -1, :].any()):
        raise InvalidInputError("a position is still masked at the end: the chain has too few steps for its holes")
    return hidden.sum(-2) - 1
