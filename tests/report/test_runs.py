"""Several runs on one page: which belong together, what is averaged, and what is not claimed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.report import Curve, learning_curves, mean_over_runs, overlay, run_report
from denoiserl.report.provenance import load_run
from denoiserl.report.runs_report import group_by_arm
from denoiserl.stats import binomial

pytest.importorskip("matplotlib")


def made(place: Path, recipe: str = "x.one", seed: int = 0, rows: int = 6, **args: object) -> Path:
    place.mkdir()
    about = {"name": recipe.rpartition(".")[2], "run": recipe, "options": {"seed": seed, **args}}
    record = {
        "program": "x",
        "about": about,
        "args": about["options"],
        "seed": seed,
        "finished": "2026-01-02T03:04:05Z",
    }
    (place / "run.json").write_text(json.dumps(record))
    told = [{"stage": "improve", "iteration": i, "reward": i + seed, "eval/success": 0.1 * i} for i in range(rows)]
    (place / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))
    return place


def judged(place: Path, *successes: int, n: int = 100) -> Path:
    (place / "eval").mkdir()
    policies = {name: binomial(k, n).as_dict() for name, k in zip("ab", successes, strict=False)}
    each = {"what": "goals reached", "unit": "%", "policies": policies}
    told = {"task": "reach", "seed": 0, "policies": {}, "trials": n, "metrics": {"success": each}, "standings": None}
    (place / "eval" / "eval.json").write_text(
        json.dumps(told | {"files": ["gone.png", "plot.png"], "stopped": "Stopped early."})
    )
    return place


def test_seeds_are_one_arm_and_settings_are_two(tmp_path: Path) -> None:
    runs = [made(tmp_path / f"a{s}", seed=s, lr=0.1, n=3) for s in range(3)]
    runs += [made(tmp_path / "b", seed=0, lr=0.01, n=3), made(tmp_path / "c", "x.two", lr=0.1)]
    arms = group_by_arm([load_run(r) for r in runs])
    assert {name: [run.name for run in each] for name, each in arms.items()} == {
        "one (lr 0.1)": ["a0", "a1", "a2"],
        "one (lr 0.01)": ["b"],
        "two": ["c"],
    }


def test_straight_lines_are_averaged_exactly_wherever_their_points_lie() -> None:
    one = Curve("a", (0.0, 3.0, 10.0), (0.0, 3.0, 10.0))
    two = Curve("b", (1.0, 4.0, 8.0), (2.0 + 3, 8.0 + 3, 16.0 + 3))  # 2x + 3
    both = overlay([one, two], "arm", "range")
    assert both.x == (1.0, 3.0, 4.0, 8.0) and both.label == "arm"  # where both have been
    assert both.y == pytest.approx([1.5 * x + 1.5 for x in both.x])
    assert both.low == pytest.approx(list(both.x)) and both.high == pytest.approx([2 * x + 3 for x in both.x])


def test_at_shared_points_it_is_the_mean_across_seeds() -> None:
    runs = [[{"iteration": i, "r": math.sin(3 * i + s)} for i in range(8)] for s in range(4)]
    given = [Curve("r", tuple(range(8)), tuple(row["r"] for row in rows)) for rows in runs]
    one, two = overlay(given, "r"), mean_over_runs(runs, "r")
    assert one.x == two.x
    for name in ("y", "low", "high"):
        assert getattr(one, name) == pytest.approx(getattr(two, name))


def test_gaps_stay_gaps_and_what_cannot_be_averaged_is_refused() -> None:
    gap = Curve("a", (0.0, 1.0, 2.0, 3.0), (0.0, math.nan, 2.0, 3.0))
    full = Curve("b", (0.0, 1.0, 1.5, 2.0, 3.0), (0.0, 1.0, 1.5, 2.0, 3.0))
    found = dict(zip(overlay([gap, full], "x").x, overlay([gap, full], "x").y, strict=True))
    assert math.isnan(found[1.0]) and math.isnan(found[1.5]) and found[2.0] == 2.0 and found[0.0] == 0.0
    twice = Curve("c", (0.0, 1.0, 1.0, 3.0), (0.0, 5.0, 1.0, 3.0))
    assert overlay([twice, full], "x").y == pytest.approx(overlay([full, full], "x").y)  # the last of two counts
    with pytest.raises(InvalidInputError, match="decreases"):
        overlay([Curve("a", (1.0, 0.0), (0.0, 0.0)), full], "x")
    with pytest.raises(RunError, match="no x in common"):
        overlay([Curve("a", (7.0, 8.0), (0.0, 0.0)), full], "x")
    with pytest.raises(InvalidInputError, match="at least two"):
        overlay([full], "x")


def test_learning_curves_draw_one_seed_and_several() -> None:
    rows = [{"env_steps": 100 * i + s, "success": i / 9} for s in range(2) for i in range(10)]
    picture = learning_curves({"a": [rows[:10], rows[10:]], "b": [rows[:10]]}, "success", "env_steps", unit="%")
    assert picture[:4] == b"\x89PNG"
    with pytest.raises(RunError, match="There is no metric 'succes'"):
        learning_curves({"a": [rows]}, "succes")


def test_seeds_of_every_arm_make_an_interval_over_seeds(tmp_path: Path) -> None:
    successes = {"a": (60, 70, 80), "b": (20, 30, 25)}
    runs = [
        judged(made(tmp_path / f"{arm}{s}", seed=s, lr=0.1 if arm == "a" else 0.2), k)
        for arm, ks in successes.items()
        for s, k in enumerate(ks)
    ]
    text = run_report(runs)
    assert "60 70 80" in text and "20 30 25" in text and "over 3 training seeds" in text
    assert "No test has compared these rows" in text and "one (lr 0.1)" in text
    assert text.index("60 70 80") < text.index("20 30 25")  # best first
    assert "gone.png (missing)" in text
    text = run_report([*runs, made(tmp_path / "late", lr=0.2, seed=9)])
    assert "because they have no evaluation: late" in text


def test_a_single_seed_is_judged_over_trials(tmp_path: Path) -> None:
    runs = [judged(made(tmp_path / "one", lr=0.1), 60), judged(made(tmp_path / "two", lr=0.2), 30, 40)]
    text = run_report(runs)
    assert "about these policies, not about the methods" in text
    assert "two, a" in text and "two, b" in text  # two policies of one run


def test_an_evaluation_is_the_result_of_its_run(tmp_path: Path) -> None:
    place = judged(made(tmp_path / "r"), 60)
    (place / "eval" / "gone.png").write_bytes(b"<svg broken")
    text = run_report(place)
    for said in (
        "Evaluated on 100 held-out trials of reach",
        "Stopped early.",
        "60.0%",
        "The interval (95 %) is over 100",
    ):
        assert said in text
    assert "plot.png" not in text and "gone.png" in text
    assert "without intervals" not in text  # the run's own measurements give way
    (place / "eval" / "eval.json").write_text("{}")
    with pytest.raises(RunError, match="evaluate the run again"):
        run_report(place)


def test_without_evaluations_the_last_numbers_have_no_interval(tmp_path: Path) -> None:
    runs = [made(tmp_path / f"r{s}", seed=s, rows=5 + s) for s in range(2)]
    text = run_report(runs)
    assert "without intervals" in text and "0.45" in text  # the mean of 0.4 and 0.5
    assert "bands are their range" in text and "have the same options except for their seeds" in text
    assert text.count("denoiserl run x.one") == 2 and "--seed 1" in text


def test_wrong_folders_are_refused(tmp_path: Path) -> None:
    run = made(tmp_path / "r")
    with pytest.raises(RunError, match="given twice"):
        run_report([run, tmp_path / "." / "r"])
    with pytest.raises(RunError, match="at least one run"):
        run_report([])
    with pytest.raises(RunError, match=r"run\.json does not exist"):
        run_report([run, tmp_path])
