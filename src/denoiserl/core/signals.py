"""Signals that end a program: Ctrl-C, SIGTERM, and SIGHUP of a closed terminal."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

ENDS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""signals that a run saves itself for; Windows has no SIGHUP"""


class Interrupted(KeyboardInterrupt):
    """Raised at once by a signal; ``number`` is the signal."""

    def __init__(self, number: int = int(signal.SIGINT), message: str = "") -> None:
        super().__init__(message)
        self.number = int(number)


def _raise(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)


@contextmanager
def replace_handlers(handler: Any) -> Iterator[dict[int, Any]]:
    """Let ``handler(number, frame)`` answer the signals inside the context; yield the handlers that it replaces.

    Ignored signals stay ignored, as under nohup. Threads other than the main one cannot set handlers.
    """
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in ENDS:
            if (usual := signal.getsignal(number)) not in (signal.SIG_IGN, None):
                before[number] = usual
                signal.signal(number, handler)
    try:
        yield before
    finally:
        for number, usual in before.items():
            signal.signal(number, usual)


@contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """Raise ``Interrupted`` inside the context when a signal would end the process without a word."""
    with replace_handlers(_raise):
        yield


@contextmanager
def interrupts(on: bool) -> Iterator[list[int]]:
    """Yield a list that a signal appends to; a second signal raises ``Interrupted`` at once."""
    caught: list[int] = []

    def catch(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        for each in ENDS:
            if signal.getsignal(each) is catch:
                signal.signal(each, _raise)

    if not on:
        yield caught
        return
    with replace_handlers(catch):
        yield caught
