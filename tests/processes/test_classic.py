"""Ordinary policies are processes of one step, and language models chains of one token per step."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from denoiserl import (
    Autoregressive,
    Denoiser,
    Estimate,
    OneStep,
    Rng,
    TokenDenoiser,
    elbo,
    make_sampler,
    renoise,
    rescore,
    time_grid,
)
from denoiserl.core.errors import InvalidInputError
from denoiserl.nn import Transformer
from denoiserl.oracles.worlds import TableWorld
from denoiserl.policy.likelihood import denoising_losses

WORLD = TableWorld.random(3, 3, Rng(0), 1.2)


class Actor(Denoiser):
    """A linear policy; with ``std`` it reports its own."""

    def __init__(self, out: int, std: bool = False) -> None:
        super().__init__()
        self.net, self.std = nn.Linear(3, out), nn.Linear(3, out) if std else None

    def forward(self, x: Any, clock: Any, context: Tensor) -> Estimate:
        extra = {} if self.std is None else {"std": self.std(context).exp()}
        return Estimate(self.net(context), extra)


@pytest.mark.parametrize("learned", [False, True])
def test_one_step_is_an_ordinary_gaussian_policy(learned: bool) -> None:
    process, actor = OneStep(std=None if learned else 0.3), Actor(2, learned)
    obs = Rng(1).normal(5, 3)
    chain = make_sampler(process, actor, process.steps(time_grid(1)), (2,))(obs, Rng(0))
    std = actor.std(obs).exp() if actor.std is not None else torch.tensor(0.3)
    policy = torch.distributions.Normal(actor.net(obs), std)
    assert isinstance(chain.sample, Tensor)
    wanted = policy.log_prob(chain.sample).sum(-1)
    assert torch.allclose(chain.log_prob[:, 0], wanted, atol=1e-5)
    law, y = rescore(process, actor, chain)
    assert torch.equal(law.log_prob(y), chain.log_prob)
    noised = renoise(process, chain.sample, 3, Rng(0))
    assert torch.allclose(elbo(process, actor, noised, obs), wanted[:, None].expand(5, 3), atol=1e-5)
    assert torch.allclose(denoising_losses(process, actor, noised, obs), -wanted[:, None].expand(5, 3), atol=1e-5)
    (ours,) = torch.autograd.grad(law.log_prob(y).sum(), actor.net.weight, retain_graph=True)
    (theirs,) = torch.autograd.grad(wanted.sum(), actor.net.weight)
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_one_step_counts_live_factors_only_in_the_likelihood() -> None:
    process, actor, obs = OneStep(std=0.3), Actor(4), Rng(1).normal(5, 3)
    action = Rng(2).normal(5, 4)
    live = torch.tensor([True, True, False, False]).expand(5, 4)
    found = elbo(process, actor, renoise(process, action, 3, Rng(0), live), obs)
    policy = torch.distributions.Normal(actor.net(obs), 0.3)
    assert torch.allclose(found, policy.log_prob(action)[:, :2].sum(-1)[:, None].expand(5, 3), atol=1e-4)


def test_one_step_may_be_categorical() -> None:
    process, actor, n = OneStep("categorical"), Actor(4), 4000
    obs = Rng(1).normal(1, 3).expand(n, 3)
    chain = make_sampler(process, actor, process.steps(time_grid(1)), ())(obs, Rng(0))
    assert isinstance(chain.sample, Tensor) and chain.sample.shape == (n,)
    policy = actor.net(obs[:1]).softmax(-1)[0]
    assert bool(((torch.bincount(chain.sample, minlength=4) / n - policy).abs() < 0.04).all())
    assert torch.allclose(chain.log_prob[:, 0].exp(), policy[chain.sample], atol=1e-6)


def test_one_step_refusals() -> None:
    with pytest.raises(ValueError, match=r"grid\(1\)"):
        OneStep().steps(time_grid(3))
    with pytest.raises(ValueError, match="Did you mean 'gaussian'"):
        OneStep("gausian")  # type: ignore[arg-type]
    process = OneStep()
    with pytest.raises(ValueError, match=r"OneStep\(std=...\)"):
        make_sampler(process, Actor(2), process.steps(time_grid(1)), (2,))(torch.zeros(2, 3), Rng(0))


class Causal(Denoiser):
    """The exact left-to-right model of a world: row i is p(x_i | x_<i), whatever stands at i and after."""

    def forward(self, x: Any, clock: Any, context: Any) -> Estimate:
        rows = []
        for i in range(x.shape[-1]):
            canvas = x.clone()
            canvas[..., i:] = WORLD.vocab
            rows.append(WORLD.posterior_logits(canvas)[..., i, :])
        return Estimate(torch.stack(rows, -2))


def test_left_to_right_is_the_chain_rule() -> None:
    process, model = Autoregressive(3), Causal()
    every = WORLD.sequences
    exact = WORLD.log_prob(every)
    assert torch.allclose(elbo(process, model, renoise(process, every, 2, Rng(0)))[:, 1], exact, atol=1e-5)
    live = torch.tensor([False, True, True]).expand(27, 3)
    first = WORLD.table.exp().sum((1, 2)).log()[every[:, 0]]
    part = elbo(process, model, renoise(process, every, 2, Rng(0), live))
    assert torch.allclose(part[:, 0], exact - first, atol=1e-5)
    assert torch.allclose(denoising_losses(process, model, renoise(process, every, 2, Rng(0), live)), -part / 2)

    last = torch.tensor([False, False, True]).expand(27, 3)
    one = renoise(process, every, 1, Rng(0), last)
    assert torch.allclose(
        denoising_losses(process, model, one), -elbo(process, model, one), atol=1e-6
    )  # per live token: one


@pytest.mark.parametrize(("law", "dtype"), [("gaussian", torch.float32), ("categorical", torch.int64)])
def test_one_step_begins_with_zeros_of_the_kind_that_it_decides(law, dtype) -> None:
    x = OneStep(law).prior((2, 3)).sample(torch.zeros(2, 3))
    assert x.dtype == dtype and not x.any()


def test_ids_without_a_row_are_refused_when_they_are_scored() -> None:
    class Rowed(Causal):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Module()
            self.net.rows = 2  # type: ignore[assignment]

    process = Autoregressive(3)
    with pytest.raises(InvalidInputError, match="2"):
        elbo(process, Rowed(), renoise(process, torch.tensor([[0, 1, 2]]), 1, Rng(0)))


def test_chains_of_tokens_have_the_worlds_frequencies_and_probabilities() -> None:
    process, n = Autoregressive(3), 6000
    chain = make_sampler(process, Causal(), process.steps(time_grid(3)), (3,))(None, Rng(0), rows=n)
    assert torch.allclose(chain.log_prob.sum(-1), WORLD.log_prob(chain.sample), atol=1e-5)
    count = torch.bincount(WORLD.index(chain.sample), minlength=27).double() / n
    variation = float((count - WORLD.table.exp().flatten().double()).abs().sum()) / 2
    assert variation < 0.05


def test_the_next_token_law_sums_to_one_and_is_silent_when_finished() -> None:
    process = Autoregressive(3, temperature=0.7, top_k=2)
    step = process.steps(time_grid(3))[1]
    x = torch.tensor([[1, 3, 3]]).expand(3, 3)
    logits = Rng(0).normal(1, 3, 3).expand(3, 3, 3)
    law = process.reverse(Estimate(logits), x, step)
    y = torch.tensor([[1, v, 3] for v in range(3)])
    p = law.log_prob(y).exp()
    assert abs(float(p.sum()) - 1) < 1e-6 and int((p == 0).sum()) == 1
    wanted = (logits[0, 1] / 0.7).topk(2).values.softmax(-1)
    assert torch.allclose(p[p > 0].sort().values, wanted.sort().values, atol=1e-6)
    assert law.num_factors.tolist() == [1, 1, 1] and law.log_prob(y, factors=True).sum(-1).equal(law.log_prob(y))
    done = process.reverse(Estimate(logits), y.where(y < 3, 0), step)
    assert done.log_prob(y.where(y < 3, 0)).tolist() == [0, 0, 0] and done.num_factors.tolist() == [0, 0, 0]
    assert torch.equal(done.sample(torch.rand(3, 1)), y.where(y < 3, 0))
    other = process.reverse(Estimate(logits.flip(-1).contiguous()), x, step)
    plain = Autoregressive(3).reverse(Estimate(logits), x, step)
    mixed = Autoregressive(3).reverse(Estimate(logits + torch.tensor([0.5, 0.0, -0.5])), x, step)
    a, b = plain.log_prob(y), mixed.log_prob(y)
    assert abs(float(plain.kl(mixed)[0]) - float((a.exp() * (a - b)).sum())) < 1e-6
    assert float(law.kl(law)[0]) == 0 and float(done.kl(other)[0]) >= 0


def test_prompts_of_any_length_are_continued() -> None:
    process = Autoregressive(3)
    start = torch.tensor([[3, 3, 3], [2, 3, 3], [0, 1, 3], [1, 1, 2]])
    chain = make_sampler(process, Causal(), process.steps(time_grid(3)), (3,))(None, Rng(0), start=(start, 0))
    assert isinstance(chain.sample, Tensor) and int(chain.sample.max()) < 3
    assert torch.equal(torch.where(start < 3, start, chain.sample), chain.sample)
    given = [0.0] + [float(WORLD.table.exp()[tuple(r[r < 3].tolist())].sum().log()) for r in start[1:]]
    assert torch.allclose(chain.log_prob.sum(-1), WORLD.log_prob(chain.sample) - torch.tensor(given), atol=1e-5)


def transformer(**given: Any) -> TokenDenoiser:
    return TokenDenoiser(Transformer(3, 4, width=16, depth=2, heads=2, causal=True), **given)


def test_one_causal_pass_scores_every_step() -> None:
    """The network sees the finished text; causality and the start symbol hide what a step did not know."""
    process, model = Autoregressive(3, temperature=0.8), transformer(start=3)
    chain = make_sampler(process, model, process.steps(time_grid(4)), (4,))(None, Rng(0), rows=64)
    law, y = rescore(process, model, chain)
    assert torch.allclose(law.log_prob(y), chain.log_prob, atol=2e-6)
    by_rows, z = rescore(process, model, chain.steps_at())
    assert torch.allclose(by_rows.log_prob(z).reshape(64, 4), chain.log_prob, atol=2e-6)
    assert torch.allclose(
        rescore(process, model, chain, micro_batch_size=16)[0].log_prob(y), law.log_prob(y), atol=2e-6
    )
    whole = elbo(Autoregressive(3, temperature=0.8), model, renoise(process, chain.sample, 2, Rng(0)))
    assert torch.allclose(whole[:, 0], chain.log_prob.sum(-1), atol=1e-5)
    every = torch.tensor(list(itertools.product(range(3), repeat=4)))
    total = elbo(process, model, renoise(process, every, 1, Rng(0))).exp().sum()
    assert abs(total.item() - 1) < 1e-5


def test_shifted_networks_score_what_follows_a_given_first_token() -> None:
    process, model = Autoregressive(3), transformer(shift=True)
    steps = process.steps(time_grid(3))
    start = torch.cat([torch.tensor([0, 1, 2] * 10)[:, None], torch.full((30, 3), 3)], 1)
    chain = make_sampler(process, model, steps, (4,))(None, Rng(0), start=(start, 0))
    law, y = rescore(process, model, chain)
    assert torch.allclose(law.log_prob(y), chain.log_prob, atol=2e-6)
    live = torch.tensor([False, True, True, True]).expand(30, 4)
    assert torch.allclose(
        elbo(process, model, renoise(process, chain.sample, 1, Rng(0), live))[:, 0], chain.log_prob.sum(-1), atol=1e-5
    )
    empty = make_sampler(process, model, process.steps(time_grid(4)), (4,))(None, Rng(0), rows=3)
    for ask in (
        lambda: rescore(process, model, empty),
        lambda: elbo(process, model, renoise(process, empty.sample, 1, Rng(0))),
    ):
        with pytest.raises(ValueError, match=r"TokenDenoiser\(net, start=...\)"):
            ask()


def test_a_decoder_that_leaves_no_token_is_refused() -> None:
    for given in ({"temperature": 0.0}, {"top_k": 0}, {"top_p": 0.0}):
        with pytest.raises(ValueError):
            Autoregressive(3, **given)  # type: ignore[arg-type]
    assert math.isinf(float(Autoregressive(3, top_k=1).reverse(
        Estimate(torch.tensor([[[0.0, 1.0, 2.0]]])), torch.tensor([[3]]), Autoregressive(3).steps(time_grid(1))[0]
    ).log_prob(torch.tensor([[0]]))[0]))  # fmt: skip


def test_the_loss_is_of_all_tokens_where_the_draw_leaves_some_out() -> None:
    every, model = WORLD.sequences, Causal()
    noised = renoise(Autoregressive(3), every, 1, Rng(0))
    whole = denoising_losses(Autoregressive(3), model, noised)
    assert torch.equal(denoising_losses(Autoregressive(3, top_k=1), model, noised), whole)
    assert bool(elbo(Autoregressive(3, top_k=1), model, noised).isneginf().any())
