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

from denoiserl.core.errors import InvalidInputError, unknown_name_message
from denoiserl.core.precision import run_in_precision
from denoiserl.core.rng import Rng
from denoiserl.core.tree import Tree, tree_map
from denoiserl.distributions import Delta, Unmasking
from denoiserl.distributions.base import sum_event
from denoiserl.distributions.categorical import token_log_prob
from denoiserl.distributions.unmasking import ORDERS, Order
from denoiserl.processes.base import Noised, Process, Step, StepTable
from denoiserl.processes.denoiser import Denoiser, Estimate


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


def known_tokens(logits: Tensor, vocab: int, mask: int) -> Tensor:
    """Return logits of tokens alone: columns from ``vocab`` on are cut, the mask's own column is −∞. [*, ≤ vocab]."""
    logits = logits[..., :vocab]
    if not 0 <= mask < logits.shape[-1]:
        return logits
    return logits.index_fill(-1, torch.tensor([mask], device=logits.device), -torch.inf)


def answer(tokens: Tensor, hole: Tensor, end: int | None) -> Tensor:
    """Return where an answer stands, [*batch, L] bool: the ``hole`` positions up to and with their first ``end``."""
    if end is None:
        return hole
    stop = (tokens == end) & hole
    return hole & (stop.cumsum(-1) - stop.long() == 0)


def with_holes(cond: Tree, canvas: Tensor, mask: int) -> Tree:
    """Return a condition that says where the holes of the canvas are: ``{"hole": [B, L] bool, "given": cond}``."""
    return cond if isinstance(cond, dict) and "hole" in cond else {"hole": canvas == mask, "given": cond}


def check_canvas(canvas: Tensor, event: tuple[int, ...]) -> None:
    """Raise InvalidInputError if a canvas is not as long as the sequences of the policy, or holds a negative id."""
    if canvas.ndim != len(event) + 1:
        raise InvalidInputError(
            f"canvases are rows of ids [B, {event[-1]}], not {list(canvas.shape)}: give one as canvas[None]"
        )
    if tuple(canvas.shape[1:]) != tuple(event):
        raise InvalidInputError(
            f"the canvas has {canvas.shape[-1]} positions, the policy writes {event[-1]}: make canvases of that "
            "length, or a longer policy"
        )
    check_tokens(canvas)


def check_tokens(token: Tensor, vocab: int | None = None, scored: Tensor | None = None) -> None:
    """Raise InvalidInputError that names the place of a negative id, or of one of ``vocab`` or above that is to be
    scored."""
    bad = token < 0
    if vocab is not None:
        bad = bad | (token >= vocab if scored is None else (token >= vocab) & scored)
    if bool(bad.any()):
        *row, i = bad.nonzero()[0].tolist()
        limit = "0 and above" if vocab is None else f"0 to {vocab - 1}"
        raise InvalidInputError(
            f"row {row[0] if row else 0} holds {int(token[(*row, i)])} at position {i}, and ids are {limit}: put the "
            "padding's id where labels have -100, and take the tokenizer of the model"
        )


def check_rows(denoise: Denoiser, canvas: Tensor | None, mask: int | None) -> None:
    """Raise InvalidInputError that names the place of an id, other than ``mask``, that the network says it has no row
    for.

    Processes without a ``mask``, and chains without a canvas, have no ids.
    """
    rows = getattr(getattr(denoise, "net", None), "rows", None)
    if rows is not None and canvas is not None and mask is not None:
        check_tokens(torch.where(canvas == mask, 0, canvas), rows)


def close(x: Tensor, start: Tensor | None, mask: int, end: int | None) -> Tensor:
    """Return the final state ``x`` of a chain from ``start`` with ``end`` everywhere behind the answer's end.

    Raise InvalidInputError if a mask would be left.
    """
    hole = torch.ones_like(x, dtype=torch.bool) if start is None else start == mask
    alive = answer(x, hole, end)
    left = (x == mask) & alive
    if bool(left.any()):
        raise InvalidInputError(
            f"{int(left.sum())} masks are left in {int(left.any(-1).sum())} of {len(x)} answers after the last step: "
            "take more steps, or more tokens a step, on a grid that ends at 0"
        )
    return x if end is None else torch.where(hole & ~alive, end, x)


@final
@dataclass(frozen=True)
class Masked(Process):
    """Masked diffusion over ``vocab`` tokens with a decoder.

    ``order``: ``independent`` is ancestral sampling (each position is revealed with probability (t − s)/t); the others
    reveal an exact number: ``tokens`` a step, or, when it is None, the share (t − s)/t of what is still masked, rounded
    up. ``confidence`` ranks candidates by the model's own probability, untempered, as published; with ``threshold``
    every candidate above it is committed too. ``block``: only the leftmost block of that length that still has masks
    is open (semi-autoregressive); blocks are counted from the first open position of the canvas that a chain starts
    from. ``mask``: the mask's id, by default ``vocab``; it is never drawn, nor is an id of ``vocab`` or above.

    ``end``: the id that ends an answer. Once it is written, positions behind it are closed: nothing is decided there,
    and ``finish`` fills them with ``end``. One in the prompt ends nothing. Blocks and ends need the canvas, which
    ``condition`` adds to the condition and ``TokenDenoiser`` hands on as ``extra["hole"]``, as a denoiser of your own
    must.
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
            raise ValueError(
                f"end={self.end} is no token: they are 0 to {self.vocab - 1}, without the mask {self.mask_token}"
            )
        if self.order not in ORDERS:
            raise ValueError(unknown_name_message(self.order, ORDERS, "order of unmasking"))
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
    def mask_token(self) -> int:
        """The mask's id."""
        return self.vocab if self.mask_id is None else self.mask_id

    def steps(self, times: Tensor) -> StepTable:
        """One column: the share of masked positions that a step keeps masked, s/t."""
        times = times.double().cpu()
        return StepTable(times, {"keep": times[1:] / times[:-1]}, tuple([True] * (len(times) - 1)))

    def prior(self, shape: tuple[int, ...], device: torch.device | str = "cpu") -> Delta:
        """Everything is masked."""
        return Delta(torch.full(shape, self.mask_token, dtype=torch.int64, device=device), len(shape) - 1)

    def noise_shape(self, event: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
        """Two uniforms a position."""
        return "uniform", (*event, 2)

    def hide(self, x0: Tensor, hidden: Tensor, t: Tensor, live: Tensor | None, weight: Tensor) -> Noised:
        """x₀ with the positions ``hidden`` masked."""
        if bool((x0 == self.mask_token).any()):
            raise ValueError("clean data contains the mask token: a position would be taken for a hole")
        check_tokens(x0, self.vocab, live)
        return Noised(torch.where(hidden, self.mask_token, x0), t, x0, None, live, weight)

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
        check_rows(denoise, noised.x, self.mask_token)
        estimate = denoise(noised.x, denoise.embed_time(noised.t), context)
        hidden = noised.x == self.mask_token
        logits = known_tokens(estimate.mean, self.vocab, self.mask_token)
        return torch.where(hidden, token_log_prob(logits, torch.where(hidden, noised.x0, 0)), 0.0)

    def loss(self, denoise: Denoiser, noised: Noised, context: Any) -> Tensor:
        """(1/t) Σ masked cross-entropy / number of live positions, [*batch] (2406.07524)."""
        size = noised.x.shape[-1] if noised.mask is None else noised.mask.sum(-1).clamp_min(1)
        return -self.elbo(denoise, noised, context) / size

    def elbo(self, denoise: Denoiser, noised: Noised, context: Any) -> Tensor:
        """weight · Σ over masked positions of log p(x₀_i | x_t), [*batch]: its mean over draws bounds log p(x₀)."""
        weight = 1 / noised.t if noised.weight is None else noised.weight
        return weight * sum_event(self.token_log_probs(denoise, noised, context), 1)

    def condition(self, cond: Tree, start: Tensor) -> Tree:
        """Return the condition with the holes of the canvas, where blocks or ends need them: see ``with_holes``."""
        return cond if self.block is None and self.end is None else with_holes(cond, start, self.mask_token)

    def check(self, start: Tensor | None, n: int, event: tuple[int, ...]) -> None:
        """Raise InvalidInputError if a canvas is of another length, or has more holes than n steps are sure to fill."""
        if start is None:
            start = torch.full((1, *event), self.mask_token)
        check_canvas(start, event)
        if self.tokens is None or self.threshold is not None:
            return  # how many are revealed is known when the run is over
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
                f"tokens; this decoder takes {n}: give it more steps or more tokens a step"
            )

    def finish(self, x: Tensor, start: Tensor | None) -> Tensor:
        """The sequence with ``end`` everywhere behind its end. Raises InvalidInputError if a mask is left."""
        return close(x, start, self.mask_token, self.end)

    def _place(self, hole: Tensor) -> Tensor:
        """[*batch, L]: the block of every position, counted from the first hole of its row."""
        at = torch.arange(hole.shape[-1], device=hole.device)
        return (at - hole.int().argmax(-1, keepdim=True)).div(self.block or hole.shape[-1], rounding_mode="floor")

    def reverse(self, estimate: Estimate, x: Tensor, step: Step) -> Unmasking:
        """The unmasking law: how many, where, and which tokens."""
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
    """The step at which each position was revealed, [*batch, L]; −1 where it was never masked.

    ``states`` [*batch, S + 1, L]. Raises when a position is still masked at the end: a trace is incomplete.
    """
    hidden = states == mask
    if bool(hidden[..., -1, :].any()):
        raise ValueError("a position was never revealed: the chain has too few steps for its holes")
    return hidden.sum(-2) - 1


class TokenDenoiser(Denoiser):
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

    def embed_condition(self, cond: Any) -> Any:
        """The network's own encoding of the condition, and the holes where a process added them."""
        hole = None
        if isinstance(cond, dict) and "hole" in cond:
            hole, cond = cond["hole"], cond.get("given")
        if self.start is not None and isinstance(cond, dict):
            hidden, seen = cond.get("padding"), cond.get("attention_mask")
            hidden = seen == 0 if hidden is None and seen is not None else hidden
            if hidden is not None and bool(hidden[:, 0].any()):
                raise InvalidInputError("start=... is read before the first position: pad canvases on the right")
        own = self.net.embed_condition(cond) if hasattr(self.net, "embed_condition") else cond  # type: ignore[operator]
        if hole is None:
            return own
        return {"hole": hole, "given": tree_map(lambda v: v.expand(len(hole), *v.shape[1:]), own)}

    def embed_time(self, t: Tensor) -> Any:
        """The network's clock."""
        return self.net.embed_time(t) if hasattr(self.net, "embed_time") else t  # type: ignore[operator]

    def forward(self, x: Tensor, clock: Any, context: Any) -> Estimate:
        """Posterior logits; visible positions are the law's business. The holes, where told, go on as an extra."""
        extra = {}
        if isinstance(context, dict) and "hole" in context:
            extra, context = {"hole": context["hole"]}, context["given"]
        flat = x.flatten(0, -2) if x.ndim > 2 else x
        if self.start is not None:
            flat = torch.cat([torch.full_like(flat[:, :1], self.start), flat[:, :-1]], 1)
        logits = run_in_precision(self.net, flat, clock, context).float()
        if self.shift:
            logits = torch.cat([logits[:, :1], logits[:, :-1]], 1)
        if self.vocab is not None:
            logits = logits[..., : self.vocab]
        if self.banned:
            logits = logits.index_fill(-1, torch.tensor(self.banned, device=logits.device), -torch.inf)
        return Estimate(logits.reshape(*x.shape, logits.shape[-1]), extra)
