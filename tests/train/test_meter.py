"""Work is counted where it is done, by everybody who asked."""

from __future__ import annotations

import pytest

from denoiserl.errors import BadRun
from denoiserl.meter import Meter, spend, uncounted


def test_a_childs_work_is_its_parents_and_an_outer_meters_once():
    outer, run = Meter(), Meter()
    stage = Meter(run)
    spend("rows", 100)  # nobody asked
    with outer.open(), run.open():
        spend("rows", 1)
        with stage.open():
            spend("rows", 10)
            with uncounted():
                spend("rows", 100)
        spend("rows", 2)
    assert [m.counts["rows"] for m in (outer, run, stage)] == [13, 13, 10]


def test_restored_counts_reach_the_parent():
    run = Meter()
    run.add("env steps", 5)
    stage = Meter(run)
    stage.become({"env steps": 7, "updates": 2})
    stage.become({"env steps": 9})
    assert run.counts["env steps"] == 14 and run.counts["updates"] == 2 and stage.counts["env steps"] == 9


def test_unknown_units_are_refused_with_the_nearest():
    for wrong in (spend, Meter().add):
        with pytest.raises(BadRun, match="Did you mean 'env steps'"):
            wrong("env_steps", 1)
