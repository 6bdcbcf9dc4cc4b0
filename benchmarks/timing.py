"""Races: contestants take turns, so that a busy machine slows all alike, and the median of the ratios counts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Work = Callable[[], object]


@dataclass(frozen=True)
class Race:
    """``seconds[name][round]``: what each contestant took in each round."""

    seconds: dict[str, list[float]]

    @property
    def rounds(self) -> int:
        """How often everyone ran."""
        return len(next(iter(self.seconds.values())))

    def median(self, name: str) -> float:
        """The median time of a contestant in seconds."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, floor: str) -> float:
        """The median over rounds of the time of ``name`` over that of ``floor``."""
        return statistics.median(a / b for a, b in zip(self.seconds[name], self.seconds[floor], strict=True))


def clock() -> Callable[[], float]:
    """Seconds of work: this thread's own processor time if it works alone, wall time if torch uses several threads."""
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter


def race(contestants: Mapping[str, Work], seconds: float, least: int = 5) -> Race:
    """Everyone runs once to warm up, then in rounds (each starts with another) for about ``seconds`` of wall time."""
    now, names = clock(), list(contestants)
    for work in contestants.values():
        work()
    taken: dict[str, list[float]] = {name: [] for name in names}
    end, n = time.perf_counter() + seconds, 0
    while n < least or time.perf_counter() < end:
        for name in names[n % len(names) :] + names[: n % len(names)]:
            start = now()
            contestants[name]()
            taken[name].append(now() - start)
        n += 1
    return Race(taken)
