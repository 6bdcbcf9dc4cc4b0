"""What a draw costs, counted instead of timed: network calls, operations per step, and waits for the device."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from denoiserl import (
    Diffusion,
    Estimate,
    GaussianDenoiser,
    Masked,
    RecordAll,
    RecordSample,
    RecordWindow,
    Rng,
    make_sampler,
    rescore,
    time_grid,
)
from denoiserl.core.tree import Tree
from denoiserl.processes import TokenDenoiser, ddim, linear, window, with_min_std
from denoiserl.processes.denoiser import Denoiser

WAITS = ("_local_scalar_dense", "is_nonzero", "item", "equal")


class Counted(Denoiser):
    """A denoiser that answers with one operation, and counts who asked what."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = {"encode": 0, "clock": 0, "forward": 0}
        self.rows: list[int] = []

    def embed_condition(self, cond: Tree | None) -> Tree | None:
        self.asked["encode"] += 1
        return cond

    def embed_time(self, t: Tensor) -> Tensor:
        self.asked["clock"] += 1
        return t

    def forward(self, x: Tensor, clock: Tensor, context: Tensor) -> Estimate:  # type: ignore[override]
        self.asked["forward"] += 1
        self.rows.append(len(x))
        return Estimate(x * 0.5)


class Still(nn.Module):
    """A network without operations."""

    def forward(self, x: Tensor, clock: Tensor, context: Tensor | None) -> Tensor:
        return x


class Ops(TorchDispatchMode):
    """The operators that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.append(func._schema.name.removeprefix("aten::"))
        return func(*args, **(kwargs or {}))

    @property
    def waits(self) -> int:
        return sum(name in WAITS for name in self.names)


def ops_of(process: Diffusion | Masked, denoise: Denoiser, event: tuple[int, ...], k: int, record: object) -> Ops:
    draw = make_sampler(process, denoise, process.steps(time_grid(k)), event, record=record)  # type: ignore[arg-type]
    cond, rng = torch.zeros(3, 2), Rng(0)
    draw(cond, rng)  # tables are moved to the device once
    with Ops() as ops:
        draw(cond, rng)
    return ops


@pytest.mark.parametrize("record", [RecordSample(), RecordAll(), RecordWindow(2, 5)])
@pytest.mark.parametrize("transition", [with_min_std(ddim(1.0), 0.1), window(ddim(1.0), 2, 5)])
def test_a_draw_calls_the_network_once_a_step(record, transition):
    process, denoise = Diffusion(linear, transition), Counted()
    draw = make_sampler(process, denoise, process.steps(time_grid(7)), (4,), record=record)
    draw(torch.zeros(3, 2), Rng(0))
    assert denoise.asked == {"encode": 1, "clock": 1, "forward": 7}
    draw(torch.zeros(3, 2), Rng(0), start=(torch.zeros(3, 4), 5))
    assert denoise.asked == {"encode": 2, "clock": 2, "forward": 9}


def test_a_draw_with_gradients_calls_the_network_once_a_step():
    process, denoise = Diffusion(linear), Counted()
    make_sampler(process, denoise, process.steps(time_grid(7)), (4,), differentiable_steps=2)(torch.zeros(3, 2), Rng(0))
    assert denoise.asked == {"encode": 1, "clock": 1, "forward": 7}


@pytest.mark.parametrize("record", [RecordSample(), RecordAll()])
def test_a_step_is_arithmetic(record):
    """Beside the network: two products and a sum each for the estimate and the mean, one of each for the draw.

    Views (the clock's and the noise's rows) and casts to the type at hand are free; recording and scoring add
    operators to the chain, not to a step.
    """
    process, denoise = Diffusion(linear, with_min_std(ddim(1.0), 0.1)), GaussianDenoiser(Still(), linear, "v")
    few, many = (ops_of(process, denoise, (4,), k, record).names for k in (10, 30))
    free = {"split", "unbind", "select", "slice", "unsqueeze", "view", "detach", "alias", "to"}
    a_step = Counter(name for name in many if name not in free)
    a_step.subtract(name for name in few if name not in free)
    assert {name: n / 20 for name, n in a_step.items() if n} == {"mul": 5, "add": 3}


@pytest.mark.parametrize("record", [RecordSample(), RecordAll()])
def test_no_step_waits_for_the_device(record):
    gauss = Diffusion(linear, with_min_std(ddim(1.0), 0.1)), GaussianDenoiser(Still(), linear, "v"), (4,)
    tokens = Masked(5, order="confidence"), TokenDenoiser(Odd()), (6,)
    for process, denoise, event in (gauss, tokens):
        few, many = (ops_of(process, denoise, event, k, record) for k in (2, 6))
        assert few.waits == many.waits


class Odd(nn.Module):
    """Logits that prefer odd tokens."""

    def forward(self, x: Tensor, clock: Tensor, context: Tensor | None) -> Tensor:
        return torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0]).expand(*x.shape, 5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_chain_of_any_length_waits_equally_often_on_a_gpu():
    process, denoise = Diffusion(linear, with_min_std(ddim(1.0), 0.1)), GaussianDenoiser(Still(), linear, "v")

    def waits(k: int) -> int:
        draw = make_sampler(process, denoise, process.steps(time_grid(k)), (4,))
        cond, rng = torch.zeros(3, 2, device="cuda"), Rng(0, "cuda")
        draw(cond, rng)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with pytest.warns(UserWarning) as told:
                torch.zeros((), device="cuda").item()
                draw(cond, rng)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return len(told)

    assert waits(2) == waits(12)


@pytest.mark.parametrize(("micro", "calls"), [(None, [10]), (2, [2] * 5), (4, [4, 4, 2])])
def test_replay_calls_the_network_in_micro_batches(micro, calls):
    process, denoise = Diffusion(linear, with_min_std(ddim(1.0), 0.1)), Counted()
    chain = make_sampler(process, denoise, process.steps(time_grid(5)), (4,))(torch.zeros(2, 2), Rng(0))
    denoise.asked["clock"], denoise.rows = 0, []
    rescore(process, denoise, chain, micro)
    assert denoise.rows == calls
    assert denoise.asked["clock"] == 1


def test_by_default_replay_takes_whole_steps_of_a_chain():
    process, denoise = Diffusion(linear, with_min_std(ddim(1.0), 0.1)), Counted()
    chain = make_sampler(process, denoise, process.steps(time_grid(6)), (4,))(torch.zeros(400, 2), Rng(0))
    denoise.rows = []
    rescore(process, denoise, chain)
    assert denoise.rows == [800, 800, 800]
    denoise.rows = []
    rescore(process, denoise, chain.steps_at())
    assert denoise.rows == [1024, 1024, 352]
