"""The densities are the posteriors they claim to be, and the picture puts arms where their means are."""

from __future__ import annotations

import io

import numpy
import pytest

from denoiserl.core.errors import RunError
from denoiserl.report import DARK, LIGHT, violins
from denoiserl.report.violins import posterior_of, stack_points
from denoiserl.stats import binomial, t_interval
from denoiserl.stats.interval import Interval
from denoiserl.stats.standing import ComparisonRow, ComparisonTable

image = pytest.importorskip("PIL.Image")
pytest.importorskip("matplotlib")


def table(rows: list[ComparisonRow], unit: str = "%", basis: str = "trials", better: str = "higher") -> ComparisonTable:
    return ComparisonTable("success", "goals reached", unit, better, 0.05, tuple(rows), (), basis)  # type: ignore[arg-type]


def rate(name: str, k: int, n: int, letters: str = "") -> ComparisonRow:
    return ComparisonRow(name, binomial(k, n), (k / n,), letters)


def look(data: bytes) -> numpy.ndarray:
    return numpy.asarray(image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def mask(picture: numpy.ndarray, colour: str) -> numpy.ndarray:
    want = numpy.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return numpy.abs(picture - want).sum(-1) < 12


def area(x: numpy.ndarray, y: numpy.ndarray) -> float:
    return float(((y[1:] + y[:-1]) / 2 * numpy.diff(x)).sum())


@pytest.mark.parametrize(("k", "n"), [(0, 20), (20, 20), (7, 20), (300, 1000), (1, 1)])
def test_the_density_of_a_rate_is_its_posterior(k: int, n: int) -> None:
    x, p = posterior_of(rate("a", k, n), "%", points=4000)
    assert area(x, p) == pytest.approx(1, abs=2e-3)
    assert area(x, x * p) == pytest.approx((k + 1) / (n + 2), abs=1e-3)  # Laplace's rule of succession
    assert x[0] >= 0 and x[-1] <= 1


def test_the_density_of_a_mean_holds_95_percent_inside_its_interval() -> None:
    scores = numpy.random.default_rng(0).normal(-120, 30, 12)
    found = t_interval(scores)
    x, p = posterior_of(ComparisonRow("a", found, (), ""), "", points=4000)
    inside = (x >= found.low) & (x <= found.high)
    assert area(x[inside], p[inside]) == pytest.approx(0.95, abs=3e-3)
    assert x[p.argmax()] == pytest.approx(scores.mean(), abs=0.1)


def test_scores_in_the_unit_interval_are_not_taken_for_counts() -> None:
    given = ComparisonRow("a", Interval(0.5234, 0.5, 0.55, 10), (0.5234,), "")  # 5.234 of 10 are no successes
    x, _ = posterior_of(given, "%")
    assert x[0] > 0.4 and x[-1] < 0.65


def test_rows_stand_best_first_at_their_means() -> None:
    rows = [rate("c", 90, 100), rate("a", 50, 100), rate("b", 10, 100)]
    colours = LIGHT.palette("abc")
    picture = look(violins(table(rows)))[60:-60, 100:1050]
    found = [mask(picture, colours[row.name]) for row in rows]
    across = [m.any(0).nonzero()[0].mean() for m in found]
    down = [m.any(1).nonzero()[0].mean() for m in found]
    assert across[0] > across[1] > across[2] and down[0] < down[1] < down[2]
    assert across[0] - across[1] == pytest.approx(across[1] - across[2], rel=0.05)


def test_an_arm_keeps_its_colour_and_eight_arms_differ() -> None:
    names = [*"abcdefgh"]
    for theme in (LIGHT, DARK):
        forward, back = theme.palette(names), theme.palette(reversed(names))
        assert forward == back and len(set(forward.values())) == 8
        with_control = theme.palette([*names, "before", "more imitation"])
        assert with_control["more imitation"] == theme.imitation and len(set(with_control.values())) == 10


def test_rings_of_seeds_never_touch() -> None:
    given = numpy.random.default_rng(1).normal(0, 1, 40).round(1).tolist()
    at, level = stack_points(given, 0.3)
    assert at == sorted(given)
    for i, (a, up) in enumerate(zip(at, level, strict=True)):
        near = [b for b, other in zip(at[:i], level[:i], strict=True) if other == up]
        assert all(a - b >= 0.3 for b in near)
        for lower in range(up):  # and none is higher than it must be
            assert any(a - b < 0.3 for b, other in zip(at[:i], level[:i], strict=True) if other == lower)


def test_extremes_many_arms_and_long_names_stay_in_the_picture() -> None:
    long = "diffusion_policy_with_more_imitation_of_the_same_demonstrations"
    rows = [rate(long, 100, 100, "a"), *(rate(f"arm {i}", 50, 100, "ab") for i in range(6)), rate("never", 0, 100, "b")]
    for theme in (LIGHT, DARK):
        picture = look(violins(table(rows), theme))
        ground = picture[2, 2]
        assert picture.shape[1] == 1280 and picture.shape[0] > 600
        assert all((edge == ground).all() for edge in (picture[-2:], picture[:, -2:]))  # nothing runs over
    flat = ComparisonRow("a", Interval(3.0, 3.0, 3.0, 3), (3.0, 3.0, 3.0), "a")
    assert look(violins(table([flat], "ticks", "seeds", "lower"))).std() > 0
    with pytest.raises(RunError, match="at least one arm"):
        violins(table([]))
