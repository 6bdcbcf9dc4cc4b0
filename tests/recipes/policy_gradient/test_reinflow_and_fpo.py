"""ReinFlow and FPO: where they end where the end is known, what they reduce to, what they refuse."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from denoiserl.control import value_baseline
from denoiserl.core.errors import InvalidInputError, OffPolicyError, RunError
from denoiserl.core.rng import Rng
from denoiserl.data import RunningNormCodec
from denoiserl.envs import Collector
from denoiserl.losses import weighted_loss
from denoiserl.nn import MLP, Value
from denoiserl.policy.policy import Policy
from denoiserl.processes import (
    Diffusion,
    GaussianDenoiser,
    GaussianHead,
    NoiseInjectedDenoiser,
    OneStep,
    ddim,
    linear,
    time_grid,
    with_min_std,
)
from denoiserl.processes.denoiser import Denoiser, Estimate
from denoiserl.recipes.policy_gradient import fpo, ppo, reinflow
from denoiserl.train import Run

gymnasium = pytest.importorskip("gymnasium")


class Bandit(gymnasium.Env):
    """One number is seen, 1, and one is set: reward −(a − 0.7)², once."""

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.action_space = gymnasium.spaces.Box(-100, 100, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action):
        return np.ones(1, np.float32), -float((action[0] - 0.7) ** 2), True, False, {}


class Sides(Bandit):
    """Reward 1 for an action beyond ±1: two ways to be right."""

    def step(self, action):
        return np.ones(1, np.float32), float(abs(action[0]) > 1), True, False, {}


class Reach(Bandit):
    """A point is moved to a target that is seen: reward −|x − target|, four ticks, then a time limit."""

    UNIT = 1000

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def seen(self) -> np.ndarray:
        return np.array([self.UNIT * self.x, self.target], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.target, self.ticks = 0.0, float(self.np_random.uniform(-1, 1)), 0
        return self.seen(), {}

    def step(self, action):
        self.x, self.ticks = self.x + 0.5 * float(np.clip(action[0], -1, 1)), self.ticks + 1
        return self.seen(), -abs(self.x - self.target), False, self.ticks >= 4, {}


class Plain(Reach):
    """In units of one."""

    UNIT = 1


def flow(steps: int = 4, chunk: int = 1, obs: int = 1, width: int = 32, codec: Any = None) -> Policy:
    """A flow that knows nothing: v = 0, so an action is a draw of N(0, 1)."""
    torch.manual_seed(0)
    process, times = Diffusion(linear, with_min_std(ddim(0.0), 0.1)), time_grid(steps)
    net = MLP((chunk, 1), cond=obs, width=width, depth=2, zero=True)
    serve = process.steps(times, ddim(0.0))
    return Policy.of(process, GaussianDenoiser(net, linear, "v"), (chunk, 1), process.steps(times), serve, codec)


def reacher() -> Policy:
    return flow(chunk=2, obs=2, codec=RunningNormCodec.without_statistics(2))


def served(made: Policy, n: int = 2000) -> Tensor:
    return made.generate(torch.ones(n, 1), Rng(7)).flatten()


REIN = reinflow.Args(iterations=2, rollout_steps=8, lr=3e-3, clip_range=0.1, batch_size=128)
FPO = fpo.Args(iterations=2, rollout_steps=8, lr=3e-3, batch_size=128, critic_warmup=0, epochs=5)
BOTH: dict[str, tuple[Any, Any]] = {"reinflow": (reinflow, REIN), "fpo": (fpo, FPO)}


def watched(patch: pytest.MonkeyPatch, *recipes: Any) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """The log ratios and the advantages of every minibatch of some recipes, as they learn."""
    told: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for recipe in recipes:
        seen = told.setdefault(recipe.__name__.rpartition(".")[2], [])

        def spy(logp: Tensor, old: Tensor, credit: Tensor, clip: float, seen=seen, original=recipe.ppo_clip) -> Tensor:
            seen.append(((logp - old).detach().flatten(), credit.flatten()))
            return original(logp, old, credit, clip)

        patch.setattr(recipe, "ppo_clip", spy)
    return told


def alike(ours: list[tuple[Tensor, Tensor]], theirs: list[tuple[Tensor, Tensor]]) -> None:
    """The same minibatches, which ended elsewhere than they began."""
    assert len(ours) == len(theirs) == 6
    for (gap, credit), (wanted, other) in zip(ours, theirs, strict=True):
        assert torch.allclose(gap, wanted, rtol=1e-2, atol=1e-3) and torch.allclose(credit, other, atol=1e-4)
    assert float(theirs[0][0].abs().max()) < 1e-5 and float(theirs[-1][0].abs().max()) > 1e-2


# Where they end


@pytest.mark.parametrize("name", BOTH)
def test_the_best_action_of_a_bandit_is_found(name: str) -> None:
    """From N(0, 1), whose mean reward is −1.49, to what is served being 0.7 and little else."""
    recipe, a = BOTH[name]
    made = flow()
    list(recipe.improve(made, Collector(Bandit, 32, 1), replace(a, iterations=30), Rng(0)))
    x = served(made)
    # Over eight seeds fpo learns 0.71 ± 0.065 and 0.006 ± 0.006, reinflow 0.70 ± 0.015 and 0.0002 ± 0.0004.
    assert float(x.mean()) == pytest.approx(0.7, abs=0.22)
    assert float(((x - 0.7) ** 2).mean()) < 0.05


def test_one_step_of_a_flow_explores_by_the_injected_noise_alone() -> None:
    """K = 1: a = x̂₀(z) + σ ξ; the answer moves, and what is served has no noise."""
    made = flow(steps=1)
    before = served(made)
    list(
        reinflow.improve(made, Collector(Bandit, 32, 1), replace(REIN, iterations=20, lr=1e-2, clip_range=0.3), Rng(0))
    )
    assert float(((before - 0.7) ** 2).mean()) > 1.2 and float(((served(made) - 0.7) ** 2).mean()) < 0.3
    assert torch.equal(served(made), served(made))


@pytest.mark.parametrize("name", BOTH)
def test_two_ways_to_be_right_stay_two(name: str) -> None:
    """N(0, 1) succeeds with probability 0.32, on both sides alike. No Gaussian can succeed often on both."""
    recipe, a = BOTH[name]
    made = flow(width=64)
    list(recipe.improve(made, Collector(Sides, 64, 1), replace(a, iterations=12), Rng(0)))
    x = served(made)
    assert float((x.abs() > 1).float().mean()) > 0.7
    assert float((x > 1).float().mean()) > 0.2 and float((x < -1).float().mean()) > 0.2


@pytest.mark.parametrize("name", BOTH)
def test_they_learn_to_reach_what_they_see_in_strange_units(name: str) -> None:
    recipe, a = BOTH[name]
    a = replace(a, iterations=10)
    rows = list(recipe.improve(reacher(), Collector(Reach, 32, 1), a, Rng(0)))
    first, last = (np.mean([r["rollout/return"] for r in part]) for part in (rows[:2], rows[-2:]))
    assert last > first + 0.5, f"the return went from {first:.2f} to {last:.2f}; the best is about -0.6"


@pytest.mark.parametrize("name", BOTH)
def test_a_resumed_run_ends_where_a_whole_one_ends(name: str, tmp_path) -> None:
    recipe, a = BOTH[name]
    a = replace(a, iterations=3, **({"bc_weight": 0.1} if name == "reinflow" else {}))
    run = lambda made, keep: recipe.improve(made, Collector(Reach, 8, 1), a, Rng(5), keep)  # noqa: E731
    whole = reacher()
    told = list(run(whole, Run(tmp_path / "whole", every=1, restart=1)))
    assert told == list(run(reacher(), Run(restart=1)))
    rows = run(reacher(), Run(tmp_path / "half", every=1, restart=1))
    next(rows)
    next(rows)
    del rows
    resumed = reacher()
    again = list(run(resumed, Run(tmp_path / "half", every=1, restart=1)))
    assert again == told[-len(again) :]
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), resumed.parameters(), strict=True))


# ReinFlow


def test_injected_noise_lies_in_its_range_and_leaves_the_denoiser_alone() -> None:
    inner = GaussianDenoiser(MLP(3, 2, width=16), linear, "v")
    noise = MLP(3, 2, 64, 2, residual=False, activation="tanh", zero=True)
    made = NoiseInjectedDenoiser(inner, noise, 0.1, 0.4)
    x, cond, t = torch.randn(50, 3), torch.randn(50, 2), torch.rand(50)

    def asked(one: Any) -> Any:
        return one(x, one.embed_time(t), one.embed_condition(cond))

    assert torch.equal(asked(made).mean, asked(inner).mean)
    assert torch.allclose(asked(made).extra["std"], torch.tensor(0.2)), "√(0.1 · 0.4) where the net says nothing"
    nn.init.normal_(noise.leave.weight, std=100.0)
    std = asked(made).extra["std"].detach()
    assert float(std.min()) == pytest.approx(0.1) and float(std.max()) == pytest.approx(0.4)
    made.max_std = 0.2
    assert float(asked(made).extra["std"].detach().max()) == pytest.approx(0.2)
    with pytest.raises(ValueError, match="0 < min_std <= max_std"):
        NoiseInjectedDenoiser(inner, noise, 0.2, 0.1)
    with pytest.raises(ValueError, match="noise network returns"):
        asked(NoiseInjectedDenoiser(inner, MLP(3, 2, width=8, out=1), 0.1, 0.2))


@pytest.mark.parametrize("steps", [1, 3])
def test_exploring_chains_replay_bit_by_bit_and_end_near_the_flow(steps: int) -> None:
    """The mean of an injected step is the ODE's: with noise that vanishes, a chain is the flow from the same z."""
    made = flow(steps=steps, chunk=2)
    nn.init.normal_(made.parameters()[-1], std=0.5)
    cond, z = torch.ones(16, 1), torch.randn(16, 2, 1)
    noisy, explorer = reinflow.with_noise_net(made, 1, 0.1, 0.3)
    nn.init.normal_(explorer.noise.leave.weight)  # type: ignore[union-attr, arg-type]
    chain = noisy.sample_chain(cond, Rng(0))
    law, y = noisy.rescore(chain, micro_batch_size=16)
    assert torch.equal(law.log_prob(y).detach(), chain.log_prob) and chain.log_prob.shape == (16, steps)
    flown = made.sample_chain(cond, Rng(0), use_eval_steps=True, start=(z, 0)).sample
    gaps = []
    for size in (1e-2, 1e-4):
        explorer.min_std = explorer.max_std = size
        gaps.append(float((noisy.sample_chain(cond, Rng(0), start=(z, 0)).sample - flown).abs().max()))
    assert gaps[0] < 0.2 and gaps[1] < 0.02 * gaps[0]


def test_the_ceiling_is_held_and_falls_to_its_last_share() -> None:
    levels = [reinflow.max_noise_schedule(done, 0.1, 0.24, 0.35, 0.7) for done in (0.0, 0.35, 0.675, 1.0)]
    assert levels == pytest.approx([0.24, 0.24, 0.24 - 0.15 * 0.14, 0.1 + 0.7 * 0.14])


def test_a_path_counts_once_and_its_ratio_is_one_before_the_first_step(monkeypatch) -> None:
    """log π of a decision is the sum over its steps and executed dimensions, over their number."""
    told: list[tuple[Tensor, Tensor]] = []
    original = reinflow.ppo_clip
    monkeypatch.setattr(
        reinflow, "ppo_clip", lambda logp, *rest: told.append((logp.detach(), rest[0])) or original(logp, *rest)
    )
    made = flow(steps=3, chunk=2, obs=2).with_execution_horizon(1)
    list(
        reinflow.improve(
            made,
            Collector(Reach, 32, 1),
            replace(REIN, iterations=1, lr=1e-4, batch_size=10_000, target_kl=9.0),
            Rng(0),
        )
    )
    assert told[0][0].shape == (256,), "32 copies, 8 decisions, 3 steps each"
    assert torch.allclose(told[0][0], told[0][1], atol=1e-5)
    assert not torch.allclose(told[1][0], told[1][1], atol=1e-5)
    std = math.sqrt(0.1 * 0.24)  # where the noise net starts; the density of ξ ~ N(0, 1) averages −½
    assert float(told[0][1].mean()) == pytest.approx(-math.log(std * math.sqrt(2 * math.pi)) - 0.5, abs=0.15)


class Skipping(Rng):
    """The stream of a process that draws its first state, for one that does not."""

    def noise(self, kind: str, steps: int, rows: int, shape: tuple[int, ...]) -> Tensor:
        self.normal(rows, *shape)
        return super().noise(kind, steps, rows, shape)


class Mean(Denoiser):
    """An answer that does not look at the state: a Gaussian policy's mean."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(2, 1)

    def forward(self, x: Any, clock: Any, context: Tensor) -> Estimate:
        return Estimate(self.net(context)[:, None])


def test_one_step_with_fixed_noise_is_ppo_on_a_gaussian_policy(monkeypatch) -> None:
    """K = 1 and least = most: a ~ N(x̂₀, σ²). Log ratios and advantages of every minibatch are PPO's."""
    told = watched(monkeypatch, reinflow, ppo)
    monkeypatch.setattr(Rng, "init", lambda self, make, *given, **more: make(*given, **more))  # one network and two
    monkeypatch.setattr(value_baseline, "Value", lambda *x, **more: torch.manual_seed(1) and Value(*x, **more))
    flat, one, ends = Diffusion(linear), OneStep(std=0.3), []
    for process in (flat, one):
        torch.manual_seed(0)
        steps = process.steps(time_grid(1))
        made = Policy.of(
            process, Mean(), (1, 1), steps, flat.steps(time_grid(1), ddim(0.0)) if process is flat else steps
        )
        more = {
            "iterations": 1,
            "rollout_steps": 8,
            "clip_range": 0.2,
            "epochs": 3,
            "batch_size": 32,
            "lr": 3e-3,
            "critic_warmup": 0,
        }
        if process is flat:
            a = reinflow.Args(**more, noise_std_min=0.3, noise_std_max=0.3, entropy_coef=0.0, target_kl=10.0)
            list(reinflow.improve(made, Collector(Plain, 8, 1), a, Rng(5)))
        else:
            list(
                ppo.improve(
                    made, Collector(Plain, 8, 1), ppo.Args(**more, max_grad_norm=1.0, target_kl=10.0), Skipping(5)
                )
            )
        ends.append(torch.cat([p.detach().flatten() for p in made.parameters()]))
    alike(told["reinflow"], told["ppo"])
    assert torch.allclose(ends[0], ends[1], atol=1e-4)


def test_the_policy_never_hears_of_the_noise_net(tmp_path) -> None:
    made = flow()
    before, size = [p.clone() for p in made.parameters()], len(made.parameters())
    list(reinflow.improve(made, Collector(Bandit, 8, 1), replace(REIN, bc_weight=0.1), Rng(0)))
    assert len(made.parameters()) == size
    assert any(not torch.equal(p, q) for p, q in zip(before, made.parameters(), strict=True))
    loaded = Policy.load(made.save(tmp_path / "p"))
    assert type(loaded.denoiser) is GaussianDenoiser and not any("noise" in k for k in loaded.denoiser.state_dict())
    assert torch.equal(served(loaded), served(made)) and not any(loaded.eval_steps.dense)


def test_the_distance_from_the_start_is_that_of_two_flows_from_one_z() -> None:
    """v = 0 serves z; v = c serves z − c: their distance is c², whatever the z, and W₂ of the two laws too."""
    made = flow(chunk=2)
    made.weights.snapshot("base")
    assert isinstance(made.denoiser, GaussianDenoiser) and isinstance(made.denoiser.net, MLP)
    with torch.no_grad():
        made.denoiser.net.leave.bias.copy_(torch.tensor([0.3, 9.0]))
    gap = reinflow.w2_bound(made, torch.ones(5, 1), Rng(0), 1)
    assert torch.allclose(gap, torch.full((5,), 0.09), atol=1e-5)
    gap.mean().backward()
    slope = made.denoiser.net.leave.bias.grad
    assert slope is not None and torch.allclose(slope, torch.tensor([0.6, 0.0]), atol=1e-5)


def test_a_strong_pull_keeps_the_policy_where_it_was() -> None:
    far = []
    for bc in (0.0, 30.0):
        made = flow()
        list(reinflow.improve(made, Collector(Bandit, 32, 1), replace(REIN, iterations=5, bc_weight=bc), Rng(0)))
        far.append(float((served(made) - served(flow())).square().mean()))
    assert far[1] < 0.2 * far[0]


# FPO


def pairs(made: Policy, env: Any = Reach, n: int = 4) -> tuple[Any, Any, Any]:
    """An episode, its pairs and their conditions, all decisions alive."""
    ep = Collector(env, 8, 1).collect(fpo.make_actor(made.with_execution_horizon(1), "eval"), 6, Rng(1))
    return ep, *fpo.draw_noise_pairs(ep, fpo.with_loss_weight(made.process, "noise"), n, Rng(2), torch.arange(48))


def test_the_ratio_is_one_while_the_policy_is_the_one_that_acted() -> None:
    made = flow(obs=2)
    _, kept, cond = pairs(made)
    process = fpo.with_loss_weight(made.process, "noise")
    old = fpo.losses(made, process, kept, cond)
    assert old.shape == (48, 4)
    assert torch.equal((old - fpo.losses(made, process, kept, cond)).mean(-1).exp(), torch.ones(48))
    # v = 0: ε̂ = x_t, so the loss is (α ε − α x₀)², that is (1 − t)² (ε − a)²
    action = made.codec.encode(kept.x0)
    wanted = ((1 - kept.t)[..., None, None] * (kept.noise - action)).square().mean((-1, -2))
    assert torch.allclose(old, wanted, rtol=1e-3, atol=1e-5)


def test_pairs_that_are_drawn_again_are_found_out(monkeypatch) -> None:
    """The losses of other pairs are other losses: their ratio is noise, not 1."""
    original, counter = fpo.losses, Rng(3)

    def again(policy: Policy, process: Any, kept: Any, cond: Tensor) -> Tensor:
        fresh = process.renoise(kept.x0[:, 0], kept.t.shape[1], counter)
        return original(policy, process, fresh._replace(mask=kept.mask), cond)

    monkeypatch.setattr(fpo, "losses", again)
    with pytest.raises(OffPolicyError, match="noise drawn again"):
        list(fpo.improve(flow(), Collector(Bandit, 8, 1), FPO, Rng(0)))


class Ordered(Rng):
    """Minibatches in the order of the record."""

    def permutation(self, n: int) -> Tensor:
        return torch.arange(n)


def test_the_first_gradient_is_reinforce_on_the_elbo(monkeypatch) -> None:
    """At ρ = 1 the surrogate's gradient is that of mean Â ℓ: regression weighted by advantages, of either sign."""
    made = flow(obs=2, width=16)
    for p in made.parameters():
        nn.init.normal_(p, std=0.3)
    seen: dict[str, Any] = {}
    original, drawn = fpo.ppo_clip, fpo.draw_noise_pairs

    def spy(gap: Tensor, same: Tensor, credit: Tensor, clip: float) -> Tensor:
        loss = original(gap, same, credit, clip)
        seen["credit"] = credit[:, 0]
        seen["slope"] = torch.autograd.grad(loss.mean(), made.parameters(), retain_graph=True)
        kept, cond = seen["pairs"]
        pull = weighted_loss(fpo.losses(made, process, kept, cond).mean(-1), seen["credit"]).mean()
        seen["wanted"] = torch.autograd.grad(pull, made.parameters())
        return loss

    process = fpo.with_loss_weight(made.process, "velocity")
    monkeypatch.setattr(fpo, "draw_noise_pairs", lambda *x: seen.setdefault("pairs", drawn(*x)))
    monkeypatch.setattr(fpo, "ppo_clip", spy)
    a = replace(FPO, iterations=1, epochs=1, batch_size=10_000, loss_weight="velocity")
    list(fpo.improve(made, Collector(Reach, 8, 1), a, Ordered(0)))
    assert float(seen["credit"].min()) < 0 < float(seen["credit"].max())
    for ours, theirs in zip(seen["slope"], seen["wanted"], strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-6)
    assert all(bool((g.abs() > 1e-3).any()) for g in seen["wanted"])


def head(obs: int = 2) -> Policy:
    torch.manual_seed(0)
    process, net = OneStep(), MLP((2, 1), cond=obs, width=16, depth=2, time=0)
    steps, serve = process.steps(time_grid(1)), process.steps(time_grid(1), std_scale=0.0)
    return Policy.of(process, GaussianHead(net, 1, 0.5), (2, 1), steps, serve)


@pytest.mark.parametrize("execute", [1, 2])
def test_on_a_gaussian_policy_it_is_ppo(execute: int, monkeypatch) -> None:
    """The loss of one Gaussian step is −log π itself: log ratios and advantages of every minibatch are PPO's."""
    told = watched(monkeypatch, fpo, ppo)
    more = {
        "iterations": 1,
        "rollout_steps": 8,
        "clip_range": 0.2,
        "epochs": 3,
        "batch_size": 32,
        "lr": 3e-3,
        "critic_warmup": 0,
    }
    one, other = (head().with_execution_horizon(execute) for _ in range(2))
    list(
        fpo.improve(one, Collector(Plain, 8, 1), fpo.Args(**more, num_noise_samples=1, rollout_sampler="train"), Rng(5))
    )
    a = ppo.Args(**more, max_grad_norm=1.0, target_kl=10.0)
    list(ppo.improve(other, Collector(Plain, 8, 1), a, Rng(5)))
    alike(told["fpo"], told["ppo"])


def test_it_learns_from_executed_actions_alone() -> None:
    """What was planned and not executed has no loss: the pairs' losses do not hear of it."""
    made = flow(chunk=3, obs=2)
    _, kept, cond = pairs(made)
    process = fpo.with_loss_weight(made.process, "noise")
    assert kept.mask.sum((-1, -2)).unique().tolist() == [1]
    other = kept._replace(noise=kept.noise.clone(), x0=kept.x0 + torch.tensor([[0.0], [5.0], [5.0]]))
    assert torch.equal(fpo.losses(made, process, kept, cond), fpo.losses(made, process, other, cond))


@pytest.mark.parametrize("ratio", ["mean", "each"])
def test_far_losses_are_clamped_before_the_exponential(ratio: Any, monkeypatch) -> None:
    gaps: list[Tensor] = []
    original = fpo.ppo_clip
    monkeypatch.setattr(fpo, "ppo_clip", lambda gap, *x: gaps.append(gap.detach()) or original(gap, *x))
    a = replace(FPO, iterations=3, lr=0.3, ratio_per=ratio, clip_range=0.2)
    list(fpo.improve(flow(), Collector(Bandit, 16, 1), a, Rng(0)))
    assert gaps[0].shape[1] == (1 if ratio == "mean" else 8)
    assert 1.5 < max(float(g.abs().max()) for g in gaps) <= 3.0


# What is refused


def test_what_does_not_fit_is_refused() -> None:
    env = Collector(Bandit, 2, 1)
    noisy = flow()
    with pytest.raises(InvalidInputError, match="served with noise"):
        list(reinflow.improve(replace(noisy, eval_steps=noisy.train_steps), env, REIN, Rng(0)))
    with pytest.raises(InvalidInputError, match="a Gaussian one needs ppo"):
        list(reinflow.improve(head(1), env, REIN, Rng(0)))
    with pytest.raises(InvalidInputError, match="rollout_sampler='train'"):
        list(fpo.improve(head(1), env, FPO, Rng(0)))
    for wrong, says in (({"rollout_sampler": "evl"}, "'eval'"), ({"ratio_per": "meen"}, "'mean'")):
        with pytest.raises(RunError, match=says):
            list(fpo.improve(flow(), env, replace(FPO, **wrong), Rng(0)))
    with pytest.raises(ValueError, match="'noise'"):
        list(fpo.improve(flow(), env, replace(FPO, loss_weight="nois"), Rng(0)))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", BOTH)
def test_a_policy_in_training_mode_is_found_out(name: str) -> None:
    recipe, a = BOTH[name]
    made = flow()
    assert isinstance(made.denoiser, GaussianDenoiser) and isinstance(made.denoiser.net, MLP)
    nn.init.normal_(made.denoiser.net.leave.weight)
    made.denoiser.net.leave = nn.Sequential(nn.Dropout(0.5), made.denoiser.net.leave)  # type: ignore[assignment]
    made.denoiser.train()
    with pytest.raises(OffPolicyError, match="dropout"):
        list(recipe.improve(made, Collector(Bandit, 8, 1), a, Rng(0)))
