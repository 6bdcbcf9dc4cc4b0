"""Verdicts over training seeds: their error rate, their power, and what is refused."""

from __future__ import annotations

import json
import math

import numpy
import pytest
import torch
from scipy import stats
from statsmodels.stats.multitest import multipletests
from torch import Tensor

from denoiserl.core.errors import InvalidInputError
from denoiserl.stats import mcnemar, minimum_detectable_effect, standings, superiority_test


def rolled(g: numpy.random.Generator, gains: list[float], seeds: int, trials: int, spread: float) -> dict[str, Tensor]:
    """Outcomes {arm: [S, n]} of arms with ``gains``: seeds that differ by ``spread``, starts that are hard."""
    hard = g.normal(size=(seeds, trials))
    found = {}
    for i, gain in enumerate(gains):
        logit = gain + spread * g.normal(size=(seeds, 1)) + hard
        found[f"arm{i}"] = torch.from_numpy((g.random((seeds, trials)) < 1 / (1 + numpy.exp(-logit))).astype(float))
    return found


@pytest.mark.parametrize("seeds, trials, arms", [(3, 50, 2), (3, 200, 3), (5, 100, 3), (5, 200, 4)])
def test_equal_methods_are_called_different_in_at_most_alpha(seeds: int, trials: int, arms: int) -> None:
    g, repeats = numpy.random.default_rng(seeds + arms), 250
    wrong = trial_wrong = 0
    for _ in range(repeats):
        x = rolled(g, [0.5] * arms, seeds, trials, 0.6)
        wrong += any(c.separated for c in standings(x, "success").contrasts)
        trial_wrong += mcnemar(x["arm0"].flatten(), x["arm1"].flatten()) <= 0.05
    assert wrong / repeats <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / repeats)
    assert trial_wrong / repeats > 0.12  # what it costs to take roll-outs for observations of a method


def test_intervals_over_seeds_cover_the_true_difference_and_the_true_mean() -> None:
    g, gap = numpy.random.default_rng(1), 2.0
    inside = own = 0
    for _ in range(300):
        x = {k: torch.from_numpy(m + g.normal(size=(4, 1)) + g.normal(size=(4, 30))) for k, m in (("a", gap), ("b", 0))}
        found = standings(x, "return")
        d, a = found.contrast("a", "b").difference, found.row("a").interval
        inside, own = inside + (d.low <= gap <= d.high), own + (a.low <= gap <= a.high)
    assert abs(inside / 300 - 0.95) < 0.04 and abs(own / 300 - 0.95) < 0.04


def test_it_is_scipys_paired_t_test_where_seeds_differ_more_than_their_trials() -> None:
    g = numpy.random.default_rng(2)
    x = {k: torch.from_numpy(g.normal(size=(6, 1)) + 0.1 * g.normal(size=(6, 40))) for k in "ab"}
    found = standings(x, "return").contrast("a", "b")
    theirs = stats.ttest_rel(x["a"].mean(1), x["b"].mean(1))
    low, high = theirs.confidence_interval()
    assert found.p == pytest.approx(theirs.pvalue)
    assert (found.difference.low, found.difference.high) == (pytest.approx(low), pytest.approx(high))


def test_means_that_happen_to_agree_do_not_prove_anything() -> None:
    """Three seeds with the very same gap of 1 in 20 have no spread; their roll-outs have."""
    a, b = torch.zeros(3, 20), torch.zeros(3, 20)
    a[:, :11], b[:, 5:15] = 1, 1
    found = standings({"a": a, "b": b}, "success").contrast("a", "b")
    assert found.difference.mean == pytest.approx(0.05) and found.p > 0.4 and not found.separated
    scores = standings({"a": a + 0.5, "b": b + 0.5}, "return").contrast("a", "b")
    assert scores.p > 0.4 and scores.min_detectable_effect > 0.2


def test_even_unanimous_trials_leave_a_doubt() -> None:
    few = standings({"a": torch.ones(3, 4), "b": torch.zeros(3, 4)}, "success").contrasts[0]
    many = standings({"a": torch.ones(3, 100), "b": torch.zeros(3, 100)}, "success").contrasts[0]
    assert few.p > many.p > 0 and many.separated and few.difference.low < many.difference.low < 1
    same = standings({"a": torch.ones(3, 100), "b": torch.ones(3, 100)}, "success").contrasts[0]
    assert same.p == 1 and same.difference.low < 0 < same.difference.high and not same.separated


def test_scores_without_any_spread_are_left_to_the_sign_test() -> None:
    flat = torch.full((4, 5), 0.25)
    found = standings({"a": flat + 1, "b": flat}, "return").contrast("a", "b")
    assert found.p == 2 * 0.5**4 and found.min_detectable_effect == math.inf and not found.separated
    same = standings({"a": flat, "b": flat.clone()}, "return").contrasts[0]
    assert same.p == 1 and same.difference.mean == same.difference.low == 0


def test_smallest_is_what_is_seen_with_probability_four_fifths() -> None:
    """Normal seeds of known spread: simulate the very difference that ``minimum_detectable_effect`` names."""
    g, error = numpy.random.default_rng(3), 1 / math.sqrt(4)
    gap = minimum_detectable_effect(error, 3)
    d = gap + g.normal(size=(20_000, 4))
    seen = stats.ttest_1samp(d, 0, axis=1).pvalue <= 0.05
    assert seen.mean() == pytest.approx(0.8, abs=0.01)
    for freedom, alpha in ((1, 0.05), (2, 0.05 / 6), (199, 0.05)):  # the other tail is never reached
        critical = stats.t.isf(alpha / 2, freedom)
        assert stats.nct.sf(critical, freedom, minimum_detectable_effect(1.0, freedom, alpha)) == pytest.approx(
            0.8, abs=1e-4
        )


def test_more_seeds_see_smaller_differences() -> None:
    g, sizes = numpy.random.default_rng(4), []
    for seeds in (2, 3, 5, 12):
        found = [
            standings(rolled(g, [0, 0], seeds, 200, 0.5), "success").contrasts[0].min_detectable_effect
            for _ in range(20)
        ]
        sizes.append(numpy.median(found))
    assert sizes == sorted(sizes, reverse=True)


def test_one_seed_is_a_verdict_about_policies() -> None:
    x = rolled(numpy.random.default_rng(5), [1.0, 0.0], 1, 80, 0.0)
    found = standings(x, "success", "it arrived", "%")
    assert found.basis == "trials" and found.contrasts[0].p == pytest.approx(mcnemar(x["arm0"][0], x["arm1"][0]))
    assert found.rows[0].interval.n == 80 and len(found.rows[0].per_seed) == 1
    g = numpy.random.default_rng(6)
    scores = {k: torch.from_numpy(g.normal(size=(1, 30))) for k in "ab"}
    theirs = stats.ttest_rel(scores["a"][0], scores["b"][0]).pvalue
    assert standings(scores, "return").contrasts[0].p == pytest.approx(theirs)


def test_the_table_is_ordered_lettered_and_complete() -> None:
    g = numpy.random.default_rng(7)
    x = {k: torch.from_numpy(m + 0.2 * g.normal(size=(5, 20))) for k, m in (("c", 5.0), ("a", 1.0), ("b", 1.05))}
    spent = {"a": 1.0, "b": 2.0, "c": 3.0}
    found = standings(x, "return", better="lower", unit="m", seconds=spent, calls=spent)
    assert found.rows[-1].name == "c" and {r.letters for r in found.rows[:2]} == {"a"} and found.rows[-1].letters == "b"
    assert [(c.first, c.second) for c in found.contrasts][-1] == (found.rows[1].name, "c")
    assert found.contrast("c", "a").difference.mean == pytest.approx(4, abs=0.2)
    assert found.row("b").seconds == 2 and found.row("c").calls == 3
    numpy.testing.assert_allclose(found.row("a").per_seed, x["a"].mean(1))
    assert type(found).from_dict(json.loads(json.dumps(found.as_dict()))) == found


def test_a_family_is_corrected_by_holm() -> None:
    x = rolled(numpy.random.default_rng(8), [0.0, 0.3, 1.0, 1.5], 5, 100, 0.2)
    together = standings(x, "s")
    alone = [standings({k: x[k] for k in (c.first, c.second)}, "s").contrasts[0].p for c in together.contrasts]
    numpy.testing.assert_allclose([c.p for c in together.contrasts], multipletests(alone, method="holm")[1])
    assert together.contrast("arm3", "arm0").separated and not all(c.separated for c in together.contrasts)


def test_claims_hold_do_not_hold_or_stay_open() -> None:
    g = numpy.random.default_rng(9)
    shared, d = g.normal(size=(5, 60)), 1.0 + 0.1 * g.normal(size=(5, 60))
    x, y = torch.from_numpy(shared + d), torch.from_numpy(shared)
    for margin, verdict in ((0.0, "holds"), (0.9, "holds"), (1.0, "inconclusive"), (1.1, "does not hold")):
        found = superiority_test(x, y, margin, names=("dppo", "more imitation"))
        assert found.verdict == verdict
        assert (found.difference.low > margin, found.difference.high < margin) == (
            verdict == "holds",
            verdict == "does not hold",
        )
    assert (
        found.basis == "seeds"
        and found.min_detectable_effect < 0.1
        and json.loads(json.dumps(found.as_dict()))["p"] == found.p
    )
    assert superiority_test(y, x, -1.1).verdict == "holds"


def test_a_claim_at_its_margin_holds_in_half_of_alpha() -> None:
    g, held, denied = numpy.random.default_rng(10), 0, 0
    for _ in range(400):
        x, y = (torch.from_numpy(m + 0.3 * g.normal(size=(4, 1)) + 0.3 * g.normal(size=(4, 20))) for m in (0.5, 0.2))
        verdict = superiority_test(x, y, 0.3).verdict
        held, denied = held + (verdict == "holds"), denied + (verdict == "does not hold")
    for n in (held, denied):
        assert n / 400 <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / 400)
    assert held + denied > 0


def test_a_rate_is_compared_with_a_number_as_outcomes_are() -> None:
    """A thousand successes of a thousand are above 0.9 beyond doubt, and ten of ten are not; scores get no help."""
    for n, verdict in ((200, "holds"), (2, "inconclusive")):
        won = torch.ones(5, n)
        assert superiority_test(won, torch.full_like(won, 0.9)).verdict == verdict
        assert superiority_test(torch.full_like(won, 0.9), won).verdict == ("does not hold" if n == 200 else verdict)
    lucky = torch.ones(5, 40)
    lucky[:, :6] = 0.0  # 0.85 in every seed
    told = superiority_test(lucky, torch.full_like(lucky, 0.9))
    assert told.verdict == "inconclusive" and told.difference.low < -0.05 < told.difference.high
    assert superiority_test(torch.full((5, 200), 1.5), torch.full((5, 200), 0.9)).verdict == "inconclusive", (
        "five signs"
    )


def test_refusals() -> None:
    x, nan = torch.ones(3, 5), torch.ones(3, 5)
    nan[1, 2] = math.nan
    for values, why in (
        ({"a": x}, "1 arms are no comparison"),
        ({"a": x, "b": torch.ones(2, 5)}, "paired over seeds"),
        ({"a": x, "b": torch.ones(3, 6)}, "paired over starts"),
        ({"a": x, "b": nan}, "'b' are not finite .the first: seed 1, trial 2"),
        ({"a": x, "b": torch.ones(3, 0)}, "'b' has no trials"),
        ({"a": x, "b": torch.ones(3)}, "one row per training seed"),
        ({"a": torch.ones(1, 1), "b": torch.ones(1, 1)}, "one seed and one trial"),
    ):
        with pytest.raises(InvalidInputError, match=why):
            standings(values, "success")
    both = {"a": x, "b": x}
    with pytest.raises(InvalidInputError, match="unit %"):
        standings({"a": x, "b": 3 * x}, "success", unit="%")
    with pytest.raises(InvalidInputError, match="seconds are of"):
        standings(both, "success", seconds={"a": 1.0})
    with pytest.raises(InvalidInputError, match="direction"):
        standings(both, "success", better="up")  # type: ignore[arg-type]
    for alpha in (0, 5, math.nan):
        with pytest.raises(InvalidInputError, match="error rate"):
            standings(both, "success", alpha=alpha)
    with pytest.raises(InvalidInputError, match="itself"):
        superiority_test(x, x, names=("a", "a"))
    with pytest.raises(InvalidInputError, match="margin"):
        superiority_test(x, x, math.inf)
