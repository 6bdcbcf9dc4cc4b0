"""Where a run computes: device, precision of the networks, threads. The runner's business, never a recipe's.

States and laws stay float32. Networks may run in bf16 where the hardware is faster at it, and float32 matrix products
may take the library that is faster at the same error; which is so is measured once (``probe``) and told in the log.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from denoiserl.errors import BadRun, nearest
from denoiserl.precision import net_precision

PRECISIONS = ("float32", "bf16")
FASTER = 1.2
"""a choice must be this much faster to be taken: less is noise"""
EXACT = 1e-5
"""largest relative error of a float32 product that still counts as float32 (a bf16 product has 3e-3)"""


@dataclass
class Place:
    """A device, the precision of the networks and the number of threads.

    ``threads``: None leaves torch's own. ``chosen``: an earlier ``choose()``, to compute as that run did; without it
    the machine is probed. Use it as ``with place.here(): ...``.
    """

    device: str = "cpu"
    precision: str = "float32"
    threads: int | None = None
    chosen: dict[str, Any] | None = field(default=None)

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise BadRun(nearest(self.precision, PRECISIONS, "precision"))
        if self.threads is not None and self.threads < 1:
            raise BadRun(f"threads={self.threads}: at least one is needed.")
        try:
            kind = torch.device(self.device).type
        except RuntimeError as error:
            raise BadRun(f"There is no device {self.device!r}: cpu, cuda, cuda:1 or mps.") from error
        if kind == "cuda" and not torch.cuda.is_available():
            raise BadRun("This torch sees no CUDA device: use device cpu, or install a CUDA build of torch.")
        if kind == "mps" and not torch.backends.mps.is_available():
            raise BadRun("This torch sees no MPS device: use device cpu.")

    @contextmanager
    def here(self) -> Iterator[dict[str, Any]]:
        """Compute at this place inside; yields what was chosen, for the log. The caller's are put back after.

        Where "bf16" was chosen, the networks of ``Gauss`` and ``Logits`` run in it (``denoiserl.precision``).
        """
        threads, matmul = torch.get_num_threads(), torch.get_float32_matmul_precision()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        try:
            chosen = self.choose()
            torch.set_float32_matmul_precision(chosen["matmul"])
            with net_precision(torch.device(self.device).type if chosen["bf16"] else None):
                yield chosen
        finally:
            torch.set_float32_matmul_precision(matmul)
            torch.set_num_threads(threads)

    def choose(self) -> dict[str, Any]:
        """Device, threads, the float32 product, whether networks run in bf16, and the measurements behind it."""
        if self.chosen is None:
            found = probe(self.device, torch.get_num_threads() if self.threads is None else self.threads)
            same = found["medium error"] <= EXACT and found["medium speed"] >= FASTER
            self.chosen = {
                "device": self.device,
                "threads": self.threads,
                "matmul": "medium" if same else "highest",
                "bf16": self.precision == "bf16" and found["bf16 speed"] >= FASTER,
                "probe": found,
            }
        return self.chosen


@lru_cache(maxsize=8)
def probe(device: str = "cpu", threads: int = 1, rows: int = 512, width: int = 512) -> dict[str, float]:
    """Speed (over plain float32) and largest relative error of a ``rows`` x ``width`` x ``width`` product, ~50 ms.

    "medium": float32 with ``torch.set_float32_matmul_precision("medium")``, which on some CPUs is a faster library with
    the same rounding and on others is bf16 arithmetic: only the error tells. "bf16": autocast, the casts
    included. The ways take turns and
    the fastest of nine counts, so that a busy machine slows all alike.
    """
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(rows, width, generator=generator), torch.randn(width, width, generator=generator)
    true = x.double() @ w.double().T
    x, w = x.to(device), w.to(device)
    before, had = torch.get_float32_matmul_precision(), torch.get_num_threads()

    def with_precision(precision: str) -> Callable[[], Tensor]:
        def product() -> Tensor:
            torch.set_float32_matmul_precision(precision)
            return nn.functional.linear(x, w)

        return product

    def in_bf16() -> Tensor:
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
            return nn.functional.linear(x, w)

    ways = {
        "float32": with_precision("highest"),
        "medium": with_precision("medium"),
        "bf16": in_bf16,
    }
    found: dict[str, float] = {}
    seconds = dict.fromkeys(ways, float("inf"))
    try:
        torch.set_num_threads(threads)
        with torch.no_grad():
            for name, way in ways.items():
                error = (way().cpu().double() - true).abs().max() / true.abs().max()
                found[f"{name} error"] = float(error)
            for _ in range(9):
                for name, way in ways.items():
                    _wait(device)
                    start = time.perf_counter()
                    way()
                    _wait(device)
                    seconds[name] = min(seconds[name], time.perf_counter() - start)
    finally:
        torch.set_float32_matmul_precision(before)
        torch.set_num_threads(had)
    found["float32 gflops"] = 2e-9 * rows * width * width / seconds["float32"]
    found |= {f"{name} speed": seconds["float32"] / seconds[name] for name in ("medium", "bf16")}
    return found


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
