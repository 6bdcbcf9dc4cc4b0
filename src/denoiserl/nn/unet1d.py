"""The conditional U-Net over action chunks of Diffusion Policy (arXiv 2303.04137), and its convolutions."""

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

# Where windows x matrix beats torch's convolution on a CPU (one thread, kernel 5, ratio of processor times at 64 to
# 1024 channels and lengths of 2 to 32): 2 to 4 rows 0.2 to 0.9 (1.0 at 256 x 32). One row 0.4 to 1.2 below a length of
# 16, but 1.4 at 512 x 8, and 1.5 to 2.0 from there on. 64 rows 0.7 to 0.9 at a length of 2, then 1 to 2. Of the
# transposed one 0.2 to 0.9 (one row of 64 channels 2, which is 20 us); at 512 channels and above for any rows.
SMALL, LONG, WIDE = 4, 16, 512


def prefers_matmul(x: Tensor) -> bool:
    """Return True if the convolution of x [B, C, L] is quicker as a matrix product."""
    rows, channels, length = x.shape
    alone = rows == 1 and (length >= LONG or (2 * length >= LONG and channels >= WIDE))
    return rows <= SMALL and not alone and x.device.type == "cpu"


class Conv1d(nn.Conv1d):
    """``nn.Conv1d`` (same parameters) that is also quick on a few rows: [B, C, L] to [B, C', L'].

    For a few rows torch takes a slow path, and the windows [B·L', C·k] times the weights [C·k, C'] are up to five times
    faster. For many rows, a single long one, and on accelerators, torch's convolution is faster. The choice depends on
    the shape alone.
    """

    def forward(self, input: Tensor) -> Tensor:
        return self.windows(input) if prefers_matmul(input) else super().forward(input)

    def windows(self, x: Tensor) -> Tensor:
        """Compute the convolution as a matrix product."""
        (k,), (stride,), pad = self.kernel_size, self.stride, int(self.padding[0])
        w = (F.pad(x, (pad, pad)) if pad else x).unfold(2, k, stride).transpose(1, 2)  # [B, L', C, k]
        rows, length = w.shape[:2]
        y = F.linear(w.reshape(rows * length, -1), self.weight.flatten(1), self.bias)
        return y.view(rows, length, -1).transpose(1, 2)


class Double(nn.ConvTranspose1d):
    """A transposed convolution of kernel 4 and stride 2 that doubles the length: [B, C, L] to [B, C', 2L].

    ``y[2i] = w₁ x[i] + w₃ x[i-1]`` and ``y[2i+1] = w₂ x[i] + w₀ x[i+1]``: on a few rows, one matrix product.
    """

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__(inner, outer, 4, stride=2, padding=1)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if input.device.type != "cpu" or (input.shape[0] > SMALL and self.in_channels < WIDE):
            return super().forward(input, output_size)
        return self.windows(input)

    def windows(self, x: Tensor) -> Tensor:
        """Compute the transposed convolution as a matrix product."""
        b, _, n = x.shape
        y = F.linear(x.transpose(1, 2).flatten(0, 1), self.weight.flatten(1).T).view(b, n, self.out_channels, 4)
        even = y[..., 1] + F.pad(y[:, :-1, :, 3], (0, 0, 1, 0))
        odd = y[..., 2] + F.pad(y[:, 1:, :, 0], (0, 0, 0, 1))
        both = torch.stack((even, odd), 2).flatten(1, 2)
        return (both if self.bias is None else both + self.bias).transpose(1, 2)


class Block(nn.Module):
    """Convolve, normalise, activate; scale and shift by time and condition; the same again; add the input."""

    def __init__(self, inner: int, outer: int, kernel: int, groups: int, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.act = act
        self.first = Conv1d(inner, outer, kernel, padding=kernel // 2)
        self.second = Conv1d(outer, outer, kernel, padding=kernel // 2)
        self.norm1, self.norm2 = nn.GroupNorm(groups, outer), nn.GroupNorm(groups, outer)
        self.skip = nn.Identity() if inner == outer else Conv1d(inner, outer, 1)

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        scale, shift = film.unsqueeze(-1).chunk(2, 1)
        h = self.act(self.norm1(self.first(x)))
        h = self.act(self.norm2(self.second(torch.addcmul(h + shift, h, scale))))
        return h + self.skip(x)


class UNet1D(nn.Module):
    """Diffusion Policy's U-Net over chunks of H actions: [B, H, d] to [B, H, d].

    Two blocks per level, stride-2 convolutions down, transposed convolutions up, skips between equal lengths. Every
    block is scaled and shifted (FiLM) by ``embed_time(t) + embed_condition(c)``, both computed for all blocks at once.
    Unlike the paper's, scale is ``1 + s`` so that the network starts near the identity, and the activation is
    GELU (``"mish"`` in the paper). H must be a multiple of 2^(levels - 1).

    ``cond``, ``null``, ``zero`` as in ``MLP``; ``time`` is the number of time features, ``hidden`` the width between
    them (or the condition) and the blocks.
    """

    def __init__(
        self,
        data: Sequence[int],
        cond: Shape = 0,
        channels: Sequence[int] = (64, 128, 256),
        kernel: int = 5,
        groups: int = 8,
        time: int = 64,
        hidden: int = 256,
        activation: str = "gelu",
        null: bool = False,
        zero: bool = False,
    ) -> None:
        super().__init__()
        self.data, c = shape(data), shape(channels)
        self.config = {
            "data": self.data, "cond": cond if isinstance(cond, int) else shape(cond), "channels": c, "kernel": kernel,
            "groups": groups, "time": time, "hidden": hidden, "activation": activation, "null": null, "zero": zero,
        }  # fmt: skip
        _fits(self.data, c, kernel, groups)
        act, d = nonlinearity(activation), self.data[1]

        def block(inner: int, outer: int) -> Block:
            self.films.append(2 * outer)
            return Block(inner, outer, kernel, groups, act)

        self.films: list[int] = []  # widths of scale and shift per block, in the order of use
        self.act = act
        down, up = list(zip([d, *c], c, strict=False)), list(pairwise(c))[::-1]
        self.down = nn.ModuleList(nn.ModuleList((block(i, o), block(o, o))) for i, o in down)
        self.halve = nn.ModuleList(Conv1d(o, o, 3, stride=2, padding=1) for o in c[:-1])
        self.middle = nn.ModuleList((block(c[-1], c[-1]), block(c[-1], c[-1])))
        self.up = nn.ModuleList(nn.ModuleList((block(2 * o, i), block(i, i))) for i, o in up)
        self.grow = nn.ModuleList(Double(i, i) for i, _ in up)
        self.last = Conv1d(c[0], c[0], kernel, padding=kernel // 2)
        self.norm, self.leave = nn.GroupNorm(groups, c[0]), Conv1d(c[0], d, 1)
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
        h = x.transpose(1, 2).to(self.leave.weight.dtype)
        skips: list[Tensor] = []
        for level, (one, two) in enumerate(self.down):  # pyright: ignore[reportGeneralTypeIssues]
            h = two(one(h, next(film)), next(film))
            if level:  # the paper's geometry: the topmost length has no skip
                skips.append(h)
            if level < len(self.halve):
                h = self.halve[level](h)
        for block in self.middle:
            h = block(h, next(film))
        for (one, two), grow in zip(self.up, self.grow, strict=True):  # pyright: ignore[reportGeneralTypeIssues]
            h = grow(two(one(torch.cat((h, skips.pop()), 1), next(film)), next(film)))
        return self.leave(self.act(self.norm(self.last(h)))).transpose(1, 2)


def _fits(data: list[int], channels: list[int], kernel: int, groups: int) -> None:
    if len(data) != 2:
        raise RunError(f"A chunk has the shape (H, d), not {data}.")
    step, h = 2 ** (len(channels) - 1), data[0]
    if h % step:
        near = sorted({max(step, h // step * step), (h // step + 1) * step})
        levels = 1 + (h & -h).bit_length() - 1
        raise RunError(
            f"{len(channels)} levels halve a chunk {len(channels) - 1} times: H must be a multiple of {step}, "
            f"not {h}. Take H = {' or '.join(map(str, near))}, or at most {levels} channels."
        )
    if any(c % groups for c in channels):
        raise RunError(
            f"GroupNorm splits channels into {groups} equal groups: {channels} do not all divide by {groups}."
        )
    if not kernel % 2:
        raise RunError(f"The kernel must be odd to keep the length, not {kernel}.")
