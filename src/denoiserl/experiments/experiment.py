"""What the experiments of the recipes share: a start, then the method, with held-out numbers and the best kept."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any

from denoiserl.policy.policy import Policy
from denoiserl.tasks.base import Task, means
from denoiserl.train import Keep

Improve = Callable[..., Iterator[dict]]


def improved(improve: Improve, task: Task, policy: Policy, a: Any, seed: int, keep: Keep) -> Iterator[dict]:
    """The rows of an improvement, every ``a.eval_every``-th with held-out numbers; the best policy is kept.

    The trials are other ones than ``eval``'s; where a task's held-out set is finite (prompts, grids), the two share
    members, and only ``last`` is unselected.
    """
    for row in task.improve(improve, policy, a, seed, keep):
        at = keep.current_loop()
        if at is not None and at.due(a.eval_every):
            row |= held_out(task, policy, seed, keep)
        yield row


def held_out(task: Task, policy: Policy, seed: int, keep: Keep) -> dict[str, float]:
    """Means over ``task.watch`` trials; the policy is kept if it is the best so far."""
    told = means(task.judge(policy, seed + 900, task.watch))
    keep.best(policy, told[task.metric] * (1 if task.better == "higher" else -1))
    return {f"held-out {k}": v for k, v in told.items()}


def run(improve: Improve, task: Task, a: Any, keep: Keep | None, kind: str | None = None) -> Iterator[dict]:
    """A recipe's ``train``: the task's starting policy, then the recipe's improvement of it."""
    keep = keep or Keep()
    policy = yield from task.begin(a.seed, keep.stage("imitate"), kind)
    yield from improved(improve, task, policy, a, a.seed, keep.stage("improve"))
    keep.last(policy)


def learn(
    improve: Improve, task: Task, a: Any, keep: Keep | None
) -> Generator[dict, None, tuple[Policy, dict[str, float]]]:
    """A recipe's ``train`` where there is nothing to start from: yields its rows, returns the policy and a last row."""
    keep = keep or Keep()
    policy = yield from task.begin(a.seed, keep)
    stage = keep.stage("imitate")
    yield from task.improve(improve, policy, a, a.seed, stage)
    row = held_out(task, policy, a.seed, keep)
    keep.last(policy)
    return policy, row
