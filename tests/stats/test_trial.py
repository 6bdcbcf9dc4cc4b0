"""Trials: what may be joined and paired, what the fingerprint sees, and timeouts as failures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.stats import Trials, fingerprint, join_runs, mcnemar, pairs, read, write

A = Trials("aaaa", "push", "success", (1, 2, 3), (1.0, 0.0, 1.0), (10, 50, 12), "inside for 5 steps")
B = replace(A, policy="bbbb", starts=(3, 1, 2), value=(0.0, 1.0, 0.0))


def test_a_timeout_is_a_failure_and_not_a_gap() -> None:
    t = Trials.from_success_steps("aaaa", "push", [4, 5, 6], {4: 30, 6: 99}, limit=60)
    assert t.value == (1.0, 0.0, 0.0) and t.steps == (30, 60, 60) and len(t) == 3
    with pytest.raises(InvalidInputError, match="start 7 was not planned"):
        Trials.from_success_steps("aaaa", "push", [4, 5], {7: 3}, limit=60)


def test_pairs_are_aligned_by_start() -> None:
    x, y = pairs(A, B)
    assert x.tolist() == [1, 0, 1] and y.tolist() == [1, 0, 0]
    assert mcnemar(x, y) == 1


def test_unpaired_trials_are_refused_with_the_test_that_does_not_need_pairs() -> None:
    for other in (replace(B, starts=(1, 2, 9)), replace(B, starts=(1, 2), value=(1.0, 1.0), steps=None)):
        with pytest.raises(InvalidInputError, match=r"mcnemar, e_pairs and paired need the same starts.*barnard"):
            pairs(A, other)


def test_join_puts_runs_together() -> None:
    more = replace(A, starts=(8, 9), value=(1.0, 1.0), steps=(5, 6))
    whole = join_runs(A, more)
    assert whole.starts == (1, 2, 3, 8, 9) and sum(whole.value) == 4 and whole.steps == (10, 50, 12, 5, 6)
    assert join_runs(A, replace(more, steps=None)).steps is None


def test_join_refuses_what_does_not_belong_together() -> None:
    more = replace(A, starts=(8, 9), value=(1.0, 1.0), steps=None)
    for change, why in (
        ({"policy": "cccc"}, "policies with different weights"),
        ({"task": "lift"}, "one task is 'push' and the other 'lift'"),
        ({"rubric": "inside for 1 step"}, "one rubric is"),
        ({"metric": "return"}, "one metric is"),
        ({"starts": (3, 9)}, "1 starts are in both .the first: 3"),
    ):
        with pytest.raises(InvalidInputError, match=why):
            join_runs(A, replace(more, **change))


def test_what_is_no_record_of_trials_is_refused() -> None:
    for change, why in (
        ({"starts": (), "value": (), "steps": None}, "no trials"),
        ({"value": (1.0,)}, "a failure, not a gap"),
        ({"steps": (1,)}, "a failure, not a gap"),
        ({"starts": (1, 2, 1)}, "start 1 was tried twice"),
        ({"value": (1.0, float("nan"), 0.0)}, "start 2 is not finite"),
    ):
        with pytest.raises(InvalidInputError, match=why):
            replace(A, **change)


def test_json_lines_round_trip_and_may_be_concatenated(tmp_path: Path) -> None:
    plain = replace(A, policy="cccc", steps=None)
    write(tmp_path / "all.jsonl", [A, B, plain])
    assert read(tmp_path / "all.jsonl") == [A, B, plain]
    more = replace(A, starts=(7,), value=(0.25,), steps=(3,))
    write(tmp_path / "more.jsonl", [more])
    both = (tmp_path / "all.jsonl").read_text() + (tmp_path / "more.jsonl").read_text()
    (tmp_path / "both.jsonl").write_text(both)
    assert read(tmp_path / "both.jsonl") == [join_runs(A, more), B, plain]


def test_broken_lines_are_named(tmp_path: Path) -> None:
    write(tmp_path / "t.jsonl", [A])
    good = (tmp_path / "t.jsonl").read_text()
    row = json.loads(good.splitlines()[0])
    for line, why in (
        ("not json", "line 4 is no trial"),
        (json.dumps({**row, "mood": 1}), "unknown keys"),
        (json.dumps({k: v for k, v in row.items() if k != "value"}), "line 4 is no trial"),
        (json.dumps({k: v for k, v in row.items() if k != "steps"} | {"start": 99}), "some trials of aaaa have steps"),
    ):
        (tmp_path / "bad.jsonl").write_text(good + line + "\n")
        with pytest.raises(RunError, match=why):
            read(tmp_path / "bad.jsonl")


def test_a_fingerprint_is_of_names_shapes_types_and_bytes() -> None:
    state = {"weight": torch.arange(6.0).reshape(2, 3), "scale": torch.tensor(2.0, dtype=torch.bfloat16)}
    own = fingerprint(state)
    assert len(own) == 16 and int(own, 16) >= 0
    assert own == fingerprint(dict(reversed([(k, v.clone()) for k, v in state.items()])))
    nudged = state["weight"].clone()
    nudged[1, 2] = torch.nextafter(nudged[1, 2], torch.tensor(9.0))
    zero = torch.zeros(2, 3)
    others = [
        {**state, "weight": nudged},
        {**state, "weight": state["weight"].reshape(3, 2)},
        {"weights": state["weight"], "scale": state["scale"]},
        {**state, "scale": state["scale"].view(torch.int16)},
        {"weight": state["weight"]},
        {"weight": zero},
        {"weight": zero.int()},
        {"weight": -zero},
    ]
    assert len({own, *map(fingerprint, others)}) == len(others) + 1
    assert fingerprint({"net": [zero, zero]}) != fingerprint({"net": [zero]})
    with pytest.raises(InvalidInputError, match="/lr is a float"):
        fingerprint({"lr": 0.1})
