"""Networks. Each has ``config`` (``Net(**net.config)`` builds it again), ``embed_condition``, ``embed_time`` and
``forward``.

``embed_condition(cond)`` embeds the condition, once per row; ``embed_time(t)`` embeds the time, once per grid;
``forward(x, clock, context)`` computes the rest, once per step. One batch dimension leads; ``clock`` and ``context``
have a row for each row of ``x``, or one for all. The wrappers in ``denoiserl.processes`` define what a network
predicts.
"""

from __future__ import annotations

from denoiserl.nn.conv import UNet2D
from denoiserl.nn.critic import Critics, Temperature, frozen, polyak_update, target_copy
from denoiserl.nn.dit import DiT
from denoiserl.nn.gaussian_actor import Actor
from denoiserl.nn.mlp import MLP, Value
from denoiserl.nn.transformer import Transformer, Trunk
from denoiserl.nn.two_time import TwoTimeNet
from denoiserl.nn.unet1d import UNet1D

__all__ = [
    "MLP",
    "Actor",
    "Critics",
    "DiT",
    "Temperature",
    "Transformer",
    "Trunk",
    "TwoTimeNet",
    "UNet1D",
    "UNet2D",
    "Value",
    "frozen",
    "polyak_update",
    "target_copy",
]
