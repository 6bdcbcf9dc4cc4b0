"""The error rates of the tests, measured: what may be looked at always, and what may not."""

from __future__ import annotations

import numpy
import pytest
from scipy import stats

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng
from denoiserl.stats import (
    anytime_pairs,
    anytime_rates,
    e_rates,
    paired_outcomes,
    power,
    rejections,
    repeated_z_test,
    stopping_time,
    type_one,
)

GRID = (0.1, 0.3, 0.5, 0.7, 0.9)


@pytest.mark.parametrize("test", [anytime_pairs, anytime_rates])
def test_looking_after_every_pair_keeps_the_level(test) -> None:
    for s in type_one(test, GRID, 20_000, 200, Rng(0)):
        assert s.rate <= 0.05 + 3 * s.error


def test_looking_again_and_again_at_a_fixed_n_test_does_not() -> None:
    for s in type_one(repeated_z_test(5), GRID, 4000, 200, Rng(1)):
        assert s.rate - 3 * s.error > 0.1
    for s in type_one(repeated_z_test(200), GRID, 4000, 200, Rng(2)):  # one look is honest
        assert s.rate <= 0.05 + 3 * s.error and s.stop > 190


def test_policies_with_different_strengths_break_the_independent_test_and_not_the_paired_one() -> None:
    """What is easy for one is hard for the other: equal rates, negative covariance."""
    (paired,) = type_one(anytime_pairs, [0.5], 4000, 200, Rng(3), coupling=-1)
    (rates,) = type_one(anytime_rates, [0.5], 4000, 200, Rng(3), coupling=-1)
    assert paired.rate <= 0.05 + 3 * paired.error and rates.rate > 0.1


def test_power_and_stopping_times() -> None:
    """The independent test against figures found by another implementation of it (20 000 repeats)."""
    found = power(anytime_rates, [(0.6, 0.3), (0.7, 0.5), (0.9, 0.7)], 4000, 200, Rng(4))
    for s, (rate, stop) in zip(found, [(0.999, 44), (0.88, 96), (0.99, 63)], strict=True):
        assert s.rate == pytest.approx(rate, abs=4 * s.error + 0.005) and s.stop == pytest.approx(stop, rel=0.05)
    easy = rejections(anytime_pairs, 0.6, 0.3, 4000, 200, Rng(5))
    assert easy.rate > 0.99 and easy.stop < 0.3 * 200
    (short,) = power(anytime_pairs, [(0.6, 0.3)], 4000, 50, Rng(6))
    assert short.rate < easy.rate and short.stop < easy.stop


def test_the_peeked_test_at_its_only_look_is_the_z_test() -> None:
    x, y = paired_outcomes(0.6, 0.4, 300, 40, Rng(7))
    k, j = x.sum(1), y.sum(1)
    chi2 = numpy.array(
        [stats.chi2_contingency([[a, b], [40 - a, 40 - b]], correction=False)[0] for a, b in zip(k, j, strict=True)]
    )
    expected = (k > j) & (numpy.sqrt(chi2) > stats.norm.isf(0.05))
    assert ((repeated_z_test(40)(x, y, 0.05) == 40) == expected).all() and 0.2 < expected.mean() < 0.8


def test_simulated_outcomes_have_the_rates_and_the_dependence_asked_for() -> None:
    for coupling in (-1.0, -0.5, 0.0, 0.5, 1.0):
        x, y = paired_outcomes(0.3, 0.6, 400, 100, Rng(8), coupling)
        assert x.mean() == pytest.approx(0.3, abs=0.01) and y.mean() == pytest.approx(0.6, abs=0.01)
        most = min(0.3, 0.6) if coupling > 0 else max(0.0, 0.3 + 0.6 - 1)  # Fréchet's bounds of P(1, 1)
        joint = abs(coupling) * most + (1 - abs(coupling)) * 0.18
        assert (x * y).mean() == pytest.approx(joint, abs=0.01)


def test_a_test_is_any_function_that_says_when_it_rejects() -> None:
    s = rejections(lambda x, y, level: numpy.where(x[:, 0] == 1, 3, 0), 0.25, 0.5, 8000, 10, Rng(9))
    assert s.rate == pytest.approx(0.25, abs=4 * s.error) and s.stop == pytest.approx(3 * s.rate + 10 * (1 - s.rate))
    x, y = paired_outcomes(0.9, 0.1, 50, 40, Rng(10))
    assert (anytime_rates(x, y, 0.01) == stopping_time(e_rates(x, y), 0.01)).all()


def test_refusals() -> None:
    for wrong, why in (
        (lambda: paired_outcomes(1.5, 0, 1, 1, Rng(0)), "no success rate"),
        (lambda: paired_outcomes(0.5, 0.5, 1, 1, Rng(0), 2), "no share"),
        (lambda: paired_outcomes(0.5, 0.5, 0, 1, Rng(0)), "simulate nothing"),
        (lambda: repeated_z_test(0), "every=0 pairs"),
    ):
        with pytest.raises(InvalidInputError, match=why):
            wrong()
