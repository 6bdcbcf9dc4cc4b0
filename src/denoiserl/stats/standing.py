"""Records of verdicts: a pair of arms, an arm's row in the table, the table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from denoiserl.core.errors import RunError, unknown_name_message
from denoiserl.stats.interval import Interval


@dataclass(frozen=True)
class Contrast:
    """Two arms of one comparison: how far ``first`` lies above ``second``.

    ``p`` is two-sided and corrected over the family of pairs (Holm); ``separated`` means p ≤ the level of the family.
    ``min_detectable_effect`` is the smallest true difference that this design detects with probability 0.8. The
    interval is that of the pair alone, at 1 - level, so it may exclude 0 although the corrected test does not separate.
    """

    first: str
    second: str
    difference: Interval
    p: float
    separated: bool
    min_detectable_effect: float

    def __post_init__(self) -> None:
        if self.first == self.second:
            raise RunError(f"{self.first!r} cannot be compared with itself: name two arms.")
        if not 0 <= self.p <= 1:
            raise RunError(f"p={self.p} is no probability: it lies between 0 and 1.")
        if math.isnan(self.min_detectable_effect) or self.min_detectable_effect < 0:
            raise RunError(
                f"min_detectable_effect={self.min_detectable_effect} is no size of a difference: it is not negative."
            )

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; an infinite ``min_detectable_effect`` becomes None."""
        return asdict(self) | {
            "min_detectable_effect": self.min_detectable_effect if math.isfinite(self.min_detectable_effect) else None
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Contrast:
        """Return the contrast that ``as_dict`` wrote. Raise RunError for unknown or missing keys."""
        _keys(cls, saved)
        smallest = math.inf if saved["min_detectable_effect"] is None else saved["min_detectable_effect"]
        return cls(**{**saved, "difference": _interval(saved["difference"]), "min_detectable_effect": smallest})


@dataclass(frozen=True)
class ComparisonRow:
    """One arm's row: its interval, its mean per training seed, and the letters of the compact letter display.

    Arms that share a letter are not separated. ``seconds`` and ``calls`` are wall time and denoiser calls of
    training, means over the seeds.
    """

    name: str
    interval: Interval
    per_seed: tuple[float, ...]
    letters: str
    seconds: float | None = None
    calls: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self) | {"per_seed": list(self.per_seed)}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> ComparisonRow:
        """Return the row that ``as_dict`` wrote. Raise RunError for unknown or missing keys."""
        _keys(cls, saved, {"seconds", "calls"})
        return cls(**{**saved, "interval": _interval(saved["interval"]), "per_seed": tuple(saved["per_seed"])})


@dataclass(frozen=True)
class ComparisonTable:
    """The table of one metric: arms from best to worst, and every pair of them.

    ``unit`` "%" marks rates in [0, 1]; ``level`` is the error rate of the whole family (0.05). ``basis`` is what the
    verdict is about: "seeds" (the methods, over training seeds) or "trials" (these policies only).
    """

    metric: str
    what: str
    unit: str
    better: Literal["higher", "lower"]
    level: float
    rows: tuple[ComparisonRow, ...]
    contrasts: tuple[Contrast, ...]
    basis: Literal["seeds", "trials"]

    def __post_init__(self) -> None:
        if self.better not in ("higher", "lower"):
            raise RunError(f"better={self.better!r} is no direction: pass 'higher' or 'lower'.")
        if self.basis not in ("seeds", "trials"):
            raise RunError(f"basis={self.basis!r} is no basis of a verdict: pass 'seeds' or 'trials'.")
        if not 0 < self.level < 1:
            raise RunError(f"level={self.level} is no error rate: give a number between 0 and 1, such as 0.05.")
        names = [row.name for row in self.rows]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise RunError(f"{', '.join(twice)} has more than one row: give every arm a name of its own.")
        strange = sorted({n for c in self.contrasts for n in (c.first, c.second)} - set(names))
        if strange:
            raise RunError(f"a contrast names an arm without a row. {unknown_name_message(strange[0], names, 'arm')}")

    @property
    def sign(self) -> int:
        """1 if higher is better, -1 if lower is."""
        return 1 if self.better == "higher" else -1

    def row(self, name: str) -> ComparisonRow:
        """Return the row of an arm. Raise RunError for an unknown arm."""
        found = {row.name: row for row in self.rows}
        if name not in found:
            raise RunError(unknown_name_message(name, found, "arm"))
        return found[name]

    def contrast(self, first: str, second: str) -> Contrast:
        """Return the contrast ``first`` minus ``second``, also if the table holds ``second`` minus ``first``."""
        for name in (first, second):
            self.row(name)
        for c in self.contrasts:
            if (c.first, c.second) == (first, second):
                return c
            if (c.second, c.first) == (first, second):
                d = c.difference
                turned = Interval(-d.mean, -d.high, -d.low, d.n)
                return Contrast(first, second, turned, c.p, c.separated, c.min_detectable_effect)
        raise RunError(f"{first!r} and {second!r} were not compared: give both to one call of standings.")

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; ``from_dict`` reads them."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        return own | {"rows": [r.as_dict() for r in self.rows], "contrasts": [c.as_dict() for c in self.contrasts]}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> ComparisonTable:
        """Return the table that ``as_dict`` wrote. Raise RunError for unknown or missing keys."""
        _keys(cls, saved)
        rows = tuple(ComparisonRow.from_dict(r) for r in saved["rows"])
        contrasts = tuple(Contrast.from_dict(c) for c in saved["contrasts"])
        return cls(**{**saved, "rows": rows, "contrasts": contrasts})


def _keys(cls: Any, saved: Mapping[str, Any], optional: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    known = {f.name for f in fields(cls)}
    unknown, missing = sorted(set(saved) - known), sorted(known - set(saved) - optional)
    if unknown or missing:
        raise RunError(f"this is no {cls.__name__.lower()}: unknown keys {unknown}, missing keys {missing}.")


def _interval(saved: Any) -> Interval:
    try:
        return Interval(**saved)
    except TypeError as error:
        raise RunError(f"an interval has mean, low, high and n, and nothing else ({error}).") from None
