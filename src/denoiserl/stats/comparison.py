"""Compare a metric before and after learning from reward with a control that imitated for the same time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from denoiserl.core.errors import RunError
from denoiserl.stats.interval import Interval

LABELS = {"before": "before", "imitation": "more imitation", "after": "improved by reward"}


@dataclass(frozen=True)
class Comparison:
    """One metric of one task before and after learning from reward, with a control that only imitated longer.

    ``unit`` "%" marks rates in [0, 1], which are shown as percentages; ``better`` is the direction of a gain.
    """

    name: str
    metric: str
    before: Interval
    after: Interval
    imitation: Interval | None = None
    seconds: float | None = None
    unit: str = ""
    better: Literal["higher", "lower"] = "higher"

    def __post_init__(self) -> None:
        if self.better not in ("higher", "lower"):
            raise RunError(f"better={self.better!r} is no direction: pass 'higher' or 'lower'.")

    @property
    def rows(self) -> list[tuple[str, Interval]]:
        """The (label, interval) pairs, in display order."""
        return [(label, getattr(self, key)) for key, label in LABELS.items() if getattr(self, key) is not None]

    @property
    def sign(self) -> int:
        return 1 if self.better == "higher" else -1

    def is_better(self) -> bool:
        """Return whether ``after`` is better than every other row, with intervals that do not touch."""
        others = [self.before] if self.imitation is None else [self.before, self.imitation]
        return all(self.after.compare(other) == self.sign for other in others)

    def verdict(self) -> str:
        """Return the result in a sentence that claims no more than the intervals show."""
        if self.after.compare(self.before) == -self.sign:
            return "worse than before: the intervals are apart"
        if self.imitation is not None and self.after.compare(self.imitation) == -self.sign:
            better = self.after.compare(self.before) == self.sign
            gain = "better than before, but not than" if better else "no gain shown, and worse than"
            return f"{gain} more imitation for the same time: the intervals are apart"
        if self.after.compare(self.before) == 0:
            return "no gain shown: the intervals of before and after overlap"
        if self.imitation is None:
            return "better than before: the intervals are apart"
        if self.after.compare(self.imitation) == self.sign:
            return "better than before and than more imitation: the intervals are apart"
        return "better than before, but not shown to be better than more imitation"

    def format_value(self, value: float) -> str:
        """Return a value of this metric as text, with as many digits as the narrowest interval needs."""
        if self.unit == "%":
            return f"{100 * value:.1f}%"
        width = max(i.high - i.low for _, i in self.rows) or max(abs(i.mean) for _, i in self.rows) / 10 or 1.0
        text = (
            f"{value:.{0 if width >= 20 else 1 if width >= 2 else 2 if width >= 0.2 else 3 if width >= 0.02 else 4}f}"
        )
        return f"{text} {self.unit}".rstrip()

    def as_dict(self) -> dict[str, Any]:
        """Return the comparison as plain values for ``summary.json``, without rows and fields that are None."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: v.as_dict() if isinstance(v, Interval) else v for k, v in found.items() if v not in (None, "")}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Comparison:
        """Return the comparison that ``as_dict`` wrote. Raise RunError for unknown or missing keys."""
        unknown = sorted(set(saved) - {f.name for f in fields(cls)})
        missing = sorted({"name", "metric", "before", "after"} - set(saved))
        if unknown or missing:
            raise RunError(f"this is no comparison: unknown keys {unknown}, missing keys {missing}.")
        try:
            found: dict[str, Any] = {k: Interval(**v) if k in LABELS and v is not None else v for k, v in saved.items()}
        except TypeError as error:
            raise RunError(f"an interval has mean, low, high and n, and nothing else ({error}).") from None
        return cls(**found)
