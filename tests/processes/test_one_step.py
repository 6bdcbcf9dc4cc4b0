"""One decision: its spread, its std, rows of which nothing counts; and the law of a next token."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from denoiserl import Autoregressive, Denoiser, Estimate, OneStep, Rng, elbo, make_sampler, renoise, time_grid
from denoiserl.core.errors import NoDensityError
from denoiserl.policy.likelihood import denoising_losses
from denoiserl.processes import GaussianHead

STD = torch.tensor([0.5, 2.0])


class Decides(Denoiser):
    """A mean of c and −c, with a std of its own where it is told so."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.own = own

    def forward(self, x: Tensor, clock: Any, context: Tensor) -> Estimate:
        assert not bool(x.any()), "nothing is known of the decision"
        mean = torch.stack([context, -context], -1)
        return Estimate(mean, {"std": STD.expand(mean.shape)} if self.own else {})


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0, 4.0])
def test_the_spread_scales_the_std_and_leaves_the_mean(spread: float, own: bool) -> None:
    process, cond, n = OneStep(std=None if own else 0.7), torch.full((40_000,), 1.5), 40_000
    steps = process.steps(time_grid(1), spread)
    chain = make_sampler(process, Decides(own), steps, (2,))(cond, Rng(0))
    std = spread * (STD if own else torch.tensor([0.7, 0.7]))
    assert torch.allclose(
        chain.sample.mean(0), torch.tensor([1.5, -1.5]), atol=5 * float(std.max()) / math.sqrt(n) + 1e-6
    )
    assert torch.allclose(chain.sample.std(0), std, rtol=5 / math.sqrt(2 * n))
    assert steps.dense == (spread > 0,) and len(chain) == int(spread > 0)
    if spread > 0:
        law = torch.distributions.Normal(torch.tensor([1.5, -1.5]), std)
        assert torch.allclose(chain.log_prob[:, 0], law.log_prob(chain.sample).sum(-1), atol=1e-4)
        x = torch.zeros(3, 2)
        rows = process.reverse(Decides(own)(x, None, cond[:3]), x, steps.gather(torch.zeros(3, dtype=torch.int64)))
        assert torch.allclose(rows.log_prob(chain.sample[:3]), chain.log_prob[:3, 0], atol=1e-4)
    else:
        with pytest.raises(NoDensityError):
            process.reverse(Decides(own)(torch.zeros(1, 2), None, cond[:1]), torch.zeros(1, 2), steps[0]).log_prob(
                torch.zeros(1, 2)
            )


def test_a_spread_is_of_gaussians_and_not_negative() -> None:
    for law, spread in (("gaussian", -0.1), ("categorical", 0.5)):
        with pytest.raises(ValueError, match="std_scale"):
            OneStep(law).steps(time_grid(1), spread)  # type: ignore[arg-type]


@pytest.mark.parametrize(("std", "least"), [(1.0, 0.0), (0.5, 0.3), (2.0, 1.9)])
def test_a_head_starts_at_its_std_and_never_falls_below_its_floor(std: float, least: float) -> None:
    head = GaussianHead(nn.Identity(), 3, std, least)
    assert torch.allclose(head.std, torch.full((3,), std), rtol=1e-5)
    with torch.no_grad():
        head.log_std.fill_(-30.0)
    assert torch.allclose(head.std, torch.full((3,), least), atol=1e-6)
    with torch.no_grad():
        head.log_std.copy_(torch.tensor([-1.0, 0.0, 1.0]))
    grown = head.std.square() - least**2  # variances add
    assert torch.allclose(grown.log() / 2, torch.tensor([-1.0, 0.0, 1.0]), atol=1e-4)


class Free(nn.Module):
    def forward(self, x: Tensor, clock: Any, context: Any) -> Tensor:
        return torch.linspace(-1, 1, 6).view(2, 3).expand(len(x), 2, 3)


def test_a_heads_std_is_that_of_the_last_axis() -> None:
    head = GaussianHead(Free(), 3, 1.0)
    with torch.no_grad():
        head.log_std.copy_(torch.tensor([0.1, 1.0, 3.0]).log())
    told = head(torch.zeros(4, 2, 3), None, None)
    assert torch.allclose(told.extra["std"], torch.tensor([0.1, 1.0, 3.0]).expand(4, 2, 3), rtol=1e-5)


@pytest.mark.parametrize("law", ["gaussian", "categorical"])
def test_factors_of_a_decision_that_do_not_count_are_left_out(law: Any) -> None:
    """Of [B, 2, 2] numbers or tokens: Σ over the live ones of the log-probability of one alone."""
    live = torch.tensor([[[True, False], [True, True]], [[False, False], [False, False]]])
    logits = Rng(0).normal(2, 2, 2, 3)

    class Given(Denoiser):
        def forward(self, x: Tensor, clock: Any, context: Any) -> Estimate:
            many = x.shape[0] // 2
            return Estimate((logits if law == "categorical" else logits[..., 0]).repeat_interleave(many, 0))

    x0 = Rng(1).integers(0, 3, 2, 2, 2) if law == "categorical" else Rng(1).normal(2, 2, 2)
    process = OneStep(law, std=0.5)
    noised = renoise(process, x0, 3, Rng(0), live)
    assert not bool(noised.x.any()) and noised.x.shape == (2, 3, 2, 2)
    if law == "categorical":
        each = logits.log_softmax(-1).gather(-1, x0[..., None])[..., 0]
    else:
        each = torch.distributions.Normal(logits[..., 0], 0.5).log_prob(x0)
    wanted = torch.where(live, each, 0.0).sum((1, 2))[:, None].expand(2, 3)
    assert torch.allclose(elbo(process, Given(), noised), wanted, atol=1e-5)
    assert torch.allclose(denoising_losses(process, Given(), noised), -wanted, atol=1e-5)


def canvases() -> Tensor:
    """Every state of three positions and two tokens; 2 is open."""
    return torch.tensor(list(itertools.product(range(3), repeat=3)))


def test_the_next_token_is_written_at_the_leftmost_open_position_and_nowhere_else() -> None:
    """For every state: the probabilities of its next states sum to one, and are those of that position's row."""
    process, logits = Autoregressive(2), Rng(0).normal(1, 3, 2)
    step = process.steps(time_grid(3))[0]
    for x in canvases():
        law = process.reverse(Estimate(logits.expand(2, 3, 2)), x.expand(2, 3), step)
        y, at = x.expand(2, 3).clone(), x.tolist().index(2) if bool((x == 2).any()) else None
        if at is not None:
            y[:, at] = torch.arange(2)
        p = law.log_prob(y).exp()
        where = [i == at for i in range(3)]
        assert law.mask.tolist() == [where] * 2 and law.num_factors.tolist() == [float(at is not None)] * 2
        wanted = torch.ones(2) if at is None else logits[0, at].softmax(-1)
        assert torch.allclose(p, wanted, atol=1e-6)
        factors = law.log_prob(y, factors=True)
        assert torch.equal(factors, torch.where(torch.tensor(where), law.log_prob(y)[:, None], 0.0))
        assert torch.equal(law.sample(torch.tensor([[0.0], [0.999999]])), y)


def test_the_divergence_of_next_tokens_is_of_the_first_from_the_second_and_nothing_when_finished() -> None:
    process, step = Autoregressive(2), Autoregressive(2).steps(time_grid(3))[0]
    x = torch.tensor([[0, 2, 2], [0, 1, 1]])
    p, q = torch.tensor([[2.0, 0.0]]).expand(2, 3, 2), torch.tensor([[0.0, 1.0]]).expand(2, 3, 2)
    one, other = (process.reverse(Estimate(v), x, step) for v in (p, q))
    a, b = (v[0, 0].double().softmax(-1) for v in (p, q))
    assert one.kl(other).tolist() == pytest.approx([float((a * (a / b).log()).sum()), 0.0], abs=1e-6)
    assert float(other.kl(one)[0]) == pytest.approx(float((b * (b / a).log()).sum()), abs=1e-6)


def test_a_finished_row_needs_no_law() -> None:
    process = Autoregressive(2)
    logits = torch.stack([torch.zeros(3, 2), torch.full((3, 2), math.nan)])
    x = torch.tensor([[0, 2, 2], [0, 1, 1]])
    law = process.reverse(Estimate(logits), x, process.steps(time_grid(3))[0])
    assert law.sample(torch.full((2, 1), 0.7)).tolist() == [[0, 1, 2], [0, 1, 1]]


def test_the_likelihood_is_that_of_the_decoder_and_the_loss_that_of_the_model() -> None:
    """Σ over all texts of exp ELBO is one for every decoder; the loss knows the temperature alone."""

    class Two(Denoiser):
        def forward(self, x: Tensor, clock: Any, context: Any) -> Estimate:
            return Estimate(torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.1, 0.5, 0.25, 0.15]]).log().expand(*x.shape, 4))

    every = torch.tensor(list(itertools.product(range(4), repeat=2)))
    for given, possible in (({}, 16), ({"top_k": 2}, 4), ({"top_p": 0.6}, 4), ({"top_k": 3, "temperature": 0.5}, 9)):
        process = Autoregressive(4, **given)
        noised = renoise(process, every, 1, Rng(0))
        p = elbo(process, Two(), noised)[:, 0].exp()
        assert float(p.sum()) == pytest.approx(1.0, abs=1e-5) and int((p > 0).sum()) == possible
        loss = denoising_losses(process, Two(), noised)[:, 0]
        assert float((-2 * loss).exp().sum()) == pytest.approx(1.0, abs=1e-5) and bool(loss.isfinite().all())


def test_the_loss_is_a_mean_over_the_tokens_that_count() -> None:
    class Flat(Denoiser):
        def forward(self, x: Tensor, clock: Any, context: Any) -> Estimate:
            return Estimate(torch.zeros(*x.shape, 4))

    live = torch.tensor([[True] * 5, [True, False, False, False, True], [False] * 5])
    process, x0 = Autoregressive(4), torch.zeros(3, 5, dtype=torch.int64)
    found = denoising_losses(process, Flat(), renoise(process, x0, 1, Rng(0), live))[:, 0]
    assert found.tolist() == pytest.approx([math.log(4), math.log(4), 0.0])


def test_a_canvas_may_have_as_many_open_positions_as_there_are_steps() -> None:
    process, canvas = Autoregressive(2), torch.tensor([[0, 2, 2], [2, 1, 0]])
    process.check(canvas, 2, (3,))
    process.check(None, 3, (3,))
    with pytest.raises(ValueError, match="canvas 0 has 2 open positions"):
        process.check(canvas, 1, (3,))


def test_a_token_takes_one_number_of_noise_whatever_the_length_of_the_text() -> None:
    class Flat(Denoiser):
        def forward(self, x: Tensor, clock: Any, context: Any) -> Estimate:
            return Estimate(torch.zeros(*x.shape, 2))

    process, rng = Autoregressive(2), Rng.rows(range(3))
    chain = make_sampler(process, Flat(), process.steps(time_grid(5)), (5,))(None, rng, rows=3)
    numbers = Rng.rows(range(3)).uniform(3, 5)
    assert torch.equal(chain.sample, (numbers >= 0.5).long()) and rng.counter == 5
