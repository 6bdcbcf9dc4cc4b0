"""The end of ``run``: before and after on the same trials, folders that do not collide, runs that are finished."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from denoiserl import Policy
from denoiserl.cli import main
from denoiserl.report.run_report import run_report

RECIPE = '''
"""Bump: add one to the bias of a network in every iteration."""
from dataclasses import dataclass
import torch

SIGNAL = "reward"
EXTENDABLE = {}

@dataclass(frozen=True)
class Args:
    iterations: int = 3
    """additions"""

def improve(policy, signal, args, rng, run=None):
    bias = [p for p in policy.denoiser.parameters() if p.dim() == 1][-1]
    for _ in run.loop(args.iterations, policy=policy):
        run.count("updates")
        bias.data += 1
        yield {"train/bias": float(bias[0])}
'''

TASK = '''
"""A task whose trial i succeeds if the bias has passed i."""
import torch
from denoiserl import Diffusion, GaussianDenoiser, Policy, time_grid
from denoiserl.nn import MLP
from denoiserl.tasks.base import Task

def bias(policy):
    return [p for p in policy.denoiser.parameters() if p.dim() == 1][-1]

def start(seed, run):
    process = Diffusion()
    policy = Policy.of(process, GaussianDenoiser(MLP((2,), width=4)), (2,), process.steps(time_grid(2)))
    bias(policy).data.zero_()
    for i in run.loop(4, policy=policy):
        run.count("updates")
        bias(policy).data += 0.25
        yield {"loss/denoising": 1.0 - i / 4}
    return policy

def continue_imitation(policy, seed, updates, run, stream):
    for _ in run.loop(updates, policy=policy):
        bias(policy).data += 0.25
        yield {"loss/denoising": 0.0}

def outcomes(policy, seed, n):
    print("evaluated")
    level = float(bias(policy)[0])
    return {"hit": (torch.arange(n) % 10 < level).float(), "level": torch.full((n,), level)}

def make_task(imitates: bool = True) -> Task:
    """imitates: offer the control"""
    more = continue_imitation if imitates else None
    return Task("levels", start, outcomes, {"hit": ("levels passed", "%"), "level": ("the level", "")},
                reward=lambda x, p: x.sum(1), prompts=lambda seed: torch.zeros(4, 1), continue_imitation=more)
'''

RUN = ("run", "bump.py", "--task", "levels.py:make_task", "--no-progress")


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("bump.py").write_text(RECIPE)
    Path("levels.py").write_text(TASK)


def said(capsys, *argv: str) -> str:
    assert main(list(argv)) == 0
    return capsys.readouterr().out


def level(folder: str) -> float:
    net = Policy.load(folder).denoiser
    return float([p for p in net.parameters() if p.dim() == 1][-1][0])


def test_a_run_says_what_it_began_with_and_what_it_made(capsys) -> None:
    out = said(capsys, *RUN)
    place = "runs/bump-levels-0"
    assert level(f"{place}/start") == 1 and level(f"{place}/last") == 4 and level(f"{place}/improve/best") == 4
    table = next(line.split() for line in out.splitlines() if line.startswith("levels passed"))
    assert table[2:5] == ["10.0%", "40.0%", "+30"] and "It got better: levels passed, 30 points more" in out
    record = json.loads(Path(place, "verdict", "eval.json").read_text())
    assert set(record["policies"]) == {"before", "after"} and record["trials"] == 100
    page = run_report(place)
    assert "It got better: levels passed, 30 points more" in page and "10.0%" in page and "40.0%" in page
    assert said(capsys, "eval", place, "--checkpoint", "start", "--trials", "20", "--no-media").count("10.0%") == 1
    assert "It got better" in run_report(place), "a later evaluation leaves the run's own answer"


def test_a_finished_run_is_said_to_be_finished_and_evaluates_nothing(capsys) -> None:
    out = said(capsys, *RUN)
    assert out.count("evaluated") == 5  # three iterations, and both policies at the end
    for again in (RUN, ("run", "bump-levels-0", "--no-progress")):
        out = said(capsys, *again)
        assert "runs/bump-levels-0 is finished: nothing is computed again" in out and "evaluated" not in out
        assert "It got better: levels passed, 30 points more" in out
    out = said(capsys, *RUN, "--iterations", "5")  # more iterations may be asked for
    assert "60.0%" in out and level("runs/bump-levels-0/start") == 1 and level("runs/bump-levels-0/last") == 6


def test_a_run_that_its_budget_ended_says_what_was_not_done(capsys) -> None:
    out = said(capsys, *RUN, "--budget", "updates=3")
    assert "The budget ended it: imitate made 3 of 4, improve made 0 of 3 iterations." in out
    assert json.loads(Path("runs/bump-levels-0/run.json").read_text())["unfinished"] == {
        "imitate": [3, 4],
        "improve": [0, 3],
    }
    assert "The budget ended it" in said(capsys, *RUN, "--budget", "updates=3")
    out = said(capsys, *RUN, "--budget", "updates=100")
    assert "The budget ended it" not in out and level("runs/bump-levels-0/last") == 4
    assert level("runs/bump-levels-0/start") == 1, "the start is the one that was improved"


def test_default_folders_do_not_collide(capsys) -> None:
    said(capsys, *RUN, "--eval-trials", "0")
    said(capsys, *RUN, "--eval-trials", "0", "--iterations", "2")  # fewer: another run
    said(capsys, *RUN, "--eval-trials", "0", "--no-imitates")
    said(capsys, *RUN, "--eval-trials", "0", "--seed", "1")
    assert sorted(p.name for p in Path("runs").iterdir()) == [
        "bump-levels-0",
        "bump-levels-0-2",
        "bump-levels-0-3",
        "bump-levels-1",
    ]
    assert "runs/bump-levels-0-2 is finished" in said(capsys, *RUN, "--eval-trials", "0", "--iterations", "2")


def test_a_folder_that_holds_something_else_is_left_alone(capsys) -> None:
    Path("runs/bump-levels-0").mkdir(parents=True)
    Path("runs/bump-levels-0/notes.txt").write_text("mine")
    said(capsys, *RUN, "--eval-trials", "0")
    assert Path("runs/bump-levels-0-2/run.json").is_file() and len(list(Path("runs/bump-levels-0").iterdir())) == 1


def test_the_control_imitates_from_the_same_start(capsys) -> None:
    out = said(capsys, *RUN, "--control", "imitation")
    place = "runs/bump-levels-0"
    control = level(f"{place}/control/last")
    assert level(f"{place}/start") == 1 and level(f"{place}/last") == 4 and control > 1 and (control * 4) % 1 == 0
    assert "more imitation" in out and "ore imitation for the same time" in out
    again = said(capsys, *RUN, "--control", "imitation")
    assert "is finished" in again and level(f"{place}/control/last") == control


def test_a_control_without_imitation_is_refused_before_it_costs_anything(capsys) -> None:
    assert main([*RUN, "--control", "imitation", "--no-imitates"]) == 1
    assert "imitates nothing" in capsys.readouterr().err and not Path("runs").exists()


def test_a_run_without_trials_writes_none(capsys) -> None:
    out = said(capsys, *RUN, "--eval-trials", "0")
    assert "held-out" not in out and not Path("runs/bump-levels-0/verdict").exists()
    assert torch.equal(torch.tensor(level("runs/bump-levels-0/last")), torch.tensor(4.0))


def test_a_quick_trial_is_marked_wherever_its_numbers_appear(capsys) -> None:
    out = said(capsys, *RUN, "--quick")
    assert "A quick trial, at a fiftieth of the work" in out and " 4\n" in out.split("after − before")[1]
    record = json.loads(Path("runs/bump-levels-0/run.json").read_text())
    assert record["args"]["quick"] and record["args"]["args"]["iterations"] == 2
    assert "A quick trial" in run_report("runs/bump-levels-0")
    assert "A quick trial" in said(capsys, "eval", "bump-levels-0", "--trials", "4", "--no-media")
    said(capsys, *RUN, "--quick", "--iterations", "5", "--eval-trials", "0")  # what is given stays
    assert json.loads(Path("runs/bump-levels-0/run.json").read_text())["args"]["args"]["iterations"] == 5
