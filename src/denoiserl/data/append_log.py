"""Rows on disk beside a saved state: a save appends the new rows only, so a large buffer is never written again.

Rows are numbered from the beginning. File ``rows-K.bin`` holds ``span`` of them, from K·span on, as fixed-size records
without a header. The state holds the records' layout, the number of rows and a checksum per file. Rows beyond the
state's count (of a run that was killed between appending and saving) are cut off by the next append.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from denoiserl.core.errors import RunError
from denoiserl.core.tree import Tree, leaves, tree_map

PIECE = 1 << 16
"""rows copied at a time"""


class RowFile:
    """The newest ``span`` rows of a growing sequence, in ``folder``.

    A file is deleted when neither this state nor the one before needs its rows. The newest saved state therefore finds
    all of its rows, whenever the process is killed.
    """

    def __init__(self, folder: Path, span: int) -> None:
        self.folder, self.span, self.count = folder, span, 0
        self.sums: dict[int, list[int]] = {}  # file -> [first row that it covers, checksum from there on]

    def append(self, rows: Callable[[Tensor], Tree], count: int) -> dict[str, Any]:
        """Write ``rows(numbers)`` up to ``count``, force them to disk, and return what the state must hold."""
        self.folder.mkdir(parents=True, exist_ok=True)
        keep = max(0, self.count - self.span)
        first = max(self.count, count - self.span)
        tree = rows(torch.arange(first, min(first + 1, count)))
        kind, layout = _kind(tree), tree_map(lambda v: [str(v.dtype).removeprefix("torch."), list(v.shape[1:])], tree)
        for k in range(first // self.span, -(-count // self.span)):
            low, high = max(first, k * self.span), min(count, (k + 1) * self.span)
            if low >= high:
                continue
            start, check = self.sums.get(k, [low, 0])
            if low > self.count:  # rows were lost between two saves, and no state needs them
                start, check = low, 0
            with self._path(k).open("r+b" if self._path(k).exists() else "w+b") as file:
                file.truncate((low - k * self.span) * kind.itemsize)
                file.seek(0, os.SEEK_END)
                for at in range(low, high, PIECE):
                    data = _packed(rows(torch.arange(at, min(at + PIECE, high))), kind)
                    check = zlib.crc32(data, check)
                    file.write(data)
                file.flush()
                os.fsync(file.fileno())
            self.sums[k] = [start, check]
        for k in [k for k in self.sums if (k + 1) * self.span <= keep]:
            self._path(k).unlink(missing_ok=True)
            del self.sums[k]
        self.count = count
        return {"layout": layout, "sums": {k: list(v) for k, v in self.sums.items()}}

    def restore(self, state: dict[str, Any], count: int) -> Tree:
        """Return the newest min(count, span) rows, row i at index i mod span.

        Raise RunError, naming the file, if one is missing, short or damaged.
        """
        self.count, self.sums = count, {int(k): list(v) for k, v in state["sums"].items()}
        held = min(count, self.span)
        layout = state["layout"]
        tree = tree_map_layout(layout, lambda dtype, shape: torch.empty(held, *shape, dtype=getattr(torch, dtype)))
        kind, oldest = _kind(tree), max(0, count - self.span)
        for k in range(oldest // self.span, -(-count // self.span)):
            base, high = k * self.span, min(count, (k + 1) * self.span)
            start, check = self.sums[k]
            records = self._read(k, start - base, high - start, kind)
            if zlib.crc32(records.tobytes()) != check:
                raise RunError(f"{self._path(k)} does not match its checksum: restore it from a copy, or run again")
            low = max(oldest, start)
            wanted, at = records[low - start :], torch.arange(low, high) % self.span
            for i, leaf in enumerate(leaves(tree)):
                leaf[at] = torch.from_numpy(np.ascontiguousarray(wanted[str(i)]))
        return tree

    def _path(self, k: int) -> Path:
        return self.folder / f"rows-{k}.bin"

    def _read(self, k: int, skip: int, rows: int, kind: np.dtype) -> np.ndarray:
        path = self._path(k)
        if not path.exists():
            raise RunError(f"{path} is missing, and the saved state needs it: restore it from a copy, or run again")
        found = np.fromfile(path, kind, rows, offset=skip * kind.itemsize)
        if len(found) < rows:
            raise RunError(f"{path} has {len(found)} of the {rows} rows that the saved state needs: restore it, or run "
                         "again")  # fmt: skip
        return found


def _kind(tree: Tree) -> np.dtype:
    """Return the record of one row: a field per leaf, little-endian and packed."""
    fields = [(str(i), v.numpy().dtype.newbyteorder("<"), tuple(v.shape[1:])) for i, v in enumerate(leaves(tree))]
    return np.dtype(fields)


def _packed(tree: Tree, kind: np.dtype) -> bytes:
    parts = [v.numpy() for v in leaves(tree)]
    records = np.empty(len(parts[0]), kind)
    for i, part in enumerate(parts):
        records[str(i)] = part
    return records.tobytes()


def tree_map_layout(layout: Any, make: Callable[[str, list[int]], Tensor]) -> Any:
    """Return the tensors of a layout: dicts of [dtype, shape of a row]."""
    if isinstance(layout, dict):
        return {k: tree_map_layout(v, make) for k, v in layout.items()}
    return make(*layout)
