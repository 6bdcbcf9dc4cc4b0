"""Rows to curves: ragged keys, gaps, bands, groups; and refusals."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy
import pytest

from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.report import Curve, curve, group_by_stage, groups, mean_over_runs, read_metrics, smooth
from denoiserl.stats import t_interval

ROWS = [
    {"stage": "imitate", "iteration": 0, "loss": 2.0},
    {"stage": "imitate", "iteration": 10, "loss": 1.0, "note": "half way"},
    {"stage": "improve", "iteration": 0, "reward/mean": 0.1, "reward/held_out": 0.2, "success": 0.5},
    {"stage": "improve", "iteration": 1, "reward/mean": math.nan, "reward/held_out": 0.3},
    {"stage": "improve", "iteration": 2, "reward/mean": 0.4, "success": 0.7, "success_low": 0.6, "success_high": 0.8},
]


def test_stages_keep_their_order_and_their_rows() -> None:
    found = group_by_stage(ROWS)
    assert list(found) == ["imitate", "improve"] and sum(map(len, found.values())) == len(ROWS)


def test_missing_keys_are_passed_over_and_nan_is_a_gap() -> None:
    rows = group_by_stage(ROWS)["improve"]
    held = curve(rows, "reward/held_out")
    assert (held.x, held.y) == ((0.0, 1.0), (0.2, 0.3))
    mean = curve(rows, "reward/mean")
    assert mean.x == (0.0, 1.0, 2.0) and math.isnan(mean.y[1]) and mean.y[::2] == (0.1, 0.4)


def test_low_and_high_are_a_band_and_no_curves() -> None:
    rows = group_by_stage(ROWS)["improve"]
    found = groups(rows)
    assert set(found) == {"reward", "success"}
    (success,) = found["success"]
    assert success.high is not None and success.high[1] == 0.8 and math.isnan(success.high[0])
    assert [c.label for c in found["reward"]] == ["mean", "held_out"]


def test_a_prefix_of_very_different_sizes_is_split() -> None:
    rows = [{"iteration": i, "loss/policy": 0.01, "loss/value": 30.0 - i} for i in range(5)]
    assert set(groups(rows)) == {"loss/policy", "loss/value"}


def test_rows_without_a_counter_are_counted() -> None:
    rows = [{"loss": 3.0}, {"other": 1}, {"loss": 1.0}]
    assert curve(rows, "loss").x == (0.0, 2.0)


def test_unknown_metric_is_refused_with_the_nearest() -> None:
    with pytest.raises(RunError, match="Did you mean 'loss'"):
        curve(ROWS[:2], "los")
    with pytest.raises(RunError, match="no metrics"):
        curve([], "loss")


def test_smoothing_keeps_lines_and_gaps_and_reduces_noise_as_its_weights_say() -> None:
    x = tuple(range(401))
    constant = smooth(Curve("", x, (2.5,) * 401), 5)
    assert constant.y == pytest.approx([2.5] * 401)
    line = smooth(Curve("", x, tuple(3.0 * i for i in x)), 5)
    assert line.y[200] == pytest.approx(600)  # symmetric: no delay
    noise = numpy.random.default_rng(0).normal(size=20_001)
    out = smooth(Curve("", tuple(range(20_001)), tuple(noise)), 5).y
    keep = 2 ** (-1 / 5)
    weights = numpy.array([keep ** abs(k) for k in range(-200, 201)])
    assert numpy.var(out) == pytest.approx((weights**2).sum() / weights.sum() ** 2, rel=0.1)
    gap = smooth(Curve("", (0, 1, 2), (1.0, math.nan, 3.0)), 1)
    assert math.isnan(gap.y[1]) and gap.y[0] == pytest.approx((1 + 3 / 4) / (1 + 1 / 4))
    with pytest.raises(InvalidInputError, match="half-life"):
        smooth(constant, 0)


def test_band_across_runs_is_student_at_shared_points() -> None:
    runs = [[{"iteration": i, "r": s + i} for i in range(3 + s)] for s in range(3)]
    found = mean_over_runs(runs, "r")
    assert found.x == (0.0, 1.0, 2.0) and found.low is not None
    expect = t_interval([1.0, 2.0, 3.0])
    assert (found.y[1], found.low[1]) == (pytest.approx(expect.mean), pytest.approx(expect.low))
    with pytest.raises(InvalidInputError, match="at least two"):
        mean_over_runs(runs[:1], "r")
    with pytest.raises(RunError, match="common x"):
        mean_over_runs([[{"iteration": 0, "r": 1.0}], [{"iteration": 1, "r": 1.0}]], "r")


def test_only_a_cut_last_line_is_forgiven(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    good = "".join(json.dumps(row) + "\n" for row in ROWS)
    path.write_text(good + '{"iteration": 3, "rew')
    assert len(read_metrics(path)) == len(ROWS)
    assert curve(group_by_stage(read_metrics(path))["improve"], "reward/mean").x == (0.0, 1.0, 2.0)
    path.write_text('{"iteration": 3, "rew\n' + good)
    with pytest.raises(RunError, match="line 1 is not JSON"):
        read_metrics(path)
    path.write_text("[1]\n")
    with pytest.raises(RunError, match="not an object"):
        read_metrics(path)
    with pytest.raises(RunError, match="does not exist"):
        read_metrics(tmp_path / "none.jsonl")


def test_the_journals_spelling_is_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    held = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    path.write_text(json.dumps({"stage": None, "iteration": 1, "kl": "-inf", "loss": {"value": 1}, "held": held}))
    (row,) = read_metrics(path)
    assert row["kl"] == -math.inf and row["loss/value"] == 1 and list(group_by_stage([row])) == [""]
    found = curve([row], "held")
    assert (found.y, found.low, found.high) == ((0.5,), (0.4,), (0.6,)) and math.isnan(curve([row], "kl").y[0])


def test_a_curve_of_unequal_lengths_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="same length"):
        Curve("r", (0.0, 1.0), (1.0,))


def test_thinned_rows_are_evenly_spaced_and_keep_what_is_rare(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    lines: list[dict[str, float]] = [{"iteration": i, "loss": float(i)} for i in range(9000)]
    for row in lines[899::900]:
        row["eval/success"] = 0.5
    file.write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
    whole, some = read_metrics(file), read_metrics(file, 100)
    assert len(whole) == 9000 and 100 <= len(some) <= 220
    assert [row["iteration"] for row in some if "eval/success" in row] == list(range(899, 9000, 900))
    rest = [row["iteration"] for row in some if "eval/success" not in row]
    assert rest[0] == 0 and rest[-1] == 8998 and max(b - a for a, b in pairwise(rest)) <= 2 * 9000 / 100
    assert all(row in whole for row in some)
