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
    wide = torch.randn(2000, 300).bfloat16()
    uniform = Rng(1).uniform(2000)
    assert torch.equal(Categorical(wide).sample(uniform), Categorical(wide.float()).sample(uniform))


def test_a_uniform_that_rounding_has_made_one_draws_the_last_possible_token() -> None:
    table = torch.tensor([[0.6, 0.3, 0.1, 0.0], [0.0, 1.0, 0.0, 0.0], [0.2, 0.2, 0.3, 0.3]]).log()
    assert Categorical(table).sample(torch.ones(3)).tolist() == [2, 1, 3]


def test_a_cumulative_sum_that_rises_by_rounding_at_an_impossible_token_does_not_draw_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a parallel sum on an accelerator does: the hair at token 1 goes to the likeliest token, 2."""
    exact = torch.Tensor.cumsum

    def rough(self: torch.Tensor, dim: int) -> torch.Tensor:
        return exact(self, dim) + torch.tensor([0.0, 1e-6, 1e-6, 1e-6])

    table = torch.tensor([[0.25, 0.0, 0.5, 0.25]]).log()
    monkeypatch.setattr(torch.Tensor, "cumsum", rough)
    assert Categorical(table).sample(torch.tensor([0.2500003])).tolist() == [2]


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


def test_divergence_and_entropy_are_means_over_the_outcomes_of_the_factors_that_count() -> None:
    """Over all 64 outcomes of three tokens, Σ p (log p − log q) and −Σ p log p, where the middle one is dead."""
    p, q, live = Rng(0).normal(3, 4), Rng(1).normal(3, 4), torch.tensor([True, False, True])
    every = torch.tensor(list(itertools.product(range(4), repeat=3)))
    weight = torch.stack([Categorical(p, 1).log_prob(y) for y in every]).double().exp()
    a, b = (torch.stack([Categorical(v, 1, live).log_prob(y) for y in every]).double() for v in (p, q))
    one, other = Categorical(p, 1, live), Categorical(q, 1, live)
    assert float(one.kl(other)) == pytest.approx(float((weight * (a - b)).sum()), abs=1e-5)
    assert float(one.entropy()) == pytest.approx(-float((weight * a).sum()), abs=1e-5)
    assert abs(float(one.kl(other)) - float(Categorical(p, 1).kl(Categorical(q, 1)))) > 0.01


def test_the_gradient_of_a_log_probability_is_the_token_minus_the_law() -> None:
    table = Rng(0).normal(5, 3).requires_grad_()
    token = torch.tensor([0, 2, 1, 1, 2])
    (slope,) = torch.autograd.grad(Categorical(table, 1).log_prob(token), table)
    assert torch.allclose(slope, torch.nn.functional.one_hot(token, 3) - table.detach().softmax(-1), atol=1e-6)


def test_the_divergence_of_a_product_is_of_the_first_from_the_second() -> None:
    p, q = Categorical(torch.tensor([[2.0, 0.0]])), Categorical(torch.tensor([[0.0, 1.0]]))
    g, h = (
        Gaussian(torch.zeros(1, 2), torch.tensor(0.5), 1, True),
        Gaussian(torch.ones(1, 2), torch.tensor(2.0), 1, True),
    )
    one, other = Product({"a": p, "b": g}), Product({"b": h, "a": q})  # by name, whatever the order
    a = torch.tensor([2.0, 0.0]).double().softmax(-1)
    b = torch.tensor([0.0, 1.0]).double().softmax(-1)
    wanted = float((a * (a / b).log()).sum()) + 2 * (math.log(2 / 0.5) + (0.25 + 1) / 8 - 0.5)
    assert float(one.kl(other)) == pytest.approx(wanted, abs=1e-5)
    assert float(other.kl(one)) > wanted + 1


def test_a_part_without_density_takes_the_density_of_the_product_whatever_is_unknown() -> None:
    unknown, never = Gaussian(torch.zeros(2, 3), torch.tensor(0.5), 1), Delta(torch.ones(2), 0)
    for parts in ({"a": unknown, "b": never}, {"a": never, "b": unknown}):
        assert Product(parts).has_density is False


def test_a_deltas_live_factors_are_counted() -> None:
    live = torch.tensor([[True, False, True], [False, False, False]])
    assert Delta(torch.ones(2, 3), 1, live).num_factors.tolist() == [2, 0]
