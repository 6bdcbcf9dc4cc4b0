"""``eval``: held-out trials of one policy, or of several on the same trials."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from denoiserl.cli import Misuse
from denoiserl.cli.listing import Flag, hint, table
from denoiserl.cli.opening import LoadedPolicy
from denoiserl.cli.opening import load_policy as open_
from denoiserl.cli.studies import task_settings
from denoiserl.core.errors import unknown_name_message

Words = Annotated[
    tuple[str, ...],
    tyro.conf.Positional,
    tyro.conf.arg(metavar="RUN|POLICY [RUN|POLICY ...]", help_behavior_hint="(required)"),
]


@dataclass(frozen=True)
class Eval:
    """Options of ``eval``."""

    policies: Words
    """folders of runs, or of saved policies; several are judged on the same trials, and compared"""
    env: Annotated[str | None, hint("(default: the run's task)")] = None
    """Hopper-v5, metaworld:drawer-open-v3, my_module:make_env or my_file.py:make_env"""
    task: Annotated[str | None, hint("(default: the run's task)")] = None
    """env, offline, zero-shot, shapes, sudoku, my_module:make_task or my_file.py:make_task; its options are
    --task.NAME, such as --task.env pusht"""
    execute: Annotated[int | None, hint("(default: as the policy carries, or all)")] = None
    """with --env: actions of a chunk that are executed before the policy plans again"""
    ticks: Annotated[int | None, hint("(default: the environment's)")] = None
    """with --env: ticks until an episode is over"""
    trials: int = 200
    """held-out trials of each policy"""
    seed: int = 0
    """of the trials: the same seed gives the same ones"""
    early: Flag = False
    """stop as soon as successes decide between the policies, with the error rate of --level"""
    level: float = 0.05
    """error rate of all verdicts together"""
    which: Literal["best", "last"] = "best"
    """the best policy of a run, or its last one"""
    metrics: Annotated[tuple[str, ...], hint("(default: all)")] = ()
    """only these metrics"""
    media: bool = True
    """draw pictures and films"""
    out: Annotated[Path | None, hint("(default: RUN/eval, or runs/eval-A-B)")] = None
    """where to write eval.json, trials.jsonl, the plot and the pictures"""
    device: Annotated[str | None, hint("(default: where the run did)")] = None
    """where to compute"""
    json: Flag = False
    """print JSON"""


def eval_(given: list[str]) -> None:
    """``denoiserl eval RUN|POLICY ...``."""
    said = "Held-out trials of a policy with 95 % intervals; of several on the same trials, with verdicts."
    task_args, given = task_settings(given)
    a = tyro.cli(Eval, prog="denoiserl eval", description=said, args=given)
    if task_args and not a.task:
        raise Misuse("--task.NAME sets an option of --task: name the task.")
    if not a.policies:
        raise Misuse("Name a run or a saved policy: denoiserl eval RUN.")
    if a.trials < 1:
        raise Misuse(f"--trials {a.trials}: at least one is needed.")
    if a.env and a.task:
        raise Misuse("--env and --task both say what policies are judged on: give one of them.")
    if a.early and len(a.policies) < 2:
        raise Misuse("--early stops a comparison: name two policies or more.")
    from denoiserl.experiments import evaluate_policies as judge
    from denoiserl.experiments.compare_report import note_lines

    opened = _named([open_(word, a.which, a.device) for word in a.policies])
    where = a.out or _where(opened)
    judge.require_free_folder(where)
    task = _task(opened, a, task_args)
    policies = {name: (made.load(task), made.place) for name, made in opened.items()}
    found = judge.evaluate_policies(policies, task, a.seed, a.trials, a.level, a.early, progress=not a.json)
    for name in a.metrics:
        if name not in found.values:
            raise Misuse(unknown_name_message(name, found.values, "metric"))
    paths = {name: str(made.path) for name, made in opened.items()}
    judge.write(found, task, policies, paths, where, a.media)
    if a.json:
        print(json.dumps(judge.as_dict(found, a.metrics), indent=2))
        for line in note_lines(found.notes):
            print(line, file=sys.stderr)
        return
    if len(policies) > 1:
        judge.print_tables(found, a.metrics)
    else:
        _intervals(found, a.metrics)
    print(f"\n{where}: eval.json, trials.jsonl and what can be looked at.")


def print_held_out(folder: Path, trials: int, progress: bool) -> None:
    """What the best policy of a run does in held-out trials, with intervals: what ``eval`` says of it."""
    from denoiserl.experiments import evaluate_policies as judge

    made = open_(str(folder), "best", None)
    task = made.task()
    found = judge.evaluate_policies({folder.name: (made.load(task), made.place)}, task, 0, trials, progress=progress)
    print(f"\nIn {trials} held-out trials:")
    _intervals(found)


def _intervals(found: Any, metrics: Sequence[str] = ()) -> None:
    """The table of one policy, and what belongs to its numbers."""
    from denoiserl.experiments import evaluate_policies as judge
    from denoiserl.experiments.compare_report import note_lines

    each, rows = judge.intervals(found), []
    for name in (m for m in metrics or each if m in each):
        one, rate = each[name]
        mean, _, ends = format(one, ".1%" if rate else "").rpartition(" (")[0].partition(" ")
        what = found.words[name][0]
        rows.append((name, "" if what == name else what, mean, ends, str(one.n)))
    table(("metric", "", "mean", "95 % interval", "n"), rows, right=2)
    for line in note_lines(found.notes):
        print(f"\n{line}")


def _named(made: Sequence[LoadedPolicy]) -> dict[str, LoadedPolicy]:
    """{name: policy}: the last parts of the paths, as many as tell them apart."""
    paths = [(m.run or m.path).resolve() for m in made]
    if len(set(paths)) < len(paths):
        raise Misuse("A policy is named twice: its trials would be the same ones.")
    depth = 1
    while len({"-".join(p.parts[-depth:]) for p in paths}) < len(paths):
        depth += 1
    return {"-".join(p.parts[-depth:]): m for p, m in zip(paths, made, strict=True)}


def _task(opened: dict[str, LoadedPolicy], a: Eval, task_args: dict[str, Any]) -> Any:
    """What the policies are judged on: what was asked for, or the one task of the runs."""
    if a.env:
        from denoiserl.experiments.env_task import env_task

        return env_task(a.env, a.execute, a.ticks)
    if a.task:
        from denoiserl import tasks

        return tasks.make(a.task, task_args)
    tasks = {name: made.task() for name, made in opened.items()}
    first, *others = tasks.values()
    if any(o.name != first.name for o in others):
        said = ", ".join(f"{name}: {t.name}" for name, t in tasks.items())
        raise Misuse(f"The runs are of different tasks ({said}): say which one judges, with --env or --task.")
    return first


def _where(opened: dict[str, LoadedPolicy]) -> Path:
    (name, made), *others = opened.items()
    if not others:
        return (made.run or made.path.parent) / "eval" if made.run else Path("runs") / f"eval-{name}"
    return Path("runs") / f"eval-{'-'.join(opened)}"[:120]
