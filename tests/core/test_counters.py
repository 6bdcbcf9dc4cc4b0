"""Work is counted where it is done, by everybody who asked."""

from __future__ import annotations

import pytest

from denoiserl.core.counters import UsageCounter, count_usage, no_usage_counting
from denoiserl.core.errors import RunError


def test_a_childs_work_is_its_parents_and_an_outer_meters_once():
    outer, run = UsageCounter(), UsageCounter()
    stage = UsageCounter(run)
    count_usage("denoiser_rows", 100)  # nobody asked
    with outer.open(), run.open():
        count_usage("denoiser_rows", 1)
        with stage.open():
            count_usage("denoiser_rows", 10)
            with no_usage_counting():
                count_usage("denoiser_rows", 100)
        count_usage("denoiser_rows", 2)
    assert [m.counts["denoiser_rows"] for m in (outer, run, stage)] == [13, 13, 10]


def test_restored_counts_reach_the_parent():
    run = UsageCounter()
    run.add("env_steps", 5)
    stage = UsageCounter(run)
    stage.restore({"env_steps": 7, "updates": 2})
    stage.restore({"env_steps": 9})
    assert run.counts["env_steps"] == 14 and run.counts["updates"] == 2 and stage.counts["env_steps"] == 9


def test_unknown_units_are_refused_with_the_nearest():
    for wrong in (count_usage, UsageCounter().add):
        with pytest.raises(RunError, match="Did you mean 'env_steps'"):
            wrong("env steps", 1)
