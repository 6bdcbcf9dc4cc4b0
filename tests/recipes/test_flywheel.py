"""TACO, GoRL and Beyond Human: what they choose, what they reduce to, what they leave alone, what they refuse."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from denoiserl import Diffusion, GaussianDenoiser, OneStep, Policy, Rng, time_grid
from denoiserl.control.acting import training_actor
from denoiserl.control.best_of_n import BestOfN, LatentController
from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.data import Demonstrations
from denoiserl.data.trajectory_metrics import motion
from denoiserl.envs import Collector
from denoiserl.nn import MLP
from denoiserl.processes import GaussianHead, ddim, linear, with_min_std
from denoiserl.recipes.policy_gradient import beyond_human, gorl, ppo
from denoiserl.recipes.test_time import taco
from denoiserl.train import Run

gymnasium = pytest.importorskip("gymnasium")


class Reach(gymnasium.Env):
    """A point on a line is to be put at a target that is seen: success, and the end, within 0.3; six ticks."""

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(-4, 4, (2,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def _seen(self) -> np.ndarray:
        return np.array([self.x, self.target], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.target, self.ticks = 0.0, float(self.np_random.uniform(-1, 1)), 0
        return self._seen(), {}

    def step(self, action):
        self.x, self.ticks = float(np.clip(self.x + 0.5 * action[0], -4, 4)), self.ticks + 1
        won = abs(self.x - self.target) < 0.3
        return self._seen(), float(won), won, self.ticks >= 6, {"success": won}


def policy(serve: float = 0.0, steps: int = 3) -> Policy:
    torch.manual_seed(0)
    process, times = Diffusion(linear, with_min_std(ddim(0.0), 0.2), clip=1.0), time_grid(steps)
    net = MLP((2, 1), cond=2, width=32, depth=2)
    return Policy.of(
        process, GaussianDenoiser(net, linear, "v"), (2, 1), process.steps(times), process.steps(times, ddim(serve))
    )


def weights(made: Policy) -> list[torch.Tensor]:
    return [p.detach().clone() for p in made.denoiser.parameters()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# TACO


def bandit(share: float = 0.9) -> Demonstrations:
    """One decision an episode: near 0.5 in a ``share`` of 200, near −0.5 in the others; a state that says nothing."""
    g = torch.Generator().manual_seed(0)
    where = torch.where(torch.arange(200) < 200 * share, 0.5, -0.5)
    parts = [(torch.randn(2, 2, generator=g), w + 0.03 * torch.randn(2, 1, generator=g)) for w in where]
    return Demonstrations.of(parts)


def wide() -> Policy:
    """Draws from N(0, 0.6²) in both actions, whatever it sees."""
    torch.manual_seed(0)
    process = OneStep()
    head = GaussianHead(MLP((2, 1), cond=2, width=8, time=0, zero=True), 1, 0.6)
    return Policy.of(process, head, (2, 1), process.steps(time_grid(1)))


TACO = taco.Args(num_updates=120, num_candidates=16, num_noise_candidates=8, features="plan", counter_width=64, lr=5e-3)


def test_taco_chooses_what_the_demonstrations_did_most() -> None:
    made = wide()
    before = weights(made)
    own = made.generate(torch.zeros(400, 2), Rng(3)).mean((1, 2))
    assert list(taco.improve(made, bandit(), TACO, Rng(1)))
    assert same(before, weights(made))
    chosen = made.generate(torch.zeros(400, 2), Rng(3)).mean((1, 2))
    assert float((own > 0).float().mean()) < 0.6
    assert float((chosen > 0).float().mean()) > 0.9
    assert float((chosen - 0.5).abs().median()) < 0.5 * float((own - 0.5).abs().median())


def test_the_most_familiar_of_one_plan_is_the_policys_plan_bit_for_bit() -> None:
    made, cond = policy(), torch.randn(20, 2)
    own = made.generate(cond, Rng(3))
    list(taco.improve(made, bandit(), dataclasses.replace(TACO, num_candidates=1, num_updates=3), Rng(1)))
    assert torch.equal(made.generate(cond, Rng(3)), own)
    assert isinstance(made.weights.control, BestOfN)


def test_taco_is_the_same_run_twice_and_ends_where_a_resumed_one_ends(tmp_path) -> None:
    def run(made: Policy, keep: Run, rows: int | None = None) -> list[dict]:
        torch.manual_seed(1)
        told = taco.improve(made, bandit(), dataclasses.replace(TACO, num_updates=20), Rng(1), keep)
        return [row for _, row in zip(range(rows or 1000), told, strict=False)]

    whole, again = wide(), wide()
    assert run(whole, Run()) == run(again, Run())
    half = wide()
    run(half, Run(tmp_path / "half", every=5), 12)
    resumed = wide()
    run(resumed, Run(tmp_path / "half", every=5))
    cond = torch.randn(30, 2)
    assert torch.equal(resumed.generate(cond, Rng(0)), whole.generate(cond, Rng(0)))


def test_taco_refuses_what_it_cannot_choose_by() -> None:
    with pytest.raises(InvalidInputError, match="two episodes or more"):
        list(taco.improve(wide(), bandit().take(torch.tensor([0])), TACO, Rng(0)))
    made = wide()
    still = dataclasses.replace(made, eval_steps=made.process.steps(time_grid(1), std_scale=0.0))  # type: ignore[call-arg]
    with pytest.raises(InvalidInputError, match="same plan whatever the noise"):
        list(taco.improve(still, bandit(), TACO, Rng(0)))


# GoRL

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
            GORL, iterations=2, stage_fractions=(1.0, 1.0), first_stage="actions", initial_std=1e-5, lr=0.0
        )
        latent_run(policy(), a)


def test_stages_share_all_iterations() -> None:
    assert gorl.split_iterations(6, (2, 2, 1, 1)) == [2, 2, 1, 1]
    for total in range(1, 30):
        parts = gorl.split_iterations(total, (2.0, 2.0, 1.0, 1.0))
        assert sum(parts) == total and parts[0] > 0 and min(parts) >= 0


# Beyond Human

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
