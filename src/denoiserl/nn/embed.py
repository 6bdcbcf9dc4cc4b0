"""Embeddings of the time, the condition and the position, and helpers that networks share.

``TimeEmbedding`` and ``ConditionEmbedding`` end in the width of the layer that they enter. A sampler then computes the
time once per grid and the condition once per row: a layer ``W [x, τ(t), c] + b`` is
``W_x x + (W_τ τ(t) + b) + W_c c``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from denoiserl.core.errors import InvalidInputError, RunError, unknown_name_message
from denoiserl.core.tree import require_tensor

Shape = int | Sequence[int]

# Relative cost of a 1024 x 512 activation on one CPU core: relu 1, gelu 2, silu 9, mish 27.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu, "relu": F.relu, "silu": F.silu, "mish": F.mish, "tanh": torch.tanh,
}  # fmt: skip


def nonlinearity(name: str) -> Callable[[Tensor], Tensor]:
    """Return the activation called ``name``. Raise RunError if there is none."""
    if name not in ACTIVATIONS:
        raise RunError(unknown_name_message(name, ACTIVATIONS, "activation"))
    return ACTIVATIONS[name]


def shape(size: Shape) -> list[int]:
    """Convert a size or a shape to a list of positive ints (as JSON keeps it). Raise RunError for anything else."""
    listed = [size] if isinstance(size, int) else [int(n) for n in size]
    if not listed or min(listed) < 1:
        raise RunError(f"A shape needs one or more positive sizes, not {size!r}.")
    return listed


def check_event_shape(x: Tensor, wanted: Sequence[int]) -> None:
    """Raise InvalidInputError if a state is not [B, *wanted], with exactly one batch dimension."""
    if list(x.shape[1:]) != list(wanted):
        raise InvalidInputError(
            f"The network was built for events of shape {list(wanted)} and one batch dimension before them, "
            f"but x is {list(x.shape)}: flatten the batch, or build the network for this event."
        )


def fourier(t: Tensor, features: int, low: float = 1.0, high: float = 200.0) -> Tensor:
    """Return sine and cosine of ``t`` at geometric angular frequencies from ``low`` to ``high``: [*t, features].

    For t in [0, 1] the lowest is monotone over the whole chain; the highest differs by one radian between t and
    t + 0.005. Always computed in float32: in bf16 the fast features would be noise.
    """
    if features < 2 or features % 2:
        raise RunError(
            f"Time features come in pairs of sine and cosine: {features} is not an even number of at least 2."
        )
    exponent = torch.linspace(0, 1, features // 2, device=t.device)
    angle = t.float().unsqueeze(-1) * (low * (high / low) ** exponent)
    return torch.cat((angle.sin(), angle.cos()), -1)


class TimeEmbedding(nn.Module):
    """Embed times: ``W₂ act(W₁ fourier(t)) + b``, for ``t`` of any shape: [*t, out]. ``zero``: start at 0."""

    def __init__(self, out: int, features: int, hidden: int, activation: str = "gelu", zero: bool = False) -> None:
        super().__init__()
        self.features, self.act = features, nonlinearity(activation)
        fourier(torch.zeros(1), features)
        self.lift, self.project = nn.Linear(features, hidden), nn.Linear(hidden, out)
        if zero:
            zero_init_(self.project)

    def forward(self, t: Tensor) -> Tensor:
        weight = self.lift.weight
        t = t.to(weight.device, torch.float32)
        return self.project(self.act(self.lift(fourier(t, self.features).to(weight.dtype))))


class ConditionEmbedding(nn.Module):
    """Embed conditions, once per row: [B, *cond] to [B, out], or ``None`` for a network without a condition.

    One linear map, or a network of one hidden layer if ``hidden`` is given. With ``null`` there is a learned
    embedding of "no condition" (classifier-free guidance): ``None`` then gives [1, out], which broadcasts over rows.
    """

    def __init__(
        self, cond: Shape, out: int, hidden: int = 0, null: bool = False, activation: str = "gelu", zero: bool = False
    ) -> None:
        super().__init__()
        self.size = 0 if cond == 0 else math.prod(shape(cond))
        self.act = nonlinearity(activation)
        if null and not self.size:
            raise RunError("null=True replaces a missing condition: give the size of the condition as cond.")
        # The time embedding, or the layer that is entered, has the bias.
        self.lift = nn.Linear(self.size, hidden) if hidden and self.size else None
        self.project = nn.Linear(hidden or self.size, out, bias=False) if self.size else None
        self.null = nn.Parameter(torch.randn(1, self.size)) if null else None
        if zero and self.project is not None:
            zero_init_(self.project)

    def forward(self, cond: Tensor | None) -> Tensor | None:
        if self.project is None:
            if cond is None:
                return None
            found = list(cond.shape) if isinstance(cond, Tensor) else f"a {type(cond).__name__}"
            raise InvalidInputError(f"The network was built without a condition and got {found}: pass cond=<size>.")
        if cond is None:
            if self.null is None:
                raise InvalidInputError(
                    f"The network needs a condition [B, {self.size}] and got None: give one, or build the network "
                    "with null=True, which learns an embedding for 'no condition'."
                )
            cond = self.null
        cond = require_tensor(cond, f"[B, {self.size}]")
        if cond.ndim < 2 or math.prod(cond.shape[1:]) != self.size:
            raise InvalidInputError(
                f"The network needs a condition of {self.size} numbers per row, [B, {self.size}], but got "
                f"{list(cond.shape)}."
            )
        cond = cond.flatten(1).to(self.project.weight.dtype)
        return self.project(cond if self.lift is None else self.act(self.lift(cond)))


def zero_init_(layer: nn.Module) -> None:
    """Set ``layer`` to zero, so that an untrained network returns 0."""
    for p in layer.parameters():
        nn.init.zeros_(p)


class PositionEmbedding(nn.Module):
    """A learned position embedding at unit scale: [length, width].

    In an almost fully masked input, tokens differ by position alone. So positions must be as large as token embeddings.
    At the usual std of 0.02 a small masked model does not learn a 4 x 4 sudoku at all.
    """

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(length, width))

    def forward(self, length: int) -> Tensor:
        return self.table[:length]


class GridEmbedding(nn.Module):
    """Row + column (+ box) embeddings of a grid read row by row, their sum at unit scale: [rows·columns, width].

    ``box`` is the height and width of the boxes, e.g. (2, 2) for the 4 x 4 sudoku; ``None`` has no boxes.
    """

    where: Tensor

    def __init__(self, rows: int, columns: int, width: int, box: tuple[int, int] | None = None) -> None:
        super().__init__()
        row, column = torch.arange(rows).repeat_interleave(columns), torch.arange(columns).repeat(rows)
        sizes, where = [rows, columns], [row, column + rows]
        if box is not None:
            if rows % box[0] or columns % box[1]:
                raise RunError(f"Boxes of {box[0]} x {box[1]} do not tile a grid of {rows} x {columns}.")
            across = columns // box[1]
            sizes.append(rows // box[0] * across)
            where.append(row // box[0] * across + column // box[1] + rows + columns)
        self.table = nn.Parameter(torch.randn(sum(sizes), width) / math.sqrt(len(sizes)))
        self.register_buffer("where", torch.stack(where), persistent=False)

    def forward(self, length: int) -> Tensor:
        return self.table[self.where[:, :length]].sum(0)


def rotary(length: int, features: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of the rotary angles ``i·10000^(-2k/features)``: two of [length, features/2], in float32.

    Rotary position embedding, arXiv 2104.09864.
    """
    speed = 10000.0 ** (-torch.arange(0, features, 2, device=device) / features)
    angle = torch.arange(length, device=device).unsqueeze(-1) * speed
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the feature pairs (k, k + d/2) of ``x`` [..., L, d]: scores then depend on the distance of tokens."""
    a, b = x.chunk(2, -1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
