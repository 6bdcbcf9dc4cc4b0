"""Numbers and verdicts as text: the same words in the terminal, on a page and in a picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from denoiserl.stats.standing import ComparisonTable, Contrast


def decimals(widths: Iterable[float]) -> int:
    """Decimals at which the narrowest width that is not zero keeps two digits; 2 where there is none."""
    narrow = min((w for w in widths if w > 0), default=0.0)
    return 2 if narrow == 0 else min(6, max(0, 1 - math.floor(math.log10(narrow))))


def number(value: float, places: int) -> str:
    """A number with its decimals and a true minus sign; what rounds to zero has none."""
    text = f"{value:.{places}f}"
    return text.replace("-", "−") if float(text) else text.replace("-", "")


def duration(seconds: float | None) -> str:
    """Seconds, minutes or hours, whichever is read best; a dash where nothing was measured."""
    if seconds is None:
        return "–"
    size, unit = (1, "s") if seconds < 100 else (60, "min") if seconds < 5940 else (3600, "h")
    scaled = seconds / size
    return f"{scaled:.{1 if scaled < 9.95 else 0}f} {unit}"


def count(n: float | None) -> str:
    """A large count in thousands (k), millions (M) or billions (G), to three digits; a dash for none."""
    if n is None:
        return "–"
    for size, mark in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= 0.9995 * size:
            return f"{n / size:.3g}{mark}"
    return f"{n:.3g}"


def probability(p: float) -> str:
    """``p = 0.013``; below a thousandth only that it is below."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def values(standings: ComparisonTable) -> Callable[[float], str]:
    """The means and ends of a table as text, without the unit: rates as percentages with one decimal.

    Others have as many digits as the narrowest interval asks for.
    """
    if standings.unit == "%":
        return lambda value: f"{number(100 * value, 1)}%"
    places = decimals(row.interval.high - row.interval.low for row in standings.rows)
    return lambda value: number(value, places)


def verdict(standings: ComparisonTable, contrast: Contrast) -> str:
    """What a contrast shows, in a sentence that claims no more than it.

    The arm that stands better in the table is named first. A pair that is not separated is said to be that, with the
    difference that this design would have seen.
    """
    rank = {row.name: i for i, row in enumerate(standings.rows)}
    first, second = sorted((contrast.first, contrast.second), key=rank.__getitem__)
    c = standings.contrast(first, second)
    above = c.difference.mean >= 0
    scale = 100 if standings.unit == "%" else 1
    unit = " points" if standings.unit == "%" else f" {standings.unit}" if standings.unit else ""
    low, high = sorted(scale * (v if above else -v) for v in (c.difference.low, c.difference.high))
    places = decimals([high - low])
    size, ends = number(abs(scale * c.difference.mean), places), f"[{number(low, places)}, {number(high, places)}]"
    way = f"{first} is {'above' if above else 'below'} {second} by {size} {ends}{unit}, {probability(c.p)}"
    if c.separated:
        return f"{way}."
    if not math.isfinite(c.smallest) or (standings.unit == "%" and c.smallest >= 1):
        return f"{way}: not separated, and this design could hardly have seen any difference."
    return (
        f"{way}: not separated; a difference of {number(scale * c.smallest, places)}{unit} would have been seen "
        "with power 0.8."
    )


def scope(standings: ComparisonTable) -> str:
    """What the table's intervals and letters mean, and what its verdicts are about."""
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
