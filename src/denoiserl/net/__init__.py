"""Raw networks. Each has ``config`` (``Net(**net.config)`` builds it again), ``encode``, ``clock`` and ``forward``.

``encode(cond)`` is what the network needs of the condition, once a row; ``clock(t)`` what it needs of the time, once a
grid; ``forward(x, clock, context)`` is the rest, once a step. One batch dimension leads; ``clock`` and ``context`` have
a row for each row of ``x``, or one for all. The wrappers of ``denoiserl.denoiser`` say what a network predicts.
"""

from __future__ import annotations

from denoiserl.net.actor import Actor
from denoiserl.net.conv import UNet2D
from denoiserl.net.critic import Critics, Temperature, follow, held, target
from denoiserl.net.dit import DiT
from denoiserl.net.mlp import MLP, Value
from denoiserl.net.paired import Paired
from denoiserl.net.transformer import Transformer, Trunk
from denoiserl.net.unet1d import UNet1D

__all__ = [
    "MLP",
    "Actor",
    "Critics",
    "DiT",
    "Paired",
    "Temperature",
    "Transformer",
    "Trunk",
    "UNet1D",
    "UNet2D",
    "Value",
    "follow",
    "held",
    "target",
]
