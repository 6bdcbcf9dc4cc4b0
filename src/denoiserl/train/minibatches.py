"""Minibatches of the rows of an iteration."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from denoiserl.core.rng import Rng, as_rng


def minibatches(
    rows: Tensor | int, batch_size: int, epochs: int, rng: Rng | int, even: bool = False
) -> Iterator[Tensor]:
    """Yield minibatches of ``rows`` (an index, or a number of rows), each row once per epoch, in a new random order.

    Batches have ``batch_size`` rows, except the last of an epoch. With ``even`` all have about the same size, at least
    ``batch_size``.
    """
    rng = as_rng(rng)
    index = torch.arange(rows) if isinstance(rows, int) else rows
    for _ in range(epochs):
        drawn = index[rng.permutation(len(index)).to(index.device)]
        yield from drawn.tensor_split(max(1, len(index) // batch_size)) if even else drawn.split(batch_size)
