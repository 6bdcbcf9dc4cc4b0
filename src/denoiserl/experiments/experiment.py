"""An experiment: a recipe on a task, with held-out evaluations; the best and the last policy are kept.

It is a program of the runner (``Args`` and ``train``): ``denoiserl run dppo --task env --env pusht`` runs it.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from denoiserl import tasks
from denoiserl.core.errors import RunError
from denoiserl.core.quick import reduce_amount
from denoiserl.core.rng import Rng
from denoiserl.core.serialization.args_json import flat, to_json
from denoiserl.core.settings import Count, Seed, Settings, check_value
from denoiserl.experiments import resolve
from denoiserl.policy.policy import Policy
from denoiserl.tasks.base import Task, means
from denoiserl.train import Run

EVALUATIONS = 4
"""number of held-out evaluations during learning, evenly over its iterations"""


@dataclass(frozen=True)
class Args(Settings):
    """Settings that determine the numbers of a run."""

    recipe: str
    """the method: a recipe of this package, a dotted module or a file"""
    args: dict[str, Any] = field(default_factory=dict)
    """the method's settings"""
    task: str = "env"
    """the task: one of this package, my_module:make_task or my_file.py:make_task"""
    task_args: dict[str, Any] = field(default_factory=dict)
    """the task's settings"""
    start: str | None = None
    """the kind of starting policy (None: the method's, or the task's first)"""
    seed: Seed = 0
    """random seed"""
    eval_every: Count | None = None
    """iterations between held-out evaluations (None: four evaluations, evenly)"""
    control: Literal["none", "imitation"] = "none"
    """imitation: also spend the time of the improvement on more imitation of the start, for comparison"""
    quick: bool = False
    """a quick trial, at a fiftieth of the work: evaluations during learning have a fiftieth of their trials too"""


def method_of(args: Args) -> tuple[Any, Any]:
    """Return the recipe's module and its own typed ``Args``."""
    return resolve.method(args.recipe), resolve.settings(args.recipe, args.args)


def task_of(args: Args) -> Task:
    """Make the task that the settings name."""
    return tasks.make(args.task, args.task_args)


def inputs(args: Args) -> dict[str, Any]:
    """Return the settings that may name files; the contents of these files must not change during a run."""
    recipe = {"recipe": args.recipe} if args.recipe.endswith(".py") else {}
    task = {} if args.task in tasks.TASKS else {"task": args.task}
    return {**recipe, **task, "args": args.args, "task_args": args.task_args}


def default_folder(args: Args) -> str:
    """Return the usual name of a run's folder: METHOD-TASK-SEED.

    The task has the name of its environment, of a user's file, or its own.
    """
    method = Path(args.recipe).name.removesuffix(".py").rpartition(".")[2]
    env = args.task_args.get("env")
    word = env if isinstance(env, str) and env else args.task
    word = Path(str(args.task_args.get("data"))).stem if word == "none" else word
    place, _, own = word.rpartition(":")
    word = Path(place).stem if place.endswith(".py") else own
    task = re.sub(r"[^A-Za-z0-9_.-]+", "-", word).strip("-.") or "task"
    return f"{method}-{task}-{args.seed}"


def run_description(args: Args) -> dict[str, Any]:
    """Return a run's description for its record: name, docstring, options, and defaults of the options.

    Options of the method have their own names; those of the task are called ``task.NAME``.
    """
    recipe, own = resolve.method(args.recipe), tasks.args_type(args.task)
    usual = getattr(recipe, "DEFAULT_TASK", None)
    given = getattr(recipe, "DEFAULT_TASK_ARGS", {}) if args.task == usual else {}
    known = {f.name: f.default for f in fields(own) if f.default is not MISSING}
    known |= {f.name: f.default_factory() for f in fields(own) if f.default_factory is not MISSING}
    rest = {
        "task": args.task,
        "start_kind": args.start,
        "seed": args.seed,
        "eval_every": args.eval_every,
        "control": args.control,
        "quick": args.quick,
    }
    named = {**known, **given, **args.task_args}
    return {
        "name": Path(args.recipe).name.removesuffix(".py").rpartition(".")[2],
        "folder": default_folder(replace(args, task_args=named)),
        "run": args.recipe,
        "doc": recipe.__doc__ or "",
        "options": flat({**args.args, "task.": args.task_args}) | rest,
        "defaults": flat({**to_json(recipe.Args()), "task.": to_json({**known, **given})})
        | {"task": usual, "start_kind": None, "seed": 0, "eval_every": None, "control": "none", "quick": False},
    }


def may_extend(args: Mapping[str, Any]) -> bool:
    """Return whether a run with these settings, as JSON, may be resumed with more iterations.

    A recipe allows it by ``EXTENDABLE``: the settings under which no schedule depends on the number of iterations.
    """
    needs = getattr(resolve.method(args["recipe"]), "EXTENDABLE", None)
    settings = {**vars(resolve.settings(args["recipe"], {})), **args["args"]}
    return needs is not None and all(settings.get(name) == value for name, value in needs.items())


def train(args: Args, run: Run | None = None) -> Iterator[dict]:
    """Make the task's starting policy, let the recipe improve it, and keep the best and the last policy."""
    recipe, settings = method_of(args)
    task = tasks.make(args.task, args.task_args)
    if args.quick:
        task = replace(task, num_eval_trials=reduce_amount("trials", task.num_eval_trials))
    yield from run_recipe(recipe, task, settings, args.seed, run, args.start, args.eval_every, args.control)


def run_recipe(
    recipe: Any,
    task: Task,
    args: Any,
    seed: int = 0,
    run: Run | None = None,
    start: str | None = None,
    eval_every: int | None = None,
    control: str = "none",
) -> Iterator[dict]:
    """Yield the rows of a recipe on a task: those of its starting policy, then those of its improvement.

    ``start``: the kind of starting policy (None: the recipe's, or the task's first). The policy before improvement is
    kept as ``start``, the final one as ``last``, the one with the best held-out metric as ``best``.
    """
    run = run or Run()
    resolve.check_fits_task(recipe, args, task, getattr(recipe, "__name__", "the method").rpartition(".")[2], start)
    if control == "imitation" and task.continue_imitation is None:
        raise RunError(
            f"control = imitation imitates for longer, and the start of task {task.name!r} imitates nothing (it is a "
            "given policy, or there are no demonstrations): leave control out"
        )
    policy = yield from task.start_policy(seed, run.stage("imitate"), start or resolve.start_kind(recipe, args))
    run.save_start(policy)
    begin = copy.deepcopy(policy) if control == "imitation" else None
    stage = run.stage("improve")
    yield from improve_with_eval(recipe.improve, resolve.signal_of(recipe), task, policy, args, seed, stage, eval_every)
    run.save_last(policy)
    if begin is not None:
        yield from imitate_as_long(task, begin, seed, run)


def imitate_as_long(task: Task, policy: Policy, seed: int, run: Run) -> Iterator[dict]:
    """Yield the rows of the control: more imitation of a start, for as long as its improvement took."""
    assert task.continue_imitation is not None
    first, improvement = run.stage("imitate").usage(), run.stage("improve").usage()
    updates = max(1, round(first["updates"] * improvement["seconds"] / max(first["seconds"], 1e-9)))
    stage = run.stage("control")
    yield from task.continue_imitation(policy, seed, updates, stage, 1)
    stage.save_last(policy)


def improve(
    method: Callable[..., Iterator[dict]], signal: str, task: Task, policy: Policy, args: Any, seed: int, run: Run
) -> Iterator[dict]:
    """Yield the rows of ``method`` (the ``improve`` of a recipe) on a task's signal."""
    with task.signal(signal, getattr(args, "num_envs", None), seed) as source:
        yield from method(policy, source, args, Rng(seed + 1, run.device), run)


def improve_with_eval(
    method: Callable[..., Iterator[dict]],
    signal: str,
    task: Task,
    policy: Policy,
    args: Any,
    seed: int,
    run: Run,
    eval_every: int | None = None,
) -> Iterator[dict]:
    """Yield the rows of an improvement, with held-out metrics every ``eval_every`` iterations and in the last one.

    The trials differ from those of ``denoiserl eval``. If a task's held-out set is finite (prompts, grids), the two
    share members, and only ``last`` is unselected.
    """
    check_value(Count | None, eval_every, "eval_every")
    since: dict[str, int] = {}
    for row in improve(method, signal, task, policy, args, seed, run):
        if (at := run.current_loop()) is not None:
            total = getattr(args, "iterations", None) or at.total or 1_000
            every = eval_every or -(-total // EVALUATIONS)
            done, before = at.iteration + 1, since.get(at.stage, at.first)
            if done // every > before // every or done == at.total:
                row |= evaluate_and_keep_best(task, policy, seed, run)
            since[at.stage] = done
        yield row


def evaluate_and_keep_best(task: Task, policy: Policy, seed: int, run: Run) -> dict[str, float]:
    """Return means over ``task.num_eval_trials`` held-out trials, and keep the policy if it is the best so far."""
    found = means(task.evaluate(policy, seed + 900, task.num_eval_trials))
    run.best(policy, found[task.metric] * (1 if task.better == "higher" else -1))
    return {f"eval/{k}": v for k, v in found.items()}
