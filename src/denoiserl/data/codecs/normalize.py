"""Normalise per dimension, to [-1, 1] or to unit variance, and back.

A dimension that never changes maps to 0 and back to its value; it is reported, never divided by. NaN and infinity raise
an error that names the dimension. When fitting, unsuitable data are an error; at run time they are clipped and counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError, unknown_name_message
from denoiserl.data import ranges

Kind = Literal["minmax", "std"]
FIELDS = ("centre", "scale", "constant", "low", "high", "share")


class Clipped(NamedTuple):
    """Normalised data inside [-limit, limit], and how many numbers were clipped (a host integer)."""

    value: Tensor
    count: int


def _finite(data: Tensor, what: str) -> None:
    bad = ~data.reshape(-1, data.shape[-1]).isfinite()
    if bool(bad.any()):
        dims = bad.any(0).nonzero().flatten().tolist()
        rows = int(bad.any(1).sum())
        raise InvalidInputError(
            f"{what} holds NaN or infinity in dimension(s) {dims} ({rows} rows): repair or drop those rows"
        )


@dataclass(frozen=True)
class Normalizer:
    """z = (x - centre) / scale per dimension; ``constant`` dimensions have z = 0.

    The fields are tensors [d], so a normaliser is saved and loaded as its fields. ``share``: the share of the range
    that all but outliers use (see ``data.ranges``), if it was fitted to data.
    """

    centre: Tensor
    scale: Tensor
    constant: Tensor
    low: Tensor
    high: Tensor
    share: Tensor | None = None

    @staticmethod
    def fit(
        data: Tensor, kind: Kind = "minmax", tolerance: float = 1e-6, name: str = "the data", ends: Tensor | None = None
    ) -> Normalizer:
        """Fit to rows ``data`` [..., d].

        ``minmax`` maps each dimension's range to [-1, 1] (Diffusion Policy); ``std`` to mean 0 and variance 1. A
        dimension whose range is below ``tolerance`` (times its size, if that is above 1) is constant. Warn of outliers
        and of dimensions that hardly move, with ``name``, row and, given ``ends`` [E] of the episodes, episode.
        """
        if kind not in ("minmax", "std"):
            raise InvalidInputError(unknown_name_message(str(kind), ("minmax", "std"), "kind of normaliser"))
        if data.ndim < 2 or data.numel() == 0:
            raise InvalidInputError(f"a normaliser is fitted to rows [..., d]; got {tuple(data.shape)}")
        _finite(data, "the data of the normaliser")
        rows = data.reshape(-1, data.shape[-1]).double()
        low, high = rows.amin(0), rows.amax(0)
        constant = high - low <= tolerance * rows.abs().amax(0).clamp_min(1.0)
        if kind == "minmax":
            centre, scale = (low + high) / 2, (high - low) / 2
        else:
            centre, scale = rows.mean(0), rows.std(0, correction=0)
        # a constant dimension keeps its first value, and scale 1 is never used
        centre = torch.where(constant, rows[0], centre)
        scale = torch.where(constant, torch.ones_like(scale), scale)
        share = ranges.used_share(rows)
        ranges.warn_each(ranges.range_warnings(rows, share, constant, name, ends))
        return Normalizer(centre.float(), scale.float(), constant, low.float(), high.float(), share.float())

    @staticmethod
    def identity(dim: int) -> Normalizer:
        """Return the normaliser that changes nothing."""
        one = torch.ones(dim)
        return Normalizer(torch.zeros(dim), one, torch.zeros(dim, dtype=torch.bool), -one, one)

    @property
    def dim(self) -> int:
        return len(self.centre)

    def to(self, device: str | torch.device) -> Normalizer:
        """Return the same normaliser on another device."""
        return Normalizer(**{f: v.to(device) for f, v in self.state_dict().items()})

    def _shape(self, x: Tensor) -> None:
        if x.shape[-1] != self.dim:
            raise InvalidInputError(f"this normaliser was fitted to {self.dim} dimensions; got {tuple(x.shape)}")

    def normalize(self, x: Tensor) -> Tensor:
        """Convert data [..., d] to model units."""
        self._shape(x)
        return ((x - self.centre) / self.scale).masked_fill(self.constant, 0.0)

    def denormalize(self, z: Tensor) -> Tensor:
        """Convert model units [..., d] to data; constant dimensions return their value."""
        self._shape(z)
        return self.centre + self.scale * z.masked_fill(self.constant, 0.0)

    def check(self, x: Tensor, slack: float = 1e-3) -> None:
        """Raise InvalidInputError for data outside the fitted range by more than ``slack`` of it, with dimension and
        value."""
        self._shape(x)
        _finite(x, "the data")
        rows = x.reshape(-1, self.dim)
        over = torch.maximum(self.low - rows, rows - self.high)
        limit = slack * (self.high - self.low) + 1e-6
        worst = (over - limit).amax(0)
        if bool((worst > 0).any()):
            d = int(worst.argmax())
            value = rows[int(over[:, d].argmax()), d]
            raise InvalidInputError(
                f"dimension {d} holds {float(value):g}, outside the fitted range "
                f"[{float(self.low[d]):g}, {float(self.high[d]):g}]: fit the normaliser to all the data it will see"
            )

    def clip(self, x: Tensor, limit: float = 1.0) -> Clipped:
        """Return model units clipped to [-limit, limit], with the count of clipped numbers: for run time."""
        z = self.normalize(x)
        return Clipped(z.clamp(-limit, limit), int((z.abs() > limit + 1e-4).sum()))

    def report(self) -> str:
        """Return one sentence on dimensions that are constant, have outliers or hardly move."""
        said = [f"{self.dim} dimensions"]
        if dims := self.constant.nonzero().flatten().tolist():
            said.append(f"constant, hence always 0: {dims}")
        if self.share is not None and (dims := (self.share < ranges.NARROW).nonzero().flatten().tolist()):
            least = 100 * float(self.share[dims].min())
            said.append(f"with outliers, beside which the others use {least:.2g} % of the range at least: {dims}")
        if dims := (ranges.is_tiny_range(self.low, self.high) & ~self.constant).nonzero().flatten().tolist():
            said.append(f"that hardly move: {dims}")
        return "; ".join(said)

    def state_dict(self) -> dict[str, Any]:
        """Return the fields as tensors."""
        return {f: v for f in FIELDS if (v := getattr(self, f)) is not None}

    @staticmethod
    def from_state(state: dict[str, Any]) -> Normalizer:
        """Return the normaliser of a ``state_dict`` (tensors or nested lists of numbers)."""
        fields = {f: torch.as_tensor(state[f]) for f in FIELDS if f in state}
        return Normalizer(**{f: v.bool() if f == "constant" else v.float() for f, v in fields.items()})
