"""SAC and TD3: where they end when the answer is known, resumes, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from denoiserl import tasks
from denoiserl.control import twin_critics
from denoiserl.control.squashed_actions import action_distribution
from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng
from denoiserl.data import TanhCodec
from denoiserl.envs import Collector
from denoiserl.nn import MLP, Actor
from denoiserl.policy.policy import Policy
from denoiserl.processes import GaussianHead, OneStep, time_grid
from denoiserl.recipes.off_policy import sac, td3
from denoiserl.train import Run

gymnasium = pytest.importorskip("gymnasium")


class World(gymnasium.Env):
    """One number is seen and one is set, in a box that is not [−1, 1]."""

    LOW, HIGH = 1.0, 5.0

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.action_space = gymnasium.spaces.Box(self.LOW, self.HIGH, (1,), np.float32)

    def seen(self) -> np.ndarray:
        return np.array([self.x], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.ticks = float(self.np_random.uniform(-1, 1)), 0
        return self.seen(), {}


class Bandit(World):
    """The best action is 3 + x, and every unit away costs: −(a − 3 − x)², once."""

    def step(self, action):
        return self.seen(), -float((action[0] - 3 - self.x) ** 2), True, False, {}


class Regulator(World):
    """x' = x + a/2, cost x² + a²/2, cut after two ticks by a time limit that the state knows nothing of."""

    LOW, HIGH = -2.0, 2.0
    GAMMA = 0.9

    def step(self, action):
        a, cost = float(action[0]), self.x**2 + float(action[0]) ** 2 / 2
        self.x, self.ticks = self.x + 0.5 * a, self.ticks + 1
        return self.seen(), -cost, False, self.ticks >= 2, {}

    @classmethod
    def gain(cls, sweeps: int) -> float:
        """The optimal K of a = −K x with so many more ticks to come (Riccati's recursion)."""
        p = k = 0.0
        for _ in range(sweeps):
            k = cls.GAMMA * 0.5 * p / (0.5 + cls.GAMMA * 0.25 * p)
            p = 1 + cls.GAMMA * p - k * cls.GAMMA * 0.5 * p
        return k


def policy(world: type[World], chunk: int = 1) -> Policy:
    torch.manual_seed(0)
    net = MLP((chunk, 1), 1, 32, 2, 0, False, activation="relu", out=(chunk, 2))
    process = OneStep()
    steps, serve = process.steps(time_grid(1)), process.steps(time_grid(1), std_scale=0.0)
    return Policy.of(process, Actor(net), (chunk, 1), steps, serve, TanhCodec.from_box([world.LOW], [world.HIGH]))


SMALL: dict[str, Any] = {
    "num_envs": 8,
    "rollout_steps": 8,
    "learning_starts": 128,
    "batch_size": 64,
    "critic_width": 32,
    "lr": 3e-3,
}


def served(made: Policy, *at: float) -> list[float]:
    return made.generate(torch.tensor(at)[:, None], Rng(0)).flatten().tolist()


def test_sac_finds_the_best_arm_of_every_state_and_the_entropy_it_aims_at() -> None:
    made, goal = policy(Bandit), -0.5
    a = sac.Args(**SMALL, iterations=14, utd=0.5, target_entropy=goal, tau=0.05, temperature_init=0.2)
    rows = list(sac.improve(made, Collector(Bandit, 8, 1), a, Rng(3)))
    assert served(made, -0.8, 0.0, 0.8) == pytest.approx([2.2, 3.0, 3.8], abs=0.25)
    assert float(np.mean([r["policy/entropy"] for r in rows[-4:]])) == pytest.approx(goal, abs=0.25)


@pytest.mark.parametrize("n", [1, 2])
def test_td3_looks_beyond_a_time_limit(n: int) -> None:
    """The gain of endless control, where one that believed in the limit would end at a mix of K₁ = 0 and K₂."""
    gain, short = Regulator.gain(100), Regulator.gain(2)
    gains = []
    for seed in range(3):
        made = policy(Regulator)
        a = td3.Args(**SMALL, iterations=16, utd=1.0, gamma=Regulator.GAMMA, tau=0.05, n_step=n, exploration_noise=0.3)
        list(td3.improve(made, Collector(Regulator, 8, 1), a, Rng(3 + seed)))
        low, high = served(made, -0.7, 0.7)
        gains.append((low - high) / 1.4)
    found = float(np.mean(gains))
    if n == 1:
        assert found == pytest.approx(gain, abs=0.35 * (gain - short) + 0.05), (gain, short)
    assert short < found < gain + 0.45, "the noise inside a return of two decisions lifts it (1.00, std 0.12)"


@pytest.mark.parametrize("recipe", [sac, td3])
def test_the_same_seed_is_the_same_run_and_a_resumed_run_ends_where_it_would_have(recipe: Any, tmp_path: Path) -> None:
    a = recipe.Args(**{**SMALL, "learning_starts": 64}, iterations=4, utd=0.2, buffer_size=150)

    def improve(made: Policy, keep: Run | None = None, rows: int | None = None) -> Any:
        torch.manual_seed(1)  # where critics start
        it = recipe.improve(made, Collector(Bandit, 8, 1), a, Rng(5), keep)
        return list(it) if rows is None else [next(it) for _ in range(rows)]

    whole, twin, halves, resumed = (policy(Bandit) for _ in range(4))
    assert improve(whole, Run(tmp_path / "whole", every=1, restart=1)) == improve(
        twin, Run(tmp_path / "twin", every=1, restart=1)
    )
    improve(halves, Run(tmp_path / "half", every=1, restart=1), rows=3)
    improve(resumed, Run(tmp_path / "half", every=1, restart=1))
    for p, q in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("recipe", [sac, td3])
def test_updates_are_as_many_as_asked(recipe: Any) -> None:
    """``utd`` updates per decision after ``begin``, whatever the size of an iteration, and none before."""
    drawn: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(twin_critics, "half_squared_error", lambda v, y: drawn.append(1) or (v - y.detach()).square())
        a = recipe.Args(**{**SMALL, "learning_starts": 100}, iterations=5, utd=0.3)
        rows = list(recipe.improve(policy(Bandit), Collector(Bandit, 8, 1), a, Rng(5)))
    assert len(drawn) == int(0.3 * (5 * 64 - 100)) and "loss/critic" not in rows[0] and "loss/critic" in rows[-1]


def test_chunks_are_decisions() -> None:
    made = policy(Regulator, chunk=2)
    a = sac.Args(**{**SMALL, "learning_starts": 64}, iterations=2)
    rows = list(sac.improve(made, Collector(Regulator, 8, 1), a, Rng(3)))
    assert rows[-1]["rollout/length"] == 2 and np.isfinite(rows[-1]["loss/critic"])
    assert made.generate(torch.zeros(3, 1), Rng(0)).shape == (3, 2, 1)


def test_a_policy_is_saved_with_its_box(tmp_path: Path) -> None:
    made = policy(Bandit)
    made.save(tmp_path / "p")
    assert served(Policy.load(tmp_path / "p"), -0.5, 0.5) == served(made, -0.5, 0.5)
    action = torch.tensor([[1.0], [2.0], [4.5], [5.0]])
    back = made.codec.decode(made.codec.encode(action))
    assert torch.allclose(back, action, atol=2.1e-3) and float((back - action)[1:3].abs().max()) < 1e-5


@pytest.mark.parametrize("recipe", [sac, td3])
def test_what_does_not_fit_is_refused(recipe: Any) -> None:
    process = OneStep()
    steps = process.steps(time_grid(1))
    plain = Policy.of(process, GaussianHead(MLP((1, 1), 1, 8, time=0), 1), (1, 1), steps)
    with pytest.raises(InvalidInputError, match="inside a box"):
        next(recipe.improve(plain, Collector(Bandit, 8), recipe.Args(), Rng(0)))
    with pytest.raises(InvalidInputError, match="without infinities"):
        TanhCodec.from_box([-np.inf], [1.0])


@pytest.mark.parametrize("recipe", [sac, td3])
@pytest.mark.parametrize("begin", [0, 40])
def test_learning_waits_for_a_batch(recipe: Any, begin: int) -> None:
    """With 16 decisions per iteration and batches of 64, updates come from the fourth iteration on, none is lost."""
    drawn: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(twin_critics, "half_squared_error", lambda v, y: drawn.append(1) or (v - y.detach()).square())
        a = recipe.Args(**{**SMALL, "learning_starts": begin, "rollout_steps": 2}, iterations=8, utd=0.5)
        rows = list(recipe.improve(policy(Bandit), Collector(Bandit, 8, 1), a, Rng(5)))
    assert ["loss/critic" in row for row in rows] == [False] * 3 + [True] * 5
    assert len(drawn) == 0.5 * (8 * 16 - begin)


def test_an_untrained_policy_explores_the_box_as_evenly_as_a_standard_normal_pressed_by_tanh() -> None:
    """σ = 1 before anything is learned: a quarter of the decisions lie beyond 0.82 of the half width on either side."""
    start = tasks.make("env", sac.DEFAULT_TASK_ARGS).starts["squashed"]  # type: ignore[index]
    obs = torch.cat([torch.nn.functional.normalize(Rng(1).normal(4000, 2)), Rng(2).uniform(4000, 1) * 2 - 1], 1)
    stds = []
    for seed in range(5):
        made = start(seed, Run())
        with torch.no_grad():
            decided = action_distribution(made, made.codec.condition(obs))
        assert float(decided.base.std.log().abs().max()) < 2
        stds.append(float(decided.sample(Rng(3).normal(4000, *made.event_shape)).std()))
    assert float(np.mean(stds)) == pytest.approx(float(torch.tanh(Rng(4).normal(100_000)).std()), abs=0.2)
