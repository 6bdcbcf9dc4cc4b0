"""The improvement of a run: its policies before and after on the same trials, as a table and sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from denoiserl.report.formatting import decimals, number, values
from denoiserl.stats.interval import Interval
from denoiserl.stats.standing import ComparisonTable

BEFORE, CONTROL, AFTER = "before", "more imitation", "after"
"""names of the policies: where improvement began, the control, and where it ended"""


def compares_improvement(tables: Sequence[ComparisonTable]) -> bool:
    """Return whether the tables compare a run's policy after improvement with the one before."""
    return bool(tables) and {BEFORE, AFTER} <= {row.name for row in tables[0].rows} and bool(tables[0].contrasts)


def only_after(table: ComparisonTable) -> ComparisonTable:
    """Return the table with the policy after improvement alone, if it compares that with others; else the table."""
    if not compares_improvement([table]):
        return table
    return replace(table, rows=(table.row(AFTER),), contrasts=())


def improvement_table(tables: Sequence[ComparisonTable]) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of a table: each metric before and after, the paired difference, its interval."""
    names = [name for name in (BEFORE, CONTROL, AFTER) if any(row.name == name for row in tables[0].rows)]
    head = ["metric", *names, f"{AFTER} − {BEFORE}", f"{100 * (1 - tables[0].level):g} % interval", "trials"]
    rows = []
    for table in tables:
        text, means = values(table), {row.name: row.interval.mean for row in table.rows}
        label = f"{table.what or table.metric}{f' ({table.unit})' if table.unit not in ('', '%') else ''}"
        cells = [text(means[name]) if name in means else "–" for name in names]
        if table.contrasts and {BEFORE, AFTER} <= set(means):
            change = table.contrast(AFTER, BEFORE).difference
            mean, low, high = _scaled(table, change)
            ends = f"{low} to {high}"
            rows.append([label, *cells, mean if mean.startswith("−") else f"+{mean}", ends, str(change.n)])
        else:
            rows.append([label, *cells, "–", "–", str(table.rows[0].interval.n)])
    return head, rows


def improvement_sentences(table: ComparisonTable) -> list[str]:
    """Return a sentence for each comparison of the policy after improvement: with the one before, and the control."""
    names = {row.name for row in table.rows}
    found = [_change(table, BEFORE, ("It got better", "It got worse", "No change shown"))]
    if CONTROL in names:
        labels = ("More imitation for the same time is worse", "More imitation for the same time is better")
        found.append(_change(table, CONTROL, (*labels, "No difference from more imitation for the same time shown")))
    return found


def _change(table: ComparisonTable, other: str, labels: tuple[str, str, str]) -> str:
    """Return how far the policy after improvement differs from another; labels for better, worse and neither."""
    c = table.contrast(AFTER, other)
    mean, low, high = _scaled(table, c.difference)
    unit = " points" if table.unit == "%" else f" {table.unit}" if table.unit else ""
    more = c.difference.mean >= 0
    what, share = table.what or table.metric, f"{100 * (1 - table.level):g} %"
    size = f"{mean.lstrip('−')}{unit} {'more' if more else 'less'}"
    text = f"{what}, {size} ({share} interval {low} to {high})."
    if c.separated:
        better = more == (table.better == "higher")
        return f"{labels[0] if better else labels[1]}: {text}"
    if c.difference.mean == 0:
        text = f"{what}, no difference ({share} interval {low} to {high})."
    if not math.isfinite(c.min_detectable_effect) or (table.unit == "%" and c.min_detectable_effect >= 1):
        return f"{labels[2]}: {text} These {c.difference.n} trials can hardly detect any difference."
    scale = 100 if table.unit == "%" else 1
    smallest = number(scale * c.min_detectable_effect, decimals([scale * (c.difference.high - c.difference.low)]))
    return f"{labels[2]}: {text} {c.difference.n} trials detect {smallest}{unit} or more with power 0.8."


def _scaled(table: ComparisonTable, difference: Interval) -> tuple[str, str, str]:
    """Return mean, low and high of a difference as text, in points for rates."""
    scale = 100 if table.unit == "%" else 1
    places = decimals([scale * (difference.high - difference.low)])
    mean, low, high = (number(scale * v, places) for v in (difference.mean, difference.low, difference.high))
    return mean, low, high
