"""Comparisons in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from denoiserl.core.errors import RunError
from denoiserl.stats.comparison import LABELS, Comparison

STYLE = {"before": "dim", "more imitation": "yellow"}


def console_table(comparisons: Sequence[Comparison], title: str | None = None) -> Table:
    """Return a table with rows for before, more imitation and after: mean, interval, number of observations."""
    if not comparisons:
        raise RunError("There is nothing to compare: give at least one Comparison.")
    found = Table(title=title, title_justify="left", title_style="bold", header_style="dim", box=None, pad_edge=False)
    for head in ("task", "metric", ""):
        found.add_column(head)
    for head in ("mean", "95 % interval", "n"):
        found.add_column(head, justify="right", no_wrap=True)
    for c in comparisons:
        for i, (label, row) in enumerate(c.rows):
            style = ("bold green" if c.is_better() else "bold") if label == LABELS["after"] else STYLE.get(label, "")
            low, high = c.format_value(row.low), c.format_value(row.high)
            cells = (label, c.format_value(row.mean), f"{low} – {high}", str(row.n))
            head = (Text(c.name, "bold"), Text(c.metric)) if i == 0 else (Text(), Text())
            found.add_row(*head, *(Text(cell, style) for cell in cells), end_section=label == LABELS["after"])
    return found


def print_comparisons(
    comparisons: Sequence[Comparison], console: Console | None = None, title: str | None = None
) -> None:
    """Print the table and the verdict of each comparison."""
    console = console or Console()
    console.print(console_table(comparisons, title))
    for c in comparisons:
        mark = Text("✓ ", "green") if c.is_better() else Text("– ", "yellow")
        took = f" ({c.seconds:.0f} s)" if c.seconds is not None else ""
        console.print(mark + Text(f"{c.name}, {c.metric}: {c.verdict()}{took}"))
