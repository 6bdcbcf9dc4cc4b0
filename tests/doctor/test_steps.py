"""What is wrong with the steps of learning: densities, noise, the first ratio, memory, time."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from denoiserl import Diffusion, Gaussian, Rng
from denoiserl.doctor.cost import available, footprint, measure_speed, memory
from denoiserl.doctor.steps import densities, energy, exploration, first_ratio, train_vs_eval_samples
from denoiserl.nn import MLP
from denoiserl.policy.codec import IdentityCodec
from denoiserl.processes import cosine, ddim, with_min_std
from tests.doctor.worlds import PM, TWO, Oracle, generator, policy


def test_chains_without_densities_are_refused_and_partial_ones_noted() -> None:
    made, cond = generator(), PM.draw_prompts(16, Rng(0))
    assert densities(made.sample_chain(cond, Rng(1))).level == "ok"
    assert densities(made.sample_chain(cond, Rng(1), use_eval_steps=True)).level == "error"
    some = replace(
        made, train_steps=Diffusion(cosine).steps(made.train_steps.times, ddim(1.0))
    )  # its last step has no noise
    found = densities(some.sample_chain(cond, Rng(1)))
    assert found.level == "note"
    assert "9 of 10" in found.message
    chain = made.sample_chain(cond, Rng(1))
    assert densities(replace(chain, log_prob=chain.log_prob * torch.nan)).level == "error"


def test_the_quietest_step_is_compared_with_the_samples() -> None:
    """The KL that is told is the law's own, for a shift of one per cent."""
    spread = torch.tensor(0.7)
    assert exploration(generator(floor=0.1), spread).level == "ok"
    quiet = generator(floor=1e-3)
    found = exploration(quiet, spread)
    assert found.level == "warning"
    std = torch.tensor(min(v for v in quiet.train_steps.table["std"].tolist() if v > 0))
    mean = torch.zeros(PM.dim)
    kl = float(Gaussian(mean, std, 1).kl(Gaussian(mean + 0.007, std, 1)))
    assert f"has KL {kl:.2g} nats" in found.message


def test_the_floor_that_is_advised_heals() -> None:
    spread = torch.tensor(0.7)
    remedy = exploration(generator(floor=1e-3), spread).remedy
    floor = float(remedy.split("transition, ")[1].split(")")[0])
    assert exploration(generator(floor=floor), spread).level == "ok"


def test_energy_distance_tells_distributions_apart_and_equal_ones_not() -> None:
    rng = Rng(0)
    same = [energy(rng.normal(32, 3), rng.normal(32, 3), rng, draws=60)[1] for _ in range(30)]
    assert 0.3 < sum(same) / 30 < 0.7, "p is uniform where the distributions are equal"
    share, p = energy(rng.normal(32, 3), 1 + rng.normal(32, 3), rng)
    assert share > 0.05
    assert p < 0.01
    far, _ = energy(rng.normal(32, 3), 1000 + rng.normal(32, 3), rng)
    assert far == pytest.approx(1, abs=0.01)


def test_training_that_draws_something_else_than_is_served() -> None:
    made = policy(Oracle(TWO, cosine, "v"), 2)
    serve = made.sample_chain(None, Rng(0), rows=64, use_eval_steps=True).sample
    assert train_vs_eval_samples(made, made.sample_chain(None, Rng(1), rows=64).sample, serve, Rng(2)).level == "ok"
    loud = replace(made, train_steps=Diffusion(cosine).steps(made.train_steps.times, with_min_std(ddim(1.0), 1.0)))
    found = train_vs_eval_samples(loud, loud.sample_chain(None, Rng(1), rows=64).sample, serve, Rng(2))
    assert found.level == "warning"
    assert "minimum std" in found.remedy


class Noisy(nn.Module):
    """A network with a layer that behaves otherwise in train mode, or with noise of its own."""

    def __init__(self, layer: nn.Module | None = None, own: bool = False) -> None:
        super().__init__()
        self.enter, self.layer, self.leave, self.own = nn.Linear(2, 8), layer or nn.Identity(), nn.Linear(8, 2), own

    def forward(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        out = self.leave(self.layer(self.enter(x)))
        return out + 0.1 * torch.randn_like(out) if self.own else out


@pytest.mark.parametrize(
    ("layer", "own", "words"),
    [
        (nn.Dropout(0.5), False, "Dropout in train mode"),
        (nn.BatchNorm1d(8), False, "BatchNorm1d"),
        (None, True, "random"),
    ],
)
def test_a_first_ratio_that_is_not_one_has_its_cause_named(layer: nn.Module | None, own: bool, words: str) -> None:
    made = policy(Noisy(layer, own), 2)
    if not own:
        assert first_ratio(made, made.sample_chain(None, Rng(0), rows=8), Rng(1)).level == "ok"
        made.weights.module.train()
    found = first_ratio(made, made.sample_chain(None, Rng(0), rows=8), Rng(1))
    assert found.level == "error"
    assert words in found.remedy


def test_rows_that_look_at_each_other_are_found_by_shuffling() -> None:
    """One step a chain: whole replay repeats the call of the run, and only other batches give it away."""

    class Crowd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.leave = nn.Linear(2, 2)

        def forward(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
            return self.leave(x - x[:1])

    made = policy(Crowd(), 2, n=1, floor=0.5)
    found = first_ratio(made, made.sample_chain(None, Rng(0), rows=8), Rng(1))
    assert found.level == "error"
    assert "other rows" in found.remedy


def test_a_record_under_other_weights_is_off_policy() -> None:
    made = generator()
    chain = made.sample_chain(PM.draw_prompts(8, Rng(0)), Rng(1))
    assert first_ratio(made, chain, Rng(2)).level == "ok"
    with torch.no_grad():
        made.parameters()[0].mul_(0.9)
    assert first_ratio(made, chain, Rng(2)).level == "error"


def test_memory_counts_what_autograd_keeps() -> None:
    """A perceptron of L equal layers keeps, for one row, the input of every layer and of every activation."""
    width, depth, rows = 256, 4, 32

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers = [nn.Linear(2, width), *(nn.Linear(width, width) for _ in range(depth)), nn.Linear(width, 2)]
            self.layers = nn.ModuleList(layers)

        def forward(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
            for layer in self.layers[:-1]:
                x = layer(x).relu()
            return self.layers[-1](x)

    made = policy(Plain(), 2)
    row, weights, _ = footprint(made, made.sample_chain(None, Rng(0), rows=rows), rows)
    assert row == pytest.approx(
        4 * width * (depth + 1), rel=0.1
    )  # a ReLU keeps its answer, which the next layer shares
    total = sum(p.numel() for p in made.parameters())
    assert weights == 16 * total
    frozen = made.parameters()[0].requires_grad_(False)  # it needs neither gradient nor moments
    assert footprint(made, made.sample_chain(None, Rng(0), rows=rows), rows)[1] == 16 * total - 12 * frozen.numel()


def test_memory_that_will_not_do_has_the_batch_that_will() -> None:
    made = policy(MLP(2, width=256), 2)
    chain = made.sample_chain(None, Rng(0), rows=16)
    assert memory(made, chain, 1024, free=10**9).level == "ok"
    row, weights, record = footprint(made, chain, 1024)
    found = memory(made, chain, 100_000, free=2 * (weights + record) + 1000 * row)
    assert found.level == "warning"
    fits = int(found.remedy.split("at most ")[1].split(" ")[0])
    assert (
        row * fits + weights + record
        <= 0.8 * (2 * (weights + record) + 1000 * row)
        < row * (fits + 2) + weights + record
    )
    assert "adapters" in memory(made, chain, 1024, free=1000).remedy
    free = available(torch.device("cpu"))
    if free is not None:  # Linux and macOS say
        assert 2**20 < free < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_time_is_told_apart_by_where_it_goes() -> None:
    """With a clock that ticks once a reading, every piece of work takes one tick: the parts are then known."""
    made, cond = generator(), PM.draw_prompts(8, Rng(0))
    chain = made.sample_chain(cond, Rng(1))
    ticks = itertools.count()
    found = measure_speed(made, cond, chain, Rng(2), clock=lambda: float(next(ticks)))
    assert found.level == "ok"
    assert "2.5e+02 ms per sample" in found.message  # (a chain and a decoding) / 8

    spent = {"now": 0.0}

    class Clocked(IdentityCodec):
        def decode(self, sample: Tensor) -> Tensor:
            spent["now"] += 10.0
            return sample

    def clock() -> float:
        spent["now"] += 1.0
        return spent["now"]

    slow = measure_speed(replace(made, codec=Clocked()), cond, chain, Rng(2), clock=clock)
    assert slow.level == "warning"
    assert "Decoding" in slow.remedy
