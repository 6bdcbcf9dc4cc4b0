"""The table of a comparison, in the terminal and as a section of a page."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from denoiserl.core.errors import RunError
from denoiserl.report.formatting import comparison_scope, count, duration, values, verdict
from denoiserl.report.html import Fold, Piece, Prose, Section, Table, make_figure
from denoiserl.report.violins import violins
from denoiserl.stats.standing import ComparisonRow, ComparisonTable


def print_standings(standings: ComparisonTable, console: Console | None = None, title: str | None = None) -> None:
    """Print the table, a sentence for every contrast, and what the intervals refer to."""
    console = console or Console()
    console.print(console_standings(standings, title))
    for c in standings.contrasts:
        mark = Text("✓ ", "green") if c.separated else Text("– ", "yellow")
        console.print(mark + Text(verdict(standings, c)))
    console.print(Text(comparison_scope(standings), "dim"))


def console_standings(standings: ComparisonTable, title: str | None = None) -> Grid:
    """Return a table with one row per arm, best first. Columns without values (cost, letters) are left out."""
    head, rows = cells(standings)
    less = " (lower is better)" if standings.better == "lower" else ""
    found = Grid(
        title=title or f"{standings.what or standings.metric}{less}",
        title_justify="left",
        title_style="bold",
        header_style="dim",
        box=None,
        pad_edge=False,
    )
    for name in head:
        plain = name in ("arm", "group")
        fold = name in ("arm", "each seed")
        found.add_column(name, justify="left" if plain else "right", no_wrap=not fold, overflow="fold")
    for row in rows:
        found.add_row(*(Text(cell, "bold" if i in (0, 1) else "") for i, cell in enumerate(row)))
    return found


def standings_section(standings: ComparisonTable, title: str = "") -> Section:
    """Return a section with the plot, the table and every contrast as a sentence, folded if there are many."""
    head, rows = cells(standings)
    less = " (lower is better)" if standings.better == "lower" else ""
    verdicts = [verdict(standings, c) for c in standings.contrasts]
    seeds = standings.basis == "seeds"
    behind = "Rings are training seeds" if seeds else "Shapes are posterior densities, all of one height"
    figure = make_figure(
        lambda theme: violins(standings, theme, None if title else ""),  # the section says it
        f"{behind}; dots are means, lines intervals.",
        " ".join(verdicts) or f"{standings.metric} of {', '.join(row.name for row in standings.rows)}",
    )
    numbers = tuple(i for i, name in enumerate(head) if name not in ("arm", "group"))
    pieces: list[Piece] = [figure, Table(head, rows, numbers=numbers), Prose(comparison_scope(standings))]
    if 0 < len(verdicts) <= 3:
        pieces.append(Prose("\n\n".join(verdicts)))
    elif verdicts:
        apart = sum(c.separated for c in standings.contrasts)
        pieces.append(Fold(f"Every pair: {apart} of {len(verdicts)} separated", [Prose("\n\n".join(verdicts))]))
    return Section(title or f"{_capital(standings.what or standings.metric)}{less}", pieces)


def cells(standings: ComparisonTable) -> tuple[list[str], list[list[str]]]:
    """Return the heads and rows of the table as text."""
    if not standings.rows:
        raise RunError("There is nothing to compare: give at least one arm.")
    rows, text = standings.rows, values(standings)
    unit = f" ({standings.unit})" if standings.unit not in ("", "%") else ""
    columns: dict[str, list[str]] = {
        "arm": [row.name for row in rows],
        f"mean{unit}": [text(row.interval.mean) for row in rows],
        f"{100 * (1 - standings.level):g} % interval": [
            f"{text(row.interval.low)} – {text(row.interval.high)}" for row in rows
        ],
    }
    if any(row.letters for row in rows):
        columns["group"] = [row.letters for row in rows]
    if standings.basis == "seeds":
        columns["each seed"] = [_compact(row, standings) for row in rows]
    else:
        columns["trials"] = [str(row.interval.n) for row in rows]
    if any(row.seconds is not None for row in rows):
        columns["training"] = [duration(row.seconds) for row in rows]
    if any(row.calls is not None for row in rows):
        columns["denoiser_calls"] = [count(row.calls) for row in rows]
    return list(columns), [list(row) for row in zip(*columns.values(), strict=True)]


def _compact(row: ComparisonRow, standings: ComparisonTable) -> str:
    """Return the seeds' means in one line without a unit; rates are whole percentages."""
    if standings.unit == "%":
        return " ".join(f"{100 * v:.0f}" for v in row.per_seed)
    return " ".join(map(values(standings), row.per_seed))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
