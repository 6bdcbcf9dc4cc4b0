"""Types of options that several commands share, and tables in the terminal."""

from __future__ import annotations

import sys
from typing import Annotated, Any, Literal, TypeVar

import tyro

T = TypeVar("T")


def parse(kind: type[T], command: str, description: str, argv: list[str]) -> T:
    """Return the options of a command, a dataclass ``kind``, that ``argv`` sets."""
    prog = f"denoiserl {command}"
    return tyro.cli(kind, prog=prog, description=description, args=argv, config=(tyro.conf.DisallowNone,))


def hint(text: str) -> Any:
    """Return what the help of an option says instead of its default."""
    return tyro.conf.arg(help_behavior_hint=text)


Flag = tyro.conf.FlagCreatePairsOff[bool]
RunWord = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
JsonOption = Annotated[Flag, tyro.conf.arg(help="print JSON")]
CheckpointOption = Annotated[
    Literal["best", "last"], tyro.conf.arg(help="of a run: its best policy in held-out trials, or its last one")
]
DeviceOption = Annotated[
    str | None, tyro.conf.arg(help="where to compute", help_behavior_hint="(default: where the run did)")
]
MaxEpisodeStepsOption = Annotated[
    int | None,
    tyro.conf.arg(
        help="environment steps until an episode is over",
        help_behavior_hint="(default: the environment's)",
    ),
]
ExecutionHorizonOption = Annotated[
    int | None,
    tyro.conf.arg(
        help="actions executed of each chunk before the policy plans again",
        help_behavior_hint="(default: as the policy carries, or all)",
    ),
]


def print_table(head: tuple[str, ...], rows: list[tuple[str, ...]], right: int | None = None) -> None:
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
