"""What the experiments of the recipes share: imitate, then improve, with held-out numbers and the best policy kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from denoiserl.policy import Policy
from denoiserl.train import Keep


def watched(experiment: Any, policy: Policy, a: Any, seed: int, keep: Keep, rows: Iterator[dict]) -> Iterator[dict]:
    """The rows of an improvement, every ``a.eval_every``-th with held-out numbers; the best policy is kept.

    ``experiment.report(policy, base, seed) -> (numbers, score)``. It draws under another seed than trials do; where
    an experiment's held-out set is finite (prompts, grids), the two share members, and only ``last`` is unselected.
    """
    for row in rows:
        at = keep.where()
        if at is not None and at.due(a.eval_every):
            numbers, score = experiment.report(policy, a.base, seed + 900)
            row |= numbers
            keep.best(policy, score)
        yield row


def run(
    experiment: Any, improvement: Callable[[Policy, Any, int, Keep], Iterator[dict]], a: Any, keep: Keep | None
) -> Iterator[dict]:
    """A recipe's ``train``: the experiment's base, then the recipe's improvement of it."""
    keep = keep or Keep()
    policy = yield from experiment.pretrain(a.base, a.seed, keep.stage("imitate"))
    yield from improvement(policy, a, a.seed, keep.stage("improve"))
    keep.last(policy)
