"""``list``, and tables in the terminal."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from typing import Any

import tyro

from denoiserl import recipes

Flag = tyro.conf.FlagCreatePairsOff[bool]


def hint(text: str) -> Any:
    """What the help of an option says instead of its default."""
    return tyro.conf.arg(help_behavior_hint=text)


@dataclass(frozen=True)
class List:
    """Options of ``list``."""

    json: Flag = False
    """print JSON"""


def list_(given: list[str]) -> None:
    """``denoiserl list [--json]``."""
    a = tyro.cli(List, prog="denoiserl list", description="The recipes.", args=given)
    cards = [recipes.describe(name) for name in recipes.names()]
    if a.json:
        rows = [{k: v for k, v in dataclasses.asdict(card).items() if k not in ("body", "facets")} for card in cards]
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    rows = [(c.module, f"{c.name}: {c.title}", c.paper, recipes.SIGNALS[c.signal], c.family) for c in cards]
    table(("recipe", "what it is", "paper", "learns from", "family"), rows)
    print("\ndenoiserl run RECIPE runs one, denoiserl run RECIPE --help lists its options.")


def table(head: tuple[str, ...], rows: list[tuple[str, ...]], right: int | None = None) -> None:
    """Print a table; from column ``right`` on, cells are aligned at their right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="dim", pad_edge=False)
    for i, name in enumerate(head):
        number = right is not None and i >= right
        table.add_column(name, justify="right" if number else "left", no_wrap=number or i == 0)
    for row in rows:
        table.add_row(Text(row[0], "bold"), *map(Text, row[1:]))
    Console(width=None if sys.stdout.isatty() else 140, highlight=False).print(table)
