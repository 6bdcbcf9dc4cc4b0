"""The categorical law, and the two laws that put others together."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy import stats

from denoiserl import Categorical, Delta, Gaussian, Product, Rng
from denoiserl.core.errors import NoDensityError

IMPOSSIBLE = -math.inf


def logits() -> torch.Tensor:
    table = torch.tensor([[0.3, -1.0, 2.0, 0.0], [0.0, IMPOSSIBLE, 1.0, IMPOSSIBLE], [5.0, -5.0, 0.0, 1.0]])
    return table.double()


def test_sums_to_one_over_all_outcomes() -> None:
    c = Categorical(logits(), 1)
    every = torch.tensor(list(itertools.product(range(4), repeat=3)))
    p = torch.stack([c.log_prob(y) for y in every]).double().exp()
    assert abs(float(p.sum()) - 1) < 1e-6
    factors = torch.stack([c.log_prob(y, factors=True) for y in every])
    assert torch.allclose(factors.sum(-1).exp().double(), p)


def test_frequencies_of_the_inverse_are_the_probabilities() -> None:
    c, n = Categorical(logits(), 1), 60_000
    y = Categorical(logits().expand(n, 3, 4), 1).sample(Rng(0).uniform(n, 3))
    for i in range(3):
        p = c.logits[i].softmax(-1)
        counts = torch.bincount(y[:, i], minlength=4)
        alive = p > 0
        assert int(counts[~alive].sum()) == 0
        assert stats.chisquare(counts[alive].numpy(), (p[alive] * n).numpy()).pvalue > 1e-4


def test_impossible_tokens_are_never_drawn_even_at_the_ends() -> None:
    ends = torch.tensor([0.0, 2.0**-24, 0.5, 1 - 2.0**-24])
    table = torch.tensor([[IMPOSSIBLE, 0.0, IMPOSSIBLE, 0.0, IMPOSSIBLE]]).expand(4, 5)
    assert Categorical(table).sample(ends).tolist() == [1, 1, 3, 3]
    only = torch.full((4, 5), IMPOSSIBLE).index_fill(-1, torch.tensor([2]), 0.0)
    assert Categorical(only).sample(ends).tolist() == [2] * 4


def test_a_large_vocabulary_is_drawn_in_full(device: str) -> None:
    v = 32_000
    table = torch.randn(v, generator=torch.Generator().manual_seed(0)).to(device).mul(2)
    y = Categorical(table.expand(2000, v)).sample(Rng(0, device).uniform(2000))
    p = table.double().softmax(-1)
    surprise = p.log()[y]
    entropy, spread = (p * p.log()).sum(), ((p * p.log() ** 2).sum() - (p * p.log()).sum() ** 2).sqrt()
    assert abs(float(surprise.mean() - entropy)) < 5 * float(spread) / math.sqrt(2000)


def test_low_precision_logits_are_scored_and_drawn_in_float32() -> None:
    table = torch.randn(64, 500).bfloat16()
    c = Categorical(table, 0)
    y = c.sample(Rng(0).uniform(64))
    assert c.log_prob(y).dtype == torch.float32
    assert torch.equal(c.log_prob(y), Categorical(table.float(), 0).log_prob(y))


def test_kl_is_enumerated_and_minds_impossible_tokens() -> None:
    p, q = Categorical(logits(), 1), Categorical(torch.linspace(-1, 1, 12).reshape(3, 4).double(), 1)
    every = torch.tensor(list(itertools.product(range(4), repeat=3)))
    a = torch.stack([p.log_prob(y) for y in every])
    b = torch.stack([q.log_prob(y) for y in every])
    possible = a > IMPOSSIBLE
    assert abs(float((a.exp() * (a - b))[possible].sum() - p.kl(q))) < 1e-5
    narrow = Categorical(torch.tensor([0.0, IMPOSSIBLE, 0.0]), 0)
    wide = Categorical(torch.zeros(3), 0)
    assert abs(float(narrow.kl(wide)) - math.log(1.5)) < 1e-6
    assert float(wide.kl(narrow)) == math.inf
    assert float(narrow.kl(narrow)) == 0
    assert abs(float(narrow.entropy()) - math.log(2)) < 1e-6


def test_gradients_are_finite_where_tokens_are_impossible() -> None:
    table = logits().float().requires_grad_()
    c = Categorical(table, 1)
    (c.log_prob(torch.tensor([0, 2, 1])) + c.kl(Categorical(torch.zeros(3, 4), 1)) + c.entropy()).backward()
    assert table.grad is not None and bool(table.grad.isfinite().all())
    assert bool((table.grad[logits() == IMPOSSIBLE] == 0).all())


def test_live_tokens_count() -> None:
    live = torch.tensor([True, False, True])
    c, y = Categorical(logits(), 1, live), torch.tensor([0, 1, 2])  # token 1 of the dead position is impossible
    whole = Categorical(logits(), 1).log_prob(y, factors=True)
    assert torch.allclose(c.log_prob(y), whole[[0, 2]].sum()) and float(c.num_factors) == 2
    assert float(c.log_prob(y, factors=True)[1]) == 0


def test_delta_is_certain_and_has_no_density() -> None:
    d = Delta(torch.ones(2, 3), 1)
    assert torch.equal(d.sample(), torch.ones(2, 3)) and d.has_density is False and d.num_factors.tolist() == [3, 3]
    for ask in (lambda: d.log_prob(torch.ones(2, 3)), lambda: d.kl(d)):
        with pytest.raises(NoDensityError, match="leave it out"):
            ask()


def test_a_product_adds_its_parts() -> None:
    g, c = Gaussian(torch.randn(2, 3), torch.tensor(0.5), 1, True), Categorical(torch.randn(2, 4), 0)
    h, d = Gaussian(torch.randn(2, 3), torch.tensor(0.8), 1, True), Categorical(torch.randn(2, 4), 0)
    both, other = Product({"a": g, "b": c}), Product({"a": h, "b": d})
    rng = Rng(0)
    y = both.sample({"a": rng.normal(2, 3), "b": rng.uniform(2)})
    assert torch.allclose(both.log_prob(y), g.log_prob(y["a"]) + c.log_prob(y["b"]))
    assert torch.allclose(both.log_prob(y, factors=True).sum(-1), both.log_prob(y))
    assert torch.allclose(both.kl(other), g.kl(h) + c.kl(d))
    assert both.num_factors.tolist() == [4, 4]
    assert both.has_density is True
    assert Product({"a": g, "b": Delta(torch.ones(2), 0)}).has_density is False
    assert Product({"a": Gaussian(g.mean, g.std, 1), "b": c}).has_density is None


def test_entropy_is_of_the_factors_that_count() -> None:
    logits, mask = Rng(0).normal(2, 3, 4), torch.tensor([[True, False, True], [False, True, False]])
    each = Categorical(logits, 0).entropy()
    found = Categorical(logits, 1, mask=mask).entropy()
    assert torch.allclose(found, torch.stack([each[0, 0] + each[0, 2], each[1, 1]]))
