"""Intervals against scipy, against theorems about their coverage, and against bad input."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy
import pytest
import torch
from scipy import stats

from denoiserl.core.errors import DenoiseRLError, InvalidInputError, RunError
from denoiserl.core.rng import Rng
from denoiserl.stats import (
    Comparison,
    Interval,
    binomial,
    bootstrap,
    hierarchical_bootstrap,
    paired_interval,
    posterior,
    rate_interval,
    t_interval,
)


@pytest.mark.parametrize("k, n", [(0, 5), (3, 5), (40, 100), (5, 5), (1, 10_000)])
def test_posterior_is_scipys_beta(k: int, n: int) -> None:
    ours, theirs = posterior(k, n), stats.beta(k + 1, n - k + 1)
    rates = numpy.linspace(0, 1, 101)
    numpy.testing.assert_allclose(ours.density(rates), theirs.pdf(rates), rtol=1e-9, atol=1e-300)
    assert ours.mean == pytest.approx(theirs.mean())
    for q in (1e-3, 0.025, 0.5, 0.975):
        assert ours.quantile(q) == pytest.approx(theirs.ppf(q), rel=1e-9)


def test_posterior_has_no_mass_outside_and_refuses() -> None:
    assert posterior(3, 5).density([-0.1, 1.1]).tolist() == [0, 0]
    assert (posterior(3, 5).quantile(0), posterior(3, 5).quantile(1)) == (0, 1)
    with pytest.raises(InvalidInputError, match=r"quantile at 1\.1"):
        posterior(3, 5).quantile(1.1)
    with pytest.raises(InvalidInputError, match="no trials"):
        posterior(0, 0)


@pytest.mark.parametrize("n", [1, 5, 40])
def test_binomial_coverage_over_a_uniform_rate_is_the_level(n: int) -> None:
    """With the prior that made the interval, coverage is exact: ∫ P(k | p) dp = 1/(n+1) for each k."""
    inside = 0.0
    for k in range(n + 1):
        i, beta = binomial(k, n), stats.beta(k + 1, n - k + 1)
        assert i.low <= k / n <= i.high
        inside += (beta.cdf(i.high) - beta.cdf(i.low)) / (n + 1)
    assert inside == pytest.approx(0.95 + 0.05 / (n + 1), abs=1e-9)


@pytest.mark.parametrize("n", [20, 100])
def test_binomial_coverage_at_fixed_rates_is_near_nominal(n: int) -> None:
    rates = numpy.linspace(0.05, 0.95, 91)
    covered = numpy.zeros_like(rates)
    for k in range(n + 1):
        i = binomial(k, n)
        covered += stats.binom.pmf(k, n, rates) * ((i.low <= rates) & (rates <= i.high))
    assert covered.min() > 0.9 and covered.mean() == pytest.approx(0.95, abs=0.01)


def test_binomial_narrows_as_theory_says() -> None:
    for k, n in ((300, 1000), (30_000, 100_000)):
        i = binomial(k, n)
        assert i.high - i.low == pytest.approx(2 * 1.96 * math.sqrt(0.3 * 0.7 / n), rel=0.01)


def test_success_counts_bools_and_refuses_the_rest() -> None:
    for outcomes in ([1, 0, 1, 1], [True, False, True, True], torch.tensor([1.0, 0, 1, 1]), numpy.array([1, 0, 1, 1])):
        assert rate_interval(outcomes) == binomial(3, 4)
    with pytest.raises(InvalidInputError, match=r"outcome 1 is 0\.5"):
        rate_interval([1.0, 0.5])
    with pytest.raises(InvalidInputError, match="not finite"):
        rate_interval([1.0, math.nan])
    with pytest.raises(InvalidInputError, match="too few"):
        rate_interval([])


@pytest.mark.parametrize("k, n", [(1, 0), (-1, 4), (5, 4), (1.5, 4)])
def test_binomial_refuses_impossible_counts(k: int, n: int) -> None:
    with pytest.raises(InvalidInputError):
        binomial(k, n)


def test_student_is_scipys_interval() -> None:
    x = numpy.random.default_rng(0).normal(3, 2, 12)
    i = t_interval(x)
    low, high = stats.t.interval(0.95, 11, x.mean(), stats.sem(x))
    assert (i.mean, i.low, i.high, i.n) == (pytest.approx(x.mean()), pytest.approx(low), pytest.approx(high), 12)


def test_student_stops_at_the_bounds() -> None:
    i = t_interval([1.0, 1.0, 1.0, 0.9], bounds=(0.0, 1.0))
    assert i.high == 1.0 and i.low == t_interval([1.0, 1.0, 1.0, 0.9]).low
    with pytest.raises(InvalidInputError, match="outside the bounds"):
        t_interval([0.5, 1.2], bounds=(0.0, 1.0))


def test_coverage_of_student_and_bootstrap_by_simulation() -> None:
    """Normal scores, 25 of them: t is exact; the percentile bootstrap is known to be a few per cent too narrow."""
    data = torch.randn(400, 25, generator=torch.Generator().manual_seed(1)).double() + 5
    hit = sum(i.low <= 5 <= i.high for i in map(t_interval, data)) / 400
    assert hit == pytest.approx(0.95, abs=0.033)  # three standard errors
    rng = Rng(2)
    hit = sum(i.low <= 5 <= i.high for i in (bootstrap(x, rng, draws=500) for x in data)) / 400
    assert 0.87 < hit < 0.97


def test_bootstrap_agrees_with_student_and_takes_other_statistics() -> None:
    x = torch.randn(400, generator=torch.Generator().manual_seed(3))
    t, b = t_interval(x), bootstrap(x, Rng(0))
    assert b.mean == pytest.approx(t.mean) and abs(b.low - t.low) < 0.012 and abs(b.high - t.high) < 0.012
    assert b == bootstrap(x, Rng(0)) and b != bootstrap(x, Rng(1))
    median = bootstrap(x, Rng(0), statistic=lambda v: v.median(-1).values)
    assert median.low < 0 < median.high and median.mean == float(x.median())
    with pytest.raises(InvalidInputError, match="last axis"):
        bootstrap(x, Rng(0), statistic=lambda v: v)


def test_nested_covers_the_method_where_resampling_trials_does_not() -> None:
    """Partial credit in quarters, 12 seeds that differ: trials as observations miss the mean, seeds first do not."""
    g, rng = numpy.random.default_rng(6), Rng(6)
    inside = flat = 0
    for _ in range(200):
        x = torch.from_numpy(0.15 * g.normal(size=(12, 1)) + g.integers(0, 5, (12, 40)) / 4)
        i, j = hierarchical_bootstrap(x, rng, draws=300), t_interval(x.flatten())
        inside, flat = inside + (i.low <= 0.5 <= i.high), flat + (j.low <= 0.5 <= j.high)
    assert 0.88 < inside / 200 <= 1 and flat / 200 < 0.75


def test_nested_reduces_to_the_bootstrap_of_the_seeds_and_refuses() -> None:
    x = torch.randn(30, 1, generator=torch.Generator().manual_seed(7)).double()
    i, j = hierarchical_bootstrap(x, Rng(0)), bootstrap(x[:, 0], Rng(1))
    assert i.mean == j.mean and i.n == 30 and abs(i.low - j.low) < 0.03 and abs(i.high - j.high) < 0.03
    with pytest.raises(InvalidInputError, match="two seeds"):
        hierarchical_bootstrap(torch.zeros(1, 50), Rng(0))
    with pytest.raises(InvalidInputError, match="not finite"):
        hierarchical_bootstrap(torch.full((2, 2), math.nan), Rng(0))
    with pytest.raises(InvalidInputError, match="resamples"):
        hierarchical_bootstrap(torch.zeros(2, 2), Rng(0), draws=9)


def test_pairs_cancel_what_they_share() -> None:
    hardness = 10 * torch.randn(50, generator=torch.Generator().manual_seed(4))
    gain = 0.5 + 0.1 * torch.randn(50, generator=torch.Generator().manual_seed(5))
    assert t_interval(hardness + gain).compare(t_interval(hardness)) == 0
    difference = paired_interval(hardness + gain, hardness)
    assert 0.4 < difference.low < 0.5 < difference.high < 0.6
    with pytest.raises(InvalidInputError, match="no pairs"):
        paired_interval([1.0, 2.0], [1.0])


def test_repeats_of_an_episode_are_not_observations() -> None:
    with pytest.raises(InvalidInputError, match="average repeats"):
        t_interval(torch.zeros(5, 4))
    with pytest.raises(InvalidInputError, match="too few"):
        t_interval([1.0])
    with pytest.raises(InvalidInputError, match="level"):
        t_interval([1.0, 2.0], level=95)


def test_apart_has_a_direction_and_touching_is_not_apart() -> None:
    low, high = Interval(0.1, 0.0, 0.2, 9), Interval(0.5, 0.3, 0.7, 9)
    assert (high.compare(low), low.compare(high), low.compare(low)) == (1, -1, 0)
    assert high.compare(Interval(0.2, 0.1, 0.3, 9)) == 0


def test_interval_is_a_frozen_record_that_survives_json() -> None:
    i = binomial(7, 9)
    assert Interval(**json.loads(json.dumps(i.as_dict()))) == i
    with pytest.raises(dataclasses.FrozenInstanceError):
        i.mean = 0.0  # type: ignore[misc]
    for wrong in ((math.nan, 0, 1, 3), (0.5, 1.0, 0.0, 3), (0.5, 0.0, 1.0, 0)):
        with pytest.raises(InvalidInputError):
            Interval(*wrong)


def test_text() -> None:
    i = Interval(0.625, 0.55, 0.69, 200)
    assert str(i) == "0.625 [0.550, 0.690] (n=200)"
    assert f"{i:.1%}" == "62.5% [55.0, 69.0%] (n=200)"
    assert str(Interval(-250.0, -300.0, -200.0, 8)) == "-250 [-300, -200] (n=8)"


def row(mean: float, half: float = 0.05) -> Interval:
    return Interval(mean, mean - half, mean + half, 100)


def test_verdict_claims_only_what_the_intervals_show() -> None:
    def said(before: float, after: float, imitation: float | None = None, **more: str) -> str:
        other = None if imitation is None else row(imitation)
        found = Comparison("robot", "success", row(before), row(after), other, **more)  # type: ignore[arg-type]
        assert found.is_better() == (found.verdict().startswith("better") and "but not" not in found.verdict())
        return found.verdict()

    assert said(0.3, 0.8, 0.4) == "better than before and than more imitation: the intervals are apart"
    assert said(0.3, 0.8) == "better than before: the intervals are apart"
    assert said(0.8, 0.3, 0.4, better="lower").startswith("better than before and")
    assert said(0.8, 0.3).startswith("worse") and said(0.5, 0.55).startswith("no gain")
    more = "more imitation for the same time: the intervals are apart"
    assert said(0.3, 0.6, 0.9) == f"better than before, but not than {more}"
    assert said(0.3, 0.32, 0.9) == f"no gain shown, and worse than {more}"


def test_gain_over_before_alone_is_not_a_gain() -> None:
    found = Comparison("robot", "success", row(0.3), row(0.8), row(0.78))
    assert not found.is_better() and "not shown" in found.verdict()


def test_comparison_survives_json_and_refuses_strangers() -> None:
    found = Comparison("robot", "success", row(0.3), row(0.8), row(0.4), seconds=150.0, unit="%")
    assert Comparison.from_dict(json.loads(json.dumps(found.as_dict()))) == found
    bare = Comparison("robot", "success", row(0.3), row(0.8))
    assert Comparison.from_dict(bare.as_dict()) == bare and "imitation" not in bare.as_dict()
    for wrong in ({"name": "x"}, {**found.as_dict(), "mood": 1}, {**found.as_dict(), "after": {"mean": 1}}):
        with pytest.raises(RunError):
            Comparison.from_dict(wrong)
    with pytest.raises(DenoiseRLError, match="direction"):
        Comparison("robot", "success", row(0.3), row(0.8), better="up")  # type: ignore[arg-type]


def test_values_are_shown_with_digits_that_mean_something() -> None:
    rate = Comparison("robot", "success", row(0.3), row(0.8), unit="%")
    assert rate.format_value(0.8) == "80.0%"
    reward = Comparison("robot", "return", Interval(-1068, -1100, -1000, 9), Interval(-191, -250, -120, 9))
    assert reward.format_value(-191.23) == "-191"
