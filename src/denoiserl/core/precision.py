"""The precision that networks run in. ``DeviceConfig`` sets it; denoisers read it. All else stays float32.

Only the network's own call runs in bf16: its weights stay float32 and are cast, and its output is cast back to float32.
A log-probability is then computed in float32 from a mean with bf16's error (3e-3 of the network's output). Calls on the
same rows in the same shape still agree bit for bit, so ``rescore`` with ``micro_batch_size`` = number of chains has the
ratio 1. Other shapes may round differently: methods that shuffle rows take their old log-probs from ``rescore`` without
gradients, in the shapes of the update. ``assert_on_policy`` raises when the gap is above its tolerance.

The setting belongs to the operating-system process, like torch's threads and matrix precision. Compilers cannot read a
context variable, and the thread that samples must compute as the one that learns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_low: str | None = None


@contextmanager
def net_precision(kind: str | None) -> Iterator[None]:
    """Run networks inside the context in bf16 on devices of this ``kind`` ("cpu", "cuda"); None: in float32."""
    global _low
    before, _low = _low, kind
    try:
        yield
    finally:
        _low = before


def is_low_precision() -> bool:
    """Return whether networks run in bf16 now."""
    return _low is not None


def run_in_precision(net: Callable[..., Any], *args: Any) -> Any:
    """Return ``net(*args)``, computed in the current precision and cast to float32."""
    if _low is None:  # 0.1 us
        return net(*args)
    with torch.autocast(_low, dtype=torch.bfloat16):
        out = net(*args)
    return _float(out)


def _float(out: Any) -> Any:
    if isinstance(out, Tensor):
        return out.float() if out.dtype is torch.bfloat16 else out
    if isinstance(out, dict):
        return {k: _float(v) for k, v in out.items()}
    if isinstance(out, tuple | list):
        parts = [_float(v) for v in out]
        return type(out)(*parts) if hasattr(out, "_fields") else type(out)(parts)
    return out
