"""Usage counters: environment steps, network calls, reward calls and updates of a run.

Environments, denoisers, rewards and optimiser steps call ``count_usage``; recipes never do. To read the counts, open a
``UsageCounter`` around the work. Counters nest: usage inside is added to all open counters. The open counters are a
context variable, so a new thread has none: count in the thread that hands out the work.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from denoiserl.core.errors import RunError, unknown_name_message

UNITS = ("env_steps", "denoiser_calls", "denoiser_rows", "reward_calls", "updates")


class UsageCounter:
    """Counts in ``UNITS``. Counts of a child are also added to its parents."""

    def __init__(self, parent: UsageCounter | None = None) -> None:
        self.counts: dict[str, int] = dict.fromkeys(UNITS, 0)
        self.parent = parent

    def add(self, unit: str, n: int) -> None:
        """Add ``n`` of ``unit`` here and in all parents."""
        if unit not in self.counts:
            raise RunError(unknown_name_message(unit, UNITS, "unit of work"))
        for counter in self.ancestors():
            counter.counts[unit] += n

    def ancestors(self) -> list[UsageCounter]:
        """Return this counter and its parents."""
        return [self, *(self.parent.ancestors() if self.parent else [])]

    def restore(self, counts: Mapping[str, int]) -> None:
        """Set the counts to saved ones, and add the difference to the parents."""
        for unit, n in counts.items():
            self.add(unit, n - self.counts.get(unit, 0))

    @contextmanager
    def open(self) -> Iterator[UsageCounter]:
        """Count usage inside the context here, in the parents, and in the counters that are open already."""
        before = _open.get()
        _open.set(tuple(dict.fromkeys((*before, *self.ancestors()))))
        try:
            yield self
        finally:
            _open.set(before)  # not by token: a generator may be closed from another context


_open: ContextVar[tuple[UsageCounter, ...]] = ContextVar("denoiserl_meters", default=())


def count_usage(unit: str, n: int = 1) -> None:
    """Add ``n`` of ``unit`` (one of ``UNITS``) to the open counters; do nothing without one."""
    if unit not in UNITS:
        raise RunError(unknown_name_message(unit, UNITS, "unit of work"))
    for counter in _open.get():
        counter.counts[unit] += n


@contextmanager
def no_usage_counting() -> Iterator[None]:
    """Exclude the work inside from all counters, such as held-out evaluations."""
    before = _open.get()
    _open.set(())
    try:
        yield
    finally:
        _open.set(before)
