"""The record of a run: ``metrics.jsonl``, one row per line, byte for byte the same after an interruption.

A row holds its ``stage`` and ``iteration`` (null outside of loops) and the recipe's metrics. Wall time is not a metric:
it is in ``clock.jsonl``, line for line. Numbers that are not finite are the strings "nan", "inf" and "-inf", because
JSON has none. If TensorBoard is installed the numbers are also written under ``tb/``, one TensorBoard run per stage. In
long runs the distances between these values grow.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy
from torch import Tensor

from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.train.run_state import Position

SHOWN = 1000
"""number of values of a metric that are all written to TensorBoard"""


class MetricsLog:
    """Append rows to a run's folder; a resumed run keeps the first ``rows`` rows, those of the saved state."""

    def __init__(self, folder: Path, rows: int = 0, tensorboard: bool = True) -> None:
        self.folder, self.rows = folder, rows
        kept = _truncate(folder / "metrics.jsonl", rows)
        _truncate(folder / "clock.jsonl", rows, strict=False)
        # Rows of a repeated iteration (of an outer loop, or outside of loops) are not written twice.
        self.repeated = Counter((row["stage"], row["iteration"]) for row in map(json.loads, kept))
        self.metrics = (folder / "metrics.jsonl").open("a", encoding="utf-8")
        self.clock = (folder / "clock.jsonl").open("a", encoding="utf-8")
        self.boards: dict[str, _Board] | None = None
        if tensorboard and importlib.util.find_spec("tensorboard") is not None:
            self.boards = {}

    def write(self, row: dict[str, Any], at: Position | None, seconds: float = 0.0) -> dict[str, Any]:
        """Append a row of position ``at``, and return it as written."""
        place = {"stage": at.stage if at else None, "iteration": at.iteration if at else None}
        for name, value in place.items():
            if name in row and row[name] != value:
                raise InvalidInputError(
                    f"A metric cannot be called {name!r}, which every row has already: rename it in the recipe."
                )
        full = {**place, **{str(k): _plain(v, str(k)) for k, v in row.items()}}
        key = (place["stage"], place["iteration"])
        if self.repeated[key]:
            self.repeated[key] -= 1
            return full
        self.metrics.write(json.dumps(full, allow_nan=False) + "\n")
        self.clock.write(json.dumps({"seconds": round(seconds, 3), "time": round(time.time(), 3)}) + "\n")
        self.metrics.flush()
        self.clock.flush()
        self.rows += 1
        self._board(full, at)
        return full

    def mark(self) -> int:
        """Flush to disk and return the number of rows."""
        for file in (self.metrics, self.clock):
            os.fsync(file.fileno())
        return self.rows

    def close(self) -> None:
        """Close the files."""
        self.metrics.close()
        self.clock.close()
        for board in (self.boards or {}).values():
            board.close()

    def _board(self, row: dict[str, Any], at: Position | None) -> None:
        if self.boards is None or at is None:
            return
        if at.stage not in self.boards:
            # The new file's purge mark hides the events of repeated iterations.
            self.boards[at.stage] = _Board(self.folder / "tb" / (at.stage or "run"), at.first or None)
        self.boards[at.stage].add(row, at.iteration)


class _Board:
    """A TensorBoard run.

    It writes the first ``SHOWN`` values of a metric, then every second value, then every fourth, and so on. That is
    enough for a plot and keeps long runs fast. The last value is always written.
    """

    def __init__(self, folder: Path, purge: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=purge)
        self.seen: Counter[str] = Counter()
        self.left: dict[str, tuple[float, int]] = {}

    def add(self, row: dict[str, Any], iteration: int) -> None:
        """Write the numbers of a row, or keep them as the latest ones."""
        for name, value in row.items():
            if name in ("stage", "iteration") or not isinstance(value, int | float):
                continue
            i = self.seen[name]
            self.seen[name] += 1
            if i < SHOWN or i % (1 << (i // SHOWN).bit_length()) == 0:
                self.writer.add_scalar(name, value, iteration)
                self.left.pop(name, None)
            else:
                self.left[name] = (value, iteration)

    def close(self) -> None:
        """Write the latest numbers if they were skipped, and close."""
        for name, (value, iteration) in self.left.items():
            self.writer.add_scalar(name, value, iteration)
        self.writer.close()


def _plain(value: Any, name: str) -> Any:
    """Return the JSON value of a metric."""
    if isinstance(value, Tensor | numpy.ndarray | numpy.generic) and value.ndim == 0:
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, list | tuple):
        return [_plain(v, name) for v in value]
    if isinstance(value, dict):
        return {str(k): _plain(v, f"{name}.{k}") for k, v in value.items()}
    raise InvalidInputError(
        f"The metric {name!r} is a {type(value).__name__}: yield numbers, strings, or lists of them."
    )


def _truncate(path: Path, rows: int, strict: bool = True) -> list[bytes]:
    """Cut a file after its first ``rows`` lines, and return them."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines[:rows] if line.endswith(b"\n")]
    if len(whole) < rows and strict:
        raise RunError(
            f"{path} has {len(whole)} rows, the saved state has {rows}: restore it from a copy, or start anew."
        )
    if len(lines) > len(whole):
        os.truncate(path, sum(map(len, whole)))
    return whole
