"""Exact tests of two success rates for a fixed number of trials, and Holm's correction for many tests.

    two policies on the same starts      ``mcnemar``    only the starts on which they disagree count
    two policies on starts of their own  ``barnard``    the most powerful of the two; ``fisher`` conditions on the total

Every one of them is for ONE look, at a number of trials that was fixed before: whoever looks again and again and stops
when p is small is wrong far more often than the level says. ``denoiserl.stats.sequential`` may be looked at always.
"""

from __future__ import annotations

import numpy
from scipy import special

from denoiserl.core.errors import InvalidInputError
from denoiserl.stats.interval import Values, rate_interval


def mcnemar(first: Values, second: Values) -> float:
    """The two-sided exact p-value of paired outcomes [n]: wins w and losses l among the starts that disagree.

        p = min(1, 2 P(X ≤ min(w, l))),   X ~ Binomial(w + l, 1/2)

    Raises ``InvalidInputError`` unless both are 0 or 1 and equally many. Reference: McNemar (1947).
    """
    x, y = outcomes(first, "first"), outcomes(second, "second")
    if len(x) != len(y):
        raise InvalidInputError(
            f"{len(x)} and {len(y)} outcomes are no pairs: McNemar's test needs both policies on the same starts; "
            "for starts of their own use barnard."
        )
    wins, losses = int(((x == 1) & (y == 0)).sum()), int(((x == 0) & (y == 1)).sum())
    if wins + losses == 0:
        return 1.0
    return min(1.0, 2 * float(special.bdtr(min(wins, losses), wins + losses, 0.5)))


def barnard(first: Values, second: Values) -> float:
    """The two-sided p-value of Barnard's unconditional exact test; outcomes [n] and [m] of independent trials.

    The p-value is the largest over the common rate of the probability of a table at least as far from equal rates, by
    the pooled score statistic. Reference: Barnard (1945); the implementation is scipy's.
    """
    from scipy import stats  # heavy, and needed here alone

    return min(1.0, float(stats.barnard_exact(_table(first, second)).pvalue))


def fisher(first: Values, second: Values) -> float:
    """The two-sided p-value of Fisher's exact test; outcomes [n] and [m] of independent trials.

    It conditions on the total number of successes, which makes it more cautious than ``barnard``. Reference: Fisher
    (1935); the implementation is scipy's.
    """
    from scipy import stats

    return min(1.0, float(stats.fisher_exact(_table(first, second)).pvalue))  # type: ignore[attr-defined]


def holm(p: Values) -> numpy.ndarray:
    """p-values [m] corrected for their family by Holm's step-down: all p ≤ α together err with probability at most α.

        p̃_(i) = max_{j ≤ i} min(1, (m - j + 1) p_(j)),   p_(1) ≤ ... ≤ p_(m)

    Whatever the dependence between the tests. Reference: Holm, A simple sequentially rejective multiple test procedure
    (1979).
    """
    x = numpy.asarray(p, numpy.float64)
    if x.ndim != 1 or not ((x >= 0) & (x <= 1)).all():
        raise InvalidInputError("p-values are one row of numbers between 0 and 1: give the family [m].")
    order = numpy.argsort(x, kind="stable")
    corrected = numpy.empty_like(x)
    corrected[order] = numpy.minimum(1.0, numpy.maximum.accumulate(x[order] * numpy.arange(len(x), 0, -1)))
    return corrected


def outcomes(values: Values, name: str) -> numpy.ndarray:
    """Outcomes [n] as int64, or the refusal that names what is neither 0 nor 1."""
    try:
        rate_interval(values)
    except InvalidInputError as error:
        raise InvalidInputError(f"{name}: {error}") from None
    return numpy.asarray(values).astype(numpy.int64)


def _table(first: Values, second: Values) -> list[list[int]]:
    x, y = outcomes(first, "first"), outcomes(second, "second")
    return [[int(x.sum()), int(y.sum())], [int((1 - x).sum()), int((1 - y).sum())]]
