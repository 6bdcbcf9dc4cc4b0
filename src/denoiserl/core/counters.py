"""What a run has spent, counted where it is spent.

Environments, denoisers, rewards and optimiser steps call ``count_usage``; recipes never do. Whoever wants to know holds
a ``UsageCounter`` open around the work. Meters nest: what is spent inside counts for all of them. A thread starts
without a meter (it is a context variable): count in the thread that hands out the work.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from denoiserl.core.errors import RunError, unknown_name_message

UNITS = ("env_steps", "denoiser_calls", "denoiser_rows", "reward_calls", "updates")


class UsageCounter:
    """Counts in ``UNITS``; a child's counts are its parent's too."""

    def __init__(self, parent: UsageCounter | None = None) -> None:
        self.counts: dict[str, int] = dict.fromkeys(UNITS, 0)
        self.parent = parent

    def add(self, unit: str, n: int) -> None:
        """Count ``n`` of ``unit`` here and in every meter above."""
        if unit not in self.counts:
            raise RunError(unknown_name_message(unit, UNITS, "unit of work"))
        for meter in self.ancestors():
            meter.counts[unit] += n

    def ancestors(self) -> list[UsageCounter]:
        """This meter and those above it."""
        return [self, *(self.parent.ancestors() if self.parent else [])]

    def restore(self, counts: Mapping[str, int]) -> None:
        """Set the counts to saved ones; the meters above learn the difference."""
        for unit, n in counts.items():
            self.add(unit, n - self.counts.get(unit, 0))

    @contextmanager
    def open(self) -> Iterator[UsageCounter]:
        """Count here, above, and in the meters that are open already, what is spent inside."""
        before = _open.get()
        _open.set(tuple(dict.fromkeys((*before, *self.ancestors()))))
        try:
            yield self
        finally:
            _open.set(before)  # not by token: a generator may be closed from another context


_open: ContextVar[tuple[UsageCounter, ...]] = ContextVar("denoiserl_meters", default=())


def count_usage(unit: str, n: int = 1) -> None:
    """Count ``n`` of ``unit`` (one of ``UNITS``) in the open meters; without one this does nothing."""
    if unit not in UNITS:
        raise RunError(unknown_name_message(unit, UNITS, "unit of work"))
    for meter in _open.get():
        meter.counts[unit] += n


@contextmanager
def no_usage_counting() -> Iterator[None]:
    """Work inside is free: held-out evaluations, demonstrations made on the way."""
    before = _open.get()
    _open.set(())
    try:
        yield
    finally:
        _open.set(before)
