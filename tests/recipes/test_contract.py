"""What every recipe keeps: see ``denoiserl.recipes.Recipe``. All of them run on their own default task, made small."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from denoiserl import recipes, tasks
from denoiserl.claims import __file__ as claims_file
from denoiserl.core.errors import DenoiseRLError
from denoiserl.experiments import experiment
from denoiserl.nn import Transformer
from denoiserl.policy.policy import Policy
from denoiserl.processes import Masked, TokenDenoiser, time_grid
from denoiserl.tasks.base import Task
from denoiserl.train import Keep

HERE = Path(__file__).parent
NAMES = recipes.names()

ROBOT = {"ticks": 15, "demos": 2, "updates": 4, "batch": 16, "width": 16, "denoise": 3}
LOGGED = {"data": "maze:small-noisy", "episodes": 40, "width": 16, "chunk": 2}
GENERATOR = {"updates": 4, "batch": 16, "width": 24}
ACTS = {"iters": 2, "copies": 2, "steps": 3, "batch": 16}
LEARNS = {"iters": 2, "updates": 2, "batch": 16, "width": 16}
SCORED = {"iters": 2, "prompts": 4, "group": 6, "batch": 12}
MODEL = {"updates": 2, "batch": 16, "width": 16, "steps": 3}
MAZE = {"episodes": 30, "length": 300, "ticks": 10, "width": 16}
EASY = {"env": "tests.recipes.easy_env:Easy", "data": "none", "chunk": 2, "width": 16, "denoise": 3}
SMALL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    **dict.fromkeys(("ppo", "dppo", "reinflow", "fpo", "drwr"), (ACTS, ROBOT)),
    "gorl": (ACTS | {"stages": (1.0, 1.0), "rollout": 3, "updates": 2}, ROBOT),
    "beyond_human": ({"iters": 2, "copies": 2, "steps": 3, "most": 4, "updates": 2}, EASY),
    "dsrl": ({"iters": 2, "copies": 2, "steps": 3, "begin": 4, "batch": 4}, ROBOT),
    "taco": ({"updates": 2, "n": 2, "search": 2, "width": 8}, ROBOT | {"ticks": 105, "aim": 0.0, "slip": 0.0}),
    "diffusion_policy": ({"updates": 4, "batch": 16}, ROBOT),
    **dict.fromkeys(("sac", "td3"), ({"iters": 2, "begin": 64, "batch": 32, "utd": 0.1}, {})),
    "synther_sac": ({"iters": 3, "begin": 64, "batch": 32, "utd": 0.1, "every": 80, "rows": 64, "model": MODEL}, {}),
    **dict.fromkeys(("dql", "ofql", "fql", "iql", "td3_bc"), (LEARNS, LOGGED)),
    "synther": (LEARNS | {"rows": 64, "model": MODEL}, LOGGED | {"chunk": 1}),
    "pgd": (LEARNS | {"windows": 32, "model": MODEL | {"length": 4}}, LOGGED | {"chunk": 1}),
    **dict.fromkeys(("breeze", "fb"), (LEARNS | {"batch": 32}, MAZE)),
    "ddpo": ({"iters": 2, "samples": 24, "batch": 24}, GENERATOR),
    **dict.fromkeys(("flow_grpo", "rwr"), (SCORED, GENERATOR)),
    **dict.fromkeys(("tracerl", "diffu_grpo"), (SCORED, GENERATOR)),
    "mdlm": ({"updates": 4, "batch": 16}, {"width": 24, "elbo_draws": 2}),
}
"""small settings of each recipe, and of its task"""
METAWORLD = {name for name, (_, task) in SMALL.items() if "demos" in task}


def small(name: str) -> tuple[Any, Task, Any]:
    """The recipe, its default task and its args."""
    if name in METAWORLD:
        pytest.importorskip("metaworld")
    recipe, (args, task_args) = recipes.load(name), SMALL[name]
    made = dict(args)
    if "model" in made:
        model = recipe.Args().model
        known = {f.name for f in dataclasses.fields(model)}
        made["model"] = dataclasses.replace(model, **{k: v for k, v in made["model"].items() if k in known})
    known = {f.name for f in dataclasses.fields(recipe.Args)}
    task = tasks.make(recipe.DEFAULT_TASK, {**getattr(recipe, "DEFAULT_TASK_ARGS", {}), **task_args})
    return recipe, dataclasses.replace(task, watch=3), recipe.Args(**{k: v for k, v in made.items() if k in known})


def rows(name: str, seed: int = 0, keep: Keep | None = None, **changes: Any) -> Iterator[dict]:
    recipe, task, args = small(name)
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield from experiment.run(recipe, task, dataclasses.replace(args, **changes), seed, keep)


def alike(one: list[dict], other: list[dict]) -> bool:
    return repr(one) == repr(other)  # NaN equals itself


def test_small_settings_are_those_of_all_recipes() -> None:
    assert set(SMALL) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_two_iterations_run_and_the_same_seed_gives_the_same_rows(name: str) -> None:
    found = list(rows(name))
    metric = small(name)[1].metric
    assert any(f"held-out {metric}" in row for row in found)
    assert alike(found, list(rows(name)))
    assert not alike(found, list(rows(name, seed=1)))


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_is_killed_and_resumed_is_the_same_run(name: str, tmp_path: Path) -> None:
    whole = list(rows(name, keep=Keep(tmp_path / "whole", every=1, restart=1)))
    for stop in {1, len(whole) // 2, len(whole) - 1}:
        killed, begun = rows(name, keep=Keep(tmp_path / f"{stop}", every=1, restart=1)), []
        for row in killed:
            begun.append(row)
            if len(begun) == stop:
                break
        killed.close()  # type: ignore[attr-defined]
        assert alike(begun, whole[:stop])
        rest = list(rows(name, keep=Keep(tmp_path / f"{stop}", every=1, restart=1)))
        assert rest and alike(rest, whole[len(whole) - len(rest) :]), f"after {stop} of {len(whole)} rows"


@pytest.mark.parametrize("name", NAMES)
def test_a_policy_of_another_kind_is_refused_with_a_remedy(name: str) -> None:
    recipe, task, args = small(name)
    torch.manual_seed(0)
    process = Masked(5)
    wrong = Policy.of(process, TokenDenoiser(Transformer(5, 3, 8, 1)), (3,), process.steps(time_grid(2)))
    with pytest.raises(DenoiseRLError, match=r"[a-z]{3}"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        list(experiment.improve(recipe.improve, recipe.SIGNAL, task, wrong, args, 0, Keep()))


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_what_the_contract_says(name: str) -> None:
    recipe, card = recipes.load(name), recipes.describe(name)
    assert dataclasses.is_dataclass(recipe.Args) and recipe.Args.__dataclass_params__.frozen
    args = recipe.Args()
    assert recipe.SIGNAL == card.signal and recipe.DEFAULT_TASK in tasks.TASKS
    assert not {"seed", "base", "eval_every", "task"} & {f.name for f in dataclasses.fields(args)}
    names = list(inspect.signature(recipe.improve).parameters)
    assert names[0] == "policy" and names[4] == "keep" and len(names) >= 5
    assert not hasattr(recipe, "train") and not hasattr(recipe, "task"), "a recipe knows no task"
    task = tasks.make(recipe.DEFAULT_TASK, {**getattr(recipe, "DEFAULT_TASK_ARGS", {}), **SMALL[name][1]})
    task.require_signal(recipe.SIGNAL)
    start = recipe.START(args) if callable(recipe.START) else recipe.START
    assert start is None or start in task.kinds
    assert set(getattr(recipe, "GROWS", {})) <= {f.name for f in dataclasses.fields(args)}
    assert all(card.facets.get(key) for key in recipes.FACETS)


def test_every_recipe_has_its_places() -> None:
    found = {f"{f.parent.name}/{f.stem.removeprefix('test_')}" for f in HERE.glob("*/test_*.py")}
    known = {f"{path.parent.name}/{name}" for name, path in recipes.paths().items()}
    assert found == known, f"without an oracle: {sorted(known - found)}; oracles of no recipe: {sorted(found - known)}"
    families = {path.parent.name for path in recipes.paths().values()}
    assert {p.name for p in Path(claims_file).parent.iterdir() if p.is_dir()} - {"results", "__pycache__"} <= families


def test_every_recipe_that_makes_an_optimiser_asserts_that_it_holds_all_that_learns() -> None:
    for name in recipes.names():
        source = recipes.path(name).read_text(encoding="utf-8")
        assert ("adamw(" in source) == ("covers(" in source), name
