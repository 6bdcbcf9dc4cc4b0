"""Beyond Human: the student learns what clean generated episodes do; resumes and refusals."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from denoiserl import Policy, Rng
from denoiserl.core.errors import InvalidInputError
from denoiserl.data import Demonstrations
from denoiserl.data.trajectory_metrics import motion
from denoiserl.envs import Collector
from denoiserl.processes import GaussianHead
from denoiserl.recipes.policy_gradient import beyond_human
from denoiserl.train import Run
from tests.recipes.reach import Reach, policy, same, weights, wide

gymnasium = pytest.importorskip("gymnasium")


FLY = beyond_human.Args(
    iterations=2,
    num_envs=16,
    rollout_steps=6,
    critic_warmup=0,
    num_student_episodes=12,
    max_recorded_episodes=64,
    student_updates=300,
    student_batch_size=64,
    student_lr=3e-3,
)


def fly(made: Policy, a: beyond_human.Args, keep: Run | None = None, **more) -> list[dict]:
    torch.manual_seed(1)
    return list(beyond_human.improve(made, Collector(Reach, 16, 1), a, Rng(5), keep, **more))


def test_the_flywheel_ends_with_a_student_of_clean_generated_episodes(tmp_path) -> None:
    made, keep = policy(), Run(tmp_path / "run")
    row = fly(made, FLY, keep)[-1]
    data, generator = Demonstrations.load(tmp_path / "run" / "generated"), Policy.load(tmp_path / "run" / "generator")
    assert data.success is not None and bool(data.success.all()) and 0 < len(data) <= 12
    assert row["demos/episodes"] == len(data) and row["demos/jerk"] == pytest.approx(motion(data)["jerk"])
    assert 0 < row["generator/success"] < 1 and 0 < row["demos/start_coverage"] <= 1
    assert not same(weights(made), weights(generator))
    # the student draws what the data did, where the data were
    cond = data.observations[data.ends - data.lengths]
    first = data.actions[data.ends - data.lengths]
    apart = [
        (p.generate(cond.repeat(30, 1), Rng(2))[:, 0] - first.repeat(30, 1)).square().mean() for p in (made, policy())
    ]
    assert float(apart[0]) < float(apart[1])


def test_the_flywheel_is_the_same_run_twice_and_ends_where_a_resumed_one_ends(tmp_path) -> None:
    a = dataclasses.replace(FLY, student_updates=5)
    whole = policy()
    rows = fly(whole, a, Run(tmp_path / "whole", every=1, restart=1))
    assert fly(policy(), a, Run(restart=1)) == rows
    half = policy()
    torch.manual_seed(1)
    part = beyond_human.improve(half, Collector(Reach, 16, 1), a, Rng(5), Run(tmp_path / "half", every=1, restart=1))
    next(part)
    next(part)
    del part
    resumed = policy()
    fly(resumed, a, Run(tmp_path / "half", every=1, restart=1))
    assert same(weights(whole), weights(resumed))


def test_a_gaussian_policy_flies_with_ppo() -> None:
    made = wide()
    row = fly(made, dataclasses.replace(FLY, generator_lr=1e-4, student_updates=20))[-1]
    assert row["generator/success"] > 0 and row["demos/episodes"] > 0
    assert made.weights.control is None and isinstance(made.denoiser, GaussianHead)


def test_nothing_is_learned_from_nothing() -> None:
    with pytest.raises(InvalidInputError, match="succeeded and none of these is valid"):
        fly(policy(), FLY, valid=lambda obs, action: obs[:, 0] > 99)
