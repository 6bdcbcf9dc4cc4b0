"""Robot recipes: what they learn, what they reduce to, what they refuse."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from denoiserl import Diffusion, GaussianDenoiser, OneStep, Policy, Rng, time_grid
from denoiserl.core.errors import InvalidInputError, OffPolicyError
from denoiserl.envs import Collector
from denoiserl.nn import MLP
from denoiserl.processes import Relay, cosine, ddim, with_min_std
from denoiserl.processes.denoiser import Denoiser, Estimate
from denoiserl.recipes.policy_gradient import dppo
from denoiserl.train import Run

gymnasium = pytest.importorskip("gymnasium")


class Reach(gymnasium.Env):
    """A point on a line is to be put at a target that is seen: reward −|x − target|, four ticks."""

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(-2, 2, (2,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def _seen(self) -> np.ndarray:
        return np.array([self.x, self.target], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.target, self.ticks = 0.0, float(self.np_random.uniform(-1, 1)), 0
        return self._seen(), {}

    def step(self, action):
        self.x, self.ticks = float(np.clip(self.x + 0.5 * action[0], -2, 2)), self.ticks + 1
        return self._seen(), -abs(self.x - self.target), False, self.ticks >= 4, {}


def policy(denoise: int = 4, chunk: int = 2, floor: float = 0.2) -> Policy:
    torch.manual_seed(0)
    process = Diffusion(cosine, with_min_std(ddim(1.0), floor), clip=1.0)
    net = MLP((chunk, 1), cond=2, width=64, depth=2)
    return Policy.of(process, GaussianDenoiser(net, cosine, "v"), (chunk, 1), process.steps(time_grid(denoise)))


ARGS = dppo.Args(iterations=2, rollout_steps=6, batch_size=256, lr=1e-3, clip_range=0.05)


def improve(made: Policy, a: dppo.Args, copies: int = 16, keep: Run | None = None) -> list[dict]:
    return list(dppo.improve(made, Collector(Reach, copies, 1), a, Rng(5), keep))


def test_dppo_learns_to_reach() -> None:
    rows = improve(policy(), dataclasses.replace(ARGS, iterations=15, rollout_steps=12, epochs=5, lr=2e-3), copies=24)
    first, last = (np.mean([r["rollout/return"] for r in part]) for part in (rows[:3], rows[-3:]))
    assert last > first + 0.8, f"the return went from {first:.2f} to {last:.2f}; a perfect policy has about -0.6"


def test_dppo_is_the_same_run_twice_and_ends_where_a_resumed_one_ends(tmp_path) -> None:
    once, again = improve(policy(), ARGS), improve(policy(), ARGS)
    assert once == again
    whole = policy()
    improve(whole, ARGS, keep=Run(tmp_path / "whole", every=1, restart=1))
    halves = policy()
    rows = dppo.improve(halves, Collector(Reach, 16, 1), ARGS, Rng(5), Run(tmp_path / "half", every=1, restart=1))
    next(rows)
    next(rows)  # the first iteration is saved when the second one begins
    del rows
    resumed = policy()
    improve(resumed, ARGS, keep=Run(tmp_path / "half", every=1, restart=1))
    for p, q in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_frozen_prefix_stays_frozen_and_the_tuned_suffix_moves() -> None:
    made = policy(denoise=4)
    before = [p.clone() for p in made.parameters()]
    improve(made, dataclasses.replace(ARGS, finetune_denoising_steps=2))
    assert isinstance(made.denoiser, Relay)
    frozen = list(made.denoiser.first.parameters())
    assert all(torch.equal(p, q) for p, q in zip(before, frozen, strict=True))
    assert any(not torch.equal(p, q) for p, q in zip(before, made.parameters(), strict=True))


def test_only_executed_actions_count() -> None:
    """With T_a < H the gradient must not depend on the planned actions that were never executed."""
    made = policy(chunk=4)
    env, act = Collector(Reach, 8, 1), dppo.training_actor(made, 4, 2)
    chain = env.collect(act, 2, Rng(0)).chain
    assert chain is not None
    kept = dppo.mask_unexecuted(chain, 2)
    law, y = made.rescore(kept)
    assert isinstance(y, torch.Tensor)
    other = y.clone()
    other[..., 2:, :] += 3.0
    assert torch.equal(law.log_prob(y), law.log_prob(other))
    assert torch.equal(law.num_factors, torch.full_like(law.num_factors, 2.0))


class Head(Denoiser):
    """A Gaussian policy's mean."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(2, 1)

    def forward(self, x, clock, context) -> Estimate:
        return Estimate(self.net(context)[:, None])


def test_one_step_is_ppo_on_a_gaussian_policy() -> None:
    """K = 1, T_a = 1, γ_d = 1: the update equals PPO's, written out with torch.distributions."""
    torch.manual_seed(0)
    process = OneStep(std=0.3)
    made = Policy.of(process, Head(), (1, 1), process.steps(time_grid(1)))
    a = dataclasses.replace(
        ARGS,
        iterations=1,
        rollout_steps=8,
        epochs=1,
        batch_size=10_000,
        clip_range=0.2,
        clip_range_noisiest=0.2,
        denoising_discount=1.0,
    )
    twin, opt = Head(), None
    twin.load_state_dict(made.denoiser.state_dict())
    seen = {}
    original = dppo.ppo_clip

    def spy(logp, old, advantage, clip):
        seen.update(old=old, advantage=advantage)
        return original(logp, old, advantage, clip)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dppo, "ppo_clip", spy)
        env = Collector(Reach, 8, 1)
        episode = {}
        collect = env.collect
        patch.setattr(env, "collect", lambda *x: episode.setdefault("ep", collect(*x)))
        list(dppo.improve(made, env, a, Rng(5)))
    ep = episode["ep"]
    order = Rng(5)  # the minibatch is a permutation: match rows by their old log-probs
    del order
    mean = twin.net(ep.obs.flatten(0, 1))[:, 0]
    action = ep.chain.sample.flatten()
    logp = torch.distributions.Normal(mean, 0.3).log_prob(action)
    index = (seen["old"][:, None] - logp.detach()[None]).abs().argmin(1)
    ratio = (logp[index] - logp[index].detach()).exp()
    loss = -torch.minimum(ratio * seen["advantage"], ratio.clamp(0.8, 1.2) * seen["advantage"]).mean()
    opt = torch.optim.AdamW(twin.parameters(), a.lr, weight_decay=0.0)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
    opt.step()
    for p, q in zip(made.denoiser.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="finetune_denoising_steps is between 1 and the 4"):
        dppo.training_actor(policy(), 5, 2)
    with pytest.raises(InvalidInputError, match="execution_horizon is between 1 and the chunk's 2"):
        dppo.training_actor(policy(), 4, 3)
    with pytest.raises(InvalidInputError, match="no noise"):
        dppo.training_actor(policy(floor=0.0), 4, 2)


def test_a_policy_in_training_mode_is_found_out() -> None:
    """Dropout makes the scored policy another one than the one that drew."""
    made = policy()
    assert isinstance(made.denoiser, GaussianDenoiser)
    made.denoiser.net.leave = nn.Sequential(nn.Dropout(0.5), made.denoiser.net.leave)
    made.denoiser.train()
    with pytest.raises(OffPolicyError, match="dropout"):
        improve(made, ARGS)
