"""Parts that token processes share: decoding settings, checks of canvases and ids, and the denoiser of tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.precision import run_in_precision
from denoiserl.core.tree import Tree, tree_map
from denoiserl.processes.denoiser import Denoiser, Estimate, require_network


def decodable(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise InvalidInputError if the settings of a decoder leave no token to draw."""
    if not temperature > 0:
        raise InvalidInputError(f"the temperature must be positive, not {temperature}: for greedy tokens use top_k=1")
    if top_k is not None and top_k < 1:
        raise InvalidInputError(f"top_k must be at least 1, not {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise InvalidInputError(f"top_p lies in (0, 1], not {top_p}")


def truncate(logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """Return the policy's logits: divided by the temperature, then cut to top-k and the smallest set of mass ≥ top-p.

    Ties with the k-th token are kept. The mass is measured after temperature and top-k.
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
    """Return the logits of tokens, [*, ≤ vocab]: columns from ``vocab`` on are cut, the mask's column is −∞."""
    logits = logits[..., :vocab]
    if not 0 <= mask < logits.shape[-1]:
        return logits
    return logits.index_fill(-1, torch.tensor([mask], device=logits.device), -torch.inf)


def answer(tokens: Tensor, hole: Tensor, end: int | None) -> Tensor:
    """Return the positions of an answer, [*batch, L] bool: those of ``hole`` up to and with their first ``end``."""
    if end is None:
        return hole
    stop = (tokens == end) & hole
    return hole & (stop.cumsum(-1) - stop.long() == 0)


def with_holes(cond: Tree, canvas: Tensor, mask: int) -> Tree:
    """Return a condition with the holes of the canvas: ``{"hole": [B, L] bool, "given": cond}``."""
    return cond if isinstance(cond, dict) and "hole" in cond else {"hole": canvas == mask, "given": cond}


def check_canvas(canvas: Tensor, event: tuple[int, ...]) -> None:
    """Raise InvalidInputError if a canvas has another length than the policy's sequences, or a negative id."""
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
    """Raise InvalidInputError if an id is negative, or if a ``scored`` id (None: any) is ``vocab`` or above."""
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
    """Raise InvalidInputError if the network has no embedding row (``net.rows``) for an id other than ``mask``.

    Processes without a ``mask``, and chains without a canvas, have no ids.
    """
    rows = getattr(getattr(denoise, "net", None), "rows", None)
    if rows is not None and canvas is not None and mask is not None:
        check_tokens(torch.where(canvas == mask, 0, canvas), rows)


def close(x: Tensor, start: Tensor | None, mask: int, end: int | None) -> Tensor:
    """Return the final state ``x`` of a chain from ``start`` with ``end`` at all positions behind the answer's end.

    Raise InvalidInputError if a mask is left.
    """
    hole = torch.ones_like(x, dtype=torch.bool) if start is None else start == mask
    alive = answer(x, hole, end)
    left = (x == mask) & alive
    if bool(left.any()):
        raise InvalidInputError(
            f"{int(left.sum())} masks are left in {int(left.any(-1).sum())} of {len(x)} answers after the last step: "
            "take more steps, or more tokens per step, on a grid that ends at 0"
        )
    return x if end is None else torch.where(hole & ~alive, end, x)


class TokenDenoiser(Denoiser):
    """A raw network as a denoiser of tokens: posterior logits [*, L, V] in float32.

    ``shift``: the network's row i predicts token i + 1 (models made from left-to-right ones, such as Dream). Rows move
    right by one and the first stays, so the first token must be given (a prompt, a start symbol). ``start``: the
    network reads this id before the tokens, and its row i predicts token i. A left-to-right model can then write the
    first token too. ``vocab`` cuts surplus columns of the logits; ``banned`` ids are never predicted (the mask itself,
    for models with a column for it).
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
        require_network(net)
        if shift and start is not None:
            raise InvalidInputError("shift=True moves the network's rows and start=... moves its input: choose one")
        self.net, self.shift, self.vocab, self.banned, self.start = net, shift, vocab, tuple(banned), start

    @property
    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"net": self.net, "shift": self.shift, "vocab": self.vocab, "banned": self.banned, "start": self.start}

    def embed_condition(self, cond: Any) -> Any:
        """Return the network's own embedding of the condition, and the holes if a process added them."""
        hole = None
        if isinstance(cond, dict) and "hole" in cond:
            hole, cond = cond["hole"], cond.get("given")
        if self.start is not None and isinstance(cond, dict):
            hidden, visible = cond.get("padding"), cond.get("attention_mask")
            hidden = visible == 0 if hidden is None and visible is not None else hidden
            if hidden is not None and bool(hidden[:, 0].any()):
                raise InvalidInputError("start=... is read before the first position: pad canvases on the right")
        own = self.net.embed_condition(cond) if hasattr(self.net, "embed_condition") else cond  # type: ignore[operator]
        if hole is None:
            return own
        return {"hole": hole, "given": tree_map(lambda v: v.expand(len(hole), *v.shape[1:]), own)}

    def embed_time(self, t: Tensor) -> Any:
        """Return the network's own embedding of the times."""
        return self.net.embed_time(t) if hasattr(self.net, "embed_time") else t  # type: ignore[operator]

    def forward(self, x: Tensor, clock: Any, context: Any) -> Estimate:
        """Return posterior logits of all positions, and the holes of the context, if any, as ``extra["hole"]``."""
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
