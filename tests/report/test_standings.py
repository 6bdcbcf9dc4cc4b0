"""Verdicts in words claim no more than their numbers, and the terminal and the page say the same."""

from __future__ import annotations

import io
import math

import pytest
import torch
from rich.console import Console

from denoiserl.core.errors import RunError
from denoiserl.report import console_standings, print_standings, render_page, standings_section, verdict
from denoiserl.report.formatting import comparison_scope, count, decimals, duration, number, probability
from denoiserl.stats import standings
from denoiserl.stats.interval import Interval
from denoiserl.stats.standing import ComparisonRow, ComparisonTable, Contrast

pytest.importorskip("matplotlib")


def table(contrast: Contrast | None, unit: str = "%", better: str = "higher", basis: str = "seeds") -> ComparisonTable:
    rows = [
        ComparisonRow("dppo", Interval(0.8, 0.7, 0.9, 3), (0.75, 0.8, 0.85), "a", 90.0, 12_345.0),
        ComparisonRow("ppo", Interval(0.6, 0.5, 0.7, 3), (0.55, 0.6, 0.65), "b", 5_000.0, 2.5e6),
    ]
    rows = rows[:: 1 if better == "higher" else -1]
    found = (contrast,) if contrast else ()
    return ComparisonTable("success", "goals reached", unit, better, 0.05, tuple(rows), found, basis)  # type: ignore[arg-type]


def test_a_verdict_names_the_better_arm_first_whichever_way_the_pair_was_held() -> None:
    one = Contrast("dppo", "ppo", Interval(0.2, 0.05, 0.35, 3), 0.0134, True, 0.1)
    two = Contrast("ppo", "dppo", Interval(-0.2, -0.35, -0.05, 3), 0.0134, True, 0.1)
    said = {verdict(table(c), c) for c in (one, two)}
    assert said == {"dppo is better than ppo (20 points more, 95 % interval 5 to 35, p = 0.013)."}


def test_where_lower_is_better_the_better_arm_is_below() -> None:
    c = Contrast("dppo", "ppo", Interval(3.25, 1.5, 5.0, 3), 0.0001, True, 1.0)
    assert (
        verdict(table(c, "s", "lower"), c)
        == "ppo is better than dppo (3.2 s less, 95 % interval 1.5 to 5.0, p < 0.001)."
    )


def test_what_is_not_separated_is_not_called_better_or_equal() -> None:
    c = Contrast("dppo", "ppo", Interval(0.04, -0.1, 0.18, 3), 0.4, False, 0.15)
    said = verdict(table(c), c)
    assert said == (
        "No difference shown between dppo and ppo (dppo: 4 points more, 95 % interval −10 to 18, p = 0.4). This design "
        "detects 15 points with power 0.8."
    )
    blind = Contrast("dppo", "ppo", Interval(0.04, -0.1, 0.18, 2), 0.4, False, math.inf)
    assert "hardly detect any difference" in verdict(table(blind), blind) and "inf" not in verdict(table(blind), blind)


def test_the_scope_says_what_the_verdict_is_about() -> None:
    c = Contrast("dppo", "ppo", Interval(0.2, 0.05, 0.35, 3), 0.01, True, 0.1)
    assert "3 training seeds, and so about the methods" in comparison_scope(
        table(c)
    ) and "share a letter" in comparison_scope(table(c))
    about = comparison_scope(table(None, basis="trials"))
    assert "about these policies, not about the methods" in about and "p is" not in about


def test_terminal_and_page_say_the_same_of_real_standings() -> None:
    generator = torch.Generator().manual_seed(0)
    rates = {"a method with quite a long name": 0.9, "ppo": 0.5, "<b>": 0.45}
    values = {k: (torch.rand(4, 100, generator=generator) < p).float() for k, p in rates.items()}
    found = standings(values, "success", "goals reached", "%", "higher")
    file = io.StringIO()
    print_standings(found, Console(file=file, width=220))
    shown = file.getvalue()
    text = render_page("t", [standings_section(found)])
    assert len(found.contrasts) == 3 and "<b>" not in text and "&lt;b&gt;" in text
    for c in found.contrasts:
        said = verdict(found, c)
        assert said in shown and said.replace("<", "&lt;").replace(">", "&gt;") in text
    for row in found.rows:
        assert row.name in shown and f"{100 * row.interval.mean:.1f}%" in shown
    marks = [line[0] for line in shown.splitlines() if line[:1] in "✓–" and line[:1]]
    assert marks == ["✓" if c.separated else "–" for c in found.contrasts]


def test_columns_that_no_arm_fills_are_left_out() -> None:
    full = [str(c.header) for c in console_standings(table(None)).columns]
    assert full == ["arm", "mean", "95 % interval", "group", "each seed", "training", "denoiser_calls"]
    bare = ComparisonTable(
        "x", "", "", "higher", 0.1, (ComparisonRow("a", Interval(1, 0, 2, 9), (1.0,), ""),), (), "trials"
    )
    assert [str(c.header) for c in console_standings(bare).columns] == ["arm", "mean", "90 % interval", "trials"]
    with pytest.raises(RunError, match="at least one arm"):
        console_standings(ComparisonTable("x", "", "", "higher", 0.1, (), (), "trials"))


def test_a_narrow_terminal_loses_no_name() -> None:
    name = "diffusion_policy_more_imitation_9000_updates"
    row = ComparisonRow(name, Interval(0.5, 0.4, 0.6, 3), (0.5,) * 8, "abc", 10.0, 1e6)
    file = io.StringIO()
    print_standings(ComparisonTable("x", "x", "%", "higher", 0.05, (row,), (), "seeds"), Console(file=file, width=70))
    first = "".join(
        line.split("  ")[0].strip() for line in file.getvalue().splitlines()[2:] if not line.startswith(" ")
    )
    assert name in first and "…" not in file.getvalue()


def test_many_pairs_are_folded_away() -> None:
    rows = tuple(ComparisonRow(n, Interval(0.5, 0.4, 0.6, 9), (0.5,), "a") for n in "abcd")
    pairs = [(a, b) for i, a in enumerate("abcd") for b in "abcd"[i + 1 :]]
    contrasts = tuple(Contrast(a, b, Interval(0.0, -0.1, 0.1, 9), 1.0, False, 0.2) for a, b in pairs)
    text = render_page(
        "t", [standings_section(ComparisonTable("x", "x", "%", "higher", 0.05, rows, contrasts, "trials"))]
    )
    assert "Every pair: 0 of 6 separated" in text


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (duration(0.42), "0.4 s"),
        (duration(99.4), "99 s"),
        (duration(100), "1.7 min"),
        (duration(5939), "99 min"),
        (duration(5940), "1.6 h"),
        (duration(None), "–"),
        (count(999), "999"),
        (count(999.9), "1k"),
        (count(72_096), "72.1k"),
        (count(2e9), "2G"),
        (number(-0.004, 2), "0.00"),
        (number(-1.25, 1), "−1.2"),
        (probability(0.00099), "p < 0.001"),
        (probability(0.04), "p = 0.04"),
    ],
)
def test_numbers_are_read_at_a_glance(given: str, said: str) -> None:
    assert given == said


def test_the_narrowest_interval_keeps_two_digits() -> None:
    assert [decimals([w, 1000.0]) for w in (250, 35, 3.5, 0.35, 0.035)] == [0, 0, 1, 2, 3]
    assert decimals([0.0]) == decimals([]) == 2
