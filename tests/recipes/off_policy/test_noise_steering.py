"""Steering: a policy of noise around a frozen base, exact where it can be, and DSRL on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from denoiserl import Diffusion, GaussianDenoiser, OneStep, Policy, Rng, rescore, time_grid
from denoiserl.claims.off_policy import dsrl as claim
from denoiserl.control.best_of_n import BestOfNNoise
from denoiserl.control.noise_steering import (
    as_deterministic,
    black_box,
    check_noise_effect,
    decode_noise,
    decode_noise_to_action,
    noise_distribution,
    noise_effect,
    steer,
)
from denoiserl.core.errors import InvalidInputError
from denoiserl.data import ReplayBuffer
from denoiserl.data.rollout import Rollout
from denoiserl.distributions import Squashed
from denoiserl.envs import Collector
from denoiserl.nn import MLP, TwoTimeNet
from denoiserl.processes import MeanFlow, MeanVelocityDenoiser, ddim, linear, with_min_std
from denoiserl.processes.denoiser import Denoiser, Estimate
from denoiserl.processes.steered import noise_basis
from denoiserl.recipes.off_policy import dsrl
from denoiserl.train import Run

gymnasium = pytest.importorskip("gymnasium")
BOUND = 1.5


def base(chunk: int = 4, churn: float = 0.0) -> Policy:
    torch.manual_seed(0)
    process = Diffusion(linear, with_min_std(ddim(0.0), 0.1), clip=3.0)
    net = MLP((chunk, 1), cond=1, width=32, depth=2)
    times = time_grid(4)
    return Policy.of(
        process, GaussianDenoiser(net, linear, "v"), (chunk, 1), process.steps(times), process.steps(times, ddim(churn))
    )


def stirred(made: Policy) -> Policy:
    """With a latent policy that is not where it starts."""
    torch.manual_seed(3)
    for p in made.denoiser.latent.parameters():
        p.data.add_(0.3 * torch.randn_like(p))
    return made


class Bandit(gymnasium.Env):
    """The best action is x + 0.4, once: reward 1 − (a − x − 0.4)²."""

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.action_space = gymnasium.spaces.Box(-2.0, 2.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = float(self.np_random.uniform(-0.5, 0.5))
        return np.array([self.x], np.float32), {}

    def step(self, action):
        return np.array([self.x], np.float32), 1 - float((action[0] - self.x - 0.4) ** 2), True, False, {}


def wiggle(obs: Tensor, noise: Tensor) -> Tensor:
    """A base whose actions are a bent function of its noise, and depend on what it sees."""
    return torch.tanh(noise) + 0.2 * obs[:, None]


# Steering is exact


@pytest.mark.parametrize("kind", ["full", "repeated", "smooth"])
def test_a_decided_noise_gives_what_the_base_makes_of_it(kind: Any) -> None:
    frozen = base()
    made = steer(frozen, 1, 16, noise_map=kind, rank=2)
    obs, rows = torch.randn(8, 1), {"full": 4, "repeated": 1, "smooth": 2}[kind]
    z = torch.rand(8, rows, 1) * 2 - 1
    noise = noise_basis(kind, 4, 2) @ (BOUND * z)
    chain = frozen.sample_chain(obs, Rng(0), use_eval_steps=True, start=(noise, 0))
    assert torch.allclose(decode_noise_to_action(made, obs, z), chain.sample, atol=1e-6)
    if kind == "full":
        assert torch.equal(
            decode_noise_to_action(made, obs, z),
            frozen.sample_chain(obs, Rng(0), use_eval_steps=True, start=(BOUND * z, 0)).sample,
        )


@pytest.mark.parametrize("kind", ["full", "smooth"])
@pytest.mark.parametrize("bound", [BOUND, None])
def test_the_decision_is_the_only_step_with_a_density_and_replays_exactly(kind: Any, bound: float | None) -> None:
    made = stirred(steer(base(), 1, 16, bound=bound, noise_map=kind, rank=2))
    obs = torch.randn(64, 1)
    chain = made.sample_chain(obs, Rng(1))
    assert chain.step.tolist() == [0] and chain.log_prob.shape == (64, 1)
    law, y = rescore(made.process, made.denoiser, chain)
    assert torch.equal(law.log_prob(y), chain.log_prob)
    law, y = made.rescore(chain.steps_at(torch.tensor([5, 3])))
    assert torch.allclose(law.log_prob(y), chain.log_prob[[5, 3], 0], atol=1e-5)
    z = y[:, : made.denoiser.rows] / (bound or 1.0)
    inner = noise_distribution(made, obs[[5, 3]])
    shift = 0.0 if bound is None else z[0].numel() * np.log(bound)
    assert torch.allclose(inner.log_prob(z) - shift, law.log_prob(y), atol=1e-4), "one density, in two units"
    assert isinstance(inner, Squashed) == (bound is not None)
    law.log_prob(y).sum().backward()
    assert all(p.grad is None for p in made.denoiser.base.parameters())
    assert any(bool(p.grad.any()) for p in made.denoiser.latent.parameters() if p.grad is not None)


def test_what_it_serves_is_the_base_at_the_mean_decision_and_narrow_noise_is_bounded() -> None:
    frozen, obs = base(), torch.randn(5000, 1)
    made = stirred(steer(frozen, 1, 16))
    mean = torch.tanh(noise_distribution(made, obs).base.mean)
    assert torch.allclose(made.generate(obs, Rng(0)), decode_noise_to_action(made, obs, mean), atol=1e-6)
    assert torch.equal(made.generate(obs, Rng(0)), made.generate(obs, Rng(5)))
    narrow = steer(frozen, 1, 16, eval_std_scale=1.0)
    start = narrow.sample_chain(obs, Rng(0), use_eval_steps=True).states[:, 1]
    assert bool((start.abs() <= BOUND).all()) and float(start.std()) == pytest.approx(
        0.942, abs=0.03
    )  # 1.5 std(tanh ε)


@pytest.mark.parametrize(("kind", "rank"), [("full", 1), ("repeated", 1), ("smooth", 3)])
def test_noise_maps_keep_the_variance_of_every_number(kind: Any, rank: int) -> None:
    made = noise_basis(kind, 8, rank)
    noise = made @ Rng(0).normal(20_000, made.shape[1], 2)
    assert torch.allclose(noise.var(0), torch.ones(8, 2), atol=0.06)
    assert torch.linalg.matrix_rank(made) == {"full": 8, "repeated": 1, "smooth": 3}[kind]


def test_a_steered_policy_is_saved_and_loaded_with_its_base(tmp_path: Path) -> None:
    made, obs = stirred(steer(base(), 1, 16, noise_map="smooth", rank=2)), torch.randn(8, 1)
    made.save(tmp_path / "p")
    again = Policy.load(tmp_path / "p")
    assert torch.equal(again.generate(obs, Rng(0)), made.generate(obs, Rng(0)))
    assert torch.equal(again.sample_chain(obs, Rng(2)).log_prob, made.sample_chain(obs, Rng(2)).log_prob)
    boxed = stirred(steer(black_box(wiggle, 1, 1), 1, 16))
    boxed.save(tmp_path / "box")
    again = Policy.load(tmp_path / "box", net=wiggle)  # type: ignore[arg-type]
    assert torch.equal(again.generate(obs, Rng(0)), boxed.generate(obs, Rng(0)))


# Learning

ADD = ReplayBuffer.add
SMALL = dsrl.Args(
    iterations=5,
    num_envs=8,
    rollout_steps=8,
    learning_starts=64,
    utd=1.0,
    batch_size=64,
    critic_width=32,
    lr=3e-3,
    tau=0.05,
    temperature_init=0.05,
    target_entropy=-2.0,
)


@pytest.mark.parametrize("aliased", [True, False])
def test_it_finds_the_noise_of_the_best_action_of_a_black_box(aliased: bool) -> None:
    made = steer(black_box(wiggle, 1, 1), 1, 32)
    rows = list(dsrl.improve(made, Collector(Bandit, 8, 1), replace(SMALL, aliased=aliased), Rng(3)))
    x = torch.tensor([[-0.4], [0.0], [0.4]])
    assert made.generate(x, Rng(0)).flatten().tolist() == pytest.approx((x + 0.4).flatten().tolist(), abs=0.15)
    assert rows[0]["policy/noise_sensitivity"] == pytest.approx(float(torch.tanh(torch.randn(100_000)).std()), abs=0.08)


def test_the_best_of_the_bases_plans_is_found_without_steering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The baseline: data from the base alone, N(0, 1) all along, and the best of its plans by Q_A, saved with it."""
    made, given = steer(black_box(wiggle, 1, 1), 1, 32), []
    monkeypatch.setattr(
        ReplayBuffer, "add", lambda self, ep, **more: given.append(more["z"]) or ADD(self, ep, **more), raising=True
    )
    a = claim.Args(**vars(replace(SMALL, num_envs=32, utd=0.25)), num_candidates=32)
    list(claim.improve(made, Collector(Bandit, 32, 1), a, Rng(3)))
    noise = BOUND * torch.cat([z.flatten() for z in given])
    x = torch.linspace(-0.4, 0.4, 41)[:, None]
    error = (made.generate(x, Rng(0)).flatten() - x.flatten() - 0.4).abs()
    control = made.weights.control
    assert isinstance(control, BestOfNNoise)
    alone = (
        made.with_controller(BestOfNNoise(control.verifier, 1)).generate(x, Rng(0)).flatten() - x.flatten() - 0.4
    ).abs()
    assert float(noise.mean()) == pytest.approx(0, abs=0.2) and float(noise.std()) == pytest.approx(1, abs=0.15)
    assert float(error.mean()) < 0.2 < 0.35 < float(alone.mean()), (error.mean(), alone.mean())
    made.save(tmp_path / "p")
    again = Policy.load(tmp_path / "p", net=wiggle)  # type: ignore[arg-type]
    assert torch.equal(again.generate(x, Rng(0)), made.generate(x, Rng(0)))


def test_learning_waits_for_a_batch() -> None:
    made = steer(black_box(wiggle, 1, 1), 1, 16)
    a = replace(SMALL, iterations=4, learning_starts=0, rollout_steps=3, utd=0.1)
    rows = list(dsrl.improve(made, Collector(Bandit, 8, 1), a, Rng(3)))
    assert ["loss/critic" in row for row in rows] == [False, False, True, True]


def test_repeated_noise_is_steered_and_the_temperature_stays_above_its_floor() -> None:
    made = steer(black_box(wiggle, 2, 1), 1, 32, noise_map="repeated")
    a = replace(SMALL, min_temperature=0.045, target_entropy=-9.0)
    rows = list(dsrl.improve(made, Collector(Bandit, 8, 1), a, Rng(3)))
    x = torch.tensor([[-0.4], [0.0], [0.4]])
    plan = made.generate(x, Rng(0))
    assert torch.equal(plan[:, 0], plan[:, 1])
    assert plan[:, 0].flatten().tolist() == pytest.approx((x + 0.4).flatten().tolist(), abs=0.15)
    assert 0.045 <= rows[-1]["policy/temperature"] < 0.0495


def test_a_hidden_network_is_steered_like_an_open_one_and_neither_changes() -> None:
    """The same run through a function that hides the network, as through a server."""
    frozen = base(chunk=1)
    before = {k: v.clone() for k, v in frozen.denoiser.state_dict().items()}

    def served(obs: Tensor, noise: Tensor) -> Tensor:
        return torch.tensor(frozen.sample_chain(obs, Rng(0), use_eval_steps=True, start=(noise, 0)).sample.tolist())

    found = []
    for policy in (frozen, black_box(served, 1, 1)):
        torch.manual_seed(1)
        made = steer(policy, 1, 16)
        list(
            dsrl.improve(
                made,
                Collector(Bandit, 4, 1),
                replace(SMALL, iterations=2, num_envs=4, learning_starts=32, batch_size=32),
                Rng(3),
            )
        )
        found.append(made.generate(torch.linspace(-1, 1, 5)[:, None], Rng(0)))
    assert torch.allclose(*found, atol=1e-4)
    assert all(torch.equal(v, before[k]) for k, v in frozen.denoiser.state_dict().items()), "bitwise"
    assert not any(p.requires_grad for p in frozen.denoiser.parameters())


class Mute(Bandit):
    """Gives no reward: what is good can be learned from others only."""

    def step(self, action):
        seen, _, *rest = super().step(action)
        return seen, 0.0, *rest


@pytest.mark.parametrize("way", [lambda v: v.numpy().astype("float64"), lambda v: v.tolist(), lambda v: v])
def test_a_server_may_answer_arrays_and_lists(way: Any) -> None:
    obs = torch.rand(5, 1)
    want = black_box(wiggle, 1, 1).generate(obs, Rng(3))
    assert torch.equal(black_box(lambda seen, noise: way(wiggle(seen, noise)), 1, 1).generate(obs, Rng(3)), want)


def test_actions_of_others_teach_the_critic_of_actions() -> None:
    """Demonstrations with rewards, whose noise nobody knows, and an environment that never says anything."""
    rng = Rng(9)
    x, action = rng.uniform(1, 800, 1) - 0.5, 4 * rng.uniform(1, 800, 1, 1) - 2
    over, length = torch.ones(1, 800, dtype=torch.bool), torch.ones(1, 800, dtype=torch.int64)
    reward = 2 - (action[..., 0, 0] - x[..., 0] - 0.4).square()
    demos = Rollout(x, x, action, reward, over, over, length, over[..., None])
    at = torch.linspace(-0.4, 0.4, 9)[:, None]

    def gap(made: Policy) -> float:
        return float((made.generate(at, Rng(0)).flatten() - at.flatten() - 0.4).abs().mean())

    a, gaps = replace(SMALL, iterations=4, learning_starts=0, rollout_steps=1, utd=12.0), []
    for seed in range(3):
        made = steer(black_box(wiggle, 1, 1), 1, 32)
        before = gap(made)
        list(dsrl.improve(made, Collector(Mute, 8, 1), a, Rng(3 + seed), None, demos))
        gaps.append((before, gap(made)))
    before, after = (sum(each) / 3 for each in zip(*gaps, strict=True))
    assert before > 0.3 and after < 0.3, gaps


@pytest.mark.parametrize("method", [dsrl, claim])
def test_the_same_seed_is_the_same_run_and_a_resumed_run_ends_where_it_would_have(tmp_path: Path, method: Any) -> None:
    def improve(folder: str, rows: int | None = None) -> tuple[Policy, Any]:
        torch.manual_seed(1)
        made = steer(base(chunk=2), 1, 16)
        a = method.Args(**vars(replace(SMALL, iterations=4, learning_starts=64, utd=0.2, buffer_size=150)))
        it = method.improve(made, Collector(Bandit, 8, 1), a, Rng(5), Run(tmp_path / folder, every=1, restart=1))
        return made, list(it) if rows is None else [next(it) for _ in range(rows)]

    (whole, rows), (_, again) = improve("whole"), improve("twin")
    assert rows == again
    improve("half", 3)
    resumed, _ = improve("half")
    for p, q in zip(whole.weights.module.parameters(), resumed.weights.module.parameters(), strict=True):
        assert torch.equal(p, q)
    obs = torch.linspace(-1, 1, 9)[:, None]
    assert torch.equal(whole.generate(obs, Rng(0)), resumed.generate(obs, Rng(0)))


def test_a_mean_flow_is_steered_by_its_one_step() -> None:
    """a = w − u(w, 0, 1): the plan of a decided noise, and what a run makes of what it decided."""
    torch.manual_seed(0)
    process = MeanFlow()
    net = MeanVelocityDenoiser(TwoTimeNet(MLP((4, 1), 1, 32, 2, 0)))
    flow = Policy.of(process, net, (4, 1), process.steps(time_grid(1), 0.1), process.steps(time_grid(1), 0.1))
    assert as_deterministic(flow).eval_steps.dense == (False,) and flow.eval_steps.dense == (True,)
    made, obs = stirred(steer(as_deterministic(flow), 1, 16)), torch.randn(8, 1)
    z = torch.rand(8, 4, 1) * 2 - 1
    w = BOUND * z
    at = net.embed_time_pair(torch.ones(8), torch.zeros(8))
    assert torch.allclose(decode_noise(made, obs, z), w - net.velocity(w, at, net.embed_condition(obs)), atol=1e-6)
    chain = made.sample_chain(obs, Rng(0))
    law, y = rescore(made.process, made.denoiser, chain)
    assert torch.equal(law.log_prob(y), chain.log_prob)


def test_what_cannot_be_steered_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="deterministic base"):
        steer(base(churn=1.0), 1)
    assert steer(as_deterministic(base(churn=1.0)), 1).eval_steps.dense == (False,) * 6
    with pytest.raises(InvalidInputError, match="has no ODE"):
        as_deterministic(black_box(wiggle, 1, 1))
    obs, rng = torch.randn(8, 1), Rng(0)
    loud = steer(black_box(lambda o, w: w + 0.1 * torch.randn_like(w), 1, 1), 1, 16)
    with pytest.raises(InvalidInputError, match="given twice"):
        check_noise_effect(loud, obs, rng)
    deaf = steer(black_box(lambda o, w: 0 * w + o[:, None], 1, 1), 1, 16)
    with pytest.raises(InvalidInputError, match="hardly depend on its noise"):
        check_noise_effect(deaf, obs, rng)
    with pytest.raises(InvalidInputError, match="hardly depend"):
        list(dsrl.improve(deaf, Collector(Bandit, 8, 1), SMALL, Rng(3)))
    process = OneStep(std=1.0)

    class Mean(Denoiser):
        def forward(self, x: Tensor, clock: Any, context: Any) -> Estimate:
            return Estimate(context[:, None])

    regression = Policy.of(process, Mean(), (1, 1), process.steps(time_grid(1), std_scale=0.0))
    assert noise_effect(steer(replace(regression, process=process), 1, 16), obs, rng)[0] < 1e-6
    short = steer(black_box(lambda o, w: w[:, :1], 2, 1), 1, 16)
    with pytest.raises(InvalidInputError, match="of the noise's shape"):
        short.generate(obs, rng)
    made = steer(base(), 1, 16)
    with pytest.raises(InvalidInputError, match="unsteered policy"):
        steer(made, 1)
    with pytest.raises(InvalidInputError, match="frozen"):
        made.elbo(torch.zeros(2, 4, 1), torch.zeros(2, 1), rng, 2)
    with pytest.raises(InvalidInputError, match="is not steered"):
        next(dsrl.improve(base(), Collector(Bandit, 8), SMALL, Rng(0)))
    with pytest.raises(InvalidInputError, match="critics of actions"):
        next(claim.improve(made, Collector(Bandit, 8), claim.Args(aliased=False), Rng(0)))
    with pytest.raises(InvalidInputError, match="inside a box"):
        next(dsrl.improve(steer(base(1), 1, 16, bound=None), Collector(Bandit, 8), SMALL, Rng(0)))
    with pytest.raises(InvalidInputError, match="Did you mean 'smooth'"):
        noise_basis("smoth", 4, 1)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="rank of a noise map"):
        noise_basis("smooth", 4, 5)


def test_the_wall_closes_one_way() -> None:
    """The claim's world: who passes below has failed at x = 0, who passes above goes on as in fork2d."""
    world = claim.Walled(2)
    world.reset(seed=0)
    world.position = torch.tensor([[-0.03, 0.6], [-0.03, -0.6]])
    _, reward, terminated, truncated, info = world.step(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    assert terminated.tolist() == [False, True] and not bool(truncated.any() | info["success"].any() | reward.any())
