"""A small transformer over tokens, masked or autoregressive, with a trunk that a value head can share."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from denoiserl.core.errors import InvalidInputError, RunError, unknown_name_message
from denoiserl.nn.embed import (
    ConditionEmbedding,
    GridEmbedding,
    PositionEmbedding,
    Shape,
    TimeEmbedding,
    rotary,
    rotate,
    shape,
    zero_init_,
)

POSITIONS = ("unit", "grid", "rotary")


class Layer(nn.Module):
    """Attention, then a perceptron; both normalised before and added after."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, h: Tensor, mask: Tensor | None, causal: bool, turn: tuple[Tensor, Tensor] | None) -> Tensor:
        q, k, v = self.qkv(self.norm1(h)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if turn is not None:
            q, k = rotate(q, *turn), rotate(k, *turn)
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal and mask is None)
        h = h + self.mix(a.transpose(1, 2).flatten(2))
        return h + self.narrow(F.gelu(self.widen(self.norm2(h))))


class Trunk(nn.Module):
    """A transformer from tokens to features: [B, L] integers in 0 .. ``vocab`` to [B, L, width], L ≤ ``length``.

    ``vocab`` itself is the mask token, so the embedding has ``vocab + 1`` rows. ``causal``: position i attends to
    none after it. Positions are ``"unit"`` (a learned table as large as token embeddings), ``"grid"`` (row + column,
    and box if the side is a square number; ``side`` defaults to √length) or ``"rotary"`` (rotary attention on top of
    the table: rotary alone cannot distinguish equal tokens such as masks).

    The condition is None, a tensor [B, cond], or a dict with ``cond`` and ``padding`` ([B, L] bool, True where
    there is no token). No other token attends to padding, and positions are counted from the first token, except on a
    grid. A sequence padded left or right equals the sequence alone.
    """

    def __init__(
        self,
        vocab: int,
        length: int,
        width: int = 64,
        depth: int = 3,
        heads: int = 4,
        causal: bool = False,
        position: str = "unit",
        time: bool = False,
        cond: Shape = 0,
        side: int | None = None,
        null: bool = False,
    ) -> None:
        super().__init__()
        shape((vocab, length, width, depth, heads))
        self.config: dict[str, Any] = {
            "vocab": vocab, "length": length, "width": width, "depth": depth, "heads": heads, "causal": causal,
            "position": position, "time": time, "cond": cond if isinstance(cond, int) else shape(cond), "side": side,
            "null": null,
        }  # fmt: skip
        if width % heads:
            raise RunError(f"{heads} heads share the width equally: {width} does not divide by {heads}.")
        self.vocab, self.length, self.causal, self.pair = vocab, length, causal, width // heads
        self.turning = position == "rotary"
        if self.turning and self.pair % 2:
            raise RunError(f"Rotary positions turn pairs of features: a head of {self.pair} features has an odd one.")
        self.token = nn.Embedding(vocab + 1, width)
        self.position = _position(position, length, width, side)
        self.time = TimeEmbedding(width, 64, width) if time else None
        self.condition = ConditionEmbedding(cond, width, width, null)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def _positions(self, n: int, padding: Tensor | None) -> Tensor:
        """Return the position embeddings: [n, width], or [B, n, width] counted from the first real token."""
        table = self.position(n)
        if padding is None or self.config["position"] == "grid":
            return table
        return table[((~padding).long().cumsum(-1) - 1).clamp_min(0)]

    def embed_condition(self, cond: Any) -> dict[str, Tensor] | None:
        """Return a dict of the condition's features and the padding, as far as given, or None."""
        parts = dict(cond) if isinstance(cond, dict) else {"cond": cond}
        feature, padding = self.condition(parts.pop("cond", None)), parts.pop("padding", None)
        if parts:
            raise InvalidInputError(
                unknown_name_message(sorted(parts)[0], ("cond", "padding"), "part of a transformer's condition")
            )
        found = {"cond": feature, "padding": None if padding is None else padding.bool()}
        return {k: v for k, v in found.items() if v is not None} or None

    def embed_time(self, t: Tensor) -> Tensor:
        """Return the embedding that is added to every token, [*t, width]; ``t`` itself in a network without time."""
        return t if self.time is None else self.time(t)

    def forward(self, x: Tensor, clock: Tensor | None = None, context: dict[str, Tensor] | None = None) -> Tensor:
        if x.ndim != 2 or x.shape[1] > self.length:
            raise InvalidInputError(
                f"The network reads tokens [B, L] with L up to {self.length}, but x is {list(x.shape)}."
            )
        n, context = x.shape[1], context or {}
        h = self.token(x) + self._positions(n, context.get("padding"))
        if self.time is not None:
            if clock is None:
                raise InvalidInputError("The network was built with time=True: pass clock=net.embed_time(t).")
            h = h + clock.unsqueeze(-2)
        if "cond" in context:
            h = h + context["cond"].unsqueeze(-2)
        mask = None if "padding" not in context else _mask(context["padding"], self.causal)
        turn = rotary(n, self.pair, x.device) if self.turning else None
        for layer in self.layers:
            h = layer(h, mask, self.causal, turn)
        return self.norm(h)


class Transformer(nn.Module):
    """A transformer from tokens to logits: [B, L] integers to [B, L, classes].

    The first arguments are the trunk's. ``classes`` defaults to ``vocab``: the mask is never predicted. ``zero``
    starts with equal logits. ``hidden`` returns the features before the logits, e.g. for a value head.
    """

    def __init__(
        self,
        vocab: int,
        length: int,
        width: int = 64,
        depth: int = 3,
        heads: int = 4,
        causal: bool = False,
        position: str = "unit",
        time: bool = False,
        cond: Shape = 0,
        side: int | None = None,
        classes: int | None = None,
        null: bool = False,
        zero: bool = False,
    ) -> None:
        super().__init__()
        self.trunk = Trunk(vocab, length, width, depth, heads, causal, position, time, cond, side, null)
        self.config = {**self.trunk.config, "classes": classes, "zero": zero}
        self.head = nn.Linear(width, shape(vocab if classes is None else classes)[0])
        if zero:
            zero_init_(self.head)

    def embed_condition(self, cond: Any) -> dict[str, Tensor] | None:
        """Return the condition's features and the padding (see ``Trunk``)."""
        return self.trunk.embed_condition(cond)

    def embed_time(self, t: Tensor) -> Tensor:
        """Return the embedding that is added to every token (see ``Trunk``)."""
        return self.trunk.embed_time(t)

    def hidden(self, x: Tensor, clock: Tensor | None = None, context: dict[str, Tensor] | None = None) -> Tensor:
        """Return the features before the logits: [B, L, width]."""
        return self.trunk(x, clock, context)

    def forward(self, x: Tensor, clock: Tensor | None = None, context: dict[str, Tensor] | None = None) -> Tensor:
        return self.head(self.trunk(x, clock, context))


def _mask(padding: Tensor, causal: bool) -> Tensor:
    """Return the attention mask, [B, 1, L, L]. Padding attends to itself, so that no row of the softmax is empty."""
    n = padding.shape[1]
    visible = ~padding[:, None, None, :] | torch.eye(n, dtype=torch.bool, device=padding.device)
    return visible.tril() if causal else visible


def _position(name: str, length: int, width: int, side: int | None) -> nn.Module:
    if name not in POSITIONS:
        raise RunError(unknown_name_message(name, POSITIONS, "position embedding"))
    if side is not None and name != "grid":
        raise RunError(f"side belongs to position='grid', not to {name!r}: leave it out.")
    if name != "grid":
        return PositionEmbedding(length, width)
    side = math.isqrt(length) if side is None else side
    if side < 1 or side * side != length:
        raise RunError(f"A grid has side x side tokens: length {length} is not {side} x {side}.")
    box = math.isqrt(side)
    return GridEmbedding(side, side, width, (box, box) if box * box == side > 1 else None)
