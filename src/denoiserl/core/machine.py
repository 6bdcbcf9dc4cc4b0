"""The machine that a process runs on."""

from __future__ import annotations

import os


def count_cores() -> int:
    """Return the number of parallel processes that suits this machine: its cores, eight at most."""
    return max(1, min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))
