"""The records of a table: JSON and back, pairs the other way round, and what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from denoiserl.core.errors import RunError
from denoiserl.stats import ComparisonRow, ComparisonTable, Contrast, Interval

ROWS = (
    ComparisonRow("dppo", Interval(0.8, 0.7, 0.9, 3), (0.7, 0.8, 0.9), "a", 12.5, 1e6),
    ComparisonRow("start", Interval(0.3, 0.2, 0.4, 3), (0.3, 0.3, 0.3), "b"),
)
PAIR = Contrast("dppo", "start", Interval(0.5, 0.4, 0.7, 3), 0.01, True, math.inf)
TABLE = ComparisonTable("success", "it arrived", "%", "higher", 0.05, ROWS, (PAIR,), "seeds")


def test_a_table_survives_json() -> None:
    assert ComparisonTable.from_dict(json.loads(json.dumps(TABLE.as_dict(), allow_nan=False))) == TABLE
    finite = replace(PAIR, min_detectable_effect=0.25)
    assert Contrast.from_dict(json.loads(json.dumps(finite.as_dict()))) == finite


def test_a_pair_may_be_asked_for_either_way() -> None:
    assert TABLE.contrast("dppo", "start") == PAIR
    turned = TABLE.contrast("start", "dppo")
    assert turned.difference == Interval(-0.5, -0.7, -0.4, 3)
    assert (turned.p, turned.separated) == (PAIR.p, PAIR.separated)
    assert TABLE.row("start").letters == "b" and (TABLE.sign, replace(TABLE, better="lower").sign) == (1, -1)
    with pytest.raises(RunError, match="Did you mean 'start'"):
        TABLE.contrast("dppo", "stat")
    with pytest.raises(RunError, match="not compared"):
        replace(TABLE, contrasts=()).contrast("start", "dppo")


def test_what_is_no_table_is_refused() -> None:
    for change, why in (
        ({"rows": (ROWS[0], ROWS[0])}, "more than one row"),
        ({"rows": ROWS[:1]}, "no arm 'start'"),
        ({"better": "up"}, "direction"),
        ({"basis": "runs"}, "basis"),
        ({"level": 5}, "error rate"),
    ):
        with pytest.raises(RunError, match=why):
            replace(TABLE, **change)
    for change, why in (
        ({"second": "dppo"}, "itself"),
        ({"p": 1.2}, "probability"),
        ({"p": math.nan}, "probability"),
        ({"min_detectable_effect": -0.1}, "negative"),
    ):
        with pytest.raises(RunError, match=why):
            replace(PAIR, **change)
    with pytest.raises(RunError, match="unknown keys \\['mood'\\]"):
        ComparisonTable.from_dict({**TABLE.as_dict(), "mood": 1})
    with pytest.raises(RunError, match="missing keys \\['p'\\]"):
        Contrast.from_dict({k: v for k, v in PAIR.as_dict().items() if k != "p"})
    with pytest.raises(RunError, match="nothing else"):
        ComparisonRow.from_dict({**ROWS[0].as_dict(), "interval": {"mean": 1}})
