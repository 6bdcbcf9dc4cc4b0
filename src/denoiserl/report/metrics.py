"""Curves from the metrics of a run: one JSON object per line, with any keys."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

import numpy

from denoiserl.core.errors import InvalidInputError, RunError, unknown_name_message
from denoiserl.stats.interval import t_interval

AXES = ("iteration", "iter", "update", "step", "epoch", "it")
"""keys that count the progress of a run, in order of preference"""

DRAWN = 1000
"""rows of a kind in a plot: more would fall on the same pixels"""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Curve:
    """Points (x, y) of one quantity, with a band where ``low`` and ``high`` are given. Gaps are NaN."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        sizes = {len(v) for v in (self.x, self.y, self.low, self.high) if v is not None}
        if len(sizes) != 1 or (self.low is None) != (self.high is None):
            raise InvalidInputError(f"curve {self.label!r}: x, y and both ends of the band must have the same length.")


def read_metrics(path: Path | str, max_rows: int | None = None) -> list[dict[str, Any]]:
    """Read the rows of a ``metrics.jsonl``. Skip a last line that a crash truncated; raise RunError for other damage.

    The strings "nan", "inf" and "-inf" become numbers, and nested keys are joined: ``loss/policy``. An interval (mean,
    low, high, n) with key k becomes ``k``, ``k_low`` and ``k_high``. ``max_rows``: keep about so many rows of every
    kind (same stage, same keys), evenly spaced and with the last one. Rare rows, such as evaluations, are all kept.
    """
    kinds: dict[tuple[str, ...], _Thinned] = {}
    for i, row in enumerate(each_row(path)):
        kind = (str(row.get("stage")), *row) if max_rows is not None else ()
        kinds.setdefault(kind, _Thinned(max_rows)).add(i, row)
    return [_flat(row) for _, row in sorted((pair for kind in kinds.values() for pair in kind.rows), key=itemgetter(0))]


def each_row(path: Path | str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file of JSON lines, unchanged; see ``read_metrics``."""
    path = Path(path)
    try:
        file = path.open(encoding="utf-8")
    except FileNotFoundError:
        raise RunError(f"{path} does not exist: check the path, or start the run that writes it.") from None
    with file:
        for i, line in enumerate(file):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                if not line.endswith("\n"):
                    return
                raise RunError(f"{path}, line {i + 1} is not JSON ({error}): correct that line.") from None
            if not isinstance(row, dict):
                raise RunError(f"{path}, line {i + 1} is a {type(row).__name__}, not an object: correct that line.")
            yield row


class _Thinned:
    """Every k-th of the added rows, at most twice ``max_rows``, and the last one."""

    def __init__(self, max_rows: int | None) -> None:
        self.max_rows, self.count, self.stride = max_rows, 0, 1
        self.kept: list[tuple[int, dict[str, Any]]] = []
        self.last: tuple[int, dict[str, Any]] | None = None

    def add(self, i: int, row: dict[str, Any]) -> None:
        self.last = (i, row)
        if self.count % self.stride == 0:
            self.kept.append(self.last)
            if self.max_rows is not None and len(self.kept) > 2 * self.max_rows:
                self.kept, self.stride = self.kept[::2], 2 * self.stride
        self.count += 1

    @property
    def rows(self) -> list[tuple[int, dict[str, Any]]]:
        """The kept rows with their numbers."""
        return self.kept if self.last is None or self.kept[-1] is self.last else [*self.kept, self.last]


def _flat(row: Row) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, dict):
            if set(value) == {"mean", "low", "high", "n"}:
                value = {"": value["mean"], "_low": value["low"], "_high": value["high"]}
                found.update(_flat({key + end: v for end, v in value.items()}))
            else:
                found.update(_flat({f"{key}/{inner}": v for inner, v in value.items()}))
        else:
            found[key] = float(value) if value in ("nan", "inf", "-inf") else value
    return found


def numeric(row: Row, key: str) -> bool:
    """Return whether the row has a number at this key (True and False are not numbers)."""
    return isinstance(row.get(key), int | float) and not isinstance(row[key], bool)


def progress_key(rows: Sequence[Row]) -> str | None:
    """Return the key that counts progress: the first of ``AXES`` that every row has, or None."""
    return next((k for k in AXES if rows and all(numeric(row, k) for row in rows)), None)


def curve(rows: Sequence[Row], key: str, x: str | None = None, label: str | None = None) -> Curve:
    """Return the curve of ``key`` over ``x`` (by default ``progress_key``, else the row's number).

    Rows without the key are skipped; values that are not finite become gaps. ``key_low`` and ``key_high`` become the
    band if the rows have them. Raise RunError for an unknown key and suggest the closest one.
    """
    x = x or progress_key(rows)
    having = [(i, row) for i, row in enumerate(rows) if numeric(row, key) and (x is None or numeric(row, x))]
    if not having:
        known = {k for row in rows for k in row if numeric(row, k)}
        raise RunError(
            unknown_name_message(key, known - {key}, "metric")
            if known
            else "There are no metrics: the run wrote no rows."
        )

    def column(name: str) -> tuple[float, ...]:
        return tuple(_finite(row[name]) if numeric(row, name) else math.nan for _, row in having)

    at = tuple(float(i) for i, _ in having) if x is None else column(x)
    low, high = f"{key}_low", f"{key}_high"
    if any(numeric(row, low) and numeric(row, high) for _, row in having):
        return Curve(label or key, at, column(key), column(low), column(high))
    return Curve(label or key, at, column(key))


def mean_over_runs(runs: Sequence[Sequence[Row]], key: str, x: str | None = None, label: str | None = None) -> Curve:
    """Return the mean over runs (seeds) with its 95 % Student-t band, at the x that all runs have.

    Points that some run lacks are left out, so that every mean is over the same runs.
    """
    if len(runs) < 2:
        raise InvalidInputError(f"a band across runs needs at least two of them, not {len(runs)}: use curve for one.")
    found = [curve(rows, key, x) for rows in runs]
    points = [{a: b for a, b in zip(c.x, c.y, strict=True) if math.isfinite(b)} for c in found]
    shared = sorted(set.intersection(*(set(p) for p in points)))
    if not shared:
        raise RunError(f"the runs have no value of {key!r} at a common x: log it at the same iterations in each.")
    bands = [t_interval([p[a] for p in points]) for a in shared]
    mean, low, high = (tuple(getattr(b, name) for b in bands) for name in ("mean", "low", "high"))
    return Curve(label or key, tuple(shared), mean, low, high)


def overlay(given: Sequence[Curve], label: str, band: Literal["interval", "range"] = "interval") -> Curve:
    """Return the mean of several curves over their common range of x, with linear interpolation between points.

    It serves runs with points at different x, such as usage counts; for equal x it is ``mean_over_runs``. It has at
    most twice ``DRAWN`` points. The band is the 95 % Student-t interval of the mean, or the range from minimum to
    maximum. A gap in one curve is a gap of the mean. Of several points at one x the last counts.
    """
    if len(given) < 2:
        raise InvalidInputError(f"a band needs at least two curves, not {len(given)}: draw one as it is.")
    for c in given:
        if any(b < a for a, b in pairwise(c.x)):
            raise InvalidInputError(f"the x of curve {c.label!r} decreases: give another x, one that only grows.")
    given = [_last_at(c) for c in given]
    low, high = max(c.x[0] for c in given), min(c.x[-1] for c in given)
    at = sorted({x for c in given for x in c.x if low <= x <= high})
    at = at[:: max(1, len(at) // DRAWN)]
    if not at:
        raise RunError(f"the runs of {label!r} have no x in common: compare runs of about the same length.")
    found = numpy.stack([_between(c, at) for c in given], 1)
    points: list[tuple[float, float, float]] = []
    for y in found:
        if not numpy.isfinite(y).all():
            points.append((math.nan, math.nan, math.nan))
        elif band == "range":
            points.append((float(y.mean()), float(y.min()), float(y.max())))
        else:
            each = t_interval(y)
            points.append((each.mean, each.low, each.high))
    mean, least, most = (tuple(column) for column in zip(*points, strict=True))
    return Curve(label, tuple(at), mean, least, most)


def join_curves(given: Sequence[Curve], label: str, band: Literal["interval", "range"] = "interval") -> Curve:
    """Return the curves of an arm's seeds as one: their ``overlay``, or the only one unchanged."""
    return replace(given[0], label=label) if len(given) == 1 else overlay(given, label, band)


def _last_at(given: Curve) -> Curve:
    points = dict(zip(given.x, given.y, strict=True))
    return Curve(given.label, tuple(points), tuple(points.values()))


def _between(given: Curve, at: Sequence[float]) -> numpy.ndarray:
    """Return the curve's y at other x; NaN beside a gap, except at a point that has a value."""
    with numpy.errstate(invalid="ignore"):
        y = numpy.interp(at, given.x, given.y)
    own = dict(zip(given.x, given.y, strict=True))
    return numpy.array([own.get(x, v) for x, v in zip(at, y, strict=True)])


def smooth(given: Curve, half_life: float) -> Curve:
    """Smooth a curve by a weighted mean around each point, with half the weight at ``half_life`` points. Keep gaps.

        y'_i = Σ_j w_ij y_j / Σ_j w_ij,   w_ij = 2^-(|i - j| / half_life)

    Both sides count, so the result has no lag. Bands are dropped: they belong to the points, not to their mean.
    """
    if half_life <= 0:
        raise InvalidInputError(f"a half-life of {half_life} points cannot smooth: give a positive number.")
    keep = 2 ** (-1 / half_life)
    total, weight = ([0.0] * len(given.y) for _ in range(2))
    for order in (range(len(given.y)), range(len(given.y) - 1, -1, -1)):
        a = b = 0.0  # the sums over the points on this side of i
        for i in order:
            total[i], weight[i] = total[i] + a, weight[i] + b
            here = math.isfinite(given.y[i])
            a, b = keep * (a + (given.y[i] if here else 0.0)), keep * (b + here)
    y = tuple((t + y) / (w + 1) if math.isfinite(y) else y for t, w, y in zip(total, weight, given.y, strict=True))
    return replace(given, y=y, low=None, high=None)


def group_by_stage(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Group rows by ``stage``, in order of appearance; rows without one (or with null) are under ""."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(str(row.get("stage") or ""), []).append(row)
    return found


def groups(rows: Sequence[Row], factor: float = 30.0) -> dict[str, list[Curve]]:
    """Return every number of the rows as a curve, grouped by panel.

    Curves with the same prefix before the first ``/`` or ``.`` share a panel, such as ``loss/policy`` and
    ``loss/value``. They do not if their sizes differ by more than ``factor``. Ends of bands are not curves.
    """
    x = progress_key(rows)
    keys = list(dict.fromkeys(k for row in rows for k in row if numeric(row, k) and k != x))
    ends = {f"{k}{end}" for k in keys for end in ("_low", "_high") if {f"{k}_low", f"{k}_high"} <= set(keys)}
    together: dict[str, list[Curve]] = {}
    for key in keys:
        if key not in ends:
            head, tail = _split(key)
            together.setdefault(head, []).append(curve(rows, key, x, tail if tail else key))
    found: dict[str, list[Curve]] = {}
    for head, curves in together.items():
        sizes = [s for s in map(_size, curves) if s > 0]
        if len(curves) > 1 and (len(curves) > 6 or (sizes and max(sizes) > factor * min(sizes))):
            found.update({f"{head}/{c.label}": [c] for c in curves})
        else:
            found[head if len(curves) > 1 or curves[0].label == head else f"{head}/{curves[0].label}"] = curves
    return found


def _split(key: str) -> tuple[str, str]:
    at = min((i for i in (key.find("/"), key.find(".")) if i > 0), default=-1)
    return (key, "") if at < 0 else (key[:at], key[at + 1 :])


def _size(given: Curve) -> float:
    """Return the median absolute value of a curve's finite values."""
    sizes = sorted(abs(y) for y in given.y if math.isfinite(y))
    return sizes[len(sizes) // 2] if sizes else 0.0


def _finite(value: float) -> float:
    return float(value) if math.isfinite(value) else math.nan
