"""OFQL and FQL: decisions of one network call, learned from logged data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from denoiserl import Policy, Rng, time_grid
from denoiserl.core.counters import UsageCounter
from denoiserl.core.errors import InvalidInputError
from denoiserl.envs.toy import ring
from denoiserl.nn import MLP, TwoTimeNet
from denoiserl.processes import MeanFlow, MeanVelocityDenoiser
from denoiserl.recipes.offline_rl import fql, ofql
from denoiserl.tasks import offline as offline_task
from denoiserl.train import Run, fit

BASE = offline_task.Args(data="ring", num_episodes=1000, policy_width=32)
SMALL: dict[str, Any] = {"iterations": 2, "updates_per_iteration": 4, "batch_size": 32, "critic_width": 16}
BOTH = pytest.mark.parametrize("recipe", [ofql, fql])


def start(recipe: Any, kind: str | None = None) -> Policy:
    return offline_task.start_policy(BASE, kind or recipe.START, 0, Run())


def improve(recipe: Any, made: Policy, keep: Run | None = None, **settings: Any) -> list[dict]:
    a = recipe.Args(**{**SMALL, **settings})
    torch.manual_seed(0)  # the critics' start
    return list(recipe.improve(made, offline_task.load_dataset(BASE, 0), a, Rng(1), keep))


def shares(made: Policy, n: int = 2000) -> torch.Tensor:
    """The shares of one-step decisions at the eight places, and at none of them: [9]."""
    place = ring.nearest_mode(made.with_controller(None).generate(torch.zeros(n, 1), Rng(7))[:, 0])
    return torch.bincount(torch.where(place < 0, 8, place), minlength=9) / n


@pytest.mark.parametrize(
    ("recipe", "settings"), [(ofql, {"q_weight": 3.0, "num_candidates": 1}), (fql, {"bc_weight": 0.1})]
)
def test_where_the_critic_decides_the_highest_place_is_chosen(recipe: Any, settings: dict) -> None:
    """Eight places, one of them twice as good: of the behaviour an eighth is there, of what was learned nearly all."""
    made = start(recipe)
    improve(
        recipe,
        made,
        iterations=6,
        updates_per_iteration=40,
        batch_size=64,
        critic_width=32,
        lr=5e-3,
        tau=0.05,
        **settings,
    )
    assert float(shares(made)[0]) > 0.9


@BOTH
def test_a_decision_is_one_call_and_dql_pays_five(recipe: Any) -> None:
    made = start(recipe)
    improve(recipe, made)
    for policy, calls in ((made, 1), (start(recipe, "diffusion"), 5)):
        with UsageCounter().open() as meter:
            policy.generate(torch.zeros(3, 1), Rng(0))
        assert meter.counts["denoiser_calls"] == calls


@BOTH
def test_a_policy_is_saved_with_what_chooses_for_it(recipe: Any, tmp_path) -> None:
    made = start(recipe)
    improve(recipe, made)
    again = Policy.load(made.save(tmp_path / "policy"))
    cond = torch.zeros(5, 1)
    assert torch.equal(made.generate(cond, Rng(3)), again.generate(cond, Rng(3)))
    assert (made.weights.control is None) == (recipe is fql)


@BOTH
def test_runs_are_the_same_twice_and_resumed_ones_end_where_whole_ones_do(recipe: Any, tmp_path) -> None:
    whole, again, halves, resumed = (start(recipe) for _ in range(4))
    assert improve(recipe, whole, Run(tmp_path / "whole", every=1)) == improve(recipe, again)
    torch.manual_seed(0)
    a = recipe.Args(**SMALL)
    rows = recipe.improve(halves, offline_task.load_dataset(BASE, 0), a, Rng(1), Run(tmp_path / "half", every=1))
    next(rows)
    next(rows)  # the first iteration is saved when the second one begins
    del rows
    torch.manual_seed(1)  # a resumed run starts from other critics, and takes those of the folder
    list(recipe.improve(resumed, offline_task.load_dataset(BASE, 0), a, Rng(1), Run(tmp_path / "half", every=1)))
    for p, q in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q)


@BOTH
def test_without_reward_what_is_left_is_imitation(recipe: Any) -> None:
    """Equal rewards are warned of; the critic's pull has a floor under its denominator and does not explode."""
    data = offline_task.load_dataset(BASE, 0)
    assert data.rewards is not None
    still = replace(data, rewards=torch.zeros_like(data.rewards))
    with pytest.warns(UserWarning, match="all rewards of"):
        rows = list(recipe.improve(start(recipe), still, recipe.Args(**SMALL), Rng(1)))
    assert all(torch.tensor(list(row.values())).isfinite().all() for row in rows)


@pytest.mark.filterwarnings("ignore:.*of the range")  # all data at one corner
def test_actions_on_the_edge_of_the_box_are_imitated_beyond_it_and_served_inside() -> None:
    """Imitation does not clip: a policy of data at the corner draws around it. What acts is clipped."""
    made, data = start(ofql), offline_task.load_dataset(BASE, 0)
    corner = torch.ones_like(data.demos.actions)
    edge = replace(data, demos=replace(data.demos, actions=corner))
    list(
        ofql.improve(
            made,
            edge,
            ofql.Args(**{**SMALL, "iterations": 1, "updates_per_iteration": 60, "q_weight": 0.0, "lr": 1e-2}),
            Rng(1),
        )
    )
    plain = made.with_controller(None)
    raw = plain.sample_chain(torch.zeros(200, 1), Rng(0), use_eval_steps=True).sample
    assert float(raw.mean()) > 0.8 and 0.05 < float((raw > 1).float().mean()) < 0.95
    assert float(plain.generate(torch.zeros(200, 1), Rng(0)).max()) <= 1


def test_policies_of_another_kind_are_refused_with_the_way_out() -> None:
    for recipe, kinds in ((ofql, ("diffusion", "student", "squashed")), (fql, ("flow", "meanflow", "gaussian"))):
        for kind in kinds:
            with pytest.raises(InvalidInputError, match=f"start '{recipe.START}'"):
                improve(recipe, start(recipe, kind))
    made = start(ofql)
    two = replace(made, eval_steps=MeanFlow().steps(time_grid(2)))
    with pytest.raises(InvalidInputError, match="one step"):
        improve(ofql, two)
    with pytest.raises(InvalidInputError, match="batch"):
        improve(ofql, made, batch_size=5000)


def test_one_step_of_a_mean_flow_reaches_the_ring_where_flow_matching_does_not() -> None:
    """Imitation alone: the share of one-step decisions within 0.2 of a place is 0.45, of flow matching's first step
    0.06, for that goes to the middle of the ring (0.62 and 0.03 after 4000 updates of width 128 and batch 256)."""
    x = ring.BEHAVIOUR.sample(20_000, Rng(0))[:, None]
    cond = torch.zeros(len(x), 1)
    reached = []
    for same, ends in ((0.5, 0.1), (1.0, 0.0)):
        torch.manual_seed(0)
        process, denoise = MeanFlow(same, ends), MeanVelocityDenoiser(TwoTimeNet(MLP((1, 2), 1, 64, 3, 0)))
        list(fit(process, denoise, x, cond, 1200, Rng(1), batch=128, lr=2e-3, warmup=100))
        made = Policy.of(process, denoise, (1, 2), process.steps(time_grid(1)))
        reached.append(float((ring.nearest_mode(made.generate(cond[:4000], Rng(5))[:, 0]) >= 0).float().mean()))
    assert reached[0] > 0.18 and reached[0] > 3 * reached[1], reached  # 0.36 ± 0.05 over seeds
