"""A convolutional U-Net for small images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from denoiserl.core.errors import RunError
from denoiserl.nn.embed import (
    ConditionEmbedding,
    Shape,
    TimeEmbedding,
    check_event_shape,
    nonlinearity,
    shape,
    zero_init_,
)


class Block(nn.Module):
    """Normalise, activate, convolve; scale and shift by time and condition; the same again; add the input."""

    def __init__(self, inner: int, outer: int, groups: int, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.act = act
        self.norm1, self.norm2 = nn.GroupNorm(groups, inner), nn.GroupNorm(groups, outer)
        self.first, self.second = nn.Conv2d(inner, outer, 3, padding=1), nn.Conv2d(outer, outer, 3, padding=1)
        self.skip = nn.Identity() if inner == outer else nn.Conv2d(inner, outer, 1)

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        scale, shift = film[..., None, None].chunk(2, 1)
        h = self.norm2(self.first(self.act(self.norm1(x))))
        return self.skip(x) + self.second(self.act(torch.addcmul(h + shift, h, scale)))


class UNet2D(nn.Module):
    """A U-Net over images of 8 to 32 pixels: [B, C, H, W] to [B, C, H, W].

    One block per level and one in the middle, stride-2 convolutions down, nearest-neighbour up, a skip at every size.
    Each block is scaled and shifted (FiLM) by ``embed_time(t) + embed_condition(c)``. No attention: at these sizes
    the lowest level sees most of the image. On a CPU it trains several times more images per second than a transformer
    of equal size. H and W must be multiples of 2^(levels - 1).

    ``cond`` is the size of a class or prompt vector (multi-hot or features); ``null``, ``zero``, ``time`` and
    ``hidden`` as in ``UNet1D``; ``out`` is the number of output channels, C by default.
    """

    def __init__(
        self,
        data: Sequence[int],
        cond: Shape = 0,
        channels: Sequence[int] = (32, 48, 48),
        groups: int = 8,
        time: int = 64,
        hidden: int = 96,
        activation: str = "gelu",
        out: int | None = None,
        null: bool = False,
        zero: bool = False,
    ) -> None:
        super().__init__()
        self.data, c = shape(data), shape(channels)
        self.config = {
            "data": self.data, "cond": cond if isinstance(cond, int) else shape(cond), "channels": c, "groups": groups,
            "time": time, "hidden": hidden, "activation": activation, "out": out, "null": null, "zero": zero,
        }  # fmt: skip
        _fits(self.data, c, groups)
        act = nonlinearity(activation)

        def block(inner: int, outer: int) -> Block:
            self.films.append(2 * outer)
            return Block(inner, outer, groups, act)

        self.films: list[int] = []  # widths of scale and shift per block, in the order of use
        self.act = act
        self.enter = nn.Conv2d(self.data[0], c[0], 3, padding=1)
        self.down = nn.ModuleList(block(n, n) for n in c)
        self.halve = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(c))
        self.middle = block(c[-1], c[-1])
        above = [c[-1], *c[:0:-1]]  # channels from the level below, from the lowest up
        self.up = nn.ModuleList(block(a + n, n) for a, n in zip(above, c[::-1], strict=True))
        self.norm = nn.GroupNorm(groups, c[0])
        self.leave = nn.Conv2d(c[0], self.data[0] if out is None else out, 3, padding=1)
        self.time = TimeEmbedding(sum(self.films), time, hidden, activation)
        self.condition = ConditionEmbedding(cond, sum(self.films), hidden, null, activation)
        if zero:
            zero_init_(self.leave)

    def embed_condition(self, cond: Tensor | None) -> Tensor | None:
        """Return the condition's part of the scale and shift of all blocks, [B, widths]; None without one."""
        return self.condition(cond)

    def embed_time(self, t: Tensor) -> Tensor:
        """Return the time's part of the scale and shift of all blocks, [*t, widths]."""
        return self.time(t)

    def forward(self, x: Tensor, clock: Tensor, context: Tensor | None = None) -> Tensor:
        check_event_shape(x, self.data)
        film = iter((clock if context is None else clock + context).split(self.films, -1))
        h = self.enter(x.to(self.leave.weight.dtype))
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            h = block(h, next(film))
            skips.append(h)
            if level < len(self.halve):
                h = self.halve[level](h)
        h = self.middle(h, next(film))
        for level, block in enumerate(self.up):
            if level:
                h = F.interpolate(h, scale_factor=2.0, mode="nearest")
            h = block(torch.cat((h, skips.pop()), 1), next(film))
        return self.leave(self.act(self.norm(h)))


def _fits(data: list[int], channels: list[int], groups: int) -> None:
    if len(data) != 3:
        raise RunError(f"An image has the shape (C, H, W), not {data}.")
    step = 2 ** (len(channels) - 1)
    if data[1] % step or data[2] % step:
        raise RunError(
            f"{len(channels)} levels halve an image {len(channels) - 1} times: H and W must be multiples of {step}, "
            f"not {data[1]} x {data[2]}. Resize, pad, or give fewer channels."
        )
    if any(c % groups for c in channels):
        raise RunError(
            f"GroupNorm splits channels into {groups} equal groups: {channels} do not all divide by {groups}."
        )
