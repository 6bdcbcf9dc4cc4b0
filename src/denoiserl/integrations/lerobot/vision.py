"""Image encoders of LeRobot's diffusion policies: a residual network (1512.03385) and ``nn.vision.SpatialSoftmax``.

Modules have the names that checkpoints use, so their weights load unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from denoiserl.core.errors import InvalidInputError, RunError, unknown_name_message
from denoiserl.nn.vision import SpatialSoftmax

DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
WIDTHS, A_GROUP = (64, 128, 256, 512), 16


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(width // A_GROUP, width)


class Basic(nn.Module):
    """Two 3 x 3 convolutions around a shortcut."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = _norm(outer), _norm(outer)
        changes = stride > 1 or inner != outer
        self.downsample = (
            nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), _norm(outer)) if changes else None
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(h + (x if self.downsample is None else self.downsample(x)))


class Eye(nn.Module):
    """An encoder of pictures [B, C, H, W] to features [B, 2·points], from a centre crop of size ``crop``."""

    def __init__(self, shape: Sequence[int], crop: Sequence[int] | None, points: int, depth: str) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise RunError(unknown_name_message(depth, DEPTHS, "vision backbone"))
        channels, *size = shape
        self.crop = tuple(crop or size)
        inner, layers = WIDTHS[0], []
        for k, (n, outer) in enumerate(zip(DEPTHS[depth], WIDTHS, strict=True)):
            layers.append(
                nn.Sequential(*(Basic(inner if i == 0 else outer, outer, 2 if k and not i else 1) for i in range(n)))
            )
            inner = outer
        first = nn.Conv2d(channels, WIDTHS[0], 7, 2, 3, bias=False)
        self.backbone = nn.Sequential(first, _norm(WIDTHS[0]), nn.ReLU(), nn.MaxPool2d(3, 2, 1), *layers)
        height, across = (-(-side // 32) for side in self.crop)
        self.pool = SpatialSoftmax(WIDTHS[-1], height, across, points)
        self.out = nn.Linear(2 * points, 2 * points)

    def forward(self, x: Tensor) -> Tensor:
        top, left = (round((have - want) / 2.0) for have, want in zip(x.shape[-2:], self.crop, strict=True))
        x = x[..., top : top + self.crop[0], left : left + self.crop[1]]
        return F.relu(self.out(self.pool(self.backbone(x))))


class VisionEncoder(nn.Module):
    """Encoders of ``cameras`` cameras, shared or ``separate``: [..., cameras, C, H, W] to [..., width]."""

    def __init__(
        self,
        cameras: int,
        shape: Sequence[int],
        crop: Sequence[int] | None,
        points: int,
        depth: str,
        separate: bool,
    ) -> None:
        super().__init__()
        self.config = {
            "cameras": cameras, "shape": list(shape), "crop": None if crop is None else list(crop), "points": points,
            "depth": depth, "separate": separate,
        }  # fmt: skip
        self.shape, self.width = tuple(shape), 2 * points * cameras
        self.each = nn.ModuleList(Eye(shape, crop, points, depth) for _ in range(cameras if separate else 1))

    def forward(self, pictures: Tensor) -> Tensor:
        if tuple(pictures.shape[-3:]) != self.shape:
            raise InvalidInputError(f"this policy reads pictures {list(self.shape)}, not {list(pictures.shape[-3:])}")
        lead, cameras = pictures.shape[:-4], pictures.shape[-4]
        flat = pictures.flatten(0, -5)
        eyes: Any = list(self.each) if len(self.each) > 1 else [self.each[0]] * cameras
        return torch.cat([eye(flat[:, i]) for i, eye in enumerate(eyes)], -1).unflatten(0, lead)

    def sources(self) -> dict[str, str]:
        """Return {name of a weight in a checkpoint: its name here}."""
        many = len(self.each) > 1
        own = [(i, name) for i, eye in enumerate(self.each) for name in eye.state_dict()]
        return {f"diffusion.rgb_encoder.{f'{i}.' if many else ''}{name}": f"each.{i}.{name}" for i, name in own}

    def fill(self, weights: dict[str, Tensor]) -> None:
        """Copy weights by their names here. Raise RunError if a shape differs."""
        try:
            self.load_state_dict(weights)
        except RuntimeError as error:
            raise RunError(
                f"the weights of rgb_encoder do not fit config.json ({error}): copy both from one checkpoint"
            ) from None
