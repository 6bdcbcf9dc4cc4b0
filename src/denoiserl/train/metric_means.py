"""Rows of metrics, and the means of the metrics of an iteration's updates."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Metrics = dict[str, float]
"""a row of metrics, by name: one per iteration"""


class MetricMeans:
    """Collect a row of numbers per update; ``mean`` returns their means.

    0-dimensional tensors become numbers when they are added, so no graph stays in memory.
    """

    def __init__(self) -> None:
        self._rows: dict[tuple[str, ...], list[tuple[float, ...]]] = {}

    def __len__(self) -> int:
        return sum(len(rows) for rows in self._rows.values())

    def add(self, row: Mapping[str, float | Tensor]) -> None:
        """Add the numbers of an update."""
        self._rows.setdefault(tuple(row), []).append(tuple(float(v) for v in row.values()))

    def mean(self) -> Metrics:
        """Return the mean of each number over the updates that reported it, in float32; {} without updates."""
        if len(self._rows) == 1:
            ((names, rows),) = self._rows.items()
            return dict(zip(names, torch.tensor(rows).mean(0).tolist(), strict=True))
        every: dict[str, list[float]] = {}
        for names, rows in self._rows.items():
            for row in rows:
                for name, value in zip(names, row, strict=True):
                    every.setdefault(name, []).append(value)
        return {name: float(torch.tensor(values).mean()) for name, values in every.items()}
