"""Exact tests of two success rates for a fixed number of trials, and Holm's correction for many tests.

    two policies on the same starts    ``mcnemar``  uses only the starts on which they disagree
    two policies on separate starts    ``barnard``  the most powerful of the two; ``fisher`` conditions on the total

Each test is for one look, at a number of trials that was fixed before. Repeated looks that stop when p is small err far
more often than the level. The tests of ``denoiserl.stats.sequential`` allow repeated looks.
"""

from __future__ import annotations

import numpy
from scipy import special

from denoiserl.core.errors import InvalidInputError
from denoiserl.stats.interval import Values, rate_interval


def mcnemar(first: Values, second: Values) -> float:
    """Return the two-sided exact p-value of paired outcomes [n]: wins w and losses l among the starts that disagree.

        p = min(1, 2 P(X ≤ min(w, l))),   X ~ Binomial(w + l, 1/2)

    Raise ``InvalidInputError`` unless all outcomes are 0 or 1 and both have n. Reference: McNemar (1947).
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
    """Return the two-sided p-value of Barnard's unconditional exact test; outcomes [n] and [m] of independent trials.

    The p-value is the probability of a table at least as far from equal rates, by the pooled score statistic,
    maximised over the common rate. Reference: Barnard (1945); the implementation is scipy's.
    """
    from scipy import stats  # slow to import, and only needed here

    return min(1.0, float(stats.barnard_exact(_table(first, second)).pvalue))


def fisher(first: Values, second: Values) -> float:
    """Return the two-sided p-value of Fisher's exact test; outcomes [n] and [m] of independent trials.

    It conditions on the total number of successes, so it is more conservative than ``barnard``. Reference: Fisher
    (1935); the implementation is scipy's.
    """
    from scipy import stats

    return min(1.0, float(stats.fisher_exact(_table(first, second)).pvalue))  # type: ignore[attr-defined]


def holm(p: Values) -> numpy.ndarray:
    """Return p-values [m], corrected by Holm's step-down: rejecting all p ≤ α errs with probability at most α.

        p̃_(i) = max_{j ≤ i} min(1, (m - j + 1) p_(j)),   p_(1) ≤ ... ≤ p_(m)

    It holds for any dependence between the tests. Reference: Holm, A simple sequentially rejective multiple test
    procedure (1979).
    """
    x = numpy.asarray(p, numpy.float64)
    if x.ndim != 1 or not ((x >= 0) & (x <= 1)).all():
        raise InvalidInputError("p-values are one row of numbers between 0 and 1: give the family [m].")
    order = numpy.argsort(x, kind="stable")
    corrected = numpy.empty_like(x)
    corrected[order] = numpy.minimum(1.0, numpy.maximum.accumulate(x[order] * numpy.arange(len(x), 0, -1)))
    return corrected


def outcomes(values: Values, name: str) -> numpy.ndarray:
    """Return outcomes [n] as int64. Raise ``InvalidInputError`` for a value that is neither 0 nor 1."""
    try:
        rate_interval(values)
    except InvalidInputError as error:
        raise InvalidInputError(f"{name}: {error}") from None
    return numpy.asarray(values).astype(numpy.int64)


def _table(first: Values, second: Values) -> list[list[int]]:
    x, y = outcomes(first, "first"), outcomes(second, "second")
    return [[int(x.sum()), int(y.sum())], [int((1 - x).sum()), int((1 - y).sum())]]
