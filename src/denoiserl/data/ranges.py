"""Check ranges of data: outliers, spreads near zero, and data in other units than their bounds."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError

FEW = 20
"""least number of rows for the detection of outliers"""
FAR = 200
"""one row in so many at each end, at least one, is left out to measure the range of the others"""
NARROW = 0.1
"""share of a range below which its use is reported"""
TINY = 1e-4
"""range, relative to its size (or 1), below which a dimension hardly moves"""
HUGE = 1e30
"""bound from which on it counts as none"""
SHOWN = 3
"""dimensions that a message names"""


def used_share(rows: Tensor) -> Tensor:
    """Return the share [d] of each dimension's range that all but the farthest rows [N, d] use; 1 for a constant.

    The farthest are one in ``FAR`` at each end, and at least one. If the others are all equal, the dimension is a rare
    event without outliers, unless the event is ten times as large as they are (or as 1).
    """
    count = len(rows)
    width = rows.amax(0) - rows.amin(0)
    if count < FEW:
        return torch.ones_like(width)
    away = max(1, count // FAR)
    inner = torch.stack([c.kthvalue(count - away).values - c.kthvalue(away + 1).values for c in rows.T.contiguous()])
    middle = rows.median(0).values
    rare = (inner == 0) & (width <= 10 * middle.abs().clamp_min(1.0))
    return torch.where((width > 0) & ~rare, inner / width.clamp_min(1e-300), 1.0).to(rows.dtype)


def is_tiny_range(low: Tensor, high: Tensor) -> Tensor:
    """Return which dimensions [d] hardly move between ``low`` and ``high``: their noise would be taken for a signal."""
    return (high > low) & (high - low <= TINY * torch.maximum(low.abs(), high.abs()).clamp_min(1.0))


def range_warnings(rows: Tensor, shares: Tensor, constant: Tensor, name: str, ends: Tensor | None = None) -> list[str]:
    """Return warnings about outliers and tiny spreads of ``rows`` [N, d]: dimension, row, and episode of ``ends``
    [E]."""
    low, high, found = rows.amin(0), rows.amax(0), []
    for d in _worst(shares, (shares < NARROW) & ~constant):
        column, middle = rows[:, d], rows[:, d].median()
        row = int((column - middle).abs().argmax())
        episode = "" if ends is None else f" (episode {int(torch.searchsorted(ends, row, right=True))})"
        found.append(
            f"dimension {d} of {name}: row {row}{episode} is {float(column[row]):g}, and the others use "
            f"{100 * float(shares[d]):.2g} % of the range: an outlier? Repair it, or leave its episode out"
        )
    for d in _worst(high - low, is_tiny_range(low, high) & ~constant):
        width, middle = float(high[d] - low[d]), float(rows[:, d].mean())
        found.append(
            f"dimension {d} of {name} moves by {width:.2g} in all, around {middle:g}: normalised, noise becomes the "
            "largest signal. Leave it out, or make it constant"
        )
    return found


def check_range(
    rows: Tensor,
    low: Any,
    high: Any,
    name: str,
    box: str,
    constant: bool = True,
    slack: float = 0.0,
    ends: bool = False,
) -> tuple[bool, str]:
    """Return whether ``rows`` [N, d] leave the ``box`` from ``low`` to ``high`` [d], and a warning ("": none).

    A dimension is wrong if it exceeds finite bounds by more than ``slack`` of them, or uses less than a tenth of them.
    One that never changes is wrong only if ``constant``. Dimensions of NaN are not compared. ``ends``: the rows are the
    two ends of a range, so no row is named.
    """
    low, high = (torch.as_tensor(v, dtype=torch.float64).reshape(-1).expand(rows.shape[1]) for v in (low, high))
    low, high = low.where(low > -HUGE, -torch.inf), high.where(high < HUGE, torch.inf)
    least, most = rows.amin(0).double(), rows.amax(0).double()
    width, size = high - low, torch.stack([low.abs(), high.abs()]).nan_to_num(posinf=0.0).amax(0)
    allowed = torch.maximum(slack * width.nan_to_num(nan=0.0, posinf=0.0), 1e-5 * size.clamp_min(1.0))
    over = torch.maximum(low - least, most - high).nan_to_num(nan=-torch.inf)
    if bool((over > allowed).any()):
        dims = _worst(-over, over > allowed)
        worst = dims[0]
        row = int(torch.maximum(low[worst] - rows[:, worst], rows[:, worst] - high[worst]).argmax())
        spans = _spans(dims, least, most, low, high)
        where = "" if ends else f", worst in row {row}"
        return True, f"{name} lie outside {box}{where}: {spans}. Are these other units? Convert them"
    part = torch.where(width.isfinite() & (width > 0), (most - least) / width, 1.0).nan_to_num(nan=1.0)
    narrow = (part < NARROW) & (constant | (most > least))
    if not bool(narrow.any()):
        return False, ""
    dims = _worst(part, narrow)
    spans, least_share = _spans(dims, least, most, low, high), 100 * float(part[dims[0]])
    return False, f"{name} use {least_share:.2g} % of the range of {box}: {spans}. Are these other units?"


def compare(
    rows: Tensor,
    low: Any,
    high: Any,
    name: str,
    box: str,
    refuse: bool = False,
    constant: bool = True,
    slack: float = 0.0,
) -> None:
    """Warn of what ``check_range`` finds. If ``refuse``, raise InvalidInputError for rows outside the bounds."""
    beyond, said = check_range(rows, low, high, name, box, constant, slack)
    if beyond and refuse:
        raise InvalidInputError(f"{said}; out_of_bounds_actions='clip' (--out-of-bounds-actions clip) clips them")
    warn_each([said] if said else [])


def warn_each(sentences: Iterable[str]) -> None:
    """Warn of all sentences."""
    for said in sentences:
        _warn(said)


def _worst(size: Tensor, mask: Tensor) -> list[int]:
    """Return a few of the dimensions of a mask, the smallest sizes first."""
    order = size.argsort()
    return order[mask[order]][:SHOWN].tolist()


def _spans(dims: list[int], least: Tensor, most: Tensor, low: Tensor, high: Tensor) -> str:
    return ", ".join(
        f"dimension {d} runs from {float(least[d]):g} to {float(most[d]):g} in [{float(low[d]):g}, {float(high[d]):g}]"
        for d in dims
    )


def _warn(said: str) -> None:
    warnings.warn(said, stacklevel=4)
