"""The U-Net of LeRobot's diffusion policies: ``net.UNet1D`` with their clock, and their names of its weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from denoiserl.errors import BadRun, BadSignal
from denoiserl.hub.lerobot_eyes import Eyes
from denoiserl.net.unet1d import UNet1D

LAST = 8
"""groups of the last normalisation, whatever a checkpoint says of the others"""


class Clock(nn.Module):
    """A timestep's part of every block's scale and shift: W_τ mish(L₂ mish(L₁ τ(i))) + b, [*i, width].

    τ are sine and cosine of i at angular frequencies 1 to 10⁻⁴ (1706.03762).
    """

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.features = features
        self.lift, self.project = nn.Linear(features, 4 * features), nn.Linear(4 * features, features)
        self.film = nn.Linear(features, width)

    def forward(self, index: Tensor) -> Tensor:
        half, weight = self.features // 2, self.lift.weight
        speed = torch.exp(torch.arange(half, device=weight.device) * (-math.log(10000) / (half - 1)))
        angle = index.to(weight.device, torch.float32).unsqueeze(-1) * speed
        tau = torch.cat((angle.sin(), angle.cos()), -1).to(weight.dtype)
        return self.film(F.mish(self.project(F.mish(self.lift(tau)))))


class Condition(nn.Module):
    """A condition's part of every block's scale and shift: W_c mish(c), [B, width]."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.size, self.film = size, nn.Linear(size, width, bias=False)

    def forward(self, cond: Tensor | None) -> Tensor:
        if cond is None or cond.ndim != 2 or cond.shape[-1] != self.size:
            raise BadSignal(
                f"this policy needs observations [B, {self.size}], not {None if cond is None else list(cond.shape)}"
            )
        return self.film(F.mish(cond.to(self.film.weight.dtype)))


class Net(nn.Module):
    """LeRobot's U-Net over chunks [B, H, d], conditioned on ``cond`` numbers.

    Its FiLM reads mish of time and condition side by side, and mish acts on each number alone: the layer is the sum of
    ``Clock`` and ``Condition``, so that a sampler pays for either once. ``levels`` K: our time t is the timestep
    tK − 1. ``past``: the chunk's first entries belong to past ticks; here they come last, so that the first action of
    an event is the first that is executed. ``eyes``: for pictures, whose features go behind the ``state`` first numbers
    of an observation.
    """

    def __init__(
        self,
        data: Sequence[int],
        cond: int,
        channels: Sequence[int],
        kernel: int,
        groups: int,
        features: int,
        levels: int,
        past: int,
        eyes: Eyes | None = None,
        state: int = 0,
    ) -> None:
        super().__init__()
        self.config = {
            "data": list(data), "cond": cond, "channels": list(channels), "kernel": kernel, "groups": groups,
            "features": features, "levels": levels, "past": past, "eyes": eyes, "state": state,
        }  # fmt: skip
        self.levels, self.past, self.eyes, self.state = levels, past, eyes, state
        self.unet = UNet1D(data, 0, channels, kernel, groups, activation="mish")
        width = sum(self.unet.films)
        self.unet.time, self.unet.condition = Clock(width, features), Condition(cond, width)  # type: ignore[assignment]
        self.unet.norm = nn.GroupNorm(LAST, channels[0])

    def encode(self, cond: Any) -> Tensor | None:
        """The condition's part of every block's scale and shift; with eyes, what they see goes behind the state."""
        if self.eyes is not None:
            told, seen = cond["numbers"], self.eyes(cond["pictures"])
            cond = torch.cat((told[..., : self.state], seen, told[..., self.state :]), -1).flatten(1)
        return self.unet.encode(cond)

    def clock(self, t: Tensor) -> Tensor:
        """The time's part of every block's scale and shift."""
        index = t * self.levels - 1
        near = index.round()
        return self.unet.clock(torch.where((index - near).abs() < 1e-3, near, index).clamp_min(0))

    def forward(self, x: Tensor, clock: Tensor, context: Tensor | None = None) -> Tensor:
        return self.unet(x.roll(self.past, 1), clock, context).roll(-self.past, 1)


def fill(net: Net, weights: dict[str, Tensor], scaled: bool) -> None:
    """Copy a checkpoint's weights into the network; ``scaled``: its FiLM scales as well as shifts. Raises BadRun.

    Every weight has a place and every place gets a weight: what is missing, left over or of another shape is refused.
    """
    unet, ours = net.unet, dict(net.state_dict())
    used = set() if net.eyes is None else net.eyes.fill(weights)

    def take(name: str) -> Tensor:
        used.add(name)
        if name not in weights:
            raise BadRun(f"the checkpoint has no {name}: it is not a diffusion policy as config.json describes it")
        return weights[name]

    def layer(target: str, source: str) -> None:
        for end in ("weight", "bias"):
            given, wanted = take(f"{source}.{end}"), ours[f"{target}.{end}"]
            if given.shape != wanted.shape:
                raise BadRun(f"{source}.{end} is {list(given.shape)} and config.json asks for {list(wanted.shape)}")
            ours[f"{target}.{end}"] = given

    root, films = "diffusion.unet", []
    layer("unet.time.lift", f"{root}.diffusion_step_encoder.1")
    layer("unet.time.project", f"{root}.diffusion_step_encoder.3")

    def block(target: str, source: str) -> None:
        for i, (conv, norm) in enumerate((("first", "norm1"), ("second", "norm2")), 1):
            layer(f"{target}.{conv}", f"{source}.conv{i}.block.0")
            layer(f"{target}.{norm}", f"{source}.conv{i}.block.1")
        if f"{target}.skip.weight" in ours:
            layer(f"{target}.skip", f"{source}.residual_conv")
        w, b = (take(f"{source}.cond_encoder.1.{end}") for end in ("weight", "bias"))
        if scaled:  # ours is 1 + scale
            half = len(b) // 2
            b = torch.cat((b[:half] - 1, b[half:]))
        else:
            w, b = torch.cat((torch.zeros_like(w), w)), torch.cat((torch.zeros_like(b), b))
        films.append((w, b))

    for side, count in (("down", len(unet.down)), ("middle", 2), ("up", len(unet.up))):
        for i in range(count):
            if side == "middle":
                block(f"unet.middle.{i}", f"{root}.mid_modules.{i}")
                continue
            for j in (0, 1):
                block(f"unet.{side}.{i}.{j}", f"{root}.{side}_modules.{i}.{j}")
            resize = ("halve" if side == "down" else "grow") + f".{i}"
            if f"unet.{resize}.weight" in ours:
                layer(f"unet.{resize}", f"{root}.{side}_modules.{i}.2")
    layer("unet.last", f"{root}.final_conv.0.block.0")
    layer("unet.norm", f"{root}.final_conv.0.block.1")
    layer("unet.leave", f"{root}.final_conv.1")
    features = ours["unet.time.film.weight"].shape[1]
    w, b = (torch.cat(part) for part in zip(*films, strict=True))
    if w.shape[1] != features + ours["unet.condition.film.weight"].shape[1]:
        raise BadRun(f"the checkpoint's FiLM reads {w.shape[1]} numbers: config.json describes other observations")
    ours["unet.time.film.weight"], ours["unet.condition.film.weight"] = w[:, :features], w[:, features:]
    ours["unet.time.film.bias"] = b
    left = sorted(name for name in weights if name.startswith("diffusion.") and name not in used)
    if left:
        raise BadRun(f"the checkpoint has weights that config.json does not speak of: {', '.join(left[:3])} ...")
    net.load_state_dict(ours)
