"""Image conditions: an image encoder in front of any network of flat conditions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.tree import require_tensor
from denoiserl.nn.embed import shape

BYTES = "give them in bytes, uint8 from 0 to 255; for numbers x in [0, 1] that is (255 * x).round()"


def in_bytes(image: Tensor) -> None:
    """Raise InvalidInputError if images are not in bytes: numbers from 0 to 1 would be read as black."""
    if image.dtype != torch.uint8:
        raise InvalidInputError(f"the images in 'image' are {str(image.dtype).removeprefix('torch.')}: {BYTES}")


class SpatialSoftmax(nn.Module):
    """A spatial softmax (1504.00702): the mean position of each of ``points`` maps, in [−1, 1]².

    Maps [B, C, H, W] to [B, 2·points]; a 1 x 1 convolution computes the maps of the points.
    """

    pos_grid: Tensor

    def __init__(self, width: int, height: int, across: int, points: int) -> None:
        super().__init__()
        self.nets = nn.Conv2d(width, points, 1)
        y, x = torch.linspace(-1, 1, height), torch.linspace(-1, 1, across)
        grid = torch.stack((x.expand(height, -1), y[:, None].expand(-1, across)), -1)
        self.register_buffer("pos_grid", grid.reshape(-1, 2).contiguous())

    def forward(self, maps: Tensor) -> Tensor:
        return (self.nets(maps).flatten(2).softmax(-1) @ self.pos_grid).flatten(1)


class ImageConditionedNet(nn.Module):
    """``inner``, a network of flat conditions, with conditions {"image": [B, S, S, C] in bytes, "state": [B, o]}.

    Three convolutions (of stride 4, 2 and 1) and a spatial softmax encode the image. ``inner`` gets the state and the
    points, ``features`` of o + 2·points numbers. Images are encoded once per condition, in ``embed_condition``.
    """

    def __init__(
        self, inner: nn.Module, size: int, points: int = 32, channels: Sequence[int] = (32, 48, 48), colours: int = 3
    ) -> None:
        super().__init__()
        one, two, three = shape(channels)
        self.config = {
            "inner": inner, "size": size, "points": points, "channels": (one, two, three), "colours": colours,
        }  # fmt: skip
        self.inner, self.size, self.colours = inner, size, colours
        self.maps = nn.Sequential(
            nn.Conv2d(colours, one, 8, 4, 2), nn.GELU(), nn.Conv2d(one, two, 4, 2, 1), nn.GELU(),
            nn.Conv2d(two, three, 3, 1, 1), nn.GELU(),
        )  # fmt: skip
        side = size // 8
        self.points = SpatialSoftmax(three, side, side, points)

    def features(self, cond: Any) -> Tensor:
        """Return the state and the points, [B, o + 2·points]. Raise InvalidInputError for other conditions."""
        wanted = [self.size, self.size, self.colours]
        if not isinstance(cond, dict) or not {"image", "state"} <= set(cond):
            shape_or_type = list(cond.shape[1:]) if isinstance(cond, Tensor) else type(cond).__name__
            found = list(cond) if isinstance(cond, dict) else shape_or_type
            raise InvalidInputError(f"this policy needs a dict of 'image' {wanted} and 'state' [o], not {found}")
        image, state = (require_tensor(cond[name], "[B, ...]") for name in ("image", "state"))
        if len(image) != len(state):
            raise InvalidInputError(
                f"there are {len(image)} images and {len(state)} states: give both one row per observation"
            )
        if list(image.shape[1:]) != wanted:
            raise InvalidInputError(
                f"this policy needs images {wanted}, not {list(image.shape[1:])}: crop or resize them, with the "
                "colours last"
            )
        in_bytes(image)
        weight = self.points.nets.weight
        pixels = image.movedim(-1, 1).to(weight.dtype).div(255.0) - 0.5
        return torch.cat([state.to(weight.dtype), self.points(self.maps(pixels))], 1)

    def embed_condition(self, cond: Any) -> Any:
        """Return the embedding of ``inner`` of the features."""
        inner: Any = self.inner
        return inner.embed_condition(self.features(cond))

    def embed_time(self, t: Tensor) -> Any:
        """Return the embedding of ``inner``."""
        inner: Any = self.inner
        return inner.embed_time(t)

    def forward(self, x: Tensor, clock: Any, context: Any) -> Tensor:
        return self.inner(x, clock, context)
