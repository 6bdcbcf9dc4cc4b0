"""One arm and one seed of a study: a starting policy, a method with a budget, held-out trials.

It is a program of the runner, so it is recorded, killed and resumed like any run.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from denoiserl import tasks
from denoiserl.core.counters import UNITS, UsageCounter
from denoiserl.core.errors import RunError
from denoiserl.core.quick import reduce_amount
from denoiserl.core.serialization import store
from denoiserl.envs.remarks import remarks
from denoiserl.experiments import resolve as find
from denoiserl.experiments import starting_policies as start
from denoiserl.experiments.experiment import improve
from denoiserl.policy.policy import Policy
from denoiserl.stats import fingerprint, selection_seed
from denoiserl.tasks.base import Task, means
from denoiserl.train import Run

MOST = 1_000_000
"""more iterations than any budget allows"""


@dataclass(frozen=True)
class Args:
    """Settings that determine the result."""

    seed: int = 0
    """seed of the starting policy and of learning"""
    trial_seed: int = 0
    """seed of the held-out trials"""
    trials: int = 200
    """number of held-out trials"""
    task: str = "env"
    """the task, by name"""
    base: dict[str, Any] = field(default_factory=dict)
    """the task's settings"""
    kind: str | None = None
    """the kind of starting policy"""
    method: str = find.NONE
    """the method, by name"""
    settings: dict[str, Any] = field(default_factory=dict)
    """the method's settings"""
    budget: float = 1.0
    """the most that learning may spend, in ``unit``"""
    unit: str = "seconds"
    """unit of the budget"""
    curve: int = 5
    """number of held-out evaluations during learning, evenly over the budget"""
    quick: bool = False
    """a quick trial: few trials, and one iteration even if it costs more than the budget"""


def starting_policy_args(args: Args) -> start.Args:
    """Return the settings of this arm's starting policy."""
    return start.Args(args.seed, args.task, args.kind, args.base)


def train(args: Args, run: Run | None = None) -> Iterator[dict]:
    """Learn until the budget is spent, evaluate the policy, and write the outcomes to ``result``."""
    run = run or Run()
    task = tasks.make(args.task, args.base)
    if args.quick:
        task = replace(task, num_eval_trials=reduce_amount("trials", task.num_eval_trials))
    begin = starting_policy_args(args)
    policy = start.load_start(task, start.folder(begin, str(run.device)), begin, run)
    torch.manual_seed(args.seed)  # global draws must not depend on whether the start was cached
    spent: dict[str, float] = dict.fromkeys((*UNITS, "seconds"), 0)
    cpu = Cpu()
    if args.method != find.NONE:
        stage = run.stage("improve", {args.unit: args.budget})
        yield from train_arm(task, policy, args, stage, cpu)
        spent = stage.usage()
    used = cpu.seconds() if args.method != find.NONE else 0.0
    began = time.perf_counter()
    with remarks() as notes:
        outcomes = task.evaluate(policy, args.trial_seed, args.trials)
    run.save_last(policy)
    result = {
        "outcomes": outcomes,
        "notes": list(notes),
        "spent": spent,
        "cpu": used,
        "fingerprint": fingerprint(policy.denoiser.state_dict()),
        "judging": time.perf_counter() - began,
        "memory": _memory(),
    }
    if run.folder is not None:
        store.write(run.folder / "result", result)
    yield {f"final/{k}": v for k, v in means(outcomes).items()}


class Cpu:
    """Processor time of this process's learning, which does not depend on other programs."""

    def __init__(self) -> None:
        self.began, self.free = time.process_time(), 0.0

    def seconds(self) -> float:
        """Return the seconds since the object was made, without paused ones."""
        return time.process_time() - self.began - self.free

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the processor time of the code inside the context."""
        began = time.process_time()
        try:
            yield
        finally:
            self.free += time.process_time() - began


def train_arm(task: Task, policy: Policy, args: Args, run: Run, cpu: Cpu) -> Iterator[dict]:
    """Yield the method's rows, each with the spending so far, and ``args.curve`` of them with held-out metrics."""
    method = find.method(args.method)
    with cpu.paused():
        settings = fit_iterations_to_budget(task, method, policy, args)
    if args.curve:
        yield {args.unit: 0.0, **eval_metrics(task, policy, args, run, cpu)}
    before = run.usage()[args.unit]
    for row in improve(method.improve, find.signal_of(method), task, policy, settings, args.seed, run):
        now = run.usage()[args.unit]
        marks = [int(min(1.0, spent / args.budget) * args.curve + 1e-9) for spent in (before, now)]
        if marks[1] > marks[0]:
            row |= eval_metrics(task, policy, args, run, cpu)
        before = now
        yield row | {args.unit: now}


def eval_metrics(task: Task, policy: Policy, args: Args, run: Run, cpu: Cpu) -> dict[str, float]:
    """Return held-out metrics during learning, on other trials than those of the verdict."""
    with run.uncharged(), cpu.paused():
        outcomes = task.evaluate(policy, selection_seed(args.seed), task.num_eval_trials)
    return {f"eval/{k}": v for k, v in means(outcomes).items()}


def fit_iterations_to_budget(task: Task, method: Any, policy: Policy, args: Args) -> Any:
    """Return the method's settings with as many iterations as the budget allows, so that schedules end with it.

    The fewest iterations that the settings allow are run on a copy, to measure their cost. Raise RunError if one costs
    more than the budget, or nothing in its unit. Settings that give ``iterations`` are kept.
    """
    settings = find.settings(args.method, args.settings)
    names = {f.name for f in fields(settings)}
    length = next((n for n in ("iterations", "num_updates") if n in names), None)
    if length is None or length in args.settings:
        return settings
    if length == "num_updates" and args.unit == "updates":
        return replace(settings, num_updates=int(args.budget))
    if args.unit == "seconds":
        return replace(settings, **{length: MOST})
    with UsageCounter().open() as meter:
        short, signal = shortest_settings(settings, length), find.signal_of(method)
        rows = improve(method.improve, signal, task, copy.deepcopy(policy), short, args.seed, Run())
        for _ in rows:
            pass
    if not (cost := meter.counts[args.unit] / getattr(short, length)):
        raise RunError(f"an iteration of {args.method} costs no {args.unit}: give the budget in another unit")
    if cost > args.budget and args.quick:
        return short
    if cost > args.budget:
        raise RunError(
            f"an iteration of {args.method} costs {cost:g} {args.unit}, more than the budget of {args.budget:g}: give "
            "more, or make its iterations smaller with --set"
        )
    return replace(settings, **{length: int(args.budget // cost)})


def shortest_settings(settings: Any, length: str) -> Any:
    """Return settings with the smallest number at ``length`` that the method accepts: warm-ups need some iterations."""
    for number in range(1, getattr(settings, length)):
        with suppress(RunError):
            return replace(settings, **{length: number})
    return settings


def _memory() -> float:
    """Return the largest resident memory of this process so far, in MB."""
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    import sys

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (1e6 if sys.platform == "darwin" else 1e3)


def result(folder: Path) -> dict[str, Any] | None:
    """Return the result of a finished arm, or None."""
    return store.read(folder / "result") if store.exists(folder / "result") else None
