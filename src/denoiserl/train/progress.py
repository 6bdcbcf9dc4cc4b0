"""Progress of a run: a bar with the time left in a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from denoiserl.train.run_state import Position


class Progress:
    """Show the running loop and its newest metrics; ``every``: seconds between lines without a terminal."""

    def __init__(self, on: bool = True, stream: TextIO | None = None, every: float = 5.0) -> None:
        self.on, self.stream, self.every = on, stream or sys.stderr, every
        self.stage: str | None = None
        self.began = self.shown = time.monotonic()
        self.newest = ""
        self.bar: Any = None
        self.task: Any = None
        if on and self.stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeRemainingColumn(elapsed_when_finished=True),
                TextColumn("{task.fields[newest]}"),
            )
            self.bar = Bar(*columns, console=Console(file=self.stream))
            self.bar.start()

    def update(self, at: Position) -> None:
        """Show that an iteration is done."""
        if not self.on:
            return
        if at.stage != self.stage:
            self.stage, self.began, self.newest = at.stage, time.monotonic(), ""
            if self.bar is not None:
                self.task = self.bar.add_task(at.stage or "run", total=at.total, newest="")
        if self.bar is not None:
            self.bar.update(self.task, completed=at.iteration, newest=self.newest)
        elif time.monotonic() - self.shown >= self.every or at.iteration == at.total:
            self._line(at)

    def row(self, row: dict[str, Any]) -> None:
        """Store the newest metrics."""
        numbers = {k: v for k, v in row.items() if isinstance(v, int | float) and k != "iteration"}
        self.newest = " ".join(f"{k}={v:.4g}" for k, v in list(numbers.items())[:4])

    def print(self, sentence: str) -> None:
        """Print a sentence above the bar."""
        if self.on:
            if self.bar is not None:
                self.bar.console.print(sentence, highlight=False, markup=False)
            else:
                print(sentence, file=self.stream, flush=True)

    def close(self) -> None:
        """Stop the bar and restore the terminal."""
        if self.bar is not None:
            self.bar.stop()

    def _line(self, at: Position) -> None:
        self.shown = time.monotonic()
        done = max(at.iteration - at.first, 1)
        if at.total is None:
            where = f"{at.iteration}"
        else:
            left = (self.shown - self.began) / done * (at.total - at.iteration)
            where = f"{at.iteration}/{at.total} {at.iteration / at.total:.0%}, {format_duration(left)} left"
        self.print(f"{at.stage or 'run'} {where}  {self.newest}".rstrip())


def format_duration(seconds: float) -> str:
    """Return seconds as h:mm:ss or m:ss."""
    minutes, s = divmod(round(seconds), 60)
    h, m = divmod(minutes, 60)
    return f"{h}:{m:02d}:{s:02d}" if h else f"{m}:{s:02d}"
