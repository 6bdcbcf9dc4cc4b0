"""Format numbers and verdicts as text, for the terminal, the HTML report and the plots."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from denoiserl.stats.standing import ComparisonTable, Contrast


def decimals(widths: Iterable[float]) -> int:
    """Return the decimals that give the narrowest non-zero width two digits; 2 if there is none."""
    narrow = min((w for w in widths if w > 0), default=0.0)
    return 2 if narrow == 0 else min(6, max(0, 1 - math.floor(math.log10(narrow))))


def number(value: float, places: int) -> str:
    """Format a number with a true minus sign; a value that rounds to zero has no sign."""
    text = f"{value:.{places}f}"
    return text.replace("-", "−") if float(text) else text.replace("-", "")


def duration(seconds: float | None) -> str:
    """Format a duration in seconds, minutes or hours; a dash for None."""
    if seconds is None:
        return "–"
    size, unit = (1, "s") if seconds < 100 else (60, "min") if seconds < 5940 else (3600, "h")
    scaled = seconds / size
    return f"{scaled:.{1 if scaled < 9.95 else 0}f} {unit}"


def count(n: float | None) -> str:
    """Format a count in thousands (k), millions (M) or billions (G), to three digits; a dash for None."""
    if n is None:
        return "–"
    for size, mark in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= 0.9995 * size:
            return f"{n / size:.3g}{mark}"
    return f"{n:.3g}"


def probability(p: float) -> str:
    """Format a p-value: ``p = 0.013``, or ``p < 0.001``."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def values(standings: ComparisonTable) -> Callable[[float], str]:
    """Return a function that formats the values of a table without their unit: rates as percentages, one decimal.

    The narrowest interval sets the decimals of other values.
    """
    if standings.unit == "%":
        return lambda value: f"{number(100 * value, 1)}%"
    places = decimals(row.interval.high - row.interval.low for row in standings.rows)
    return lambda value: number(value, places)


def verdict(standings: ComparisonTable, contrast: Contrast) -> str:
    """Return the result of a contrast as a sentence.

    The arm with the better rank is named first. For a pair that is not separated, the sentence gives the difference
    that this design can detect with power 0.8.
    """
    rank = {row.name: i for i, row in enumerate(standings.rows)}
    first, second = sorted((contrast.first, contrast.second), key=rank.__getitem__)
    c = standings.contrast(first, second)
    above = c.difference.mean >= 0
    scale = 100 if standings.unit == "%" else 1
    unit = " points" if standings.unit == "%" else f" {standings.unit}" if standings.unit else ""
    low, high = sorted(scale * (v if above else -v) for v in (c.difference.low, c.difference.high))
    places = decimals([high - low])
    size = number(abs(scale * c.difference.mean), places)
    ends = f"{100 * (1 - standings.level):g} % interval {number(low, places)} to {number(high, places)}"
    found = f"{size}{unit} {'more' if above else 'less'}, {ends}, {probability(c.p)}"
    if c.separated:
        return f"{first} is better than {second} ({found})."
    text = f"No difference shown between {first} and {second} ({first}: {found})"
    if not math.isfinite(c.min_detectable_effect) or (standings.unit == "%" and c.min_detectable_effect >= 1):
        return f"{text}. This design can hardly detect any difference."
    return f"{text}. This design detects {number(scale * c.min_detectable_effect, places)}{unit} with power 0.8."


def comparison_scope(standings: ComparisonTable) -> str:
    """Return what the table's intervals, letters and p-values refer to."""
    share = f"{100 * (1 - standings.level):g} %"
    many = len(standings.rows) > 1
    head = f"Intervals ({share}) are" if many else f"The interval ({share}) is"
    if standings.basis == "seeds":
        n = _range([len(row.per_seed) for row in standings.rows])
        about = f"{head} over {n} training seeds, and so about the method{'s' * many}, not about one trained policy."
    else:
        n = _range([row.interval.n for row in standings.rows])
        about = f"{head} over {n} trials of {'each' if many else 'this'} policy, and so about "
        about += "these policies, not about the methods" if many else "this policy, not about the method"
        about += f" that trained {'them' if many else 'it'}."
    if not standings.contrasts:
        return about
    m = len(standings.contrasts)
    family = f"p is two-sided{f' and corrected for the {m} pairs (Holm)' if m > 1 else ''}"
    letters = "Arms that share a letter were not separated; " if any(row.letters for row in standings.rows) else ""
    return f"{about} {letters}{family if letters else family.capitalize()}."


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"
