"""The U-Net of LeRobot's diffusion policies: ``nn.UNet1D`` with LeRobot's time embedding and weight names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.integrations.lerobot.vision import VisionEncoder
from denoiserl.nn.unet1d import UNet1D
from denoiserl.policy.state_dicts import strip_prefix

LAST = 8
"""groups of the last normalisation, independent of the checkpoint's ``n_groups``"""
NORMALISERS = ("normalize_inputs.", "normalize_targets.", "unnormalize_outputs.")
"""prefixes of normalisation statistics among the weights, before LeRobot 0.4"""


class TimestepEmbedding(nn.Module):
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
            raise InvalidInputError(
                f"this policy needs observations [B, {self.size}], not {None if cond is None else list(cond.shape)}"
            )
        return self.film(F.mish(cond.to(self.film.weight.dtype)))


class Net(nn.Module):
    """LeRobot's U-Net over chunks [B, H, d], conditioned on ``cond`` numbers.

    Its FiLM reads mish of time and condition side by side, and mish acts on each number alone. So the layer is the sum
    of ``TimestepEmbedding`` and ``Condition``, and a sampler computes each once. ``levels`` K: time t is the timestep
    tK − 1.
    ``past``: the chunk's first entries belong to past environment steps. Here they come last, so the first action of an
    event is the first executed one. ``eyes``: encoder of pictures, whose features follow the first ``state`` numbers of
    an observation.
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
        eyes: VisionEncoder | None = None,
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
        self.unet.time, self.unet.condition = TimestepEmbedding(width, features), Condition(cond, width)  # type: ignore[assignment]
        self.unet.norm = nn.GroupNorm(LAST, channels[0])

    def features(self, cond: Any) -> Tensor:
        """Return observations as numbers [B, T_o·o]; picture features follow the state."""
        if self.eyes is None:
            return cond
        numbers, seen = cond["numbers"], self.eyes(cond["pictures"])
        return torch.cat((numbers[..., : self.state], seen, numbers[..., self.state :]), -1).flatten(1)

    def embed_condition(self, cond: Any) -> Tensor | None:
        """Return the condition's part of every block's scale and shift."""
        return self.unet.embed_condition(self.features(cond))

    def embed_time(self, t: Tensor) -> Tensor:
        """Return the time's part of every block's scale and shift."""
        index = t * self.levels - 1
        near = index.round()
        return self.unet.embed_time(torch.where((index - near).abs() < 1e-3, near, index).clamp_min(0))

    def forward(self, x: Tensor, clock: Tensor, context: Tensor | None = None) -> Tensor:
        return self.unet(x.roll(self.past, 1), clock, context).roll(-self.past, 1)


def sources(net: Net) -> tuple[dict[str, str], list[str]]:
    """Return {layer of the network: its name in a checkpoint}, and the names of the FiLM layers in order of use."""
    root, own, films = "diffusion.unet", net.state_dict(), []
    found = {f"unet.time.{name}": f"{root}.diffusion_step_encoder.{i}" for name, i in (("lift", 1), ("project", 3))}

    def block(target: str, source: str) -> None:
        for i, (conv, norm) in enumerate((("first", "norm1"), ("second", "norm2")), 1):
            found[f"{target}.{conv}"], found[f"{target}.{norm}"] = (f"{source}.conv{i}.block.{j}" for j in (0, 1))
        if f"{target}.skip.weight" in own:
            found[f"{target}.skip"] = f"{source}.residual_conv"
        films.append(f"{source}.cond_encoder.1")

    for side, count in (("down", len(net.unet.down)), ("middle", 2), ("up", len(net.unet.up))):
        for i in range(count):
            if side == "middle":
                block(f"unet.middle.{i}", f"{root}.mid_modules.{i}")
                continue
            for j in (0, 1):
                block(f"unet.{side}.{i}.{j}", f"{root}.{side}_modules.{i}.{j}")
            resize = ("halve" if side == "down" else "grow") + f".{i}"
            if f"unet.{resize}.weight" in own:
                found[f"unet.{resize}"] = f"{root}.{side}_modules.{i}.2"
    last = {"last": "final_conv.0.block.0", "norm": "final_conv.0.block.1", "leave": "final_conv.1"}
    return {**found, **{f"unet.{name}": f"{root}.{source}" for name, source in last.items()}}, films


def fill(net: Net, weights: dict[str, Tensor], scaled: bool) -> dict[str, Tensor]:
    """Copy a checkpoint's weights into the network, and return the remaining ones.

    ``scaled``: the checkpoint's FiLM scales as well as shifts. A prefix that all names share is dropped. Raise RunError
    if a weight is missing, surplus (except buffers of normalisers), or of another shape.
    """
    ours, (layers, films) = dict(net.state_dict()), sources(net)
    eyes = {} if net.eyes is None else net.eyes.sources()
    wanted = {f"{name}.{end}" for name in (*layers.values(), *films) for end in ("weight", "bias")} | eyes.keys()
    weights = strip_prefix(weights, wanted)
    for name in sorted(wanted - weights.keys()):
        under = sorted(key.removesuffix(name) for key in weights if key.endswith(f".{name}"))
        where = f"; it has the prefix {', '.join(under)}: keep the weights of one" if under else ""
        raise RunError(f"the checkpoint has no {name}: it is not a diffusion policy as config.json describes it{where}")
    left = {name: value for name, value in weights.items() if name not in wanted}
    if surplus := sorted(name for name in left if not name.startswith(NORMALISERS)):
        raise RunError(f"the checkpoint has weights that config.json does not describe: {', '.join(surplus[:3])} ...")
    if net.eyes is not None:
        net.eyes.fill({own: weights[name] for name, own in eyes.items()})
        ours.update(net.state_dict())
    for target, source in layers.items():
        for end in ("weight", "bias"):
            given, place = weights[f"{source}.{end}"], ours[f"{target}.{end}"]
            if given.shape != place.shape:
                raise RunError(f"{source}.{end} is {list(given.shape)} and config.json needs {list(place.shape)}")
            ours[f"{target}.{end}"] = given
    for name, width in zip(films, net.unet.films, strict=True):
        want = width if scaled else width // 2
        for key in (f"{name}.weight", f"{name}.bias"):
            if (rows := len(weights[key])) != want:
                raise RunError(
                    f"{key} has {rows} rows and config.json, with use_film_scale_modulation={scaled}, needs "
                    f"{want}: copy the checkpoint's own config.json, or set {not scaled} if it was trained so"
                )
    pairs = [_film(weights[f"{name}.weight"], weights[f"{name}.bias"], scaled) for name in films]
    w, b = (torch.cat(part) for part in zip(*pairs, strict=True))
    features = ours["unet.time.film.weight"].shape[1]
    if w.shape[1] != features + ours["unet.condition.film.weight"].shape[1]:
        raise RunError(f"the checkpoint's FiLM reads {w.shape[1]} numbers: config.json describes other observations")
    ours["unet.time.film.weight"], ours["unet.condition.film.weight"] = w[:, :features], w[:, features:]
    ours["unet.time.film.bias"] = b
    net.load_state_dict(ours)
    return left


def _film(w: Tensor, b: Tensor, scaled: bool) -> tuple[Tensor, Tensor]:
    """Return a FiLM layer that scales by 1 + s, as ``nn.UNet1D``'s, and shifts."""
    if not scaled:
        return torch.cat((torch.zeros_like(w), w)), torch.cat((torch.zeros_like(b), b))
    half = len(b) // 2
    return w, torch.cat((b[:half] - 1, b[half:]))
