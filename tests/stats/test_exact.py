"""Exact tests against statsmodels, against the level that they promise, and against bad input."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as their_mcnemar
from statsmodels.stats.multitest import multipletests

from denoiserl.core.errors import InvalidInputError
from denoiserl.stats import barnard, fisher, holm, mcnemar


@pytest.mark.parametrize("m", [1, 3, 15])
def test_holm_is_statsmodels(m: int) -> None:
    g = numpy.random.default_rng(m)
    for p in (g.random(m), g.random(m) ** 8, numpy.round(g.random(m), 1)):  # with ties
        numpy.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1], atol=1e-12)


def test_holm_keeps_the_family_where_some_hypotheses_are_false() -> None:
    """Three true hypotheses beside three false ones: any true one is rejected in at most 5 % of families."""
    g = numpy.random.default_rng(0)
    z = g.normal(size=(4000, 6)) + numpy.array([0, 0, 0, 4, 4, 4])
    wrong = sum((holm(p) <= 0.05)[:3].any() for p in 2 * stats.norm.sf(abs(z))) / 4000
    assert 0.03 < wrong < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 4000)


@pytest.mark.parametrize("both, wins, losses, neither", [(5, 9, 2, 4), (0, 1, 0, 0), (3, 4, 4, 1), (50, 3, 20, 27)])
def test_mcnemar_is_statsmodels(both: int, wins: int, losses: int, neither: int) -> None:
    first = [1] * (both + wins) + [0] * (losses + neither)
    second = [1] * both + [0] * wins + [1] * losses + [0] * neither
    expected = their_mcnemar([[both, wins], [losses, neither]], exact=True).pvalue
    assert mcnemar(first, second) == pytest.approx(min(1.0, expected), rel=1e-9)


def test_agreement_everywhere_is_no_evidence() -> None:
    assert mcnemar([1, 0, 1], [1, 0, 1]) == 1
    assert barnard([1, 1], [1, 1]) == fisher([0, 0], [0, 0]) == 1


N = 7


@cache
def rejected(test: Callable[..., float]) -> list[tuple[int, int]]:
    """The tables (k of N against j of N) that a test rejects at 5 %."""
    ones = [[1] * k + [0] * (N - k) for k in range(N + 1)]
    return [(k, j) for k in range(N + 1) for j in range(N + 1) if test(ones[k], ones[j]) <= 0.05]


def probability(test: Callable[..., float], p: float, q: float) -> float:
    mass = stats.binom.pmf
    return sum(float(mass(k, N, p) * mass(j, N, q)) for k, j in rejected(test))


def test_barnard_and_fisher_keep_their_level_at_every_rate_and_barnard_sees_more() -> None:
    """Over all tables, not by simulation."""
    for p in numpy.linspace(0.02, 0.98, 49):
        assert probability(fisher, p, p) <= probability(barnard, p, p) + 1e-12 <= 0.05 + 1e-6
    assert probability(barnard, 0.9, 0.2) > probability(fisher, 0.9, 0.2) + 0.05


def test_exact_tests_are_symmetric() -> None:
    first, second = [1, 1, 1, 0, 1, 1], [0, 0, 1, 0, 0, 0]
    for test in (mcnemar, barnard, fisher):
        assert test(first, second) == pytest.approx(test(second, first))


def test_refusals() -> None:
    with pytest.raises(InvalidInputError, match="use barnard"):
        mcnemar([1, 0], [1])
    for test in (mcnemar, barnard, fisher):
        with pytest.raises(InvalidInputError, match=r"second: outcome 0 is 0\.5, neither 0 nor 1"):
            test([1], [0.5])
        with pytest.raises(InvalidInputError, match="first: 0 outcomes are too few"):
            test([], [])
        with pytest.raises(InvalidInputError, match="not finite"):
            test([math.nan], [1])
    for wrong in ([0.5, math.nan], [1.5], [[0.5]]):
        with pytest.raises(InvalidInputError, match="between 0 and 1"):
            holm(wrong)  # type: ignore[arg-type]
