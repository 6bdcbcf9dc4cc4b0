"""GoRL: its stages, what they reduce to, what they leave alone, what they refuse."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from denoiserl import Policy, Rng
from denoiserl.control.acting import training_actor
from denoiserl.control.best_of_n import LatentController
from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.envs import Collector
from denoiserl.processes import GaussianHead
from denoiserl.recipes.policy_gradient import gorl, ppo
from denoiserl.train import Run
from tests.recipes.reach import Reach, policy, same, weights, wide

gymnasium = pytest.importorskip("gymnasium")


GORL = gorl.Args(
    iterations=3,
    stage_fractions=(1.0,),
    num_envs=8,
    rollout_steps=4,
    batch_size=16,
    epochs=2,
    critic_warmup=0,
    decoder_rollout_steps=6,
    decoder_updates=6,
    decoder_batch_size=16,
    encoder_width=16,
)


def latent_run(made: Policy, a: gorl.Args, keep: Run | None = None, copies: int = 8) -> list[dict]:
    torch.manual_seed(1)
    return list(gorl.improve(made, Collector(Reach, copies, 1), a, Rng(5), keep))


def test_the_first_stage_without_a_decoder_is_ppo_bit_for_bit() -> None:
    a = dataclasses.replace(GORL, first_stage="actions", prior_weight=0.0)
    made = policy()
    before = weights(made)
    rows = latent_run(made, a)
    rng = Rng(5)
    gaussian = rng.init(gorl.make_encoder, made, 2, a)
    plain = list(ppo.improve(gaussian, Collector(Reach, 8, 1), gorl.ppo_args(a, iterations=3), rng))
    assert [{k: v for k, v in row.items() if k != "gorl/stage"} for row in rows] == plain
    control = made.weights.control
    assert isinstance(control, LatentController)
    assert same(list(control.head.parameters()), list(gaussian.denoiser.parameters()))
    cond = torch.randn(9, 2)
    assert torch.equal(made.generate(cond, Rng(0)), gaussian.generate(cond, Rng(0)))
    assert same(before, weights(made))


def test_a_stage_leaves_its_decoder_bitwise_alone_and_moves_the_latents() -> None:
    made = policy()
    before = weights(made)
    latent_run(made, GORL)
    control = made.weights.control
    assert isinstance(control, LatentController) and same(before, weights(made))
    assert float(control.head.net.leave.weight.detach().abs().max()) > 0  # type: ignore[union-attr]


def test_gorl_learns_to_reach() -> None:
    a = dataclasses.replace(
        GORL,
        iterations=12,
        num_envs=32,
        rollout_steps=6,
        batch_size=64,
        epochs=6,
        first_stage="actions",
        lr=5e-3,
        initial_std=0.5,
        clip_range=0.2,
    )
    rows = latent_run(policy(), a, copies=32)
    first, last = (np.mean([row["rollout/success"] for row in part]) for part in (rows[:2], rows[-2:]))
    assert last > first + 0.2, f"success went from {first:.2f} to {last:.2f}"


def test_a_new_decoder_behaves_from_the_prior_as_the_policy_did_before() -> None:
    """A constant policy a ~ N(0.3, 0.15²) is imitated: the decoder's marginal has its mean and std."""
    made, env = policy(steps=20), Collector(Reach, 32, 1)
    a = dataclasses.replace(
        GORL,
        num_envs=32,
        decoder_rollout_steps=12,
        decoder_updates=400,
        decoder_batch_size=256,
        decoder_lr=3e-3,
        first_stage="actions",
    )
    torch.manual_seed(1)
    encoder = gorl.make_encoder(made, 2, dataclasses.replace(a, initial_std=0.15))
    assert isinstance(encoder.denoiser, GaussianHead)
    with torch.no_grad():
        encoder.denoiser.net.leave.bias.fill_(0.3)  # type: ignore[union-attr, operator]
    rng = Rng(0)
    (rollout, *_) = gorl.play_episodes(env, training_actor(encoder, 1), a.decoder_rollout_steps, rng)
    row = gorl.refit_decoder(made, rollout, False, a, rng)
    drawn = made.with_controller(None).generate(env.obs.repeat(20, 1), Rng(1))
    assert float(drawn.mean()) == pytest.approx(0.3, abs=0.03)
    assert float(drawn.std()) == pytest.approx(0.15, abs=0.04)
    assert row["decoder/action_std"] == pytest.approx(0.15, abs=0.02)


def test_a_switch_that_loses_too_much_is_taken_back() -> None:
    made = policy()
    a = dataclasses.replace(
        GORL, iterations=2, stage_fractions=(1.0, 1.0), max_return_drop=-10.0
    )  # nothing is ten times better
    before = weights(made)
    rows = latent_run(made, a)
    (row,) = [row for row in rows if "decoder/accepted" in row]
    assert row["decoder/accepted"] == 0 and same(before, weights(made))
    kept = latent_run(policy(), dataclasses.replace(a, max_return_drop=10.0))
    assert [row["decoder/accepted"] for row in kept if "decoder/accepted" in row] == [1]


def test_gorl_is_the_same_run_twice_and_ends_where_a_resumed_one_ends(tmp_path) -> None:
    a = dataclasses.replace(GORL, iterations=4, stage_fractions=(1.0, 1.0), max_return_drop=10.0)
    whole = policy()
    rows = latent_run(whole, a, Run(tmp_path / "whole", every=1, restart=1))
    assert latent_run(policy(), a, Run(restart=1)) == rows and len(rows) == 5
    for stop in (1, 3, 4):  # in the first stage, after the switch, in the second stage
        half = policy()
        torch.manual_seed(1)
        part = gorl.improve(half, Collector(Reach, 8, 1), a, Rng(5), Run(tmp_path / f"{stop}", every=1, restart=1))
        for _ in range(stop):
            next(part)
        del part
        resumed = policy()
        latent_run(resumed, a, Run(tmp_path / f"{stop}", every=1, restart=1))
        assert same(weights(whole), weights(resumed))
        cond = torch.randn(9, 2)
        assert torch.equal(whole.generate(cond, Rng(0)), resumed.generate(cond, Rng(0)))


def test_the_prior_holds_latents_back() -> None:
    def far(prior: float) -> tuple[float, float]:
        made = policy()
        latent_run(made, dataclasses.replace(GORL, iterations=6, epochs=6, lr=1e-2, prior_weight=prior, target_kl=10.0))
        control = made.weights.control
        assert isinstance(control, LatentController)
        head = control.head
        obs = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        mean = head(torch.zeros(200, 2, 1), head.embed_time(torch.ones(1)), head.embed_condition(obs)).mean
        return float(mean.detach().square().mean()), float(head.std.detach().mean())

    free, held = far(0.0), far(3.0)
    assert held[0] < free[0] and held[1] < free[1]


def test_gorl_refuses_what_it_cannot_steer() -> None:
    with pytest.raises(InvalidInputError, match="noise on its eval steps"):
        latent_run(policy(serve=1.0), GORL)
    with pytest.raises(InvalidInputError, match="needs ppo"):
        latent_run(wide(), GORL)
    with pytest.raises(RunError, match="'decoder'"):
        latent_run(policy(), dataclasses.replace(GORL, first_stage="decode"))
    with pytest.raises(InvalidInputError, match="all plans are the same"):
        a = dataclasses.replace(
            GORL, iterations=2, stage_fractions=(1.0, 1.0), first_stage="actions", initial_std=1e-5, lr=1e-9
        )
        latent_run(policy(), a)


def test_stages_share_all_iterations() -> None:
    assert gorl.split_iterations(6, (2, 2, 1, 1)) == [2, 2, 1, 1]
    for total in range(1, 30):
        parts = gorl.split_iterations(total, (2.0, 2.0, 1.0, 1.0))
        assert sum(parts) == total and parts[0] > 0 and min(parts) >= 0
