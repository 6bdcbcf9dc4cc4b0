"""Sums, means and counts over the factors of an event, against loops over the factors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from denoiserl.distributions.base import count, mean, sum_event

SHAPE = (3, 2, 4)


def looped(values: Tensor, event: int, live: Tensor | None) -> list[list[float]]:
    """The live numbers of every event, in the order of the flattened batch."""
    rows = math.prod(values.shape[: values.ndim - event])
    alive = torch.ones_like(values, dtype=torch.bool) if live is None else live.expand(values.shape)
    pairs = zip(values.reshape(rows, -1).tolist(), alive.reshape(rows, -1).tolist(), strict=True)
    return [[v for v, counts in zip(*pair, strict=True) if counts] for pair in pairs]


def masks() -> dict[str, Tensor | None]:
    some = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)) < 0.5
    some[1] = False  # an event of which nothing counts
    return {"all": None, "some": some, "shared": torch.tensor([True, False, True, True])}


@pytest.mark.parametrize("event", [0, 1, 2, 3])
@pytest.mark.parametrize("name", masks())
def test_sums_means_and_counts_are_those_of_the_live_factors(name: str, event: int) -> None:
    values, live = torch.randn(SHAPE, dtype=torch.float64), masks()[name]
    parts = looped(values, event, live)
    batch = SHAPE[: 3 - event]
    wanted = torch.tensor([math.fsum(part) for part in parts], dtype=torch.float64).reshape(batch)
    assert torch.allclose(sum_event(values, event, live), wanted)
    average = torch.tensor([math.fsum(part) / max(len(part), 1) for part in parts], dtype=torch.float64)
    assert torch.allclose(mean(values, event, live), average.reshape(batch))
    found = count(values.shape, event, live, values.device)
    assert found.dtype == torch.float32 and found.tolist() == torch.tensor([len(p) for p in parts]).view(batch).tolist()


def test_dead_factors_are_left_out_even_where_they_are_no_number() -> None:
    values, live = torch.tensor([[1.0, math.nan, 3.0]], requires_grad=True), torch.tensor([[True, False, True]])
    for made, share in ((sum_event(values, 1, live), 1.0), (mean(values, 1, live), 0.5)):
        assert float(made.detach()) == 4.0 * share
        (slope,) = torch.autograd.grad(made.sum(), values)
        assert slope.tolist() == [[share, 0.0, share]]
