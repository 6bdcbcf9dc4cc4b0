"""PPO and reward-weighted regression: what they converge to where the answer is known."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.core.rng import Rng
from denoiserl.data import RunningNormCodec
from denoiserl.data.rollout import Rollout
from denoiserl.envs import Collector
from denoiserl.nn import MLP
from denoiserl.policy.codec import InfillCodec
from denoiserl.policy.policy import Policy
from denoiserl.processes import (
    Diffusion,
    GaussianDenoiser,
    GaussianHead,
    Masked,
    OneStep,
    cosine,
    ddim,
    time_grid,
    with_min_std,
)
from denoiserl.processes.denoiser import Denoiser, Estimate
from denoiserl.recipes.generators import rwr
from denoiserl.recipes.policy_gradient import dppo, drwr, ppo
from denoiserl.train import Run, fit

gymnasium = pytest.importorskip("gymnasium")


class Linear(nn.Module):
    """A linear map of the observation to chunks [H, d]: policies whose parameters can be read."""

    def __init__(self, obs: int, chunk: tuple[int, int], bias: bool = True) -> None:
        super().__init__()
        self.chunk, self.map = chunk, nn.Linear(obs, chunk[0] * chunk[1], bias)
        nn.init.zeros_(self.map.weight)
        if bias:
            nn.init.zeros_(self.map.bias)

    def forward(self, x: Tensor, clock: Tensor, context: Tensor) -> Tensor:
        return self.map(context).unflatten(-1, self.chunk)


def gaussian(net: nn.Module, event: tuple[int, int], std: float, codec: Any = None, least: float = 0.0) -> Policy:
    process = OneStep()
    steps, serve = process.steps(time_grid(1)), process.steps(time_grid(1), std_scale=0.0)
    return Policy.of(process, GaussianHead(net, event[-1], std, least), event, steps, serve, codec)


def linear(chunk: int = 1, std: float = 0.5, bias: bool = True) -> tuple[Policy, Linear]:
    net = Linear(1, (chunk, 1), bias)
    return gaussian(net, (chunk, 1), std), net


def decided(net: Linear, prompt: int = 0) -> float:
    """The mean of the first action at an observation of 1 (in the dimension ``prompt``)."""
    return float(net.map.weight[0, prompt].detach() + net.map.bias[0].detach())


class World(gymnasium.Env):
    """One number is seen and one is set; wide boxes, so that nothing is clipped."""

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.action_space = gymnasium.spaces.Box(-100, 100, (1,), np.float32)

    def seen(self) -> np.ndarray:
        return np.array([self.x], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.ticks = 1.0, 0
        return self.seen(), {}


class Bandit(World):
    """Reward −(a − 0.7)², once."""

    def step(self, action):
        return self.seen(), -float((action[0] - 0.7) ** 2), True, False, {}


class Line(World):
    """Reward a, once."""

    def step(self, action):
        return self.seen(), float(action[0]), True, False, {}


class Regulator(World):
    """x' = x + a/2 + noise, cost x² + a²/2, cut after five ticks by a time limit that the state knows nothing of."""

    A, B, Q, R, GAMMA, LIMIT = 1.0, 0.5, 1.0, 0.5, 0.9, 5

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = float(self.np_random.normal())
        return self.seen(), {}

    def step(self, action):
        a = float(action[0])
        cost = self.Q * self.x**2 + self.R * a**2
        self.x = self.A * self.x + self.B * a + 0.1 * float(self.np_random.normal())
        self.ticks += 1
        return self.seen(), -cost, False, self.ticks >= self.LIMIT, {}

    @classmethod
    def gain(cls, sweeps: int) -> float:
        """The optimal feedback K of a = −K x with ``sweeps`` more ticks to come (Riccati's recursion)."""
        p = k = 0.0
        for _ in range(sweeps):
            k = cls.GAMMA * cls.A * cls.B * p / (cls.R + cls.GAMMA * cls.B**2 * p)
            p = cls.Q + cls.GAMMA * cls.A**2 * p - k * cls.GAMMA * cls.A * cls.B * p
        return k


class Reach(World):
    """A point is moved to a target: both are seen, in units that differ a thousandfold. Reward −|x − target|."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def seen(self) -> np.ndarray:
        return np.array([1000 * self.x, self.target], np.float32)

    def reset(self, *, seed=None, options=None):
        self.target = 0.0
        super().reset(seed=seed)
        self.x, self.target = 0.0, float(self.np_random.uniform(-1, 1))
        return self.seen(), {}

    def step(self, action):
        self.x, self.ticks = self.x + 0.5 * float(action[0]), self.ticks + 1
        return self.seen(), -abs(self.x - self.target), False, self.ticks >= 4, {}


PPO = ppo.Args(
    iterations=2,
    rollout_steps=8,
    lr=3e-3,
    final_lr_fraction=0.0,
    epochs=4,
    batch_size=128,
    critic_warmup=0,
    target_kl=1.0,
)


# The Gaussian policy


def test_a_gaussian_head_starts_at_its_std_keeps_its_floor_and_is_saved(tmp_path) -> None:
    head = GaussianHead(MLP((2, 3), cond=4, width=8, depth=1, time=0, zero=True), 3, 0.5, 0.2)
    assert torch.allclose(head.std, torch.full((3,), 0.5))
    with torch.no_grad():
        head.log_std.fill_(-50.0)
    assert torch.allclose(head.std, torch.full((3,), 0.2)), "the floor holds however far the parameter goes"
    process, obs = OneStep(), Rng(1).normal(5, 4)
    steps, serve = process.steps(time_grid(1)), process.steps(time_grid(1), std_scale=0.0)
    made = Policy.of(process, head, (2, 3), steps, serve)
    for p in head.parameters():
        nn.init.normal_(p, std=0.3)
    loaded = Policy.load(made.save(tmp_path / "p"))
    for serving in (True, False):
        a, b = (m.sample_chain(obs, Rng(7), use_eval_steps=serving).sample for m in (made, loaded))
        assert torch.equal(a, b)
    assert torch.equal(loaded.generate(obs, Rng(7)), loaded.generate(obs, Rng(8))), "what is served is the mean"
    assert loaded.sample_chain(obs, Rng(7), use_eval_steps=True).log_prob.numel() == 0, "a mean has no density"
    with pytest.raises(ValueError, match="0 <= min_std < std"):
        GaussianHead(nn.Identity(), 1, 0.1, 0.1)
    with pytest.raises(ValueError, match="std_scale"):
        OneStep("categorical").steps(time_grid(1), 0.5)


def test_running_statistics_are_those_of_everything_seen() -> None:
    parts = [Rng(k).normal(n, 3) * 5 + 100 * k for k, n in enumerate((1, 40, 7))]
    codec = RunningNormCodec.without_statistics(3)
    assert torch.equal(codec.condition(parts[0]), parts[0].clamp(-10, 10)), "nothing seen, nothing changed"
    for part in parts:
        codec.update(part)
    seen = torch.cat(parts)
    assert torch.allclose(codec.mean, seen.mean(0), atol=1e-3)
    assert torch.allclose(codec.variance, seen.var(0, correction=0), rtol=1e-4)
    z = codec.condition(seen)
    assert torch.allclose(z.std(0, correction=0), torch.ones(3), atol=1e-3)
    with pytest.raises(InvalidInputError, match="observations of 3"):
        codec.update(torch.zeros(2, 4))


# PPO


def test_ppo_finds_the_best_arm_of_a_gaussian_bandit() -> None:
    made, net = linear()
    a = replace(PPO, iterations=25, lr=3e-2)
    list(ppo.improve(made, Collector(Bandit, 32, 1), a, Rng(0)))
    assert decided(net) == pytest.approx(0.7, abs=0.05)
    head = made.denoiser
    assert isinstance(head, GaussianHead) and float(head.std.detach()) < 0.4, (
        "where reward is lost by noise, noise shrinks"
    )


def test_ppo_solves_a_linear_quadratic_regulator_beyond_its_time_limit() -> None:
    """The gain is that of the endless problem: a time limit is no end. Where it were one, the mean optimal gain would
    be lower."""
    wanted = Regulator.gain(200)
    assert np.mean([Regulator.gain(n) for n in range(1, 6)]) < 0.75 * wanted
    made, net = linear(std=0.5, bias=False)
    a = replace(
        PPO,
        iterations=40,
        rollout_steps=20,
        gamma=Regulator.GAMMA,
        gae_lambda=0.95,
        lr=3e-2,
        value_lr=3e-3,
        batch_size=256,
    )
    list(ppo.improve(made, Collector(Regulator, 32, 1), a, Rng(0)))
    assert -float(net.map.weight.detach()) == pytest.approx(wanted, rel=0.2)


@pytest.mark.parametrize("execute", [1, 3])
def test_the_ratio_is_one_before_the_first_update(execute: int, monkeypatch) -> None:
    made = linear(chunk=3)[0].with_execution_horizon(execute)
    seen: list[tuple[Tensor, Tensor]] = []
    original = ppo.ppo_clip

    def spy(logp, old, advantage, clip):
        seen.append((logp.detach(), old))
        return original(logp, old, advantage, clip)

    monkeypatch.setattr(ppo, "ppo_clip", spy)
    list(ppo.improve(made, Collector(Regulator, 8, 1), PPO, Rng(0)))
    (logp, old), (later, before) = seen[0], seen[1]
    assert torch.allclose(logp, old, atol=1e-5) and not torch.allclose(later, before, atol=1e-5)
    std = torch.tensor(0.5)
    density = torch.distributions.Normal(0.0, std).log_prob(std).item()
    assert abs(float(old.mean()) / execute - (density)) < 0.3, "the joint log-prob is that of the executed actions"


def test_one_denoising_step_is_dppos_objective(monkeypatch) -> None:
    """One decision of one dimension: the joint ratio is the geometric mean, and all else that is weighed agrees."""
    told: dict[str, tuple[Any, ...]] = {}
    for recipe in (ppo, dppo):
        original = recipe.ppo_clip

        def spy(*x: Any, name: str = recipe.__name__, original: Any = original) -> Tensor:
            told.setdefault(name, tuple(v.detach() for v in x[:3]))
            return original(*x)

        monkeypatch.setattr(recipe, "ppo_clip", spy)
        torch.manual_seed(0)
        made, _ = linear()
        a: Any = replace(PPO, iterations=1, epochs=1, batch_size=10_000, clip_range=0.2)
        if recipe is dppo:
            a = dppo.Args(
                iterations=1,
                rollout_steps=8,
                epochs=1,
                batch_size=10_000,
                clip_range=0.2,
                clip_range_noisiest=0.2,
                value_lr=a.value_lr,
            )
        list(recipe.improve(made, Collector(Regulator, 8, 1), a, Rng(0)))
    for ours, theirs in zip(*told.values(), strict=True):
        assert ours.std() > 0.1 and torch.allclose(ours, theirs, atol=1e-5)


def reacher() -> Policy:
    torch.manual_seed(0)
    net = MLP((2, 1), cond=2, width=32, depth=2, time=0, zero=True)
    return gaussian(net, (2, 1), 0.6, RunningNormCodec.without_statistics(2), least=0.05)


def test_ppo_learns_to_reach_what_it_sees_in_strange_units() -> None:
    made, a = reacher(), replace(PPO, iterations=15, num_envs=32, epochs=6)
    rows = list(ppo.improve(made, Collector(Reach, 32, 1), a, Rng(0)))
    first, last = (np.mean([r["rollout/return"] for r in part]) for part in (rows[:2], rows[-2:]))
    assert last > first + 0.6, f"the return went from {first:.2f} to {last:.2f}; the best is about -0.6"


def test_ppo_ends_where_a_resumed_one_ends_with_what_it_has_seen(tmp_path) -> None:
    a = replace(PPO, iterations=3, entropy_coef=0.01)
    whole = reacher()
    told = list(ppo.improve(whole, Collector(Reach, 8, 1), a, Rng(5), Run(tmp_path / "whole", every=1, restart=1)))
    rows = ppo.improve(reacher(), Collector(Reach, 8, 1), a, Rng(5), Run(tmp_path / "half", every=1, restart=1))
    next(rows)
    next(rows)
    del rows
    resumed = reacher()
    again = list(ppo.improve(resumed, Collector(Reach, 8, 1), a, Rng(5), Run(tmp_path / "half", every=1, restart=1)))
    assert again == told[-len(again) :]
    assert isinstance(whole.codec, RunningNormCodec) and isinstance(resumed.codec, RunningNormCodec)
    assert float(whole.codec.count) == 3 * 8 * 8 and torch.equal(whole.codec.mean, resumed.codec.mean)
    obs = torch.tensor([[300.0, 0.5]])
    assert torch.equal(whole.generate(obs, Rng(0)), resumed.generate(obs, Rng(0)))


def test_entropy_is_rewarded_and_warmup_leaves_the_actor_alone() -> None:
    stds = []
    for entropy in (0.0, 3.0):
        made, _ = linear()
        list(
            ppo.improve(
                made, Collector(Bandit, 16, 1), replace(PPO, iterations=4, entropy_coef=entropy, lr=3e-2), Rng(0)
            )
        )
        assert isinstance(made.denoiser, GaussianHead)
        stds.append(float(made.denoiser.std.detach()))
    assert stds[0] < 0.5 < stds[1]
    made, net = linear()
    warm = replace(PPO, iterations=13, critic_warmup=12, value_lr=1e-2)
    rows = list(islice(ppo.improve(made, Collector(Bandit, 16, 1), warm, Rng(1)), 12))
    errors = [row["loss/value"] for row in rows]
    assert decided(net) == 0.0 and "kl" not in rows[-1] and float(np.mean(errors[4:])) < errors[0]


def test_ppo_refuses_what_it_cannot_improve() -> None:
    process = Diffusion(cosine, with_min_std(ddim(1.0), 0.1))
    made = Policy.of(
        process, GaussianDenoiser(MLP((1, 1), cond=1, width=8), cosine, "v"), (1, 1), process.steps(time_grid(2))
    )
    with pytest.raises(InvalidInputError, match="dppo"):
        list(ppo.improve(made, Collector(Bandit, 2, 1), PPO, Rng(0)))
    with pytest.raises(InvalidInputError, match="execution_horizon is between 1 and the chunk's 1"):
        list(ppo.improve(linear()[0].with_execution_horizon(2), Collector(Bandit, 2, 1), PPO, Rng(0)))


# Reward-weighted regression in an environment


def test_an_iteration_of_drwr_tilts_by_the_standardised_return() -> None:
    """Reward a, policy N(0, s²): z = a / s, and N(0, s²) exp(β a / s) is N(β s, s²) up to its norm."""
    made, net = linear(std=0.5)
    a = drwr.Args(
        iterations=1,
        rollout_steps=64,
        inverse_temperature=0.6,
        lr=3e-2,
        epochs=100,
        batch_size=4096,
        rollout_sampler="train",
    )
    (row,) = drwr.improve(made, Collector(Line, 64, 1), a, Rng(0))
    assert decided(net) == pytest.approx(0.6 * 0.5, abs=0.04)
    assert isinstance(made.denoiser, GaussianHead) and float(made.denoiser.std.detach()) == pytest.approx(
        0.5, abs=0.035
    )
    assert row["awr/ess_fraction"] == pytest.approx(math.exp(-(0.6**2)), abs=0.05), "1 / E[w²] of a lognormal"


def record(reward: list[float], done: list[bool], length: list[int], ticks: list[int]) -> Rollout:
    """An episode of one copy."""
    empty, many = torch.zeros(len(reward), 1, 1), torch.tensor(length)[:, None]
    return Rollout(
        empty,
        empty,
        empty,
        torch.tensor(reward)[:, None],
        torch.tensor(done)[:, None],
        torch.tensor(done)[:, None],
        many,
        torch.arange(2) < many[..., None],
        info={"length": torch.tensor(ticks)[:, None]},
    )


def test_returns_are_discounted_from_the_decision_and_unfinished_episodes_do_not_count() -> None:
    ep = record([0, 0, 8, 0, 16, 1], [False, False, True, False, True, False], [2, 2, 1, 2, 2, 2], [2, 4, 5, 2, 4, 2])
    assert drwr.finished_mask(ep).flatten().tolist() == [True] * 5 + [False]
    assert drwr.returns_to_go(ep, 0.5).flatten().tolist()[:5] == [8 / 16, 8 / 4, 8, 16 / 4, 16]
    swallowed = record([1, 0, 1], [True, False, True], [1, 0, 1], [1, 0, 1])
    assert drwr.finished_mask(swallowed).flatten().tolist() == [True, False, True]


def test_drwr_learns_from_executed_actions_alone_and_needs_whole_episodes() -> None:
    made, net = linear(chunk=3)
    list(
        drwr.improve(
            made,
            Collector(Line, 32, 1),
            drwr.Args(iterations=1, rollout_steps=8, lr=1e-2, rollout_sampler="train"),
            Rng(0),
        )
    )
    moved = (net.map.bias.abs() > 0).tolist()
    assert moved == [True, False, False], "the first action ends the episode, the others never happened"
    with pytest.raises(RunError, match="Did you mean 'eval'"):
        list(drwr.improve(linear()[0], Collector(Line, 2, 1), drwr.Args(rollout_sampler="evals"), Rng(0)))  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="raise rollout_steps"):
        list(drwr.improve(linear()[0], Collector(Regulator, 4, 1), drwr.Args(iterations=1, rollout_steps=4), Rng(0)))


def test_drwr_learns_to_reach_with_a_diffusion_policy() -> None:
    torch.manual_seed(0)
    process = Diffusion(cosine, with_min_std(ddim(1.0), 0.2), clip=1.0)
    net = MLP((2, 1), cond=2, width=64, depth=2)
    codec = RunningNormCodec.without_statistics(2)
    codec.update(torch.tensor([[0.0, -1.0], [0.0, 1.0], [500.0, 0.0], [-500.0, 0.0]]))
    made = Policy.of(process, GaussianDenoiser(net, cosine, "v"), (2, 1), process.steps(time_grid(3)), codec=codec)
    rng = Rng(3)
    for _ in fit(process, made.denoiser, rng.uniform(512, 2, 1) * 2 - 1, rng.normal(512, 2), 100, rng):
        pass
    a = drwr.Args(
        iterations=12,
        rollout_steps=4,
        lr=2e-3,
        inverse_temperature=5.0,
        epochs=8,
        batch_size=128,
        rollout_sampler="train",
    )
    rows = list(drwr.improve(made, Collector(Reach, 64, 1), a, Rng(0)))
    first, last = (np.mean([r["rollout/return"] for r in part]) for part in (rows[:2], rows[-2:]))
    assert last > first + 0.5, f"the return went from {first:.2f} to {last:.2f}; the best is about -0.6"


# Reward-weighted regression of a generator

RWR = rwr.Args(
    iterations=1, num_prompts=1, group_size=16384, inverse_temperature=0.5, epochs=60, batch_size=16384, lr=3e-2
)
NOTHING = torch.ones(1, 1)


@pytest.mark.parametrize(
    ("share", "mean", "std"), [(None, 0.5, 1.0), (0.5, math.sqrt(2 / math.pi), math.sqrt(1 - 2 / math.pi))]
)
def test_a_round_of_rwr_tilts_a_gaussian(share: float | None, mean: float, std: float) -> None:
    """N(0, 1) exp(βx) is N(β, 1) up to its norm; the upper half of N(0, 1) has mean √(2/π)."""
    made, net = linear(std=1.0)
    list(rwr.improve(made, (lambda x, p: x[:, 0, 0], NOTHING), replace(RWR, top_fraction=share), Rng(0)))
    assert decided(net) == pytest.approx(mean, abs=0.08)
    assert isinstance(made.denoiser, GaussianHead) and float(made.denoiser.std.detach()) == pytest.approx(std, abs=0.06)


def test_prompts_are_tilted_apart() -> None:
    """Rewards of opposite sign, one on a scale of hundreds above the other: each prompt has a tilt of its own."""
    net = Linear(2, (1, 1))
    made = gaussian(net, (1, 1), 1.0)
    a = replace(RWR, num_prompts=8, group_size=512)
    reward = lambda x, p: x[:, 0, 0] * (2 * p[:, 0] - 1) + 300 * p[:, 0]  # noqa: E731
    list(rwr.improve(made, (reward, torch.eye(2)), a, Rng(0)))
    up, down = (decided(net, k) for k in (0, 1))
    assert up == pytest.approx(0.5, abs=0.12) and down == pytest.approx(-0.5, abs=0.12)  # 0.03 over seeds


def test_a_round_of_rwr_tilts_a_flow_through_its_denoising_loss() -> None:
    """Two modes of equal mass, reward 1 in the right one: its share becomes e^β / (1 + e^β), and modes stay modes."""
    process = Diffusion()
    net, prompt = GaussianDenoiser(MLP((1,), cond=1, width=64, depth=2)), torch.ones(4096, 1)
    made = Policy.of(process, net, (1,), process.steps(time_grid(20)), process.steps(time_grid(20), ddim(0.0)))
    rng, x0 = Rng(0), torch.tensor([-1.0, 1.0]).repeat(2048)[:, None]
    for _ in fit(process, made.denoiser, x0 + 0.1 * rng.normal(4096, 1), prompt, 500, rng, lr=5e-3):
        pass
    before = made.generate(prompt, Rng(1))
    a = replace(RWR, inverse_temperature=1.5, epochs=40, batch_size=256, lr=1e-3)
    list(rwr.improve(made, (lambda x, p: (x[:, 0] > 0).float(), NOTHING), a, Rng(2)))
    after = made.generate(prompt, Rng(1))
    assert float((before > 0).float().mean()) == pytest.approx(0.5, abs=0.06)
    assert float((after > 0).float().mean()) == pytest.approx(1 / (1 + math.exp(-1.5)), abs=0.05)
    assert float((after.abs() - 1).abs().mean()) < 0.2


class Table(Denoiser):
    """Logits that do not look: tokens are independent, and the weights are the law."""

    def __init__(self, length: int, vocab: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(length, vocab))

    def forward(self, x: Any, clock: Any, context: Any) -> Estimate:
        return Estimate(self.logits.expand(len(x), *self.logits.shape))


def test_a_round_of_rwr_tilts_tokens_and_leaves_the_prompt_alone() -> None:
    """Uniform tokens, reward the number written: p becomes softmax(β · number). The given token has no loss."""
    process, net = Masked(vocab=4), Table(2, 4)
    steps = process.steps(time_grid(2))
    made = Policy.of(process, net, (2,), steps, codec=InfillCodec())
    canvas = torch.tensor([[3, process.mask_token]])
    a = replace(RWR, inverse_temperature=0.8, epochs=80, lr=5e-2)
    list(rwr.improve(made, (lambda x, p: x[:, 1].float(), canvas), a, Rng(0)))
    wanted = (0.8 * torch.arange(4.0)).softmax(-1)
    assert torch.allclose(net.logits[1].softmax(-1), wanted, atol=0.03)
    assert torch.equal(net.logits[0], torch.zeros(4))


def test_weights_have_mean_one_and_bad_rewards_none() -> None:
    reward = torch.tensor([[0.0, 1.0, 2.0, torch.nan], [3.0, 3.0, 3.0, 3.0], [torch.nan] * 4])
    valid = reward.isfinite()
    soft, hard = rwr.exponential_weights(reward, 1.0, valid), rwr.top_share_weights(reward, 0.5, valid)
    for weight in (soft, hard):
        assert torch.allclose(weight.sum(-1), torch.tensor([3.0, 4.0, 0.0])), "as many as are valid"
        assert (weight[~valid] == 0).all() and torch.equal(weight[1], torch.ones(4))
    assert torch.allclose(soft[0, 2] / soft[0, 0], torch.tensor(math.e**2))
    assert hard[0].tolist() == [0.0, 1.5, 1.5, 0.0]
    assert torch.allclose(rwr.exponential_weights(1000 * reward, 1.0, valid)[0, :3], torch.tensor([0.0, 0.0, 3.0])), (
        "no overflow"
    )
    with pytest.raises(InvalidInputError, match="share"):
        rwr.top_share_weights(reward, 0.0, valid)
    with pytest.raises(InvalidInputError, match="negate the reward"):
        rwr.exponential_weights(reward, -1.0, valid)


def test_rwr_drops_bad_rewards_and_refuses_what_teaches_nothing() -> None:
    def strange(x: Tensor, prompts: Tensor) -> Tensor:
        return x[:, 0, 0].index_fill(0, torch.tensor([5]), torch.nan)

    a = replace(RWR, group_size=64, epochs=1, batch_size=64)
    (row,) = rwr.improve(linear()[0], (strange, NOTHING), a, Rng(0))
    assert row["rollout/num_invalid_rewards"] == 1 and math.isfinite(row["loss/policy"])
    with pytest.raises(InvalidInputError, match=r"\b5\b"):
        list(rwr.improve(linear()[0], (strange, NOTHING), replace(a, invalid_rewards="error"), Rng(0)))
    with pytest.raises(RunError, match="prompt"):
        list(rwr.improve(linear()[0], (strange, NOTHING), replace(a, compare_within="promt"), Rng(0)))  # type: ignore[arg-type]
