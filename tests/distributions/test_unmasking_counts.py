"""Unmasking laws where counts, masks and orders meet: more to reveal than is open, factors that are dead, and draws
from noise whose outcome is known beforehand."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor

from denoiserl import Unmasking
from tests.distributions.test_unmasking import IMPOSSIBLE, MASK, L, agree, candidates, canvases, law, model, outcomes

EXACT = ("confidence", "random", "left", "margin", "entropy")


def enumerated(p: Unmasking, q: Unmasking, y: Tensor, weigher: Unmasking | None = None) -> float:
    """Σ_y w(y) (log p(y) − log q(y)), where w is p's law of all factors."""
    weight = (weigher or p).log_prob(y).double().exp()
    assert float(weight.sum()) == pytest.approx(1.0, abs=1e-6)
    gap = p.log_prob(y).double() - q.log_prob(y).double()
    return float((weight * torch.where(weight > 0, gap, 0.0)).sum())


@pytest.mark.parametrize("name", canvases())
@pytest.mark.parametrize("order", EXACT)
def test_a_count_above_what_is_open_reveals_all_that_is_open(order: Any, name: str) -> None:
    """Each outcome is the product of its tokens' probabilities, and nothing else is possible."""
    x, opened = canvases()[name]
    y, wanted = outcomes(x), defaultdict(float)
    for drawn, p in candidates(model(), opened):
        wanted[tuple(drawn.get(i, int(x[i])) for i in range(L))] += p
    for count in (int(opened.sum()) + 1, L + 3):
        step = law(model(), x, opened, order, y, count=torch.tensor(count))
        agree(step.log_prob(y), y, wanted)
        assert bool((step.num_factors == opened.sum()).all())
        noise = torch.rand(len(y), L, 2)
        few = law(model(), x, opened, order, y, count=opened.sum())
        assert torch.equal(step.sample(noise), few.sample(noise))
        assert bool((step.sample(noise) != MASK)[:, opened].all())


@pytest.mark.parametrize("name", canvases())
@pytest.mark.parametrize("order", ["random", "left"])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 9])
def test_divergence_is_the_mean_log_ratio_for_any_count(count: int, order: Any, name: str) -> None:
    x, opened = canvases()[name]
    y, n = outcomes(x), torch.tensor(count)
    p, q = (law(model(seed), x, opened, order, y, count=n) for seed in (0, 1))
    assert float(p.kl(q)[0]) == pytest.approx(enumerated(p, q, y), abs=1e-5)


@pytest.mark.parametrize("count", [1, 3, 6])
@pytest.mark.parametrize("order", ["random", "left"])
def test_divergence_is_of_live_positions_for_any_count(order: Any, count: int) -> None:
    x, opened = canvases()["block"]
    y, live, n = outcomes(x), torch.tensor([True, False, True, True]), torch.tensor(count)
    p, q = (law(model(seed), x, opened, order, y, count=n, mask=live) for seed in (0, 1))
    whole = law(model(), x, opened, order, y, count=n)
    assert float(p.kl(q)[0]) == pytest.approx(enumerated(p, q, y, whole), abs=1e-5)


@pytest.mark.parametrize(("a", "b"), [(0.2, 0.7), (0.9, 0.4)])
def test_divergence_of_two_rates_is_of_live_positions(a: float, b: float) -> None:
    x, opened = canvases()["block"]
    y, live = outcomes(x), torch.tensor([True, False, True, True])
    p, q = (
        law(model(seed), x, opened, "independent", y, rate=torch.tensor(rate), mask=live)
        for seed, rate in ((0, a), (1, b))
    )
    whole = law(model(), x, opened, "independent", y, rate=torch.tensor(a))
    assert float(p.kl(q)[0]) == pytest.approx(enumerated(p, q, y, whole), abs=1e-5)


def test_divergence_of_tokens_that_only_one_law_has_is_infinite_or_finite() -> None:
    x, opened = canvases()["whole"]
    narrow = model().index_fill(1, torch.tensor([2]), IMPOSSIBLE)
    p, q = (law(v, x, opened, "left", x[None], count=torch.tensor(2)) for v in (narrow, model()))
    y = outcomes(x)
    many = [law(v, x, opened, "left", y, count=torch.tensor(2)) for v in (narrow, model())]
    assert float(p.kl(q)[0]) == pytest.approx(enumerated(many[0], many[1], y), abs=1e-5)
    assert float(q.kl(p)[0]) == math.inf


@pytest.mark.parametrize("order", ["independent", *EXACT])
def test_log_probs_of_dead_positions_are_left_out(order: Any) -> None:
    """Against the law of all factors: tokens of dead positions take log p_i(y_i) with them; so do their rates.

    Confidence alone also leaves out F_j of dead positions: the next test has it.
    """
    x, opened = canvases()["whole"]
    y, live = outcomes(x), torch.tensor([True, False, True, True])
    more: dict[str, Tensor] = {"rate": torch.tensor(0.3)} if order == "independent" else {"count": torch.tensor(3)}
    whole, part = law(model(), x, opened, order, y, **more), law(model(), x, opened, order, y, mask=live, **more)
    dead = y[:, 1] != MASK
    token = model().log_softmax(-1)[1][torch.where(dead, y[:, 1], 0)]
    assert torch.allclose(whole.token_log_prob(y) - part.token_log_prob(y), torch.stack(
        [torch.zeros(len(y)), torch.where(dead, token, 0.0), torch.zeros(len(y)), torch.zeros(len(y))], 1), atol=1e-6
    )  # fmt: skip
    possible = whole.log_prob(y) > IMPOSSIBLE
    assert order == "confidence" or torch.equal(part.log_prob(y) > IMPOSSIBLE, possible)
    gap = (whole.order_log_prob(y) - part.order_log_prob(y))[possible]
    if order == "independent":
        assert torch.allclose(gap, torch.where(dead, math.log(0.3), math.log(0.7))[possible], atol=1e-6)
    elif order != "confidence":
        assert float(gap.abs().max()) < 1e-6
    counts = part.num_factors.unique().tolist()
    assert counts == [3.0]


@pytest.mark.parametrize("count", [1, 2])
def test_confidence_leaves_out_what_dead_positions_would_have_lost(count: int) -> None:
    """F_1 of the dead position, the mass of its tokens below the weakest commitment, by a loop over tokens."""
    x, opened = canvases()["whole"]
    y, live = outcomes(x), torch.tensor([True, False, True, True])
    whole, part = (law(model(), x, opened, "confidence", y, count=torch.tensor(count), **more)
                   for more in ({}, {"mask": live}))  # fmt: skip
    logp = model().double().log_softmax(-1)
    for k, row in enumerate(y.tolist()):
        if whole.log_prob(y)[k] == IMPOSSIBLE:
            continue
        revealed = [i for i in range(L) if row[i] != MASK]
        if 1 in revealed:
            gone = float(logp[1, row[1]])
        else:
            weakest = min((float(logp[i, row[i]]), -i) for i in revealed)
            gone = math.log(sum(float(logp[1, v].exp()) for v in range(3) if (float(logp[1, v]), -1) < weakest))
        assert float(whole.log_prob(y)[k] - part.log_prob(y)[k]) == pytest.approx(gone, abs=1e-5)


def test_the_first_uniform_says_the_token_and_the_second_the_order() -> None:
    """Tokens of probability ½ each: below ½ is token 0. The two largest second numbers are revealed."""
    x, token = torch.full((1, 4), 2), torch.tensor([[0.1, 0.9, 0.2, 0.8]])
    second = torch.tensor([[0.3, 0.7, 0.1, 0.9]])
    noise = torch.stack([token, second], -1)
    flat = torch.zeros(1, 4, 2)
    drawn = Unmasking(flat, x, x == 2, 2, "random", torch.tensor([2])).sample(noise)
    assert drawn.tolist() == [[2, 1, 2, 1]]
    below = Unmasking(flat, x, x == 2, 2, "independent", rate=torch.tensor([0.7])).sample(noise)
    assert below.tolist() == [[0, 2, 0, 2]]  # 0.3 and 0.1 are below the rate, 0.7 is not
    left = Unmasking(flat, x, x == 2, 2, "left", torch.tensor([3])).sample(noise)
    assert left.tolist() == [[0, 1, 0, 2]]


def test_a_rate_of_nothing_reveals_nothing_and_a_rate_of_one_everything() -> None:
    x, noise = torch.full((1, 4), 2), torch.zeros(1, 4, 2)
    for rate, left in ((0.0, 4), (1.0, 0)):
        step = Unmasking(torch.zeros(1, 4, 2), x, x == 2, 2, "independent", rate=torch.tensor([rate]))
        assert int((step.sample(noise) == 2).sum()) == left


def test_ties_of_many_positions_go_to_the_left() -> None:
    """Forty equal positions, of which a sort that keeps no order would reveal some others."""
    x = torch.full((1, 40), 2)
    for order in ("margin", "entropy", "confidence"):
        step = Unmasking(torch.zeros(1, 40, 2), x, x == 2, 2, order, torch.tensor([7]))
        drawn = step.sample(torch.rand(1, 40, 2))
        assert (drawn != 2).tolist() == [[True] * 7 + [False] * 33]
        assert float(step.log_prob(drawn)) == pytest.approx(7 * math.log(0.5), abs=1e-5)


def test_the_margin_is_of_the_two_best_of_many_tokens() -> None:
    p = torch.tensor([[0.50, 0.30, 0.12, 0.08], [0.45, 0.20, 0.20, 0.15], [0.40, 0.26, 0.18, 0.16]])
    x = torch.full((1, 3), 4)
    drawn = Unmasking(p.log()[None], x, x == 4, 4, "margin", torch.tensor([1])).sample(torch.full((1, 3, 2), 0.1))
    assert (drawn != 4).tolist() == [[False, True, False]]  # 0.25 is the widest gap, and 0.50 the best token
    one = Unmasking(torch.zeros(1, 3, 1), x, x == 4, 4, "margin", torch.tensor([2])).sample(torch.zeros(1, 3, 2))
    assert one.tolist() == [[0, 0, 4]]  # of one token there is no gap


def test_the_least_entropy_is_revealed_first() -> None:
    p = torch.tensor([[0.5, 0.5, 0.0], [0.8, 0.1, 0.1], [1 / 3] * 3, [1.0, 0.0, 0.0]])
    x = torch.full((1, 4), 3)
    for count, wanted in ((1, [3]), (2, [1, 3]), (3, [0, 1, 3])):
        step = Unmasking(p.log()[None], x, x == 3, 3, "entropy", torch.tensor([count]))
        drawn = step.sample(torch.full((1, 4, 2), 0.2))
        assert (drawn[0] != 3).nonzero().flatten().tolist() == wanted and bool(step.log_prob(drawn).isfinite())


@pytest.mark.parametrize("order", ["independent", *EXACT])
def test_closed_positions_that_count_add_nothing(order: Any) -> None:
    """A mask of all positions is that of the open ones: where nothing can be decided nothing is scored."""
    x, opened = canvases()["gap"]
    y = outcomes(x)
    more: dict[str, Tensor] = {"rate": torch.tensor(0.3)} if order == "independent" else {"count": torch.tensor(1)}
    plain = law(model(), x, opened, order, y, **more)
    wide = law(model(), x, opened, order, y, mask=torch.ones(L, dtype=torch.bool), **more)
    assert torch.equal(wide.log_prob(y), plain.log_prob(y)) and torch.equal(wide.num_factors, plain.num_factors)
    assert float(plain.log_prob(y).exp().sum()) == pytest.approx(1.0, abs=1e-6)
    if order in ("independent", "random", "left"):
        more = {k: v + 0.4 if k == "rate" else v for k, v in more.items()}
        others = [law(model(1), x, opened, order, y, mask=v, **more) for v in (opened, torch.ones_like(opened))]
        assert torch.equal(wide.kl(others[1]), plain.kl(others[0]))


def test_the_factors_that_count_by_default_are_those_that_are_open() -> None:
    for x, opened in canvases().values():
        assert torch.equal(law(model(), x, opened, "left", x[None], count=torch.tensor(1)).mask[0], opened)
