"""One act: imitate until no improvement, improve by reward, and spend the same time on more imitation."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from denoiserl.core.errors import RunError
from denoiserl.core.quick import reduce_amount
from denoiserl.core.serialization import store
from denoiserl.core.serialization.args_json import from_json
from denoiserl.experiments.experiment import improve_with_eval
from denoiserl.policy.policy import Policy
from denoiserl.recipes.generators import flow_grpo
from denoiserl.recipes.language import tracerl
from denoiserl.recipes.policy_gradient import dppo
from denoiserl.stats import Comparison, auto_interval
from denoiserl.stats.comparison import LABELS
from denoiserl.tasks import env, shapes, sudoku
from denoiserl.tasks.base import Task
from denoiserl.train import Run

RECIPES: dict[str, Any] = {"robot": dppo, "image": flow_grpo, "language": tracerl}
"""the recipe that improves each act"""
TASKS: dict[str, Callable[[Any], Task]] = {"robot": env.task, "image": shapes.task, "language": sudoku.task}
"""the task of each act"""
DEFAULTS: dict[str, Any] = {"robot": env.Args(), "image": shapes.Args(), "language": sudoku.Args()}
"""settings of each task"""
NEVER = 1_000_000
"""iterations between held-out evaluations: so many that only the last iteration has one"""
SHOWN = 16
"""number of samples, episodes or puzzles in the report"""


@dataclass(frozen=True)
class Args:
    """Settings that determine the numbers of an act."""

    act: str
    """robot, image or language"""
    method: dict[str, Any]
    """settings of the recipe"""
    task: dict[str, Any]
    """settings of the task"""
    seed: int = 0
    """random seed"""
    trials: int = 200
    """number of held-out trials"""
    quick: bool = False
    """a quick trial"""


def compute_once(folder: Path, name: str, compute: Callable[[], Any]) -> Any:
    """Return the result of ``compute``, computed once for this folder: a resumed act does not evaluate again."""
    path = folder / "told" / name
    if not store.exists(path):
        store.write(path, compute())
    return store.read(path)


def train(args: Args, run: Run | None = None) -> Iterator[dict]:
    """Run an act and yield its rows of metrics; at its end the results are in ``run.folder``.

    Training, trials and pictures use different seeds. A quick trial has few trials during learning, too.
    """
    if run is None or run.folder is None:
        raise RunError("an act writes its results: give it a run with a folder")
    recipe, make_task = RECIPES[args.act], TASKS[args.act]
    settings = from_json(recipe.Args, args.method)
    task_args = from_json(type(DEFAULTS[args.act]), args.task)
    yield from run_act(recipe, settings, make_task(task_args), task_args.pretrain_updates, args, run)


def run_act(recipe: Any, settings: Any, task: Task, updates: int, args: Args, run: Run) -> Iterator[dict]:
    """Yield the rows of an act: imitation of ``updates``, improvement, and more imitation for the same time."""
    assert run.folder is not None
    folder, seed, trials = run.folder, args.seed, args.trials
    if args.quick:
        task = replace(task, num_eval_trials=reduce_amount("trials", task.num_eval_trials))
    assert task.render is not None and task.continue_imitation is not None

    def evaluate(policy: Policy, when: str, look: Any = task.render) -> None:
        began = time.perf_counter()
        compute_once(folder, when, lambda: task.evaluate(policy, seed + 2, trials))
        media = folder / "media"
        media.mkdir(exist_ok=True)
        if not any(media.glob(f"{when} *")):  # a resumed act skips pictures that exist
            for file, data in look(policy, seed + 3, SHOWN).items():
                (media / f"{when} {file}").write_bytes(data if isinstance(data, bytes) else data.encode())
        compute_once(folder, f"{when} seconds", lambda: time.perf_counter() - began)

    imitation = run.stage("imitate")
    policy = yield from task.start_policy(seed, imitation)
    start = copy.deepcopy(policy)
    evaluate(start, "before")

    improvement = run.stage("improve")
    yield from improve_with_eval(recipe.improve, recipe.SIGNAL, task, policy, settings, seed, improvement, NEVER)
    evaluate(policy, "after")
    run.save_last(policy)

    spent = {"imitate": imitation.usage()["seconds"], "improve": improvement.usage()["seconds"]}
    spent = compute_once(folder, "seconds", lambda: spent)
    more = max(1, round(updates * spent["improve"] / spent["imitate"]))
    yield from task.continue_imitation(start, seed, more, run.stage("control"), 1)
    evaluate(start, "imitation")


def results(name: str, task: Task, folder: Path) -> list[Comparison]:
    """Return the comparisons of a finished act, the main one first."""
    if not all(store.exists(folder / "told" / when) for when in LABELS):
        raise RunError(f"the act in {folder} has not finished: run the same command again to resume it")
    outcomes = {when: store.read(folder / "told" / when) for when in LABELS}
    spent = store.read(folder / "told" / "seconds")
    seconds = sum(spent.values()) + spent["improve"]
    found = []
    for key, (metric, unit) in task.metrics.items():
        rows = {when: auto_interval(values[key])[0] for when, values in outcomes.items()}
        found.append(Comparison(name, metric, rows["before"], rows["after"], rows["imitation"], seconds, unit))
        seconds = None
    return found


def evaluation_seconds(folder: Path) -> float:
    """Return the seconds of the act's evaluations and pictures."""
    return sum(store.read(folder / "told" / f"{when} seconds") for when in LABELS)
