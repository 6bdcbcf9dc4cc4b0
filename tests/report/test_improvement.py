"""Sentences and tables of a run's improvement: who is named, in which direction, with which numbers."""

from __future__ import annotations

import pytest
import torch

from denoiserl.report.improvement import compares_improvement, improvement_sentences, improvement_table, only_after
from denoiserl.report.sections import evaluation_tables
from denoiserl.stats import standings


def rates(hits: int, n: int = 100) -> torch.Tensor:
    return (torch.arange(n) < hits).float()[None]


def test_a_gain_is_called_better_with_the_paired_difference() -> None:
    table = standings({"before": rates(40), "after": rates(75)}, "success", "success", "%")
    (sentence,) = improvement_sentences(table)
    assert sentence.startswith("It got better: success, 35 points more (95 % interval 2")
    head, rows = improvement_table([table])
    assert head == ["metric", "before", "after", "after − before", "95 % interval", "trials"]
    assert rows[0][:4] == ["success", "40.0%", "75.0%", "+35"] and rows[0][5] == "100"
    low, high = (float(v) for v in rows[0][4].split(" to "))
    contrast = table.contrast("after", "before").difference  # all 35 changed trials changed for the better
    assert low == pytest.approx(100 * contrast.low, abs=0.5) and high == pytest.approx(100 * contrast.high, abs=0.5)


@pytest.mark.parametrize(("better", "words"), [("higher", "It got worse"), ("lower", "It got better")])
def test_the_direction_of_a_metric_decides_what_is_better(better, words) -> None:
    g = torch.Generator().manual_seed(0)
    start = torch.randn(1, 100, generator=g)
    change = -1 + 0.1 * torch.tensor([1.0, -1.0]).repeat(50)[None]
    table = standings({"before": start, "after": start + change}, "cost", "cost", "J", better)
    assert improvement_sentences(table)[0].startswith(f"{words}: cost, 1.0")
    assert " J less (95 % interval −1.0" in improvement_sentences(table)[0]
    assert improvement_table([table])[1][0][0] == "cost (J)" and improvement_table([table])[1][0][3].startswith("−1.0")


def test_what_is_not_shown_says_which_change_would_have_been_seen() -> None:
    table = standings({"before": rates(40), "after": rates(42)}, "success", "success", "%")
    (sentence,) = improvement_sentences(table)
    assert sentence.startswith("No change shown: success, 2.0 points more (95 % interval −")
    least = 100 * table.contrast("after", "before").min_detectable_effect
    assert f"100 trials detect {least:.1f} points or more with power 0.8" in sentence
    equal = standings({"before": rates(40), "after": rates(40)}, "success", "success", "%")
    assert "No change shown: success, no difference (95 % interval" in improvement_sentences(equal)[0]


def test_more_imitation_that_did_better_is_said() -> None:
    arms = {"before": rates(10), "more imitation": rates(90), "after": rates(40)}
    table = standings(arms, "success", "success", "%")
    better, control = improvement_sentences(table)
    assert better.startswith("It got better: success, 30 points more")
    assert control.startswith("More imitation for the same time is better: success, 50 points less (95 % interval −")
    assert improvement_table([table])[0][1:4] == ["before", "more imitation", "after"]
    assert only_after(table).rows == (table.row("after"),) and only_after(table).contrasts == ()


def test_other_comparisons_are_no_improvement() -> None:
    table = standings({"a": rates(10), "b": rates(40)}, "success", "success", "%")
    assert not compares_improvement([table]) and not compares_improvement([]) and only_after(table) is table


def test_a_metric_that_too_few_trials_have_is_left_out_of_the_page() -> None:
    interval = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 100}
    metrics = {
        "success": {"what": "success", "unit": "%", "policies": {"a": interval}},
        "steps_to_success": {"what": "steps", "unit": "", "policies": {"a": None}},
    }
    assert [table.metric for table in evaluation_tables({"metrics": metrics, "standings": None})] == ["success"]
