"""Claims: arms, budget, metric and pass conditions, fixed before anything runs.

A claim is a file ``claims/FAMILY/NAME.py`` with a docstring and a ``CLAIM``. Only its conditions decide the verdict:
each is a difference that must exceed a margin, tested by ``stats.superiority_test``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from denoiserl.core.errors import RunError, unknown_name_message
from denoiserl.experiments import Study

BUDGETS = ("laptop", "full")


@dataclass(frozen=True)
class Condition:
    """``first`` − ``second`` > ``margin``, on ``metric`` (None: the main one).

    Each side is an arm or a number. ``second_metric`` compares across metrics. Where lower is better, exchange the two.
    """

    first: str | float
    second: str | float
    margin: float = 0.0
    metric: str | None = None
    second_metric: str | None = None

    def sides(self, main: str) -> tuple[tuple[str | float, str], tuple[str | float, str]]:
        """Return both sides, each with its metric."""
        metric = self.metric or main
        return (self.first, metric), (self.second, self.second_metric or metric)

    def as_sentence(self, main: str) -> str:
        """Return the condition as a sentence."""
        left, right = (f"{m} of {arm}" if isinstance(arm, str) else f"{arm:g}" for arm, m in self.sides(main))
        if self.margin < 0:
            return f"{left} exceeds {right} less {-self.margin:g}"
        return f"{left} exceeds {right}" + (f" by more than {self.margin:g}" if self.margin else "")


@dataclass(frozen=True)
class Simulation:
    """A claim without training: ``measure(seed)`` -> {metric: {arm: [n]}}, for every seed.

    ``budget`` of ``unit`` is the cost of one seed, for the record. ``metrics``: {metric: (description, unit)}, the main
    one first.
    """

    measure: Callable[[int], Mapping[str, Mapping[str, Tensor]]]
    seeds: tuple[int, ...]
    budget: float
    unit: str
    metrics: Mapping[str, tuple[str, str]]


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper and how it is tested.

    ``plan(budget)`` is the study (or simulation) of the "laptop" or the "full" budget; a laptop's takes at most half an
    hour on two cores. ``pass_condition`` states ``conditions`` in words. ``calibration_note``: how margins and settings
    were fixed, and on which seeds.
    """

    claim: str
    paper: str
    pass_condition: str
    conditions: tuple[Condition, ...]
    plan: Callable[[str], Study | Simulation]
    calibration_note: str = ""

    def __post_init__(self) -> None:
        if not self.conditions:
            raise RunError("a claim without a condition cannot fail: give conditions")

    def make_plan(self, budget: str) -> Study | Simulation:
        """Return the plan of a budget. Raise RunError if a condition names an arm that it does not have."""
        if budget not in BUDGETS:
            raise RunError(unknown_name_message(budget, BUDGETS, "budget"))
        plan = self.plan(budget)
        if isinstance(plan, Study):
            plan.validate()
            for c in self.conditions:
                for arm in (c.first, c.second):
                    if isinstance(arm, str) and arm not in plan.arms:
                        raise RunError(f"a condition names {unknown_name_message(arm, plan.arms, 'arm')}")
        return plan
