"""The blind plan: balanced, blocked, random, and silent about the arms; seeds that never meet."""

from __future__ import annotations

from collections import Counter

import pytest

from denoiserl.core.errors import RunError
from denoiserl.core.rng import Rng
from denoiserl.stats import Plan, plan, selection_seed, test_seed

ARMS = ("before", "dppo", "imitation")


def test_every_arm_meets_every_start_once_in_blocks() -> None:
    made = Plan.of(ARMS, range(20), Rng(0))
    order = list(made)
    assert len(made) == 60 and len(set(order)) == 60
    blocks = [order[i : i + 3] for i in range(0, 60, 3)]
    for block in blocks:  # one start, all arms
        assert len({start for _, start in block}) == 1 and {label for label, _ in block} == set("ABC")
    starts = [block[0][1] for block in blocks]
    assert sorted(starts) == list(range(20)) and starts != list(range(20))


def test_the_order_inside_a_block_and_the_labels_are_uniform() -> None:
    first, named = Counter[str](), Counter[str]()
    for seed in range(300):
        made = Plan.of(ARMS, [0], Rng(seed))
        first[made.reveal()[next(iter(made))[0]]] += 1
        named[made.reveal()["A"]] += 1
    for counts in (first, named):
        assert set(counts) == set(ARMS) and all(abs(n - 100) < 4 * (300 * 2 / 9) ** 0.5 for n in counts.values())


def test_the_plan_is_blind_and_reproducible() -> None:
    made = Plan.of(ARMS, range(5), Rng(3))
    assert not any(arm in repr(made) for arm in ARMS)
    assert made.labels == ("A", "B", "C") and sorted(made.reveal().values()) == sorted(ARMS)
    assert made == Plan.of(ARMS, range(5), Rng(3)) != Plan.of(ARMS, range(5), Rng(4))


def test_what_cannot_be_planned_is_refused() -> None:
    for arms, starts, why in (
        (["a"], [1], "between 2 and 26"),
        (["a", "b", "a"], [1], "a is named twice"),
        (["a", "b"], [], "no starts"),
        (["a", "b"], [1, 1], "planned twice"),
    ):
        with pytest.raises(RunError, match=why):
            Plan.of(arms, starts, Rng(0))


def test_seeds_of_selection_test_and_training_never_meet() -> None:
    """Each function is strictly increasing in (seed, i), so its values lie between its corners, and are distinct."""
    last_seed, last_start = plan.SEEDS - 1, plan.STARTS - 1
    for function in (selection_seed, test_seed):
        assert function(5, 7) - function(5, 6) == 1  # starts are consecutive
        assert all(function(s + 1, 0) == function(s, last_start) + 1 for s in (0, 1, 77, last_seed - 1))
    assert 2**30 == selection_seed(0, 0) < selection_seed(last_seed, last_start) < test_seed(0, 0)
    assert test_seed(last_seed, last_start) < 2**32  # simulators take 32 bits
    for seed, i in ((-1, 0), (plan.SEEDS, 0), (0, plan.STARTS), (0, -1)):
        for function in (selection_seed, test_seed):
            with pytest.raises(RunError, match="seeds go from 0"):
                function(seed, i)
