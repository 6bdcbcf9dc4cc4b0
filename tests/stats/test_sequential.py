"""The e-processes are test martingales, proved on grids and not only simulated; the race keeps its error rate."""

from __future__ import annotations

import json
import math
from itertools import product

import numpy
import pytest
from scipy import integrate, stats

from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.core.rng import Rng
from denoiserl.stats import SequentialComparison, e_pairs, e_rates, log_e, paired_outcomes, stopping_time


@pytest.mark.parametrize("wins, losses", [(0, 0), (3, 1), (1, 3), (30, 12), (12, 30), (200, 200)])
def test_log_e_is_the_mixture_of_likelihood_ratios(wins: int, losses: int) -> None:
    """Against quadrature over the biased coins, with scipy's binomial likelihoods."""
    n = wins + losses

    def ratio(theta: float) -> float:
        return 2 * math.exp(stats.binom.logpmf(wins, n, theta) - stats.binom.logpmf(wins, n, 0.5))

    value, _ = integrate.quad(ratio, 0.5, 1, epsabs=0, epsrel=1e-10, limit=200)
    assert float(log_e(wins, losses)) == pytest.approx(math.log(value), abs=1e-8)


def test_log_e_survives_counts_at_which_its_probability_underflows() -> None:
    """E(0, l) = 1/(l + 1) exactly; far behind, ∫ (1+x)^w (1-x)^l dx is 1/(l - w) but for terms of order 1/(l - w)²."""
    for losses in (10, 1000, 5000, 100_000):
        assert float(log_e(0, losses)) == pytest.approx(-math.log(losses + 1), rel=1e-9)
    for wins, losses in ((100, 4000), (2000, 4000), (10_000, 20_000), (1000, 3000)):
        assert float(log_e(wins, losses)) == pytest.approx(-math.log(losses - wins), abs=2e-3)
    ahead = log_e(numpy.arange(6000), 3000)  # no seam where the formula changes
    assert numpy.isfinite(ahead).all() and (numpy.diff(ahead) > 0).all()


def test_pairs_are_not_expected_to_grow_under_any_null_and_any_dependence() -> None:
    """E[E_{t+1} / E_t | past] ≤ 1 for every past and every joint distribution with p₁ ≤ p₂, by enumeration."""
    w, l = numpy.meshgrid(numpy.arange(40), numpy.arange(40), indexing="ij")  # noqa: E741
    now = log_e(w, l)
    win, loss = numpy.exp(log_e(w + 1, l) - now), numpy.exp(log_e(w, l + 1) - now)
    numpy.testing.assert_allclose(win / 2 + loss / 2, 1, rtol=1e-10)  # a martingale at the boundary
    for only_first, only_second in product(numpy.linspace(0, 0.5, 11), numpy.linspace(0, 0.5, 11)):
        if only_first <= only_second:
            growth = only_first * win + only_second * loss + (1 - only_first - only_second)
            assert growth.max() <= 1 + 1e-10


def factors(p1: numpy.ndarray, p2: numpy.ndarray, covariance: numpy.ndarray) -> numpy.ndarray:
    """E[factor | past] of the independent test for every past of up to 12 pairs, read off the paths themselves."""
    found = []
    for t in range(13):
        for k, j in product(range(t + 1), repeat=2):
            past = [([1] * k + [0] * (t - k)), ([1] * j + [0] * (t - j))]
            mean = 0.0
            for x, y in product((0, 1), repeat=2):
                joint = (p1 if x else 1 - p1) * (p2 if y else 1 - p2) + (covariance if x == y else -covariance)
                path = e_rates(past[0] + [x], past[1] + [y])
                mean = mean + joint * math.exp(path[-1] - (path[-2] if t else 0.0))
            found.append(mean)
    return numpy.array(found)


def test_rates_are_not_expected_to_grow_if_outcomes_are_independent_or_agree() -> None:
    p = numpy.linspace(0, 1, 21)
    p1, p2 = (g[numpy.triu_indices(21)] for g in numpy.meshgrid(p, p, indexing="ij"))
    assert (p1 <= p2).all() and len(p1) == 231
    assert factors(p1, p2, 0 * p1).max() <= 1 + 1e-12
    agree = numpy.minimum(p1, p2) - p1 * p2  # the largest covariance that two rates allow
    assert factors(p1, p2, agree).max() <= 1 + 1e-12
    half = numpy.array([0.5])  # and where what is hard for one is easy for the other, it does grow
    assert factors(half, half, -half / 2).max() > 1.1


def test_the_paths_are_vectorised_and_follow_the_past_alone() -> None:
    x, y = paired_outcomes(0.7, 0.4, 6, 30, Rng(0))
    for process in (e_pairs, e_rates):
        path = process(x.reshape(2, 3, 30), y.reshape(2, 3, 30))
        assert path.shape == (2, 3, 30)
        for i in range(6):
            numpy.testing.assert_allclose(path.reshape(6, 30)[i], process(x[i], y[i]))
            numpy.testing.assert_allclose(process(x[i, :11], y[i, :11]), process(x[i], y[i])[:11])
    wins, losses = (x[0] > y[0]).sum(), (x[0] < y[0]).sum()
    assert e_pairs(x[0], y[0])[-1] == pytest.approx(float(log_e(wins, losses)))


def test_stops_are_the_first_time_that_the_evidence_suffices() -> None:
    path = numpy.log([[1, 25, 3, 30], [1, 2, 3, 19.99], [20.01, 1, 1, 1]])
    assert stopping_time(path).tolist() == [2, 0, 1] and stopping_time(path, 0.5).tolist() == [2, 2, 1]


def test_a_race_of_two_is_the_test_of_the_pair() -> None:
    x, y = paired_outcomes(0.8, 0.3, 20, 100, Rng(1))
    for first, second in zip(x, y, strict=True):
        race = SequentialComparison(["new", "old"], max_trials=100)
        for a, b in zip(first, second, strict=True):
            if not race.done:
                race.update({"new": a, "old": b})
        stop = int(stopping_time(e_pairs(first, second), 0.025))
        assert race.starts == (stop or 100) and race.separated == ([("new", "old")] if stop else [])
        best = e_pairs(first, second)[: race.starts].max()
        assert race.p_value("new", "old") == pytest.approx(min(1, math.exp(-best)))


def run(rates: dict[str, float], seed: int, most: int = 120) -> SequentialComparison:
    g = numpy.random.default_rng(seed)
    race = SequentialComparison(list(rates), max_trials=most)
    while not race.done:
        race.update({name: g.random() < rates[name] for name in race.active_arms})
    return race


def test_a_race_separates_equal_arms_in_at_most_its_level() -> None:
    rates = {"a": 0.5, "b": 0.5, "c": 0.9}
    wrong = [any(rates[i] <= rates[j] for i, j in run(rates, seed).separated) for seed in range(60)]
    assert sum(wrong) / 60 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 60)


def test_a_race_ends_early_and_lets_arms_leave() -> None:
    race = run({"low": 0.05, "middle": 0.5, "high": 0.95}, 0, most=1000)
    assert race.done and race.starts < 200 and not race.open_pairs
    assert race.letters() == {"high": "a", "middle": "b", "low": "c"}
    assert set(race.separated) == {("high", "middle"), ("middle", "low"), ("high", "low")}
    assert min(race.trials.values()) < race.starts  # whoever was apart from all others stopped


def test_the_step_down_asks_less_of_the_last_pair_than_of_the_first() -> None:
    """Of 2m = 6 directed hypotheses the first separation needs E ≥ 6/α, the next 5/α, the last 4/α."""
    race = SequentialComparison(["a", "b", "c"])
    evidence: dict[tuple[str, str], float] = {}
    while not race.done:
        race.update({"a": 1, "b": race.starts % 2, "c": 0})
        evidence |= {pair: race.best[pair] for pair in race.separated if pair not in evidence}
    found, needed = list(evidence.values()), [math.log(n / 0.05) for n in (6, 5, 4)]
    assert next(iter(evidence)) == ("a", "c") and all(e >= n for e, n in zip(found, needed, strict=True))
    assert found[1] < needed[0]  # which without steps would not have been enough


def test_a_race_goes_on_exactly_where_it_was_saved() -> None:
    g = numpy.random.default_rng(2)
    rows = [{"a": int(g.random() < 0.7), "b": int(g.random() < 0.5), "c": int(g.random() < 0.3)} for _ in range(60)]
    whole, part, rest = (SequentialComparison(["a", "b", "c"], max_trials=200) for _ in range(3))
    for row in rows:
        whole.update(row)
    for row in rows[:30]:
        part.update(row)
    rest.load_state_dict(json.loads(json.dumps(part.state_dict())))
    for row in rows[30:]:
        rest.update(row)
    assert rest.state_dict() == whole.state_dict() and rest.letters() == whole.letters()
    with pytest.raises(RunError, match="level"):
        SequentialComparison(["a", "b", "c"], level=0.1, max_trials=200).load_state_dict(part.state_dict())


def test_refusals() -> None:
    for process in (e_pairs, e_rates):
        with pytest.raises(InvalidInputError, match="no pairs: sequential tests need both policies on the same starts"):
            process([1, 0], [1])
        with pytest.raises(InvalidInputError, match="no pairs"):
            process([], [])
        with pytest.raises(InvalidInputError, match=r"second has the outcome 0\.5"):
            process([1.0], [0.5])
        with pytest.raises(InvalidInputError, match="first has the outcome nan"):
            process([math.nan], [1.0])
    for arms, why in ((["a"], "at least two"), (["a", "b", "a"], "a is named twice")):
        with pytest.raises(RunError, match=why):
            SequentialComparison(arms)
    with pytest.raises(InvalidInputError, match="error rate"):
        SequentialComparison(["a", "b"], level=5)
    with pytest.raises(RunError, match="positive"):
        SequentialComparison(["a", "b"], max_trials=0)
    race = SequentialComparison(["a", "b"], max_trials=1)
    with pytest.raises(InvalidInputError, match="no rates"):
        race.letters()
    for outcome, error, why in (
        ({"a": 1}, InvalidInputError, "b did not try this start"),
        ({"a": 1, "b": 0.5}, InvalidInputError, "neither 0 nor 1"),
        ({"a": 1, "b": math.nan}, InvalidInputError, "neither 0 nor 1"),
        ({"a": 1, "b": 0, "c": 1}, RunError, "no arm 'c'"),
    ):
        with pytest.raises(error, match=why):
            race.update(outcome)
    assert race.starts == 0 and sum(race.trials.values()) == 0  # a refused update leaves no trace
    race.update({"a": 1, "b": 0})
    with pytest.raises(RunError, match="comparison is done"):
        race.update({"a": 1, "b": 0})
    with pytest.raises(RunError, match="itself"):
        race.p_value("a", "a")
    with pytest.raises(RunError, match="no arm 'z'"):
        race.p_value("a", "z")
