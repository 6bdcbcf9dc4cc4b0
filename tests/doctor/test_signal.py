"""What learning would be told: rewards, groups that teach nothing, success of episodes."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from denoiserl import Diffusion, GaussianDenoiser, Policy, Rng, time_grid
from denoiserl.doctor.signal import ask_reward, check_rewards, dead_share, episodes, groups, play_episodes
from denoiserl.envs import Collector
from denoiserl.processes import cosine, ddim, with_min_std
from tests.doctor.worlds import PM, generator


def bernoulli(p: Tensor, group: int, rng: Rng) -> Tensor:
    """Rewards [P, G] of prompts with success rates p [P]."""
    return (rng.uniform(len(p), group) < p[:, None]).float()


# Groups


def test_the_share_of_dead_groups_is_that_of_a_beta_binomial() -> None:
    """Rates uniform on [0, 1] are Beta(1, 1): a group of G is dead with probability 2 / (G + 1)."""
    rng = Rng(0)
    solved = bernoulli(rng.uniform(200_000), 8, rng).sum(1)
    for size in (4, 8, 16, 64):
        assert dead_share(solved, 8, size) == pytest.approx(2 / (size + 1), rel=0.05)


def test_prompts_of_one_rate_and_prompts_that_are_certain() -> None:
    solved = torch.tensor([2.0, 2.0, 2.0, 2.0])  # no variance at all: one rate of 1/4
    assert dead_share(solved, 8, 6) == pytest.approx(0.25**6 + 0.75**6)
    assert dead_share(torch.tensor([0.0, 0.0]), 8, 64) == 1
    assert dead_share(torch.tensor([0.0, 8.0, 0.0, 8.0]), 8, 64) == 1  # solved always or never: no group helps


def test_dead_groups_are_warned_of_and_the_size_that_is_advised_heals() -> None:
    rng = Rng(0)
    rare = torch.full((400,), 0.08)
    found = groups(bernoulli(rare, 4, rng))
    assert found.level == "warning"
    size = int(found.remedy.split("--group-size ")[1].split(")")[0])
    healed = groups(bernoulli(rare, size, rng))
    assert healed.level == "ok"
    assert float(healed.message.split("%")[0]) <= 25
    assert groups(bernoulli(torch.full((50,), 0.5), 8, rng)).level == "ok"


def test_no_group_helps_where_prompts_are_solved_always_or_never() -> None:
    found = groups(torch.tensor([[1.0] * 4, [0.0] * 4] * 4))
    assert "No group" in found.remedy


def test_rewards_that_are_not_binary_have_dead_groups_too() -> None:
    assert groups(Rng(0).normal(8, 4)).level == "ok"
    assert groups(torch.ones(8, 4) * torch.arange(8.0)[:, None] / 3).level == "warning"


# Rewards


def test_rewards_that_cannot_be_learned_from() -> None:
    good = Rng(0).normal(8, 8)
    assert check_rewards(good).level == "ok"
    assert check_rewards(good.masked_fill(good == good.max(), torch.nan)).level == "error"
    assert "advantages are zero" in check_rewards(torch.ones(8, 8)).message
    assert "offset" in check_rewards(good + 1e6).message
    one = 1e-3 * good
    one[0, 0] = 50.0
    assert "most of the variance" in check_rewards(one).remedy


@pytest.mark.parametrize(
    ("p", "level"), [(0.005, "warning"), (0.1, "note"), (0.45, "ok"), (0.85, "note"), (0.99, "warning")]
)
def test_success_is_best_where_learning_sees_it(p: float, level: str) -> None:
    n = 1000
    rewards = (torch.arange(n) < p * n).float()[Rng(0).permutation(n)].reshape(-1, 10)
    assert check_rewards(rewards).level == level


def test_a_reward_that_is_noise_is_warned_of() -> None:
    value, rng = Rng(0).normal(64), Rng(1)
    quiet = (value + 0.01 * rng.normal(64)).reshape(8, 8)
    assert check_rewards(quiet, value[:16] + 0.01 * rng.normal(16)).level == "ok"
    loud = (0.1 * value + rng.normal(64)).reshape(8, 8)
    assert "noise" in check_rewards(loud, 0.1 * value[:16] + rng.normal(16)).remedy


def test_training_samples_that_are_much_worse_than_served_ones() -> None:
    rewards = Rng(0).normal(8, 8)
    assert check_rewards(rewards, serve=Rng(1).normal(64)).level == "ok"
    assert "worse" in check_rewards(rewards, serve=5 + Rng(1).normal(64)).message


def test_a_reward_is_asked_in_data_units_and_may_be_broken() -> None:
    made, cond = generator(), PM.draw_prompts(16, Rng(0))
    x = PM.sample(cond, Rng(1))
    assert torch.equal(ask_reward(made, PM.reward, x, cond), PM.reward(x, cond))
    parts = ask_reward(made, lambda v, p: {"a": v[:, 0], "b": v[:, 1]}, x, cond)
    assert torch.allclose(parts, x[:, 0] + x[:, 1])
    assert bool(ask_reward(made, lambda v, p: v[:, 0] * torch.nan, x, cond).isnan().all())
    with pytest.raises(Exception, match="shape"):
        ask_reward(made, lambda v, p: v, x, cond)


# Episodes


class Reach(gymnasium.Env[Any, Any]):
    """Success when the action is above ``bar`` at the first tick; ends after ``life`` ticks, or never."""

    def __init__(self, bar: float = 0.0, life: int | None = 3, says: bool = True) -> None:
        self.observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.bar, self.life, self.says = bar, life, says

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.lengths = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.lengths += 1
        won = self.lengths == 1 and float(action[0]) > self.bar
        info = {"success": won} if self.says else {}
        return np.zeros(1, np.float32), float(won and self.says), won, self.lengths == self.life, info


class Normal(nn.Module):
    """The exact denoiser of N(0, 0.5²), whatever is observed; ``chunk`` is in the event."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        a, s = cosine(t.clamp(1e-4, 1 - 1e-4))
        gain = a * 0.25 / (a**2 * 0.25 + s**2)
        return self.gain * gain.view(-1, *[1] * (x.ndim - 1)) * x


def robot(floor: float = 0.05, event: tuple[int, ...] = (1, 1)) -> Policy:
    process, times = Diffusion(cosine, with_min_std(ddim(1.0), floor)), time_grid(10)
    made = GaussianDenoiser(Normal(), cosine, "x0")
    return Policy.of(process, made, event, process.steps(times), process.steps(times, ddim(1.0)))


def played(env: Reach, serve: bool = False, made: Policy | None = None, most: int = 100) -> Any:
    stream = Collector(lambda: env.__class__(env.bar, env.life, env.says), 32)
    try:
        return play_episodes(made or robot(), stream, 0, serve, max_steps=most)
    finally:
        stream.close()


def test_success_is_that_of_the_first_episode_of_every_copy() -> None:
    """Actions are N(0, 0.5²), so half of them are above zero; an episode that fails goes on to its limit."""
    told = played(Reach(0.0))
    assert told.success is not None
    assert 0.15 < float(told.success.float().mean()) < 0.85
    assert torch.equal(told.lengths, torch.where(told.success, 1, 3))
    assert torch.equal(told.timed, ~told.success)
    assert torch.equal(told.returns, told.success.float())
    found = episodes(told, None)
    assert found.level == "ok"
    assert "ended by time" in found.message


def test_chunks_are_played_as_far_as_they_are_executed() -> None:
    stream = Collector(lambda: Reach(2.0, life=4), 8)
    told = play_episodes(robot(event=(4, 1)), stream, 0, False, execute=2)
    assert torch.equal(told.lengths, torch.full((8,), 4))
    stream.close()


def test_success_that_learning_hardly_sees() -> None:
    assert episodes(played(Reach(5.0)), None).level == "warning"
    assert "gain" in episodes(played(Reach(-5.0)), None).remedy


def test_noise_that_costs_success_is_told() -> None:
    """Succeeding needs |action| within the box's middle for the served policy; a huge floor leaves it."""

    class Still(Reach):
        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            seen, _, _, over, _ = super().step(action)
            won = abs(float(action[0])) < 0.9
            return seen, float(won), won, over, {"success": won}

    env = Still(life=1)
    loud = robot(floor=3.0)
    found = episodes(played(env, made=loud), played(env, True, loud))
    assert found.level == "warning"
    assert "exploration noise" in found.message
    quiet = robot(floor=0.02)
    assert "noise of learning" not in episodes(played(env, made=quiet), played(env, True, quiet)).message


def test_environments_without_an_end_or_without_a_word_about_success() -> None:
    endless = episodes(played(Reach(5.0, life=None), most=20), None, max_steps=20)
    assert endless.level == "warning"
    assert "time limit" in endless.remedy
    assert episodes(played(Reach(0.0, says=False)), None).level == "error"  # and a return that is always 0


def test_returns_are_told_where_success_is_not() -> None:
    class Silent(Reach):
        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            seen, _, _, over, _ = super().step(action)
            return seen, float(action[0]), False, over, {}

    found = episodes(played(Silent()), None)
    assert found.level == "note"
    assert "return" in found.message
