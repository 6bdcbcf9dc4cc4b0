"""Transform columns of different kinds to a denoiser's units and back: a transition becomes a vector of numbers.

    kind         data                           model                          decoded
    continuous   any number                     (x − mean)/std                 inverse, within ends that are often met
    quantile     any number, heavy tails        Φ⁻¹ of its rank                the quantile function, within the range
    binary       one of two values              0 or 1                         the nearer one
    angle        radians, wrapped               cos and sin, standardised      projected to the circle, same branch
    circle       cos and sin in two columns     standardised                   projected to the circle
    one-hot      k columns, a single 1          0 and 1                        the largest is 1
    constant     never changes                  nothing                        its value

``ColumnTransforms.fit`` recognises all but angles and quantiles, which must be declared. Binary columns and one-hots
stay raw, as SynthER does with the end of an episode (2303.06614): standardised, they would lie ten deviations out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError, unknown_name_message

Kind = Literal["continuous", "quantile", "binary", "angle", "circle", "one-hot", "constant"]
KINDS = ("continuous", "quantile", "binary", "angle", "circle", "one-hot", "constant")
FLAT = 1e-6
"""the range, relative to its size, below which a column is constant"""
ROUND = 1e-3
"""largest deviation of cos² + sin² from 1 in a pair that is recognised as a circle"""
OFTEN = 0.005
"""share of rows exactly on the end of a range above which the end is a limit"""
KNOTS = 1001
"""knots of a stored quantile function"""


@dataclass(frozen=True)
class Field:
    """Columns of one kind: their indices in the data, and how many model numbers they take.

    ``centre`` and ``scale`` [size]: of continuous numbers and circles. ``values``: the two of a binary column, the
    value of a constant, or the limits of a number. Of a quantile function they are the knots, of an angle the lower end
    of its branch.
    """

    kind: Kind
    columns: tuple[int, ...]
    size: int
    centre: Tensor
    scale: Tensor
    values: Tensor

    def encode(self, x: Tensor) -> Tensor:
        """Convert data [N, columns] to model units [N, size]."""
        if self.kind == "constant":
            return x[:, :0]
        if self.kind == "binary":
            return ((x - self.values[0]).abs() > (x - self.values[1]).abs()).to(x.dtype)
        if self.kind == "one-hot":
            return x
        if self.kind == "quantile":
            return torch.special.ndtri(self._rank(x)).to(x.dtype)
        if self.kind == "angle":
            x = torch.cat([x.cos(), x.sin()], 1)
        return (x - self.centre) / self.scale

    def decode(self, z: Tensor) -> Tensor:
        """Convert model units [N, size] to data [N, columns], always of the field's kind."""
        if self.kind == "constant":
            return self.values.to(z).expand(len(z), 1)
        if self.kind == "binary":
            return torch.where(z > 0.5, self.values[1], self.values[0])
        if self.kind == "one-hot":
            return torch.nn.functional.one_hot(z.argmax(1), self.size).to(z.dtype)
        if self.kind == "quantile":
            place = torch.special.ndtr(z.double()).clamp(0, 1) * (len(self.values) - 1)
            low = place.floor().long().clamp_max(len(self.values) - 2)
            knots = self.values.double()
            return torch.lerp(knots[low], knots[low + 1], place - low).to(z.dtype)
        x = self.centre + self.scale * z
        if self.kind == "continuous":
            return x.clamp(self.values[0], self.values[1])
        x = x / x.norm(dim=1, keepdim=True).clamp_min(1e-12)
        if self.kind == "circle":
            return x
        low = self.values[0]
        return low + torch.remainder(torch.atan2(x[:, 1:], x[:, :1]) - low, 2 * math.pi)

    def _rank(self, x: Tensor) -> Tensor:
        """Return the share of the data below x, by the stored knots; within a run of equal knots, its middle."""
        knots = self.values.double().contiguous()
        n, at = len(knots) - 1, x.double().contiguous()
        after = torch.searchsorted(knots, at, right=True).clamp(1, n)
        before = torch.searchsorted(knots, at).clamp(1, n)
        gap = (knots[after] - knots[after - 1]).clamp_min(1e-300)
        inside = (after - 1 + ((at - knots[after - 1]) / gap).clamp(0, 1)) / n
        tied = after > before
        rank = torch.where(tied, (before + after - 1) / (2 * n), inside)
        return rank.clamp(0.5 / n, 1 - 0.5 / n)


@dataclass(frozen=True)
class ColumnTransforms:
    """All columns of a table, each in a field; ``width`` columns in the data, ``size`` numbers in model units."""

    fields: tuple[Field, ...]
    width: int

    @staticmethod
    def fit(data: Tensor, kinds: Mapping[int, str] | None = None) -> ColumnTransforms:
        """Fit to rows ``data`` [N, C]. ``kinds``: {column: kind} of columns whose kind is declared.

        Raise InvalidInputError for NaN and infinity, by column, and for a kind that the column is not.
        """
        if data.ndim != 2 or len(data) == 0:
            raise InvalidInputError(f"fields are fitted to rows [N, C], not {list(data.shape)}")
        bad = ~data.isfinite()
        if bool(bad.any()):
            where, rows = bad.any(0).nonzero().flatten().tolist(), int(bad.any(1).sum())
            raise InvalidInputError(f"column(s) {where} hold NaN or infinity in {rows} rows: drop or repair these rows")
        declared, found, at = dict(kinds or {}), [], 0
        for column, kind in declared.items():
            if kind not in KINDS or not 0 <= column < data.shape[1]:
                raise InvalidInputError(
                    f"column {column} of {data.shape[1]}: {unknown_name_message(kind, KINDS, 'kind of field')}"
                )
        while at < data.shape[1]:
            made = _declared(data, at, declared) if at in declared else _recognised(data, at, declared)
            found.append(made)
            at += len(made.columns)
        return ColumnTransforms(tuple(found), data.shape[1])

    @property
    def size(self) -> int:
        """numbers per row in model units"""
        return sum(f.size for f in self.fields)

    def encode(self, data: Tensor) -> Tensor:
        """Convert data [N, C] to model units [N, size]."""
        return torch.cat([f.encode(data[:, list(f.columns)]) for f in self.fields], 1)

    def decode(self, sample: Tensor) -> Tensor:
        """Convert model units [N, size] to data [N, C]."""
        parts = sample.split([f.size for f in self.fields], 1)
        return torch.cat([f.decode(z) for f, z in zip(self.fields, parts, strict=True)], 1)

    def column_slice(self, column: int) -> slice:
        """Return the slice of a data column (of its whole field) in model units."""
        at = 0
        for f in self.fields:
            if column in f.columns:
                return slice(at, at + f.size)
            at += f.size
        raise InvalidInputError(f"there are {self.width} columns, and none of them is {column}")


def _field(kind: Any, columns: list[int], size: int, data: Tensor | None = None, values: Any = ()) -> Field:
    """Return a field; ``data`` [N, size]: what is standardised."""
    centre, scale = torch.zeros(size), torch.ones(size)
    if data is not None:
        rows = data.double()
        centre, scale = rows.mean(0).float(), rows.std(0, correction=0).clamp_min(1e-6).float()
    return Field(kind, tuple(columns), size, centre, scale, torch.as_tensor(values, dtype=torch.float32))


def _flat(x: Tensor) -> bool:
    return float(x.max() - x.min()) <= FLAT * max(1.0, float(x.abs().max()))


def _binary(x: Tensor) -> bool:
    low, high = x.min(), x.max()
    return bool((low < high) & ((x == low) | (x == high)).all())


def _round(data: Tensor, at: int) -> bool:
    """Return whether the columns at and at + 1 are a cosine and a sine."""
    if at + 1 >= data.shape[1]:
        return False
    pair = data[:, at : at + 2]
    moves = not any(_flat(pair[:, i]) or _binary(pair[:, i]) for i in (0, 1))
    return moves and float((pair.double().square().sum(1) - 1).abs().max()) < ROUND


def _hot(data: Tensor, at: int, declared: Mapping[int, str]) -> int:
    """Return the length of a one-hot that begins at a column; 0 if none does."""
    total = torch.zeros(len(data))
    for end in range(at, data.shape[1]):
        column = data[:, end]
        if (end in declared and declared[end] != "one-hot") or not bool(((column == 0) | (column == 1)).all()):
            return 0
        total = total + column
        if end > at and bool((total == 1).all()):
            return end - at + 1
        if bool((total > 1).any()):
            return 0
    return 0


def _recognised(data: Tensor, at: int, declared: Mapping[int, str]) -> Field:
    """Return the field that begins at a column without a declared kind."""
    x = data[:, at]
    if (length := _hot(data, at, declared)) >= 2 and not all(_flat(data[:, at + i]) for i in range(length)):
        return _field("one-hot", list(range(at, at + length)), length)
    if _flat(x):
        return _field("constant", [at], 0, values=[float(x[0])])
    if at + 1 not in declared and _round(data, at):
        return _field("circle", [at, at + 1], 2, data[:, at : at + 2])
    if _binary(x):
        return _field("binary", [at], 1, values=[float(x.min()), float(x.max())])
    return _number(at, x)


def _number(at: int, x: Tensor) -> Field:
    low, high = float(x.min()), float(x.max())
    limits = [v if float((x == v).float().mean()) > OFTEN else s * math.inf for v, s in ((low, -1), (high, 1))]
    return _field("continuous", [at], 1, x[:, None], limits)


def _declared(data: Tensor, at: int, declared: Mapping[int, str]) -> Field:
    """Return the field at a column with a declared kind."""
    kind, x = declared[at], data[:, at]
    if _flat(x) and kind != "one-hot":
        return _field("constant", [at], 0, values=[float(x[0])])
    if kind == "angle":
        low = -math.pi if float(x.min()) < 0 else 0.0
        if float(x.min()) < low - 1e-3 or float(x.max()) > low + 2 * math.pi + 1e-3:
            raise InvalidInputError(
                f"column {at} runs from {float(x.min()):g} to {float(x.max()):g}: a wrapped angle lies in [−π, π] or "
                "[0, 2π]; an angle that counts turns is continuous"
            )
        return _field(kind, [at], 2, torch.stack([x.cos(), x.sin()], 1), [low])
    if kind == "quantile":
        share = torch.linspace(0, 1, KNOTS, dtype=torch.float64)
        place = share * (len(x) - 1)
        ordered, low = x.double().sort().values, place.floor().long()
        knots = torch.lerp(ordered[low], ordered[(low + 1).clamp_max(len(x) - 1)], place - low)
        return _field(kind, [at], 1, values=knots.tolist())
    if kind == "binary" and _binary(x):
        return _field(kind, [at], 1, values=[float(x.min()), float(x.max())])
    if kind == "circle" and _round(data, at):
        return _field(kind, [at, at + 1], 2, data[:, at : at + 2])
    if kind == "one-hot" and (length := _hot(data, at, declared)):
        return _field(kind, list(range(at, at + length)), length)
    if kind == "continuous":
        return _number(at, x)
    raise InvalidInputError(f"column {at} is not {kind}: its values are not of that kind")
