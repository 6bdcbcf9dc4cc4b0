"""The doctor finds out how a network was trained, from the network alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from denoiserl import Diffusion, GaussianDenoiser, Masked, OneStep, Policy, Rng, TokenDenoiser, time_grid
from denoiserl.doctor.prediction_type import TIMES, Fit, denoising_error, prediction
from denoiserl.nn import MLP
from denoiserl.oracles.worlds import GaussianWorld
from denoiserl.policy.weights import Weights
from denoiserl.processes import cosine, linear
from tests.doctor.worlds import PM, TWO, Oracle, policy

CLOCKS: dict[str, dict[str, Any]] = {"": {}, "reversed": {"reverse": True}, "1000": {"scale": 1000.0}}


def told(made: Policy, given: Tensor | None = None) -> Any:
    x0 = made.sample_chain(given, Rng(1), rows=64, use_eval_steps=True).sample
    return prediction(made, x0, given, Rng(2))


KINDS = [(linear, "v"), (linear, "x0"), (cosine, "v"), (cosine, "eps"), (cosine, "x0")]
"""eps says nothing at t = 1 of a rectified flow: Gauss refuses it"""


@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize(("schedule", "true"), KINDS, ids=lambda v: v if isinstance(v, str) else type(v).__name__)
def test_every_wrong_wrapping_is_named_and_the_right_one_is_healthy(schedule: Any, true: str, clock: str) -> None:
    """All readings of an exact network: one is right, and it is what the others are told to be."""
    for declared in (kind for table, kind in KINDS if table is schedule):
        found = told(policy(Oracle(TWO, schedule, true, **CLOCKS[clock]), 2, schedule, declared))
        if declared == true and not clock:
            assert found.level == "ok", found
        else:
            assert found.level == "error", found
            assert f"probably {true!r}" in found.remedy
            assert ("reversed" in found.remedy, "1000" in found.remedy) == (clock == "reversed", clock == "1000")


def test_conditions_are_used() -> None:
    given = PM.draw_prompts(64, Rng(0))
    assert told(policy(Oracle(PM, cosine, "eps"), PM.dim, predicts="eps"), given).level == "ok"
    found = told(policy(Oracle(PM, cosine, "eps"), PM.dim, predicts="v"), given)
    assert found.level == "error"
    assert "'eps'" in found.remedy


def test_a_reading_that_collapses_is_no_posterior_mean() -> None:
    """With its clock stuck near data this network repeats a few samples, and finds those back almost exactly; but its
    answer can be corrected, so the reading is not taken."""
    given = PM.draw_prompts(64, Rng(0))
    found = told(policy(Oracle(PM, linear, "x0"), PM.dim, linear, "v"), given)
    assert found.level == "error"
    assert "probably 'x0':" in found.remedy


def test_where_no_reading_is_right_none_is_named() -> None:
    """An eps-network under a rectified flow, which has no such reading: the least wrong one is not advised."""
    world = GaussianWorld(torch.tensor([1.0, -0.5, 0.3, 0.2]), 0.5)
    found = told(policy(Oracle(world, linear, "eps"), 4, linear, "x0"))
    assert found.level == "warning"
    assert "nor with any other" in found.message


def test_data_are_a_sure_way_to_tell() -> None:
    data = (TWO.sample(64, Rng(3)), None)
    wrong, right = (policy(Oracle(TWO, cosine, "x0"), 2, predicts=p) for p in ("v", "x0"))
    assert prediction(wrong, torch.zeros(2, 2), None, Rng(0), data).level == "error"
    assert prediction(right, torch.zeros(2, 2), None, Rng(0), data).level == "ok"


def test_a_network_that_learned_nothing_is_no_other_kind() -> None:
    """Random features fit no reading; they are called untrained, not eps."""
    torch.manual_seed(0)
    last = torch.nn.Linear(32, 2)
    last.weight.data *= 20
    net = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.Tanh(), last)

    class Raw(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
            return self.net(x)

    for declared in ("v", "eps", "x0"):
        found = told(policy(Raw(), 2, predicts=declared))
        assert found.level in ("warning", "note")
        assert "train" in found.remedy.lower()


def test_a_network_at_its_initialisation_is_noted() -> None:
    torch.manual_seed(0)
    assert "hardly learned" in told(policy(MLP(2, width=16), 2, linear)).remedy


def test_an_exact_posterior_mean_has_ratios_of_one_on_gaussian_data_and_any_error_raises_the_excess() -> None:
    """On Gaussian data the linear guess is the posterior mean, so both ratios are 1; a biased answer is improvable."""
    world = GaussianWorld(torch.tensor([0.5, -0.3]), 0.6)
    process = Diffusion(cosine)
    x0 = world.sample(4000, Rng(0))
    exact = denoising_error(process, GaussianDenoiser(Oracle(world, cosine, "x0"), cosine, "x0"), x0, None, Rng(1))
    assert exact.score == pytest.approx(1, abs=0.01)
    assert exact.excess == pytest.approx(1, abs=0.01)
    net = Oracle(world, cosine, "x0")
    net.gain.data.fill_(0.5)
    half = denoising_error(process, GaussianDenoiser(net, cosine, "x0"), x0, None, Rng(1))
    assert half.excess > 1.2
    assert len(half.at) == len(TIMES)


class Table(torch.nn.Module):
    """Logits of sequences 0 1 2 3 0 1 2 3 ... that start anywhere: certain as soon as one token is visible.

    ``shift``: row i speaks about token i + 1.
    """

    def __init__(self, shift: bool = False, vocab: int = 4) -> None:
        super().__init__()
        self.shift, self.vocab, self.gain = shift, vocab, torch.nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        place = torch.arange(x.shape[1])
        seen = x < self.vocab
        phase = torch.nn.functional.one_hot((x - place) % self.vocab, self.vocab) * seen[..., None]
        votes = phase.sum(1).clamp_max(1).float()  # [B, vocab]
        logits = torch.stack([votes.roll(int(i) % self.vocab, 1) for i in place], 1) * 12
        return self.gain * (logits.roll(-1, 1) if self.shift else logits)


def writer(net: torch.nn.Module, shift: bool) -> Policy:
    process = Masked(4, "left", tokens=1)
    return Policy.of(process, TokenDenoiser(net, shift=shift), (8,), process.steps(time_grid(8)))


def test_a_shifted_language_model_is_found_out() -> None:
    assert told(writer(Table(), False)).level == "ok"
    assert told(writer(Table(True), True)).level == "ok"
    found = told(writer(Table(True), False))
    assert found.level == "error"
    assert "shift=True" in found.remedy


def test_a_model_that_looks_at_nothing_is_noted() -> None:
    net = Table()
    net.gain.data.fill_(0.0)
    assert "hardly help" in told(writer(net, False)).message


def test_what_has_no_noise_levels_says_so() -> None:
    class One(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
            return x

    process = OneStep(std=0.1)
    made = Policy.of(process, GaussianDenoiser(One(), linear, "x0"), (2,), process.steps(time_grid(1)))
    assert told(made).level == "note"


def test_other_denoisers_are_judged_though_they_cannot_be_read_otherwise() -> None:
    made = policy(Oracle(TWO, cosine, "v"), 2)
    exact = replace(made, weights=Weights(TWO.denoiser(cosine)))
    assert "Exact is right" in told(exact).message
    assert isinstance(denoising_error(Diffusion(cosine), made.denoiser, TWO.sample(64, Rng(0)), None, Rng(1)), Fit)
