"""What every recipe keeps: see ``denoiserl.recipes.Recipe``. All of them run on their own default task, made small."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import warnings
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from denoiserl import recipes, tasks
from denoiserl.claims import __file__ as claims_file
from denoiserl.core.errors import DenoiseRLError
from denoiserl.core.rng import Rng
from denoiserl.experiments import experiment, resolve
from denoiserl.nn import Transformer
from denoiserl.policy import likelihood
from denoiserl.policy.policy import Policy
from denoiserl.processes import Masked, TokenDenoiser, time_grid
from denoiserl.rewards import RewardSignal
from denoiserl.tasks.base import Task
from denoiserl.train import Run

HERE = Path(__file__).parent
NAMES = recipes.names()

ROBOT = {
    "max_episode_steps": 15, "num_demos": 2, "pretrain_updates": 4, "pretrain_batch_size": 16, "policy_width": 16,
    "sampling_steps": 3,
}  # fmt: skip
GOOD = {"max_episode_steps": 105, "demo_goal_error": 0.0, "demo_action_noise": 0.0}
EASY = {
    "env": "tests.recipes.easy_env:Easy",
    "data": "none",
    "action_horizon": 2,
    "policy_width": 16,
    "sampling_steps": 3,
}
LOGGED = {"data": "maze:small-noisy", "num_episodes": 40, "policy_width": 16, "action_horizon": 2}
MAZE = {"num_episodes": 30, "episode_steps": 300, "max_episode_steps": 10, "policy_width": 16}
GENERATOR = {"pretrain_updates": 4, "pretrain_batch_size": 16, "policy_width": 24}
PLAYS = {"iterations": 2, "num_envs": 2, "rollout_steps": 3}
ACTS = PLAYS | {"batch_size": 16}
LEARNS = {"iterations": 2, "updates_per_iteration": 2, "batch_size": 16, "critic_width": 16}
ONLINE = {"iterations": 2, "learning_starts": 64, "batch_size": 32, "utd": 0.1}
SCORED = {"iterations": 2, "num_prompts": 4, "group_size": 6, "batch_size": 12}
MODEL = {"num_updates": 2, "batch_size": 16, "width": 16, "sampling_steps": 3}
MADE = {"num_synthetic": 64, "model": MODEL}
SMALL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    **dict.fromkeys(("ppo", "dppo", "reinflow", "fpo", "drwr"), (ACTS | {"critic_warmup": 1}, ROBOT)),
    "gorl": (
        ACTS | {"critic_warmup": 0, "stage_fractions": (1.0, 1.0), "decoder_rollout_steps": 3, "decoder_updates": 2},
        ROBOT,
    ),
    "beyond_human": (
        PLAYS | {"critic_warmup": 1, "num_student_episodes": 2, "max_recorded_episodes": 4, "student_updates": 2},
        EASY,
    ),
    "dsrl": (PLAYS | {"learning_starts": 4, "batch_size": 4}, ROBOT),
    "taco": ({"num_updates": 2, "num_candidates": 2, "num_noise_candidates": 2, "counter_width": 8}, ROBOT | GOOD),
    "diffusion_policy": ({"num_updates": 4, "batch_size": 16}, ROBOT),
    **dict.fromkeys(("sac", "td3"), (ONLINE, {})),
    "synther_sac": (ONLINE | MADE | {"iterations": 3, "decisions_per_refill": 80}, {}),
    **dict.fromkeys(("dql", "ofql", "fql", "iql", "td3_bc"), (LEARNS, LOGGED)),
    "synther": (LEARNS | MADE, LOGGED | {"action_horizon": 1}),
    "pgd": (LEARNS | {"num_windows": 32, "model": MODEL | {"length": 4}}, LOGGED | {"action_horizon": 1}),
    **dict.fromkeys(("breeze", "fb"), ({"num_updates": 2, "batch_size": 32, "representation_width": 16}, MAZE)),
    "ddpo": ({"iterations": 2, "num_samples": 24, "batch_size": 24}, GENERATOR),
    **dict.fromkeys(("flow_grpo", "rwr"), (SCORED, GENERATOR)),
    **dict.fromkeys(("tracerl", "diffu_grpo"), (SCORED, GENERATOR)),
    "mdlm": ({"num_updates": 4, "batch_size": 16}, {"policy_width": 24, "elbo_draws": 2}),
}
"""small settings of each recipe, and of its task"""
METRIC = re.compile(r"[a-z]+/[a-z][a-z0-9_]*")
RATIO = {"ppo", "dppo", "reinflow", "fpo", "gorl", "beyond_human", "ddpo", "flow_grpo", "tracerl", "diffu_grpo"}
"""recipes whose loss has a ratio of likelihoods, or of bounds on them"""
METAWORLD = {name for name, (_, task) in SMALL.items() if "num_demos" in task}


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
    return (
        recipe,
        dataclasses.replace(task, num_eval_trials=3),
        recipe.Args(**{k: v for k, v in made.items() if k in known}),
    )


def rows(name: str, seed: int = 0, keep: Run | None = None, **changes: Any) -> Iterator[dict]:
    recipe, task, args = small(name)
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield from experiment.run_recipe(recipe, task, dataclasses.replace(args, **changes), seed, keep)


def alike(one: list[dict], other: list[dict]) -> bool:
    return repr(one) == repr(other)  # NaN equals itself


def test_small_settings_are_those_of_all_recipes() -> None:
    assert set(SMALL) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_two_iterations_run_and_the_same_seed_gives_the_same_rows(name: str) -> None:
    found = list(rows(name))
    metric = small(name)[1].metric
    assert not [key for row in found for key in row if not METRIC.fullmatch(key)], "metrics are group/name"
    assert any(f"eval/{metric}" in row for row in found)
    assert alike(found, list(rows(name)))
    assert not alike(found, list(rows(name, seed=1)))


@pytest.mark.parametrize("name", ["sac", "td3_bc", "mdlm"])
def test_an_int_is_the_seed_of_improve_and_rows_are_numbers(name: str) -> None:
    recipe, task, args = small(name)

    def first_row(rng: Rng | int) -> dict[str, Any]:
        torch.manual_seed(0)
        with warnings.catch_warnings(), task.signal(recipe.SIGNAL, getattr(args, "num_envs", None), 0) as signal:
            warnings.simplefilter("ignore")
            policy = finish(task.start_policy(0, Run(), resolve.start_kind(recipe, args)))
            return next(recipe.improve(policy, signal, args, rng))

    one, other = first_row(3), first_row(Rng(3))
    assert one and alike([one], [other]) and not alike([one], [first_row(4)])
    assert all(isinstance(v, int | float) for v in one.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_is_killed_and_resumed_is_the_same_run(name: str, tmp_path: Path) -> None:
    whole = list(rows(name, keep=Run(tmp_path / "whole", every=1, restart=1)))
    for stop in {1, len(whole) // 2, len(whole) - 1}:
        killed, begun = rows(name, keep=Run(tmp_path / f"{stop}", every=1, restart=1)), []
        for row in killed:
            begun.append(row)
            if len(begun) == stop:
                break
        killed.close()  # type: ignore[attr-defined]
        assert alike(begun, whole[:stop])
        rest = list(rows(name, keep=Run(tmp_path / f"{stop}", every=1, restart=1)))
        assert rest and alike(rest, whole[len(whole) - len(rest) :]), f"after {stop} of {len(whole)} rows"


@pytest.mark.parametrize("name", NAMES)
def test_the_ratio_is_one_before_the_first_update(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every stage ``assert_on_policy`` has compared the log-probabilities of the first update with those of the
    rollout. Recipes without a ratio never call it."""
    gaps: list[float] = []

    def record_gap(*args: Any) -> float:
        gaps.append(likelihood.assert_on_policy(*args))
        return gaps[-1]

    recipe, task, args = small(name)
    for key, module in sys.modules.items():
        if key.startswith("denoiserl.") and key != likelihood.__name__ and hasattr(module, "assert_on_policy"):
            monkeypatch.setattr(module, "assert_on_policy", record_gap)
    args = dataclasses.replace(args, **({"critic_warmup": 0} if hasattr(args, "critic_warmup") else {}))
    torch.manual_seed(0)
    with warnings.catch_warnings(), task.signal(recipe.SIGNAL, getattr(args, "num_envs", None), 0) as signal:
        warnings.simplefilter("ignore")
        if recipe.SIGNAL == "reward":  # one that tells the samples of a small model apart
            signal = RewardSignal(lambda sample, prompts: sample.flatten(1).float().mean(1), signal.prompts)
        policy = finish(task.start_policy(0, Run(), resolve.start_kind(recipe, args)))
        list(recipe.improve(policy, signal, args, Rng(1)))
    assert bool(gaps) == (name in RATIO) and len(gaps) >= (2 if name == "gorl" else 0), "one per stage"
    assert all(gap <= 1e-4 for gap in gaps), gaps


def test_recipes_with_a_ratio_are_the_policy_gradients() -> None:
    """Of the others, the generator of ``beyond_human`` learns by one of them."""
    families = {name for name in NAMES if recipes.describe(name).family.endswith("policy gradient")}
    assert RATIO == families | {"beyond_human"}


@pytest.mark.parametrize("name", NAMES)
def test_improve_changes_weights_control_and_execute_of_the_policy_alone(name: str) -> None:
    recipe, task, args = small(name)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        policy = finish(task.start_policy(0, Run(), resolve.start_kind(recipe, args)))
        before, weights = structure(policy), policy.weights
        list(experiment.improve(recipe.improve, recipe.SIGNAL, task, policy, args, 0, Run()))
    assert policy.weights is weights and structure(policy) == before


def finish(generator: Generator[dict, None, Policy]) -> Policy:
    """The policy that a generator returns."""
    while True:
        try:
            next(generator)
        except StopIteration as end:
            return end.value


def structure(policy: Policy) -> dict[str, Any]:
    """What a policy is but for its weights: networks, process, event shape, tables of steps, codec."""
    parameters = {name: tuple(p.shape) for name, p in policy.weights.module.named_parameters()}
    tables = {
        name: (steps.times.tolist(), {k: v.tolist() for k, v in steps.table.items()}, steps.dense)
        for name, steps in (("train", policy.train_steps), ("eval", policy.eval_steps))
    }
    codec = repr(policy.codec) if not hasattr(policy.codec, "update") else type(policy.codec)
    fixed = {"event_shape": policy.event_shape, "codec": codec, "active_weights": policy.active_weights}
    return (
        fixed | {"network": type(policy.denoiser), "parameters": parameters, "process": repr(policy.process)} | tables
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_policy_of_another_kind_is_refused_with_a_remedy(name: str) -> None:
    recipe, task, args = small(name)
    torch.manual_seed(0)
    process = Masked(5)
    wrong = Policy.of(process, TokenDenoiser(Transformer(5, 3, 8, 1)), (3,), process.steps(time_grid(2)))
    with pytest.raises(DenoiseRLError, match=r"[a-z]{3}"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        list(experiment.improve(recipe.improve, recipe.SIGNAL, task, wrong, args, 0, Run()))


@pytest.mark.parametrize("name", NAMES)
def test_inputs_of_another_type_are_refused_with_a_remedy(name: str) -> None:
    recipe, process = recipes.load(name), Masked(5)
    policy = Policy.of(process, TokenDenoiser(Transformer(5, 3, 8, 1)), (3,), process.steps(time_grid(2)))
    for given, says in (
        (("runs/dppo", None, recipe.Args()), "improves a Policy, not a str"),
        ((policy, None, {}), rf"{name}\.Args, not a .*dict: give {name}\.Args\(\*\*settings\)"),
        ((policy, None, recipes), rf"{name}\.Args, not a .*module"),
        ((policy, "Pendulum-v1", recipe.Args()), "not (in|from) a str" if recipe.SIGNAL != "reward" else "[a-z]{3}"),
    ):
        with pytest.raises(DenoiseRLError, match=says):
            next(recipe.improve(*given, 0))


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_what_the_contract_says(name: str) -> None:
    recipe, card = recipes.load(name), recipes.describe(name)
    assert dataclasses.is_dataclass(recipe.Args) and recipe.Args.__dataclass_params__.frozen
    args = recipe.Args()
    assert recipe.SIGNAL == card.signal and recipe.DEFAULT_TASK in tasks.TASKS
    assert not {"seed", "base", "eval_every", "task"} & {f.name for f in dataclasses.fields(args)}
    signature = inspect.signature(recipe.improve)
    names = list(signature.parameters)
    assert names[0] == "policy" and names[4] == "run" and len(names) >= 5
    assert signature.parameters["rng"].annotation == "Rng | int" and signature.return_annotation == "Iterator[Metrics]"
    assert not hasattr(recipe, "train") and not hasattr(recipe, "task"), "a recipe knows no task"
    task = tasks.make(recipe.DEFAULT_TASK, {**getattr(recipe, "DEFAULT_TASK_ARGS", {}), **SMALL[name][1]})
    task.require_signal(recipe.SIGNAL)
    start = recipe.START(args) if callable(recipe.START) else recipe.START
    assert start is None or start in task.start_kinds
    assert set(getattr(recipe, "EXTENDABLE", {})) <= {f.name for f in dataclasses.fields(args)}
    assert all(card.facets.get(key) for key in recipes.FACETS)
    assert re.fullmatch(r"arXiv \d{4}\.\d{4,5}", card.paper) and card.family and card.title and card.body


def test_every_recipe_has_its_places() -> None:
    oracles = [
        f for f in HERE.glob("*/test_*.py") if re.search(r"tests\.recipes\.kit import .*\bagree\b", f.read_text())
    ]
    found = {f"{f.parent.name}/{f.stem.removeprefix('test_')}" for f in oracles}
    known = {f"{path.parent.name}/{name}" for name, path in recipes.paths().items()}
    assert found == known, f"without an oracle: {sorted(known - found)}; oracles of no recipe: {sorted(found - known)}"
    families = {path.parent.name for path in recipes.paths().values()}
    assert {p.name for p in Path(claims_file).parent.iterdir() if p.is_dir()} - {"results", "__pycache__"} <= families


def test_every_recipe_that_makes_an_optimiser_asserts_that_it_holds_all_that_learns() -> None:
    for name in recipes.names():
        source = recipes.path(name).read_text(encoding="utf-8")
        assert ("adamw(" in source) == ("covers(" in source), name
