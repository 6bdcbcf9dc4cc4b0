"""Where a run computes: device, precision of the networks, threads. The runner's business, never a recipe's.

States and laws stay float32. Nothing is chosen by a measurement: the same command computes the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from denoiserl.core.errors import RunError, unknown_name_message
from denoiserl.core.precision import net_precision

PRECISIONS = ("float32", "medium", "bf16")


@dataclass
class DeviceConfig:
    """A device, the precision of the networks and the number of threads.

    ``precision``: "float32" is full products; "medium" leaves float32 products to the library that torch calls so
    (``torch.set_float32_matmul_precision``: TF32 on a GPU; on a CPU full float32 or bf16 products); "bf16" runs the
    networks of ``GaussianDenoiser`` and ``TokenDenoiser`` in it (``denoiserl.core.precision``). ``threads``: None
    leaves torch's own. ``chosen``: what an earlier ``choose()`` told, to compute as that run did. Use it as ``with
    place.activate(): ...``.
    """

    device: str = "cpu"
    precision: str = "float32"
    threads: int | None = None
    resolved: dict[str, Any] | None = field(default=None)

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise RunError(unknown_name_message(self.precision, PRECISIONS, "precision"))
        if self.threads is not None and self.threads < 1:
            raise RunError(f"threads={self.threads}: at least one is needed.")
        try:
            kind = torch.device(self.device).type
        except RuntimeError as error:
            raise RunError(f"There is no device {self.device!r}: cpu, cuda, cuda:1 or mps.") from error
        if kind == "cuda" and not torch.cuda.is_available():
            raise RunError("This torch sees no CUDA device: use device cpu, or install a CUDA build of torch.")
        if kind == "mps" and not torch.backends.mps.is_available():
            raise RunError("This torch sees no MPS device: use device cpu.")

    @contextmanager
    def activate(self) -> Iterator[dict[str, Any]]:
        """Compute at this place inside; yields what ``choose`` tells. The caller's are put back after."""
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
        """Return device, threads, the float32 product, and whether networks run in bf16: what a run records."""
        if self.resolved is None:
            self.resolved = {
                "device": self.device,
                "threads": self.threads,
                "matmul": "medium" if self.precision == "medium" else "highest",
                "bf16": self.precision == "bf16",
            }
        return self.resolved
