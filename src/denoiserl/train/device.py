"""Device, precision of the networks, and threads of a run. The runner sets them, never a recipe.

States and distributions stay float32. No setting depends on a measurement: the same command gives the same numbers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from denoiserl.core.device import as_device
from denoiserl.core.errors import RunError, unknown_name_message
from denoiserl.core.precision import net_precision
from denoiserl.core.settings import Count, check_value

PRECISIONS = ("float32", "medium", "bf16")


@dataclass(frozen=True)
class DeviceConfig:
    """A device, the precision of the networks and the number of threads.

    ``precision``: "float32" means full products. "medium" is ``torch.set_float32_matmul_precision("medium")``: TF32 on
    a GPU, full float32 or bf16 products on a CPU. "bf16" runs the networks of ``GaussianDenoiser`` and
    ``TokenDenoiser`` in bf16 (``denoiserl.core.precision``). ``threads``: None keeps torch's setting. Use it as
    ``with config.activate(): ...``.
    """

    device: str = "cpu"
    precision: str = "float32"
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise RunError(unknown_name_message(self.precision, PRECISIONS, "precision"))
        check_value(Count | None, self.threads, "threads")
        if self.threads is not None and self.threads > (limit := 8 * (os.cpu_count() or 8)):
            raise RunError(f"threads = {self.threads} is far more than this machine's cores: give at most {limit}")
        as_device(self.device)

    @contextmanager
    def activate(self) -> Iterator[dict[str, Any]]:
        """Apply the settings inside, and yield the values for a run's record; the old settings are restored
        afterwards.
        """
        threads, matmul = torch.get_num_threads(), torch.get_float32_matmul_precision()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        try:
            low, product = self.precision == "bf16", "medium" if self.precision == "medium" else "highest"
            torch.set_float32_matmul_precision(product)
            with net_precision(torch.device(self.device).type if low else None):
                yield {"device": self.device, "threads": self.threads, "matmul": product, "bf16": low}
        finally:
            torch.set_float32_matmul_precision(matmul)
            torch.set_num_threads(threads)
