"""Findings of the checks, and how they are printed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from denoiserl.core.errors import RunError, unknown_name_message

Level = Literal["ok", "note", "warning", "error"]
LEVELS: tuple[Level, ...] = get_args(Level)
MARKS = {"ok": ("✓", "green"), "note": ("·", "cyan"), "warning": ("!", "yellow"), "error": ("✗", "bold red")}


@dataclass(frozen=True)
class Finding:
    """The result of one check: ``message`` is the fact with its numbers, ``remedy`` what to do about it ("": nothing).

    Levels: ``ok``; ``note``, information, or the reason why something was not measured; ``warning``, training will be
    slow or biased; ``error``, training fails or optimises something else.
    """

    name: str
    level: Level
    message: str
    remedy: str = ""

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise RunError(unknown_name_message(self.level, LEVELS, "level of a finding"))
        if self.level in ("warning", "error") and not self.remedy:
            raise RunError(f"{self.name}: a finding of level {self.level} needs a remedy: say what to do")


def worst_level(findings: Iterable[Finding]) -> Level:
    """Return the worst level among findings; ``ok`` if there are none."""
    return LEVELS[max((LEVELS.index(f.level) for f in findings), default=0)]


def run_check(name: str, check: Callable[..., Finding], *args: object, **kwargs: object) -> Finding:
    """Run a check and return its finding; an error in it becomes a finding of level ``error``."""
    try:
        return check(*args, **kwargs)
    except Exception as error:  # a user's network, codec or environment may raise any error
        message = " ".join(str(error).split()) or type(error).__name__
        return Finding(name, "error", f"stopped by: {message}", "Correct this first: training would fail too.")


def print_findings(findings: Iterable[Finding], console: Console | None = None) -> None:
    """Print one line per finding with its remedy below, and a last line with the counts."""
    console, found = console or Console(highlight=False), list(findings)
    width = max((len(f.name) for f in found), default=0) + 3
    for f in found:
        mark, style = MARKS[f.level]
        head = Text(f"{mark} ", style) + Text(f"{f.name:<{width - 2}}", "bold")
        said = Text(f.message, style if f.level in ("warning", "error") else "")
        console.print(_hanging(head, said, width, console))
        if f.remedy:
            console.print(Padding(Text(f"→ {f.remedy}", "dim"), (0, 0, 0, width)))
    count = {level: sum(f.level == level for f in found) for level in LEVELS}
    counts = [f"{count[k]} {k}{'s' * (count[k] > 1)}" for k in ("error", "warning", "note") if count[k]]
    console.print(Text(f"{len(found)} checks: {', '.join(counts) or 'all ok'}.", "dim"))


def _hanging(head: Text, said: Text, width: int, console: Console) -> Text:
    """Return the head with the text wrapped beside it."""
    lines = said.wrap(console, max(20, console.width - width))
    parts = [head + lines[0]] if len(lines) else [head]
    return Text("\n").join([*parts, *(Text(" " * width) + line for line in lines[1:])])
