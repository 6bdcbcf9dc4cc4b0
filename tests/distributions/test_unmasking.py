"""The law of one unmasking step: exact for every order, against an enumeration that shares no line with it."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from denoiserl import Rng, Unmasking
from denoiserl.processes import truncate

V, L, MASK = 3, 4, 3
IMPOSSIBLE = -math.inf
Outcome = tuple[int, ...]


def model(seed: int = 0, scale: float = 1.5) -> Tensor:
    return scale * torch.randn(L, V, generator=torch.Generator().manual_seed(seed))


def ties() -> Tensor:
    """Positions 0 and 2 alike, position 1 uniform, position 3 a permutation of 0: ties within and between positions."""
    row = torch.tensor([1.0, 0.0, -1.0])
    return torch.stack([row, torch.zeros(3), row, row.flip(0)])


def canvases() -> dict[str, tuple[Tensor, Tensor]]:
    """Name to (state, open positions)."""
    whole = torch.full((L,), MASK)
    part = torch.tensor([MASK, 1, MASK, MASK])
    return {
        "whole": (whole, torch.ones(L, dtype=torch.bool)),
        "prompt": (part, part == MASK),
        "block": (whole, torch.tensor([True, True, True, False])),  # position 3 is masked and closed
        "gap": (part, torch.tensor([False, False, True, True])),
        "done": (torch.tensor([0, 1, 2, 0]), torch.zeros(L, dtype=torch.bool)),
    }


def outcomes(x: Tensor) -> Tensor:
    """Every state that some unmasking of ``x`` could reach, and one that changes a visible token."""
    choices = [range(V + 1) if int(v) == MASK else [int(v)] for v in x]
    return torch.tensor(list(itertools.product(*choices)))


def law(logits: Tensor, x: Tensor, opened: Tensor, order: Any, y: Tensor, **more: Any) -> Unmasking:
    """The law repeated for every outcome in ``y`` [n, L]."""
    n = len(y)

    def many(v: Tensor) -> Tensor:
        return v.expand(n, *v.shape)

    given = {k: many(v) if isinstance(v, Tensor) else v for k, v in more.items()}
    return Unmasking(many(logits), many(x), many(opened), MASK, order, **given)


def candidates(logits: Tensor, opened: Tensor) -> Iterator[tuple[dict[int, int], float]]:
    """Every joint draw of candidate tokens at open positions, with its probability in Python floats."""
    p = logits.double().softmax(-1)
    places = [i for i in range(L) if bool(opened[i])]
    for tokens in itertools.product(range(V), repeat=len(places)):
        drawn = dict(zip(places, tokens, strict=True))
        yield drawn, math.prod(float(p[i, v]) for i, v in drawn.items())


def brute(
    logits: Tensor, x: Tensor, opened: Tensor, count: int, score: Tensor | None = None, threshold: float | None = None
) -> dict[Outcome, float]:
    """Confidence decoding by enumeration of the candidates; ties go to the left."""
    log_conf = (logits if score is None else score).float().log_softmax(-1)
    total: dict[Outcome, float] = defaultdict(float)
    for drawn, p in candidates(logits, opened):
        confidence = {i: float(log_conf[i, v]) for i, v in drawn.items()}
        best = sorted(drawn, key=lambda i: (-confidence[i], i))
        chosen = set(best[:count])
        if threshold is not None:
            chosen |= {i for i in drawn if math.exp(confidence[i]) > threshold}
        total[tuple(drawn[i] if i in chosen else int(x[i]) for i in range(L))] += p
    return total


def agree(found: Tensor, y: Tensor, wanted: dict[Outcome, float], tolerance: float = 1e-6) -> None:
    p = found.double().exp()
    assert abs(float(p.sum()) - 1) < tolerance
    for outcome, value in zip(y.tolist(), p.tolist(), strict=True):
        assert abs(value - wanted.get(tuple(outcome), 0.0)) < tolerance, outcome
        if wanted.get(tuple(outcome), 0.0) == 0.0:
            assert value == 0.0  # minus infinity, not merely small


@pytest.mark.parametrize("name", canvases())
@pytest.mark.parametrize("threshold", [None, 0.3, 0.6])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("logits", [model(), model(5, 4.0), ties(), torch.zeros(L, V)], ids=["a", "b", "ties", "flat"])
def test_confidence_is_exact(logits: Tensor, count: int, threshold: float | None, name: str) -> None:
    x, opened = canvases()[name]
    y = outcomes(x)
    n = min(count, int(opened.sum()))
    found = law(logits, x, opened, "confidence", y, count=torch.tensor(n), threshold=threshold).log_prob(y)
    agree(found, y, brute(logits, x, opened, n, threshold=threshold))


DECODERS = {"cold": (0.5, None, None), "hot": (2.0, None, None), "top-k": (1.0, 2, None), "greedy": (1.0, 1, None),
            "top-p": (1.0, None, 0.7), "all": (0.7, 2, 0.9)}  # fmt: skip


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("threshold", [None, 0.5])
def test_confidence_is_exact_when_the_score_is_not_the_policy(decoder: str, threshold: float | None) -> None:
    for seed in range(4):
        raw = model(seed) if seed else ties()
        policy = truncate(raw, *DECODERS[decoder])
        for name in ("whole", "prompt", "block"):
            x, opened = canvases()[name]
            y = outcomes(x)
            for count in (1, 2):
                more = {"count": torch.tensor(count), "score": raw, "threshold": threshold}
                found = law(policy, x, opened, "confidence", y, **more).log_prob(y)
                agree(found, y, brute(policy, x, opened, count, raw, threshold))


@pytest.mark.parametrize("name", canvases())
@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_independent_is_exact(rate: float, name: str) -> None:
    x, opened = canvases()[name]
    y, wanted = outcomes(x), defaultdict(float)
    for drawn, p in candidates(model(), opened):
        for size in range(len(drawn) + 1):
            for chosen in itertools.combinations(drawn, size):
                weight = rate**size * (1 - rate) ** (len(drawn) - size)
                wanted[tuple(drawn[i] if i in chosen else int(x[i]) for i in range(L))] += p * weight
    agree(law(model(), x, opened, "independent", y, rate=torch.tensor(rate)).log_prob(y), y, wanted)


@pytest.mark.parametrize("name", canvases())
@pytest.mark.parametrize("order", ["random", "left", "margin", "entropy"])
@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_other_orders_are_exact(order: str, count: int, name: str) -> None:
    x, opened = canvases()[name]
    for logits in (model(), ties()):
        places = [i for i in range(L) if bool(opened[i])]
        n = min(count, len(places))
        p = logits.double().softmax(-1)
        gap = p.sort(-1).values.diff(dim=-1)[:, -1]
        entropy = -(p * p.log()).sum(-1)
        key = {"left": lambda i: 0.0, "margin": lambda i: -round(float(gap[i]), 6)}  # noqa: B023 - used in this turn
        key["entropy"] = lambda i: round(float(entropy[i]), 6)  # noqa: B023
        sets = list(itertools.combinations(places, n)) if order == "random" else []
        if not sets:
            sets = [tuple(sorted(places, key=lambda i: (key[order](i), i))[:n])]
        y, wanted = outcomes(x), defaultdict(float)
        for drawn, q in candidates(logits, opened):
            for chosen in sets:
                wanted[tuple(drawn[i] if i in chosen else int(x[i]) for i in range(L))] += q / len(sets)
        agree(law(logits, x, opened, order, y, count=torch.tensor(n)).log_prob(y), y, wanted)


CASES: dict[str, dict[str, Any]] = {
    "independent": {"rate": torch.tensor(0.4)},
    "confidence": {"count": torch.tensor(2)},
    "random": {"count": torch.tensor(2)},
    "left": {"count": torch.tensor(2)},
    "margin": {"count": torch.tensor(2)},
    "entropy": {"count": torch.tensor(2)},
}


@pytest.mark.parametrize("variant", [*CASES, "threshold", "scored", "tied", "block"])
def test_draws_have_the_frequencies_that_are_scored(variant: str, device: str) -> None:
    order, more, logits = variant if variant in CASES else "confidence", {"count": torch.tensor(1)}, model(3)
    x, opened = canvases()["block" if variant == "block" else "whole"]
    if variant in CASES:
        more = dict(CASES[variant])
    elif variant == "threshold":
        more["threshold"] = 0.5
    elif variant == "scored":
        more["score"], logits = logits, truncate(logits, 0.6, 2)
    elif variant == "tied":
        logits = ties()
    n, y = 40_000, outcomes(x)
    exact = law(logits, x, opened, order, y, **more).log_prob(y).double().exp()
    on = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in more.items()}
    noise = torch.zeros(n, L)
    big = law(logits.to(device), x.to(device), opened.to(device), order, noise, **on)
    drawn = big.sample(Rng(0, device).uniform(n, L, 2))
    assert bool(big.log_prob(drawn).isfinite().all())
    index = {tuple(row): k for k, row in enumerate(y.tolist())}
    count = torch.zeros(len(y)).double()
    for row in drawn.tolist():
        count[index[tuple(row)]] += 1
    spread = (exact * (1 - exact) / n).sqrt()
    assert bool(((count / n - exact).abs() <= 5 * spread + 3 / n).all())


def test_leaving_out_the_losers_is_not_a_probability() -> None:
    """What trace methods score, the revealed tokens alone, sums to far more than one, and to one at full reveal."""
    x, opened = canvases()["whole"]
    y = outcomes(x)
    for count, least in ((1, 2.0), (2, 2.0), (4, 0.0)):
        step = law(model(scale=0.4), x, opened, "confidence", y, count=torch.tensor(count))
        reached = step.log_prob(y) > IMPOSSIBLE
        naive = torch.where(reached, step.token_log_prob(y).sum(-1), IMPOSSIBLE)
        gap = (step.log_prob(y).exp() * torch.where(reached, naive - step.log_prob(y), 0.0)).sum()
        assert float(naive.exp().sum()) > least
        assert (float(gap) > 0.5) == (count < 4)
        assert torch.allclose(step.token_log_prob(y).sum(-1) + step.order_log_prob(y), step.log_prob(y))


@pytest.mark.parametrize("order", CASES)
def test_what_cannot_happen_has_no_probability(order: str) -> None:
    x, opened = torch.tensor([MASK, 1, MASK, MASK]), torch.tensor([True, False, True, False])
    y = torch.tensor([
        [0, 2, 0, MASK],  # a visible token changed
        [0, 1, 0, 2],  # a closed position revealed
        [MASK, MASK, 0, MASK],  # a token hidden again
    ])  # fmt: skip
    assert bool((law(model(), x, opened, order, y, **CASES[order]).log_prob(y) == IMPOSSIBLE).all())


@pytest.mark.parametrize("order", CASES)
def test_factors_add_up_and_sizes_count(order: str) -> None:
    x, opened = canvases()["whole"]
    y = outcomes(x)
    step = law(model(), x, opened, order, y, **CASES[order])
    factors = step.log_prob(y, factors=True)
    assert factors.shape == (len(y), L + 1)
    assert torch.allclose(factors.sum(-1), step.log_prob(y))
    assert step.num_factors[0] == (L if order == "independent" else 2)
    assert step.has_density is True and step.event_dims == 1 and torch.equal(step.mask, step.is_open)


@pytest.mark.parametrize("order", ["independent", "random", "left"])
def test_kl_is_enumerated(order: str) -> None:
    for name in ("whole", "prompt", "block", "done"):
        x, opened = canvases()[name]
        y = outcomes(x)
        more, other = dict(CASES[order]), dict(CASES[order])
        if "count" in more:
            more["count"] = other["count"] = torch.minimum(more["count"], opened.sum())
        else:
            other["rate"] = torch.tensor(0.7)
        p, q = law(model(), x, opened, order, y, **more), law(model(1), x, opened, order, y, **other)
        a, b = p.log_prob(y).double(), q.log_prob(y).double()
        wanted = (a.exp() * torch.where(a > IMPOSSIBLE, a - b, 0.0)).sum()
        assert abs(float(p.kl(q)[0]) - float(wanted)) < 1e-5


def test_kl_at_the_ends_of_the_rate() -> None:
    x, opened = canvases()["whole"]

    def at(rate: float) -> Unmasking:
        return law(model(), x, opened, "independent", x[None], rate=torch.tensor(rate))

    for rate in (0.0, 0.5, 1.0):
        assert float(at(rate).kl(at(rate))) == 0
    assert float(at(0.5).kl(at(1.0))) == math.inf and float(at(0.5).kl(at(0.0))) == math.inf
    assert abs(float(at(1.0).kl(at(0.5))) - L * math.log(2)) < 1e-5


@pytest.mark.parametrize("order", ["confidence", "margin", "entropy"])
def test_orders_of_the_network_have_no_closed_kl_and_say_so(order: str) -> None:
    x, opened = canvases()["whole"]
    step = law(model(), x, opened, order, x[None], **CASES[order])
    with pytest.raises(ValueError, match="estimate it from draws"):
        step.kl(step)


@pytest.mark.parametrize("decoder", [*DECODERS, "plain"])
@pytest.mark.parametrize("threshold", [None, 0.6])
def test_gradients_are_finite_and_true_for_every_outcome(decoder: str, threshold: float | None) -> None:
    """The score function has mean zero: Σ_y ∇p(y) = ∇1 = 0, wherever the ranking does not jump."""
    raw = model(2).requires_grad_()
    x, opened = canvases()["block"]
    y = outcomes(x)
    policy = truncate(raw, *DECODERS.get(decoder, (1.0, None, None)))
    step = law(policy, x, opened, "confidence", y, count=torch.tensor(1), score=raw.detach(), threshold=threshold)
    logp = step.log_prob(y)
    possible = logp > IMPOSSIBLE
    (gradient,) = torch.autograd.grad(logp[possible].exp().sum(), raw, retain_graph=True)
    assert float(gradient.abs().max()) < 1e-5
    (gradient,) = torch.autograd.grad(torch.where(possible, logp, 0.0).sum(), raw)
    assert bool(gradient.isfinite().all())


def test_refusals() -> None:
    x, opened = canvases()["whole"]
    with pytest.raises(ValueError, match="Did you mean 'confidence'"):
        law(model(), x, opened, "confidense", x[None])
    with pytest.raises(ValueError, match="needs count"):
        law(model(), x, opened, "left", x[None])
    with pytest.raises(ValueError, match="needs rate"):
        law(model(), x, opened, "independent", x[None], count=torch.tensor(1))
    for order, threshold in (("left", 0.5), ("confidence", 1.0), ("confidence", 0.0)):
        with pytest.raises(ValueError, match="threshold"):
            law(model(), x, opened, order, x[None], count=torch.tensor(1), threshold=threshold)


def test_what_does_not_count_has_no_part_in_probability_or_divergence() -> None:
    """At rate 1 a closed hole that is not live stays as it is without a NaN, and its flip costs no KL."""
    whole, live = torch.full((1, L), MASK), torch.tensor([[True, True, True, False]])
    logits = model()[None]
    sure, half = (
        Unmasking(logits, whole, whole == MASK, MASK, "independent", rate=torch.tensor([r]), mask=live)
        for r in (1.0, 0.5)
    )
    y = torch.tensor([[0, 1, 2, MASK]])
    wanted = logits.log_softmax(-1)[0, range(3), [0, 1, 2]].sum()
    assert float(sure.log_prob(y)) == pytest.approx(float(wanted), abs=1e-6)
    assert float(sure.kl(half)) == pytest.approx(3 * math.log(2), abs=1e-6)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_kl_of_a_random_order_is_of_the_live_positions(count: int) -> None:
    """E_p [log p − log q] over all outcomes, where p and q score two of the four open positions."""
    x, opened = canvases()["whole"]
    y, live = outcomes(x), torch.tensor([True, False, True, False])
    one, two = ({"count": torch.tensor(count)}, {"count": torch.tensor(count), "mask": live})
    weight = law(model(), x, opened, "random", y, **one).log_prob(y).double().exp()
    p, q = (law(model(seed), x, opened, "random", y, **two) for seed in (0, 1))
    gap = p.log_prob(y).double() - q.log_prob(y).double()
    wanted = (weight * torch.where(weight > 0, gap, 0.0)).sum()
    assert float(weight.sum()) == pytest.approx(1.0, abs=1e-6) and float(wanted) > 0.01
    assert float(p.kl(q)[0]) == pytest.approx(float(wanted), abs=1e-5)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_confidence_at_the_threshold_is_scored_as_it_is_drawn(count: int) -> None:
    """The threshold is that of token 1: it is not above itself. Every joint candidate is drawn once, and weighed."""
    logits, (x, opened) = torch.tensor([1.0, 0.0, -1.0]).expand(L, V), canvases()["whole"]
    y = outcomes(x)
    at = float(logits.expand(len(y), L, V).log_softmax(-1)[0, 0, 1])
    more = {"count": torch.tensor(count), "threshold": math.exp(at)}
    p = logits[0].double().softmax(-1)
    edge = p.cumsum(-1) - p / 2  # a uniform in the middle of its interval draws a token
    wanted: dict[Outcome, float] = defaultdict(float)
    for drawn, weight in candidates(logits, opened):
        noise = torch.stack([edge[[drawn[i] for i in range(L)]].float(), torch.full((L,), 0.5)], -1)
        wanted[tuple(Unmasking(logits, x, opened, MASK, "confidence", **more).sample(noise).tolist())] += weight
    assert wanted == pytest.approx(brute(logits, x, opened, count, threshold=math.exp(at)))
    agree(law(logits, x, opened, "confidence", y, **more).log_prob(y), y, wanted)


def test_the_margin_is_a_gap_of_probabilities() -> None:
    """0.60 − 0.40 is a larger gap than 0.40 − 0.22, and its logarithms are nearer to each other."""
    p = torch.tensor([[0.60, 0.40, 0.0, 0.0], [0.40, 0.22, 0.20, 0.18]]).clamp_min(1e-9)
    x, noise = torch.full((1, 2), 4), torch.full((1, 2, 2), 0.3)
    made = Unmasking(p.log()[None], x, x == 4, 4, "margin", torch.tensor([1])).sample(noise)
    assert made[0, 0] != 4 and made[0, 1] == 4
