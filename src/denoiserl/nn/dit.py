"""A small diffusion transformer over image patches (DiT, arXiv 2212.09748)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.nn.embed import (
    ConditionEmbedding,
    GridEmbedding,
    Shape,
    TimeEmbedding,
    check_event_shape,
    shape,
    zero_init_,
)


class Layer(nn.Module):
    """Attention and perceptron, each shifted, scaled and gated by time and condition (adaLN)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, h: Tensor, film: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = film.unsqueeze(1).chunk(6, -1)
        u = modulate(h, shift1, scale1)
        q, k, v = self.qkv(u).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        a = F.scaled_dot_product_attention(q, k, v)
        h = h + gate1 * self.mix(a.transpose(1, 2).flatten(2))
        u = modulate(h, shift2, scale2)
        return h + gate2 * self.narrow(F.gelu(self.widen(u)))


def modulate(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return ``(1 + scale)·norm(h) + shift``."""
    h = F.layer_norm(h, h.shape[-1:])
    return torch.addcmul(h + shift, h, scale)


class DiT(nn.Module):
    """A transformer over patches: [B, C, H, W] to [B, C, H, W].

    Shift, scale and gate of every layer are ``embed_time(t) + embed_condition(c)``: a sum of two networks. The paper
    has one network of a sum, which a sampler would call at every step. They start at zero, and so does the output
    (adaLN-zero): every layer starts as the identity. ``cond`` and ``null`` as in ``MLP``; ``out`` is the number of
    output channels, C by default. ``places`` > 0 is a layout instead: the condition has ``places`` numbers for each
    patch, [B, patches, places] (or flat), and is added to its token.
    """

    def __init__(
        self,
        data: Sequence[int],
        cond: Shape = 0,
        patch: int = 2,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        time: int = 64,
        out: int | None = None,
        null: bool = False,
        places: int = 0,
    ) -> None:
        super().__init__()
        self.data = shape(data)
        shape((patch, width, depth, heads))
        self.config = {
            "data": self.data, "cond": cond if isinstance(cond, int) else shape(cond), "patch": patch, "width": width,
            "depth": depth, "heads": heads, "time": time, "out": out, "null": null,
            "places": places,
        }  # fmt: skip
        if len(self.data) != 3:
            raise RunError(f"An image has the shape (C, H, W), not {self.data}.")
        c, h, w = self.data
        if h % patch or w % patch:
            raise RunError(
                f"Patches of {patch} do not tile an image of {h} x {w}: H and W must be multiples of {patch}."
            )
        if width % heads:
            raise RunError(f"{heads} heads share the width equally: {width} does not divide by {heads}.")
        self.patch, self.tiles, self.channels = patch, (h // patch, w // patch), c if out is None else out
        self.films = [6 * width] * depth + [2 * width]
        self.enter = nn.Conv2d(c, width, patch, stride=patch)
        self.position = GridEmbedding(*self.tiles, width)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(depth))
        self.leave = nn.Linear(width, self.channels * patch * patch)
        self.time = TimeEmbedding(sum(self.films), time, width, zero=True)
        if places and (cond or null):
            raise RunError("A layout (places) is the whole condition: build the network with cond=0 and null=False.")
        self.condition = ConditionEmbedding(cond, sum(self.films), width, null, zero=True)
        self.layout = nn.Linear(places, width) if places else None
        if self.layout is not None:  # as large as the patches: at t = 1 only the layout differs between images
            nn.init.normal_(self.layout.weight)
        zero_init_(self.leave)

    def embed_condition(self, cond: Tensor | None) -> Tensor | None:
        """Return the condition's part of all shifts, scales and gates [B, widths], or of tokens [B, patches, width]."""
        if self.layout is None:
            return self.condition(cond)
        tiles, places = self.tiles[0] * self.tiles[1], self.layout.in_features
        if cond is None or math.prod(cond.shape[1:]) != tiles * places:
            found = None if cond is None else tuple(cond.shape)
            raise InvalidInputError(
                f"The layout is [B, {tiles}, {places}] (or flat), {places} numbers per patch; got {found}."
            )
        return self.layout(cond.reshape(len(cond), tiles, places).to(self.layout.weight.dtype))

    def embed_time(self, t: Tensor) -> Tensor:
        """Return the time's part of all shifts, scales and gates, [*t, widths]."""
        return self.time(t)

    def forward(self, x: Tensor, clock: Tensor, context: Tensor | None = None) -> Tensor:
        check_event_shape(x, self.data)
        h = self.enter(x.to(self.leave.weight.dtype)).flatten(2).transpose(1, 2)
        h = h + self.position(h.shape[1])
        if self.layout is not None and context is not None:
            h, context = h + context, None
        *films, last = (clock if context is None else clock + context).split(self.films, -1)
        for layer, film in zip(self.layers, films, strict=True):
            h = layer(h, film)
        h = self.leave(modulate(h, *last.unsqueeze(1).chunk(2, -1)))
        rows, columns = self.tiles
        h = h.unflatten(1, (rows, columns)).unflatten(-1, (self.channels, self.patch, self.patch))
        return h.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
