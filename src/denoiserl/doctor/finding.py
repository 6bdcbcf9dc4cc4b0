"""What an examination says: findings, and how they are printed."""

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
    """What one check found: ``said`` is the fact with its numbers, ``remedy`` what to do about it ("": nothing).

    ``ok`` is as it should be; a ``note`` is worth knowing, or says why something was not measured; a ``warning`` will
    cost time; with an ``error`` learning fails or learns something else.
    """

    name: str
    level: Level
    said: str
    remedy: str = ""

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise RunError(unknown_name_message(self.level, LEVELS, "level of a finding"))
        if self.level in ("warning", "error") and not self.remedy:
            raise RunError(f"{self.name}: a {self.level} says what to do about it: give a remedy")


def worst(findings: Iterable[Finding]) -> Level:
    """The gravest level among findings; ``ok`` where there are none."""
    return LEVELS[max((LEVELS.index(f.level) for f in findings), default=0)]


def run_check(name: str, check: Callable[..., Finding], *args: object, **kwargs: object) -> Finding:
    """The finding of a check; a check that something of the user's stops is a finding too."""
    try:
        return check(*args, **kwargs)
    except Exception as error:  # a network, a codec or an environment of a user raises what it likes
        said = " ".join(str(error).split()) or type(error).__name__
        return Finding(name, "error", f"stopped by: {said}", "Repair this first: learning would meet it too.")


def print_findings(findings: Iterable[Finding], console: Console | None = None) -> None:
    """One line a finding, its remedy below, and a last line that counts."""
    console, found = console or Console(highlight=False), list(findings)
    width = max((len(f.name) for f in found), default=0) + 3
    for f in found:
        mark, style = MARKS[f.level]
        head = Text(f"{mark} ", style) + Text(f"{f.name:<{width - 2}}", "bold")
        said = Text(f.said, style if f.level in ("warning", "error") else "")
        console.print(_hanging(head, said, width, console))
        if f.remedy:
            console.print(Padding(Text(f"→ {f.remedy}", "dim"), (0, 0, 0, width)))
    count = {level: sum(f.level == level for f in found) for level in LEVELS}
    told = [f"{count[k]} {k}{'s' * (count[k] > 1)}" for k in ("error", "warning", "note") if count[k]]
    console.print(Text(f"{len(found)} checks: {', '.join(told) or 'all well'}.", "dim"))


def _hanging(head: Text, said: Text, width: int, console: Console) -> Text:
    """The head, and what is said wrapped beside it."""
    lines = said.wrap(console, max(20, console.width - width))
    parts = [head + lines[0]] if len(lines) else [head]
    return Text("\n").join([*parts, *(Text(" " * width) + line for line in lines[1:])])
