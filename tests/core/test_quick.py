"""Quick trials: a fiftieth of the work, settings that still fit each other, and a mark wherever the numbers appear."""

from __future__ import annotations

import dataclasses

import pytest

from denoiserl import recipes, tasks
from denoiserl.core.quick import AMOUNTS, quick_defaults, quick_settings, reduce_amount
from denoiserl.core.settings import Count, CountOrZero, Settings


@dataclasses.dataclass(frozen=True)
class Inner(Settings):
    num_updates: Count = 1000
    width: Count = 64


@dataclasses.dataclass(frozen=True)
class Outer(Settings):
    iterations: Count = 100
    critic_warmup: CountOrZero = 60
    model: Inner = Inner()

    def check_relations(self) -> None:
        self.require_below("critic_warmup", "iterations")


def test_amounts_of_work_are_a_fiftieth_and_the_rest_stays() -> None:
    found = quick_settings(Outer())
    assert (found.iterations, found.critic_warmup, found.model) == (2, 1, Inner(20, 64))
    assert quick_settings(Outer(critic_warmup=99, iterations=101)).iterations == 3
    assert quick_defaults(Outer) == {"iterations": 2, "critic_warmup": 1, "model": Inner(20, 64)}
    assert reduce_amount("iterations", 101) == 3 and reduce_amount("iterations", 1) == 1
    assert reduce_amount("trials", 500) == 10 and reduce_amount("trials", 100) == 4


def test_fields_without_a_default_leave_the_others_reduced() -> None:
    kind = dataclasses.make_dataclass("Args", [("path", str), ("num_demos", int, 100)])
    assert quick_defaults(kind) == {"num_demos": AMOUNTS["num_demos"]}


@pytest.mark.parametrize("name", recipes.names())
def test_a_quick_trial_of_every_recipe_is_accepted_and_short(name: str) -> None:
    usual = recipes.load(name).Args()
    found = quick_settings(usual)
    length = next(n for n in ("iterations", "num_updates") if hasattr(usual, n))
    assert getattr(found, length) <= max(6, getattr(usual, length) / 20)
    assert type(found) is type(usual)


@pytest.mark.parametrize("name", tasks.TASKS)
def test_a_quick_task_has_the_same_options_with_less_work(name: str) -> None:
    kind = tasks.args_type(name)
    reduced = quick_defaults(kind)
    assert set(reduced) <= set(AMOUNTS) and all(0 <= reduced[n] < getattr(kind(), n) for n in reduced)
