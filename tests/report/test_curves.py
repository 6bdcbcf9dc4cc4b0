"""What is drawn: read back from the pixels, where a picture can say it."""

from __future__ import annotations

import io
import math
import sys

import numpy
import pytest

from denoiserl.core.errors import InvalidInputError, MissingExtraError, RunError
from denoiserl.report import DARK, LIGHT, Curve, panels, plot, plot_comparisons
from denoiserl.report.learning_curves import spread_labels
from denoiserl.stats import Comparison, Interval

image = pytest.importorskip("PIL.Image")
pytest.importorskip("matplotlib")


def look(data: bytes) -> numpy.ndarray:
    return numpy.asarray(image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def columns(picture: numpy.ndarray, colour: str) -> numpy.ndarray:
    """The columns in which a colour occurs."""
    want = numpy.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return (numpy.abs(picture - want).sum(-1) < 12).any(0).nonzero()[0]


def test_dots_stand_in_the_order_of_the_means() -> None:
    wide = [Interval(m, m - 0.05, m + 0.05, 99) for m in (0.2, 0.5, 0.8)]
    data = plot_comparisons([Comparison("robot", "success", wide[0], wide[2], wide[1], unit="%")])
    picture = look(data)[60:-60, 300:1150]  # without title and ticks, between the labels and the numbers
    at = [columns(picture, c).mean() for c in (LIGHT.before, LIGHT.imitation, LIGHT.after)]
    assert at[0] < at[1] < at[2] and at[2] - at[1] == pytest.approx(at[1] - at[0], rel=0.03)


def test_a_gap_is_not_bridged() -> None:
    x = tuple(float(i) for i in range(100))
    y = tuple(math.nan if 30 <= i < 70 else 1.0 + i / 100 for i in x)
    found = columns(look(plot([Curve("r", x, y)])), LIGHT.series[0])
    steps = numpy.diff(found)
    assert steps.max() > 0.3 * (found[-1] - found[0]) and (steps > 5).sum() == 1


def test_ragged_curves_bands_marks_and_themes_draw() -> None:
    ragged = [Curve("a", (0, 1, 2), (1.0, 2.0, 3.0), (0.5, math.nan, 2), (1.5, math.nan, 4)), Curve("b", (5,), (2.0,))]
    light = look(plot(ragged, "title", "x", "y", marks={"before": 1.2}))
    dark = look(plot(ragged, "title", "x", "y", marks={"before": 1.2}, theme=DARK))
    assert light.shape == dark.shape and light.mean() > 200 and dark.mean() < 60
    assert len(columns(light, LIGHT.before)) and len(columns(light, LIGHT.series[1]))
    many = {str(i): [Curve(str(i), (0, 1), (1.0, 10.0**i))] for i in range(5)}
    assert look(panels(many)).shape[0] == 2 * 2.5 * 160


def test_drawing_leaves_no_trace_in_matplotlib() -> None:
    import matplotlib

    before, pyplot = (
        dict(matplotlib.rcParams),
        "matplotlib.pyplot" in sys.modules,
    )  # another package's tests may need it
    plot([Curve("r", (0, 1), (1.0, 2.0))], theme=DARK)
    assert dict(matplotlib.rcParams) == before and ("matplotlib.pyplot" in sys.modules) == pyplot


def test_the_same_curve_is_the_same_picture() -> None:
    draw = [plot([Curve("r", (0, 1, 2), (1.0, 2.0, 1.5))]) for _ in range(2)]
    assert draw[0] == draw[1]


def test_nothing_to_draw_is_said() -> None:
    with pytest.raises(RunError, match="at least one curve"):
        plot([])
    with pytest.raises(RunError, match="wrote no numbers"):
        panels({})
    with pytest.raises(RunError, match="nothing to compare"):
        plot_comparisons([])
    with pytest.raises(InvalidInputError, match="no finite value"):
        plot([Curve("r", (0, 1), (math.nan, math.nan))])


def test_names_at_the_edge_keep_order_and_distance() -> None:
    given = [50.0, 51.0, 10.0, 52.0, 99.0]
    out = spread_labels(given, 12, 0, 100)
    assert numpy.argsort(out).tolist() == numpy.argsort(given).tolist()
    assert min(numpy.diff(sorted(out))) >= 12 - 1e-9 and 0 <= min(out) and max(out) <= 100
    assert spread_labels([10.0, 90.0], 12, 0, 100) == [10.0, 90.0]


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"denoiserl\[demo\]"):
        plot([Curve("r", (0, 1), (1.0, 2.0))])
