"""Progress on stderr: bars with the time left in a terminal, a line every few seconds elsewhere.

A command opens a ``ProgressDisplay``. Any code below it reports with ``track`` and ``say``, and needs no argument for
it. Without a display both do nothing, so a library call is silent.

    with track("held-out trials", total=100) as advance:
        advance(32)
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TextIO, TypeVar

T = TypeVar("T")

EVERY = 5.0
"""seconds between lines without a terminal"""


@dataclass
class ProgressTask:
    """A piece of work: ``done`` of ``total`` (None: unknown), and the newest numbers as text."""

    label: str
    total: int | None = None
    done: int = 0
    newest: str = ""
    first: int = 0
    """where this process began"""
    began: float = field(default_factory=time.monotonic)
    bar: Any = None

    def line(self) -> str:
        """Return the task as one line, with the time left once something is done."""
        took = time.monotonic() - self.began
        if self.total is None:
            return f"{self.label} {self.done or ''} {format_duration(took)}  {self.newest}".replace("  ", " ").rstrip()
        text = f"{self.label} {self.done}/{self.total} {self.done / max(self.total, 1):.0%}"
        if self.done == self.total:
            text += f", in {format_duration(took)}"
        elif self.done > self.first:
            left = took / (self.done - self.first) * (self.total - self.done)
            text += f", {format_duration(left)} left"
        return f"{text}  {self.newest}".rstrip()


class ProgressDisplay:
    """A display of tasks on a stream; ``every``: seconds between lines without a terminal.

    Without a terminal, a thread writes the innermost task if nothing was written for twice as long.
    """

    def __init__(self, on: bool = True, stream: TextIO | None = None, every: float = EVERY) -> None:
        shown: Any = sys.stderr if stream is None else stream  # None if stderr is closed
        self.stream, self.on, self.every = shown, on and shown is not None, every
        self.tasks: list[ProgressTask] = []
        self.written = time.monotonic()
        self.terminal, self.bars = False, None
        self.over = threading.Event()
        self.lock = threading.RLock()
        if not self.on:
            return
        self.terminal = self.stream.isatty()
        if not self.terminal and every > 0:
            threading.Thread(target=self._beat, daemon=True).start()

    def add(self, label: str, total: int | None = None, first: int = 0) -> ProgressTask:
        """Return a new task, which is shown."""
        task = ProgressTask(label, total, first, first=first)
        with self.lock:
            self.tasks.append(task)
        if self.on and self.terminal:
            self.bars = self.bars or _open_bars(self.stream)
            task.bar = self.bars.add_task(label, total=total, completed=first, newest="")
        return task

    def update(self, task: ProgressTask, done: int | None = None, newest: str | None = None) -> None:
        """Show how far a task is; a line is written if the last one is old enough, or the task is done."""
        task.done = task.done if done is None else done
        task.newest = task.newest if newest is None else newest
        if self.bars is not None:
            self.bars.update(task.bar, completed=task.done, newest=task.newest)
        elif task.done > task.first and time.monotonic() - self.written >= self.every:
            self.print(task.line())

    def end(self, task: ProgressTask, keep: bool = False) -> None:
        """Remove a task; ``keep`` leaves its last line. Bars are closed with the last task."""
        with self.lock:
            if task in self.tasks:
                self.tasks.remove(task)
        if self.bars is not None:
            self.bars.remove_task(task.bar)
        if keep:
            self.print(task.line())
        if not self.tasks:
            self._close_bars()

    def print(self, sentence: str) -> None:
        """Write a sentence, above the bars. A stream that is gone turns the display off."""
        if not self.on:
            return
        self.written = time.monotonic()
        try:
            if self.bars is not None:
                self.bars.console.print(sentence, highlight=False, markup=False, soft_wrap=True)
            else:
                print(sentence, file=self.stream, flush=True)
        except (OSError, ValueError):  # the terminal is closed; the work goes on, or saves itself
            self.on = False

    def close(self) -> None:
        """Stop the bars, and restore the terminal."""
        self.over.set()
        self._close_bars()

    def _close_bars(self) -> None:
        if self.bars is not None:
            with suppress(OSError, ValueError):
                self.bars.stop()
        self.bars = None

    def _beat(self) -> None:
        """Write the innermost task when nothing was written for a while, until the display is closed."""
        while not self.over.wait(self.every / 2):
            with self.lock:
                task = self.tasks[-1] if self.tasks else None
            if task is not None and time.monotonic() - self.written >= 2 * self.every:
                self.print(task.line())


_display: ContextVar[ProgressDisplay | None] = ContextVar("display", default=None)


@contextmanager
def show_progress(on: bool = True, stream: TextIO | None = None, every: float = EVERY) -> Iterator[ProgressDisplay]:
    """Show the progress of the code inside the context. A display that is open already is used, or hidden if not on."""
    outer = _display.get()
    if on and outer is not None:
        yield outer
        return
    display = ProgressDisplay(on, stream, every)
    token = _display.set(display)
    try:
        yield display
    finally:
        _display.reset(token)
        display.close()


@contextmanager
def track(label: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """Show a task while the code inside the context runs.

    Yield ``advance(n=1, newest=None)``, which counts finished items and sets the newest numbers.
    """
    display = _display.get()
    if display is None or not display.on:
        yield lambda n=1, newest=None: None
        return
    task = display.add(label, total)
    try:
        yield lambda n=1, newest=None: display.update(task, task.done + n, newest)
    finally:
        display.end(task)


def iterate(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Yield the items, and show how many are done; ``total``: their number, if they have no length."""
    with track(label, len(items) if total is None and isinstance(items, Sized) else total) as advance:
        for item in items:
            yield item
            advance()


def say(sentence: str) -> None:
    """Write a sentence where progress is shown."""
    display = _display.get()
    if display is not None:
        display.print(sentence)


def _open_bars(stream: TextIO) -> Any:
    """Return rich's bars on a terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column

    whole, rest = Column(no_wrap=True), Column(no_wrap=True, overflow="ellipsis", ratio=1)
    columns = (
        TextColumn("{task.description}", table_column=whole),
        BarColumn(bar_width=12),
        MofNCompleteColumn(table_column=whole),
        TimeElapsedColumn(table_column=whole),
        TimeRemainingColumn(table_column=whole),
        TextColumn("{task.fields[newest]}", table_column=rest),
    )
    bars = Progress(*columns, console=Console(file=stream), transient=True, expand=True)
    bars.start()
    return bars


def format_duration(seconds: float) -> str:
    """Return seconds as h:mm:ss or m:ss."""
    minutes, s = divmod(round(seconds), 60)
    h, m = divmod(minutes, 60)
    return f"{h}:{m:02d}:{s:02d}" if h else f"{m}:{s:02d}"
