"""Studies: equal budgets, shared starts and trials, resumed and not repeated, refused where they mean nothing."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import pytest
import torch

from denoiserl import tasks
from denoiserl.core.counters import UsageCounter
from denoiserl.core.errors import RunError
from denoiserl.core.serialization import store
from denoiserl.experiments import Arm, Study, load_results, load_study, run_comparison
from denoiserl.experiments import arm as arms
from denoiserl.experiments import jobs as jobs_module
from denoiserl.experiments import resolve as find

study_module = sys.modules["denoiserl.experiments.compare"]

TASK = '''
import torch
from denoiserl import Diffusion, GaussianDenoiser, Policy, time_grid
from denoiserl.nn import MLP
from denoiserl.processes import ddim, flow_sde, linear
from denoiserl.core.rng import Rng
from denoiserl.rewards import Reward
from denoiserl.tasks.base import Task

def make_task(width=8):
    """Points that should lie at their prompt."""
    process = Diffusion(linear, flow_sde(0.7))
    steps, serve = process.steps(time_grid(4)), process.steps(time_grid(4), ddim(0.0))

    def start(seed, keep):
        torch.manual_seed(seed)
        for it in keep.loop(2):
            yield {"loss": 0.0}
        return Policy.of(process, GaussianDenoiser(MLP((2,), cond=2, width=width), linear, "v"), (2,), steps, serve)

    def reward(sample, prompts):
        return -(sample - prompts).square().sum(-1)

    def outcomes(policy, seed, n):
        prompts = Rng(seed).normal(n, 2)
        far = -reward(policy.generate(prompts, Rng(seed)), prompts)
        return {"near": (far < 4).float(), "distance": far}

    words = {"near": ("points near their prompt", "%"), "distance": ("squared distance", "")}
    return Task("points", start, outcomes, words, reward=reward, prompts=lambda seed: Rng(seed).normal(64, 2))
'''
QUICK = {"num_samples": 24, "batch_size": 96}


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder with a task of one's own, and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DENOISERL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "points.py").write_text(TASK)
    return tmp_path


def study(**changes) -> Study:
    given = {
        "task": "points.py:make_task",
        "arms": {"a": Arm("ddpo", QUICK), "b": Arm("ddpo", {**QUICK, "lr": 1e-3}), "start": Arm("none")},
        "budget": 60,
        "unit": "reward_calls",
        "seeds": (0, 1),
        "trials": 20,
        "curve": 2,
    }
    return Study(**{**given, **changes})


def test_arms_share_starts_and_trials_and_spend_the_same(here):
    found = run_comparison(study(), here / "s", 0, progress=False)
    # 24 rewards per iteration: 60 pay for two
    assert found.spent["a"]["reward_calls"] == found.spent["b"]["reward_calls"] == 48
    assert found.spent["start"]["reward_calls"] == 0
    near = found.values["near"]
    assert {v.shape for v in near.values()} == {(2, 20)} and list(found.standings) == ["near", "distance"]
    rows = [json.loads(r) for r in (here / "s/arms/a/0/metrics.jsonl").read_text().splitlines()]
    curve = [(r["reward_calls"], r["eval/distance"]) for r in rows if "eval/distance" in r]
    assert [x for x, _ in curve] == [0, 48] and rows[-1]["final/distance"] != curve[-1][1]
    assert len(list((here / "cache/starts").glob("points-*"))) == 2  # a start a seed
    assert found.standings["near"].basis == "seeds"


def test_a_metric_that_nobody_reports_is_left_out(here):
    """Tasks name success, and environments need not report it."""
    words = '"distance": ("squared distance", ""), "success": ("points that say so", "%")'
    (here / "points.py").write_text(TASK.replace('"distance": ("squared distance", "")', words))
    found = run_comparison(study(arms={"start": Arm("none"), "again": Arm("none")}), here / "s", 0, progress=False)
    assert list(found.standings) == ["near", "distance"]


def test_the_same_method_twice_is_the_same_to_the_bit_and_not_told_apart(here):
    found = run_comparison(
        study(arms={"one": Arm("ddpo", QUICK), "two": Arm("ddpo", QUICK)}), here / "s", 0, progress=False
    )
    assert torch.equal(found.values["distance"]["one"], found.values["distance"]["two"])
    (contrast,) = found.standings["distance"].contrasts
    assert not contrast.separated and contrast.difference.mean == 0


def test_a_study_that_goes_on_under_other_code_says_so_and_keeps_both_in_its_record(here, monkeypatch):
    small = study(arms={"one": Arm("ddpo", QUICK), "two": Arm("none")})
    found, real = run_comparison(small, here / "s", 0, progress=False), study_module.provenance
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_comparison(small, here / "s", 0, progress=False)
    monkeypatch.setattr(study_module, "provenance", lambda: {**real(), "commit": "0123456789abcdef"})
    with pytest.warns(UserWarning, match="begun by other code.*this is commit 0123456789, denoiserl"):
        again = run_comparison(small, here / "s", 0, progress=False)
    assert torch.equal(found.values["distance"]["one"], again.values["distance"]["one"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_comparison(small, here / "s", 0, progress=False)
    told = json.loads((here / "s" / "study.json").read_text())
    assert [x["commit"] for x in told["continued"]] == ["0123456789abcdef"]
    assert told["commit"] == real()["commit"]


@pytest.mark.fixed_seed
def test_killed_half_way_it_goes_on_and_repeats_nothing(here, monkeypatch):
    whole = run_comparison(study(), here / "whole", 0, progress=False)
    ran, stops, real = [], [3], jobs_module.run

    def counted(recipe, args, folder, **how):
        ran.append(str(folder.relative_to(folder.parents[1])))
        if stops and len(ran) > stops[0]:
            stops.clear()
            raise KeyboardInterrupt
        return real(recipe, args, folder, **how)

    monkeypatch.setattr(jobs_module, "run", counted)
    with pytest.raises(KeyboardInterrupt):
        run_comparison(study(), here / "part", 0, progress=False)
    with pytest.raises(RunError, match="has not finished"):
        load_results(here / "part")
    stopped = ran.pop()
    again = run_comparison(study(), here / "part", 0, progress=False)
    assert ran.count(stopped) == 1 and len(ran) == len(set(ran)) == 6
    for metric, values in whole.values.items():
        assert all(torch.equal(again.values[metric][arm], v) for arm, v in values.items())


def test_a_start_is_made_once_and_made_again_when_its_source_changes(here):
    run_comparison(study(seeds=(0,)), here / "one", 0, progress=False)
    folders = {p.parent.name for p in (here / "cache/starts").glob("*/run.json")}
    run_comparison(study(seeds=(0,), budget=30), here / "two", 0, progress=False)
    assert {p.parent.name for p in (here / "cache/starts").glob("*/run.json")} == folders and len(folders) == 1
    (here / "points.py").write_text(TASK.replace("keep.loop(2)", "keep.loop(3)"))
    run_comparison(study(seeds=(0,)), here / "three", 0, progress=False)
    assert len({p.parent.name for p in (here / "cache/starts").glob("*/run.json")}) == 2


def test_a_folder_holds_one_study_which_may_grow(here):
    run_comparison(study(seeds=(0,)), here / "s", 0, progress=False)
    with pytest.raises(RunError, match=r"another study.*trials"):
        run_comparison(study(seeds=(0,), trials=30), here / "s", 0, progress=False)
    before = (here / "s/arms/a/0/metrics.jsonl").stat().st_mtime_ns
    found = run_comparison(study(seeds=(0, 1)), here / "s", 0, progress=False)
    assert found.values["near"]["a"].shape == (2, 20)
    assert (here / "s/arms/a/0/metrics.jsonl").stat().st_mtime_ns == before
    with pytest.raises(RunError, match="not chosen by their results"):
        run_comparison(study(seeds=(1,)), here / "s", 0, progress=False)
    (here / "other").mkdir()
    (here / "other/thing").touch()
    with pytest.raises(RunError, match="other files"):
        run_comparison(study(), here / "other", 0, progress=False)
    assert load_study(here / "s") == study(seeds=(0, 1))


def test_every_arm_gets_as_many_tuning_runs_on_a_seed_of_their_own(here):
    arms_ = {"a": Arm("ddpo", QUICK), "start": Arm("none")}
    found = run_comparison(study(arms=arms_, tune=2, seeds=(0,)), here / "s", 0, progress=False)
    told = found.tuning["a"]
    assert [round(t["settings"]["lr"], 7) for t in told] == [3e-4, 1e-4]
    best = max(told, key=lambda t: t["score"])["settings"]["lr"]
    assert store.read_json(here / "s/arms/a/0/run.json")["args"]["settings"]["lr"] == best
    assert {store.read_json(p)["args"]["seed"] for p in (here / "s/tune").rglob("run.json")} == {2000}


def test_iterations_are_what_the_budget_pays_for(here):
    task = tasks.make("points.py:make_task")
    policy = task.starts(0, __import__("denoiserl.train", fromlist=["Run"]).Run())
    try:
        while True:
            next(policy)
    except StopIteration as stop:
        policy = stop.value
    a = arms.Args(task="points.py:make_task", method="ddpo", settings=QUICK, budget=100, unit="reward_calls")
    weights = {k: v.clone() for k, v in policy.denoiser.state_dict().items()}
    with UsageCounter().open() as outside:
        made = arms.fit_iterations_to_budget(task, find.method("ddpo"), policy, a)
    assert made.iterations == 4  # 24 each: a fifth would be more than 100
    assert all(torch.equal(v, weights[k]) for k, v in policy.denoiser.state_dict().items())  # a copy was tried
    assert outside.counts["reward_calls"] == 24
    fixed = arms.Args(**{**vars(a), "settings": {**QUICK, "iterations": 3}})
    assert arms.fit_iterations_to_budget(task, find.method("ddpo"), policy, fixed).iterations == 3


@pytest.mark.fixed_seed
def test_processes_find_what_one_process_finds(here):
    one = run_comparison(study(seeds=(0,)), here / "one", 0, progress=False)
    two = run_comparison(study(seeds=(0,)), here / "two", 2, progress=False)
    assert all(torch.equal(two.values["distance"][k], v) for k, v in one.values["distance"].items())


def test_a_job_that_fails_says_why_and_the_others_are_kept(here):
    (here / "points.py").write_text(
        TASK.replace("def reward(sample, prompts):", "def reward(sample, prompts):\n        1 / 0")
    )
    with pytest.raises(RunError, match="a 0 failed: ZeroDivisionError"):
        run_comparison(study(seeds=(0,)), here / "s", 1, progress=False)
    assert (here / "s/arms").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"unit": "reward-call"}, "Did you mean 'reward_calls'"),
        ({"unit": "env step"}, "Did you mean 'env_steps'"),
        ({"seeds": (0, 0)}, "none twice"),
        ({"seeds": ()}, "at least one"),
        ({"seeds": (2000,)}, "0 to 1999"),
        ({"trials": 0}, "positive"),
        ({"budget": 0}, "positive"),
        ({"arms": {}}, "without arms"),
        ({"arms": {"a b": Arm("ddpo")}}, "cannot name an arm"),
    ],
)
def test_meaningless_studies_are_refused(changes, said):
    with pytest.raises(RunError, match=said):
        study(**changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arms": {"a": Arm("dppo")}}, "dppo learns from env, task 'points' offers reward"),
        ({"arms": {"a": Arm("ddpoo")}}, "Did you mean 'ddpo'"),
        ({"arms": {"a": Arm("ddpo", {"lrr": 1})}}, "Did you mean 'lr'"),
        ({"arms": {"a": Arm("ddpo", {"lr": "fast"})}}, "is a float such as"),
        ({"arms": {"a": Arm("ddpo", {}, "gaussian")}}, "kind of starting policy"),
        ({"task": "pointz"}, "my_module:make_task"),
        ({"task": "points.py:make_tusk"}, "Did you mean 'make_task'"),
        ({"base": {"widht": 3}}, "does not accept"),
        ({"unit": "env_steps"}, "costs no env_steps"),
        ({"tune": 9}, "tuning candidates, not 9"),
        ({"budget": 20}, "costs 24 reward_calls, more than the budget of 20"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_it_costs_anything(here, changes, said):
    with pytest.raises(RunError, match=said):
        run_comparison(study(**changes), here / "s", 0, progress=False)
