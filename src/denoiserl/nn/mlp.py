"""Multilayer perceptrons: the denoiser of small actions, and the critic."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from denoiserl.nn.embed import (
    ConditionEmbedding,
    Shape,
    TimeEmbedding,
    check_event_shape,
    nonlinearity,
    shape,
    zero_init_,
)


class MLP(nn.Module):
    """A perceptron over the flattened event: [B, *data] to [B, *out].

    ``h₁ = W_x x + embed_time(t) + embed_condition(c)``; ``h_{l+1} = h_l + W_l act(norm(h_l))``; ``W_out
    act(norm(h_depth))``.

    ``depth`` counts the hidden states, so the default is "3 x 512". ``residual=False`` drops ``h_l +``.
    ``layer_norm=True`` normalises before each activation. ``time`` is the number of time features; 0 leaves time out,
    for one-step policies (``embed_time`` then returns the bias). ``cond`` is the size of the condition, or its shape
    [To, obs]; 0 is none. ``null`` learns an embedding for "no condition". ``zero``: the output starts at 0.
    ``out`` defaults to ``data``.
    """

    def __init__(
        self,
        data: Shape,
        cond: Shape = 0,
        width: int = 512,
        depth: int = 3,
        time: int = 32,
        residual: bool = True,
        layer_norm: bool = False,
        activation: str = "gelu",
        out: Shape | None = None,
        null: bool = False,
        zero: bool = False,
    ) -> None:
        super().__init__()
        self.data, self.out = shape(data), shape(data if out is None else out)
        shape((width, depth))
        self.config = {
            "data": self.data, "cond": cond if isinstance(cond, int) else shape(cond), "width": width, "depth": depth,
            "time": time, "residual": residual, "layer_norm": layer_norm, "activation": activation,
            "out": None if out is None else self.out, "null": null, "zero": zero,
        }  # fmt: skip
        self.residual, self.width, self.act = residual, width, nonlinearity(activation)
        self.enter = nn.Linear(math.prod(self.data), width, bias=False)
        self.time = TimeEmbedding(width, time, 2 * time, activation) if time else None
        self.bias = None if time else nn.Parameter(torch.zeros(width))
        self.condition = ConditionEmbedding(cond, width, null=null, activation=activation)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        self.norms = nn.ModuleList(nn.LayerNorm(width) if layer_norm else nn.Identity() for _ in range(depth))
        self.leave = nn.Linear(width, math.prod(self.out))
        if zero:
            zero_init_(self.leave)

    def embed_condition(self, cond: Tensor | None) -> Tensor | None:
        """Return the condition's part of the first layer: [B, width], or None without a condition."""
        return self.condition(cond)

    def embed_time(self, t: Tensor) -> Tensor:
        """Return the time's part of the first layer, with its bias: [*t, width]."""
        if self.time is not None:
            return self.time(t)
        assert self.bias is not None
        return self.bias.expand(*t.shape, self.width)

    def forward(self, x: Tensor, clock: Tensor, context: Tensor | None = None) -> Tensor:
        check_event_shape(x, self.data)
        weight = self.enter.weight
        start = clock if context is None else clock + context
        h = torch.addmm(start, x.flatten(1).to(weight.dtype), weight.T)
        for norm, layer in zip(self.norms, self.layers, strict=False):  # the last norm is for the output layer
            step = layer(self.act(norm(h)))
            if self.residual:  # in place where no gradient needs h: a new tensor costs as much as the sum
                step = h + step if torch.is_grad_enabled() else h.add_(step)
            h = step
        return self.leave(self.act(self.norms[-1](h))).unflatten(1, self.out)


class Value(nn.Module):
    """A critic: observations [B, *cond] to values [B].

    A plain perceptron. Weights start orthogonal with gain √2, the last layer with gain ``last``. A small one gives
    initial values near zero, so that early advantages do not contain the noise of the critic.
    """

    def __init__(
        self,
        cond: Shape,
        width: int = 256,
        depth: int = 3,
        activation: str = "gelu",
        layer_norm: bool = False,
        last: float = 0.1,
    ) -> None:
        super().__init__()
        self.data = shape(cond)
        shape((width, depth))
        self.config = {
            "cond": self.data, "width": width, "depth": depth, "activation": activation, "layer_norm": layer_norm,
            "last": last,
        }  # fmt: skip
        self.act = nonlinearity(activation)
        sizes = [math.prod(self.data)] + [width] * depth
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.norms = nn.ModuleList(nn.LayerNorm(width) if layer_norm else nn.Identity() for _ in range(depth))
        self.leave = nn.Linear(width, 1)
        for layer, gain in [*((layer, math.sqrt(2)) for layer in self.layers), (self.leave, last)]:
            nn.init.orthogonal_(layer.weight, gain)
            nn.init.zeros_(layer.bias)

    def forward(self, obs: Tensor) -> Tensor:
        check_event_shape(obs, self.data)
        h = obs.flatten(1).to(self.leave.weight.dtype)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            h = self.act(norm(layer(h)))
        return self.leave(h).squeeze(-1)
