"""The error rate, power and stopping time of tests, from thousands of simulated comparisons.

A test is a function (first [R, n], second [R, n], level) -> [R]. It returns the number of pairs after which it rejects
"first succeeds no more often than second", and 0 if it never does. ``anytime_pairs``, ``anytime_rates`` and
``repeated_z_test(every)`` are tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy
from scipy import special

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng, as_rng
from denoiserl.stats.sequential import e_pairs, e_rates, stopping_time

Test = Callable[[numpy.ndarray, numpy.ndarray, float], numpy.ndarray]


@dataclass(frozen=True)
class Simulated:
    """Results of a test in ``repeats`` comparisons of rates ``first`` and ``second``.

    ``rate`` is the share of rejections and ``error`` its standard error. ``stop`` is the mean number of pairs used; a
    comparison without a rejection uses n_max.
    """

    first: float
    second: float
    rate: float
    error: float
    stop: float
    repeats: int


def anytime_pairs(first: numpy.ndarray, second: numpy.ndarray, level: float) -> numpy.ndarray:
    """Return the number of pairs after which ``e_pairs`` first rejects at ``level``; 0 for never."""
    return stopping_time(e_pairs(first, second), level)


def anytime_rates(first: numpy.ndarray, second: numpy.ndarray, level: float) -> numpy.ndarray:
    """Return the number of pairs after which ``e_rates`` first rejects at ``level``; 0 for never."""
    return stopping_time(e_rates(first, second), level)


def repeated_z_test(every: int) -> Test:
    """Return a test: the pooled z-test of two rates, repeated after each ``every`` pairs until it rejects.

        z = (p̂₁ - p̂₂) / √(2 p̂(1 - p̂)/t)  >  Φ⁻¹(1 - level)

    It is valid for a single look only. With ``every`` = n it is the valid test of n pairs.
    """
    if every < 1:
        raise InvalidInputError(f"every={every} pairs between looks is too few: give a positive number.")

    def test(first: numpy.ndarray, second: numpy.ndarray, level: float) -> numpy.ndarray:
        looks = numpy.arange(every, first.shape[-1] + 1, every)
        x, y = first.cumsum(-1)[..., looks - 1], second.cumsum(-1)[..., looks - 1]
        pooled = (x + y) / (2 * looks)
        spread = numpy.sqrt(2 * pooled * (1 - pooled) * looks)
        reached = x - y > special.ndtri(1 - level) * spread
        return numpy.where(reached.any(-1), looks[reached.argmax(-1)] if len(looks) else 0, 0)

    return test


def paired_outcomes(
    first: float, second: float, repeats: int, n: int, rng: Rng | int, coupling: float = 0.0
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Draw paired outcomes, each [repeats, n], with rates ``first`` and ``second``.

    ``coupling`` in [-1, 1] is the share of starts at which both outcomes depend on one difficulty. Positive: a start
    that is hard for one is hard for the other. Negative: it is easy for the other.
    """
    rng = as_rng(rng)
    for rate in (first, second):
        if not 0 <= rate <= 1:
            raise InvalidInputError(f"{rate} is no success rate: it lies between 0 and 1.")
    if not -1 <= coupling <= 1:
        raise InvalidInputError(f"coupling={coupling} is no share of starts: give a number in [-1, 1].")
    if repeats < 1 or n < 1:
        raise InvalidInputError(f"{repeats} comparisons of {n} pairs simulate nothing: give positive numbers.")
    u, v = rng.uniform(repeats, n).cpu().numpy(), rng.uniform(repeats, n).cpu().numpy()
    if coupling:
        shared = rng.uniform(repeats, n).cpu().numpy() < abs(coupling)
        v = numpy.where(shared, u if coupling > 0 else 1 - u, v)
    return (u < first).astype(numpy.int64), (v < second).astype(numpy.int64)


def rejections(
    test: Test,
    first: float,
    second: float,
    repeats: int,
    n_max: int,
    rng: Rng | int,
    level: float = 0.05,
    coupling: float = 0.0,
) -> Simulated:
    """Run ``test`` in ``repeats`` comparisons of at most ``n_max`` pairs."""
    stop = test(*paired_outcomes(first, second, repeats, n_max, rng, coupling), level)
    rate = float((stop > 0).mean())
    used = float(numpy.where(stop > 0, stop, n_max).mean())
    # The rate may be 0; it is smoothed, because an error of exactly 0 would claim certainty.
    smooth = (rate * repeats + 1) / (repeats + 2)
    return Simulated(first, second, rate, math.sqrt(smooth * (1 - smooth) / repeats), used, repeats)


def type_one(
    test: Test,
    grid: Iterable[float],
    repeats: int,
    n_max: int,
    rng: Rng | int,
    level: float = 0.05,
    coupling: float = 0.0,
) -> list[Simulated]:
    """Return how often ``test`` separates two policies with the same rate, for every rate of ``grid``."""
    rng = as_rng(rng)
    return [rejections(test, p, p, repeats, n_max, rng, level, coupling) for p in grid]


def power(
    test: Test,
    rates: Iterable[tuple[float, float]],
    repeats: int,
    n_max: int,
    rng: Rng | int,
    level: float = 0.05,
    coupling: float = 0.0,
) -> list[Simulated]:
    """Return how often and how soon ``test`` detects that the first of each pair of ``rates`` is higher."""
    rng = as_rng(rng)
    return [rejections(test, first, second, repeats, n_max, rng, level, coupling) for first, second in rates]
