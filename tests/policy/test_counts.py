"""What a chain counts is what its network saw: the calls, and the rows of all calls together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from denoiserl import Denoiser, Diffusion, Estimate, Rng, make_sampler, time_grid
from denoiserl.core.counters import UsageCounter
from denoiserl.policy.sampler import RecordAll, RecordSample, RecordWindow
from denoiserl.processes import ddim, linear

STEPS, ROWS = 6, 5


class Watched(Denoiser):
    """A denoiser that writes down how many rows every call had."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def forward(self, x: Tensor, clock: Any, context: Any) -> Estimate:
        self.seen.append(len(x))
        return Estimate(0.5 * x)


@pytest.mark.parametrize("micro", [None, 2, 5])
@pytest.mark.parametrize("begin", [None, 0, 1, 4, 5])
def test_a_chain_from_any_step_counts_the_rows_that_its_network_saw(begin: int | None, micro: int | None) -> None:
    process, net = Diffusion(linear, ddim(1.0)), Watched()
    draw = make_sampler(process, net, process.steps(time_grid(STEPS)), (3,))
    start = None if begin is None else (Rng(1).normal(ROWS, 3), begin)
    with UsageCounter().open() as usage:
        draw(None, Rng(0), start=start, rows=ROWS, micro_batch_size=micro)
    steps = {None: 6, 0: 6, 1: 5, 4: 2, 5: 1}[begin]
    assert usage.counts["denoiser_rows"] == sum(net.seen) == steps * ROWS
    assert usage.counts["denoiser_calls"] == len(net.seen) == steps * (3 if micro == 2 else 1)


@pytest.mark.parametrize("record", [RecordSample(), RecordWindow(1, 3), RecordAll()])
def test_steps_that_are_not_recorded_count_as_well(record: Any) -> None:
    process, net = Diffusion(linear, ddim(1.0)), Watched()
    draw = make_sampler(process, net, process.steps(time_grid(STEPS)), (3,), record=record)
    with UsageCounter().open() as usage:
        draw(None, Rng(0), start=(torch.zeros(ROWS, 3), 1))
    assert (
        usage.counts["denoiser_rows"] == sum(net.seen) == 5 * ROWS
        and usage.counts["denoiser_calls"] == len(net.seen) == 5
    )


def test_every_draw_of_one_sampler_counts_its_own_rows() -> None:
    process, net = Diffusion(linear, ddim(0.0)), Watched()
    draw = make_sampler(process, net, process.steps(time_grid(STEPS)), (3,))
    with UsageCounter().open() as usage:
        for rows, begin in ((2, 3), (7, 0), (1, 5)):
            draw(None, Rng(0), start=(torch.zeros(rows, 3), begin))
    assert usage.counts["denoiser_rows"] == sum(net.seen) == 2 * 3 + 7 * 6 + 1 * 1
    assert usage.counts["denoiser_calls"] == len(net.seen) == 3 + 6 + 1
