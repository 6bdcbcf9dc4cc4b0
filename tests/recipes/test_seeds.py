"""All randomness of a recipe is its ``Rng``: global generators say nothing, and stand where they stood."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from denoiserl import Rng
from denoiserl.control.noise_steering import black_box, steer
from denoiserl.data.synthetic import Model
from denoiserl.envs import Collector
from denoiserl.nn import MLP
from denoiserl.policy.policy import Policy
from denoiserl.recipes.off_policy import dsrl, sac, synther_sac, td3
from denoiserl.recipes.offline_rl import dql, fql, iql, ofql, pgd, synther, td3_bc
from denoiserl.recipes.policy_gradient import dppo, fpo, gorl, ppo, reinflow
from denoiserl.recipes.test_time import taco  # fmt: skip
from denoiserl.recipes.zero_shot import breeze, fb
from denoiserl.tasks import offline as offline_task
from denoiserl.tasks import policies
from denoiserl.tasks import zero_shot as zero_shot_task
from denoiserl.train import Run
from tests.recipes.off_policy import test_noise_steering, test_sac_and_td3
from tests.recipes.offline_rl import test_pgd_guidance

pytest.importorskip("gymnasium")
ACTS = {"num_envs": 2, "rollout_steps": 4}
OFF = {**ACTS, "batch_size": 4, "learning_starts": 4, "utd": 0.5, "critic_width": 8}
LOGGED = {"updates_per_iteration": 2, "batch_size": 8, "critic_width": 8}
FORWARD: dict[str, Any] = {"num_updates": 2, "batch_size": 8, "representation_width": 16}
CHUNKS = offline_task.Args(policy_width=8, action_horizon=2, sampling_steps=2)
BASE = offline_task.Args(data="ring", num_episodes=60, policy_width=8, sampling_steps=2)
SEEN = zero_shot_task.Args(num_episodes=3, episode_steps=20, task_dim=4, policy_width=8, sampling_steps=2)


def acting(kind: str) -> tuple[Policy, Collector]:
    """A policy of a kind that knows nothing, for the bandit, and the bandit."""
    env = Collector(test_noise_steering.Bandit, 2, 1)
    return getattr(policies, kind)(CHUNKS, env, 0), env


def start(recipe: Any) -> tuple[Policy, Any, Any]:
    """A policy, its signal and settings of two iterations at most."""
    if recipe in (dppo, ppo, fpo, reinflow, gorl):
        kind = {dppo: "diffusion", ppo: "gaussian"}.get(recipe, "flow")
        more = (
            {"critic_warmup": 0, "stage_fractions": (1, 1), "decoder_rollout_steps": 4, "decoder_updates": 2}
            if recipe is gorl
            else {"epochs": 1, "critic_warmup": 1}
        )
        return *acting(kind), recipe.Args(iterations=2, batch_size=8, **ACTS, **more)
    if recipe in (sac, td3, synther_sac):
        model = Model(num_updates=2, batch_size=4, width=8, depth=1, sampling_steps=4, churn=0.0)
        more = {"decisions_per_refill": 8, "num_synthetic": 8, "model": model} if recipe is synther_sac else {}
        made = test_sac_and_td3.policy(test_sac_and_td3.Bandit)
        return made, Collector(test_sac_and_td3.Bandit, 2, 1), recipe.Args(iterations=2, **{**OFF, **more})
    if recipe is dsrl:
        torch.manual_seed(0)
        made = steer(black_box(test_noise_steering.wiggle, 1, 1), 1, 8)
        return made, Collector(test_noise_steering.Bandit, 2, 1), dsrl.Args(iterations=2, **OFF)
    if recipe in (fb, breeze):
        made = getattr(zero_shot_task, "squashed_policy" if recipe is fb else "untrained_policy")(SEEN, 0, Run())
        return made, zero_shot_task.load_dataset(SEEN, 0), recipe.Args(**FORWARD)
    if recipe is pgd:
        data = test_pgd_guidance.recording(6)
        return (
            test_pgd_guidance.start(data),
            data,
            pgd.Args(iterations=1, num_windows=4, model=test_pgd_guidance.TINY, **LOGGED),
        )
    if recipe is taco:
        made, _ = acting("diffusion")
        data = test_pgd_guidance.recording(6).demos
        return (
            policies.diffusion(CHUNKS, data, 0),
            data,
            taco.Args(num_updates=2, num_coin_flips=4, counter_width=8, batch_size=8),
        )
    data = offline_task.load_dataset(BASE, 0)
    more = (
        {"num_synthetic": 40, "model": Model(num_updates=2, batch_size=8, width=8, depth=1, sampling_steps=4)}
        if recipe is synther
        else {}
    )
    return offline_task.start_policy(BASE, recipe.START, 0, Run()), data, recipe.Args(iterations=1, **LOGGED, **more)


RECIPES = [dppo, ppo, fpo, reinflow, gorl, sac, td3, dsrl, dql, ofql, fql, iql, td3_bc, synther, synther_sac, pgd]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("recipe", [*RECIPES, fb, breeze, taco], ids=lambda r: r.__name__.rpartition(".")[2])
def test_the_global_generator_changes_no_number_and_is_not_moved(recipe: Any) -> None:
    told = []
    for elsewhere in (1, 2):
        made, signal, args = start(recipe)
        torch.manual_seed(elsewhere)
        before = torch.get_rng_state()
        rows: Iterator[dict] = recipe.improve(made, signal, args, Rng(5))
        told.append((list(rows), [p.detach().clone() for p in made.parameters()]))
        assert torch.equal(torch.get_rng_state(), before)
    (first, weights), (second, others) = told
    assert str(first) == str(second) and first
    assert all(torch.equal(p, q) for p, q in zip(weights, others, strict=True))


def test_what_is_made_from_a_stream_depends_on_it_alone() -> None:
    """Two networks of a stream differ, those of equal streams are equal, and the stream goes on from another place."""

    def made(seed: int) -> list[torch.Tensor]:
        rng = Rng(seed)
        one, two = (rng.init(MLP, (2,), width=8) for _ in range(2))
        return [next(one.parameters()), next(two.parameters()), rng.uniform(3)]

    first, again, other = made(0), made(0), made(1)
    assert all(torch.equal(p, q) for p, q in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[0], other[0])
    assert not torch.equal(first[2], Rng(0).uniform(3))
