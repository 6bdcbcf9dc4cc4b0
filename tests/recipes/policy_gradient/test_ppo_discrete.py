"""PPO with discrete actions: the first update beside the paper's equations, the codec, and CartPole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from denoiserl import Policy, Rng
from denoiserl.control.acting import eval_actor
from denoiserl.core.errors import InvalidInputError
from denoiserl.data import DiscreteActionCodec
from denoiserl.envs import Collector, evaluate
from denoiserl.processes import OneStep, time_grid
from denoiserl.recipes.policy_gradient import ppo
from denoiserl.tasks import policies
from denoiserl.tasks.env import Args
from denoiserl.train import Run
from tests.recipes import kit
from tests.recipes.kit import Heard, Spy, Tape, adam, answer, descend, gae, scaled

gymnasium = pytest.importorskip("gymnasium")


class Dial(gymnasium.Env):
    """Three actions, counted from 2; the middle one pays by the first number observed, the last one the opposite."""

    observation_space = gymnasium.spaces.Box(-9, 9, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(3, start=2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left, self.seen = 6, self.np_random.normal(size=2).astype(np.float32)
        return self.seen, {}

    def step(self, action):
        assert action in (2, 3, 4)
        reward = {2: 0.1, 3: float(self.seen[0]), 4: -float(self.seen[0])}[int(action)]
        self.left, self.seen = self.left - 1, self.np_random.normal(size=2).astype(np.float32)
        return self.seen, reward, self.left == 0, False, {}


def start(seed: int = 0) -> Policy:
    made = policies.categorical(Args(policy_width=16), policies.probe_env(Dial), seed)
    with torch.no_grad():
        for p in made.denoiser.parameters():
            p += 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    return made


A = ppo.Args(
    iterations=1, num_envs=4, rollout_steps=9, gamma=0.8, gae_lambda=0.7, clip_range=0.05, entropy_coef=0.3, lr=0.05,
    value_lr=0.004, epochs=3, batch_size=1000, max_grad_norm=0.2, target_kl=1e9, critic_warmup=0,
)  # fmt: skip


@pytest.mark.usefixtures("double")
def test_three_epochs_are_those_of_the_paper() -> None:
    made, env, rng = start(), Heard(lambda: Dial(), A.num_envs, 1), Tape(3)
    spy = Spy(rng)
    (row,) = ppo.improve(made, env, A, rng, spy)
    actor, v = spy.start["policy"].denoiser, spy.start["baseline.net"]
    opt, value_opt = adam(actor.parameters(), A.lr), adam(v.parameters(), A.value_lr)
    for each in (opt, value_opt):
        each.param_groups[0]["eps"] = 1e-5
    ep = env.episodes[0]
    seen, conds = torch.empty(0, 2), []
    for t in range(A.rollout_steps):
        seen = torch.cat([seen, ep.obs[t].to(seen)])
        mean, std = seen.mean(0), (seen.var(0, correction=0) + 1e-8).sqrt()
        conds.append((ep.obs[t].to(seen) - mean) / std)
    cond, choice = torch.cat(conds), ep.chain.sample.flatten(0, 1)[:, 0, 0]
    kit.agree(ep.action.flatten(), choice + 2, where="actions are counted from the space's first")

    def log_p(z: torch.Tensor) -> torch.Tensor:
        return answer(actor.net, torch.zeros(len(z), 1, 1), 1.0, z)[:, 0].log_softmax(-1)

    with torch.no_grad():
        old = log_p(cond).gather(1, choice[:, None])[:, 0]
        kit.agree(ep.chain.log_prob.flatten(), old, where="log-probabilities of what was drawn")
        now, after = (v(((o - mean) / std).flatten(0, 1)).view(ep.done.shape) for o in (ep.obs, ep.next_obs))
        discount = A.gamma * (~ep.terminated).to(now)
        credit = gae(scaled(ep, A.gamma, {}), discount, now, after, ep.done, A.gae_lambda)
    goal, rows, sides = (credit + now).flatten(), [], [0, 0]
    sees = ((ep.obs - mean) / std).flatten(0, 1)
    for _ in range(A.epochs):
        i = rng.take("permutation", len(choice))
        descend(value_opt, 0.5 * ((v(sees[i]) - goal[i]) ** 2).mean(), A.max_grad_norm)
        logs = log_p(cond[i])
        rho = (logs.gather(1, choice[i, None])[:, 0] - old[i]).exp()
        adv = credit.flatten()[i]
        adv = (adv - adv.mean()) / adv.std(correction=0)
        entropy = -(logs.exp() * logs).sum(1).mean()
        surrogate = torch.minimum(rho * adv, rho.clamp(1 - A.clip_range, 1 + A.clip_range) * adv).mean()
        loss = -surrogate - A.entropy_coef * entropy
        sides = [sides[0] + int((rho < 1 - A.clip_range).sum()), sides[1] + int((rho > 1 + A.clip_range).sum())]
        rows.append([loss.detach(), entropy.detach()])
        descend(opt, loss, A.max_grad_norm)
    kit.agree(spy.states[1]["policy"], spy.start["policy"].state_dict(), where="policy")
    kit.agree(spy.states[1]["baseline.net"], v.state_dict(), where="critic")
    found = torch.tensor(rows).mean(0)
    kit.agree(torch.tensor([row["loss/policy"], row["policy/entropy"]]), found, 1e-5, where="row")
    assert min(sides) > 0, "the clip was met on both sides"


def test_trials_take_the_likeliest_action_and_training_draws() -> None:
    process = OneStep("categorical")
    serve = process.steps(time_grid(1), std_scale=0.0)
    made = start()
    obs = torch.randn(500, 2, generator=torch.Generator().manual_seed(1))
    logits = answer(made.denoiser.net, torch.zeros(500, 1, 1), 1.0, made.codec.condition(obs))[:, 0]
    assert torch.equal(made.generate(obs, Rng(0))[:, 0], logits.argmax(-1) + 2)
    drawn = torch.stack([made.sample_chain(obs[:1].expand(4000, 2), Rng(1)).sample.flatten()])
    share = torch.bincount(drawn.flatten(), minlength=3) / 4000
    assert torch.allclose(share, logits[0].softmax(-1), atol=0.04)
    assert not any(serve.dense) and process.steps(time_grid(1)).dense == (True,)
    with pytest.raises(InvalidInputError, match="0 or 1 except for Gaussians"):
        process.steps(time_grid(1), std_scale=0.5)


def test_actions_and_decisions_are_the_same_counted_from_another_number() -> None:
    codec = DiscreteActionCodec.for_choices(2, first=2)
    actions = torch.tensor([[2], [4], [3]])
    assert codec.encode(actions).tolist() == [[[0]], [[2]], [[1]]]
    assert torch.equal(codec.decode(codec.encode(actions)), actions)


def test_a_discrete_policy_is_saved_with_its_statistics(tmp_path: Path) -> None:
    made = start()
    made.codec.update(torch.randn(50, 2))
    made.save(tmp_path / "kept")
    again, obs = Policy.load(tmp_path / "kept"), torch.randn(20, 2)
    assert torch.equal(made.generate(obs, Rng(0)), again.generate(obs, Rng(0)))
    assert isinstance(again.codec, DiscreteActionCodec) and again.codec.first == 2
    action = again.act(np.zeros(2, np.float32), 0)
    assert action.shape == (1,) and int(action[0]) in (2, 3, 4)


def test_the_learning_rate_is_that_of_the_start() -> None:
    """An untrained policy learns with 3e-4, a clone with 1e-5: the policy tells which it is."""
    rates = []

    class Listening(Run):
        def loop(self, n, **named):
            yield from super().loop(n, **named)
            rates.append(named["optimizer"].param_groups[0]["lr"])

    args = replace(A, lr=None, iterations=2, critic_warmup=1)
    list(ppo.improve(start(), Collector(Dial, 4, 1), args, Rng(0), Listening()))
    assert rates == [3e-4]


def test_ppo_learns_cartpole_from_its_defaults() -> None:
    """500 is the most; eight seeds reach 500 after 40 iterations, and more than 195 after 12."""
    env = Collector(lambda: gymnasium.make("CartPole-v1"), 40, 1)
    made = policies.gaussian(Args(), env, 0)
    list(ppo.improve(made, env, replace(ppo.Args(), iterations=12), Rng(1)))
    env.close()
    found = evaluate(eval_actor(made), lambda: gymnasium.make("CartPole-v1"), 20, 7).returns.mean()
    assert float(found) > 100
