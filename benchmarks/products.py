"""What other matrix products would gain on this machine: ``--precision medium`` and ``bf16`` against float32."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn


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
