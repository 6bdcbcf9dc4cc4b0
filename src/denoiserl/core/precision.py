"""The precision that networks run in. ``DeviceConfig`` sets it, the denoisers ask; states, laws and losses stay
float32.

Only the network's own call is lowered: its weights stay float32 and are cast on the way, and its answer is float32
again. A log-probability is then computed in float32 from a mean with bf16's error (3e-3 of the network's answer): calls
of the same rows in the same shape still agree bit for bit, so ``rescore(..., micro=number of chains)`` has the ratio 1,
while other shapes may round otherwise. Learning that shuffles rows takes its old log-probs from a no-grad replay with
the update's shapes rather than from the chain; ``assert_on_policy`` says so when the gap is above its tolerance.

The setting belongs to the process, as torch's threads and matrix precision do: compilers cannot read a context
variable, and a thread that draws must compute as the one that learns.
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
    """Inside, networks run in bf16 on devices of this ``kind`` ("cpu", "cuda"); None: in float32."""
    global _low
    before, _low = _low, kind
    try:
        yield
    finally:
        _low = before


def is_low_precision() -> bool:
    """Do networks run in a lower precision now?"""
    return _low is not None


def run_in_precision(net: Callable[..., Any], *args: Any) -> Any:
    """``net(*args)`` in the precision that holds, answered in float32 where that is a lower one."""
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
