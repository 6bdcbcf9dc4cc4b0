"""Learning from logged data: known optima, what the data words mean, resumes, refusals, and going on online."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.core.rng import Rng
from denoiserl.data.demos import Demonstrations
from denoiserl.data.formats import any as recordings
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.data.transitions import to_transitions, transitions
from denoiserl.envs import Collector
from denoiserl.envs.record import record
from denoiserl.experiments import experiment
from denoiserl.policy.policy import Policy
from denoiserl.recipes.off_policy import sac, td3
from denoiserl.recipes.offline_rl import common as offline_rows
from denoiserl.recipes.offline_rl import dql, fql, iql, ofql, td3_bc
from denoiserl.recipes.policy_gradient import dppo
from denoiserl.tasks import env as env_task
from denoiserl.tasks import locosmall
from denoiserl.tasks import offline as offline_task
from denoiserl.tasks.user_inputs import load_policy
from denoiserl.train import Run

gymnasium = pytest.importorskip("gymnasium")

GAMMA = 0.9
SMALL: dict[str, Any] = {"batch_size": 128, "critic_width": 32, "lr": 3e-3}


def bandit(n: int = 2000, seed: int = 0) -> EpisodeDataset:
    """One decision in [−1, 1]: behaviour N(0, 0.3²) (clipped), reward −(a − ½)²; the observation says nothing."""
    rng = Rng(seed)
    action = (0.3 * rng.normal(n, 1)).clamp(-1, 1)
    reward, one = -(action[:, 0] - 0.5).square(), torch.ones(1)
    seen = rng.normal(n, 2)
    return transitions(seen, action, reward, seen, torch.ones(n, dtype=torch.bool), -one, one, "bandit")


def modes(n: int = 2000, seed: int = 0) -> EpisodeDataset:
    """One decision of two: near −½ or near ½, and the latter pays twice as much; a few are made anywhere."""
    rng = Rng(seed)
    side = torch.where(rng.uniform(n, 1) < 0.5, -0.5, 0.5)
    action = torch.where(rng.uniform(n, 1) < 0.1, 2 * rng.uniform(n, 1) - 1, side + 0.05 * rng.normal(n, 1))
    near = torch.exp(-(action.abs() - 0.5).square() / 0.02)
    seen, one = rng.normal(n, 1), torch.ones(1)
    reward = (near * torch.where(action > 0, 2.0, 1.0))[:, 0]
    return transitions(seen, action, reward, seen, torch.ones(n, dtype=torch.bool), -one, one, "modes")


def regulator(n: int = 4000, seed: int = 0) -> EpisodeDataset:
    """x' = x + a/2, cost x² + a²/2, never over; actions even in [−2, 2], whatever the state."""
    rng = Rng(seed)
    x, a = 2 * rng.uniform(n, 1) - 1, 4 * rng.uniform(n, 1) - 2
    cost, box = (x.square() + a.square() / 2)[:, 0], torch.full((1,), 2.0)
    return transitions(x, a, -cost, x + a / 2, torch.zeros(n, dtype=torch.bool), -box, box, "regulator")


def gain() -> float:
    """The optimal K of a = −K x (Riccati's recursion)."""
    p = k = 0.0
    for _ in range(100):
        k = GAMMA * 0.5 * p / (0.5 + GAMMA * 0.25 * p)
        p = 1 + GAMMA * p - k * GAMMA * 0.5 * p
    return k


def policy(data: EpisodeDataset, kind: str, seed: int = 0, **more: Any) -> Policy:
    return offline_task.untrained_policy(offline_task.Args(**{"policy_width": 32, **more}), data, kind, seed)


def served(made: Policy, obs: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return made.generate(obs, Rng(seed))


def learned(recipe: Any, made: Policy, data: EpisodeDataset, keep: Run | None = None, **given: Any) -> list[dict]:
    a = recipe.Args(**{**SMALL, "iterations": 4, "updates_per_iteration": 50, "gamma": GAMMA, **given})
    torch.manual_seed(1)  # where critics start
    return list(recipe.improve(made, data, a, Rng(3), keep))


# Known optima


def test_td3_bc_finds_the_gain_of_the_regulator_in_random_actions_and_imitates_at_alpha_0() -> None:
    data = regulator()
    made, clone = policy(data, "squashed"), policy(data, "squashed")
    learned(
        td3_bc, made, data, iterations=4, updates_per_iteration=45, q_weight=30.0, tau=0.05, target_noise=0.05, lr=5e-3
    )
    learned(td3_bc, clone, data, iterations=1, q_weight=0.0)
    at = torch.tensor([[-0.7], [0.7]])
    (low, high), (left, right) = (served(p, at).flatten().tolist() for p in (made, clone))
    assert (low - high) / 1.4 == pytest.approx(gain(), abs=0.35), "the LQR's own gain"
    assert abs(left) < 0.4 and abs(right) < 0.4, "even actions have the mean 0 in every state"


def test_an_iteration_without_an_update_of_the_actor_tells_nothing() -> None:
    data = bandit(200)
    rows = learned(td3_bc, policy(data, "squashed"), data, iterations=2, updates_per_iteration=1, policy_delay=2)
    assert rows[0] == {} and rows[1]["loss/critic"] > 0


def test_iql_ends_at_the_behaviour_reweighted_by_the_exponential_advantage() -> None:
    """p* ∝ N(0, s²) exp(−β (a − ½)²) is a Gaussian of precision 1/s² + 2β and mean β / (1/s² + 2β)."""
    data, beta = bandit(), 8.0
    made = policy(data, "gaussian", min_denoising_std=0.01)
    learned(
        iql,
        made,
        data,
        iterations=4,
        updates_per_iteration=60,
        inverse_temperature=beta,
        expectile=0.5,
        tau=0.05,
        lr=1e-2,
    )
    precision = 1 / 0.3**2 + 2 * beta
    obs = torch.randn(400, 2)
    assert float(served(made, obs).mean()) == pytest.approx(beta / precision, abs=0.04)
    spread = made.codec.decode(made.sample_chain(obs, Rng(1)).sample).std()
    assert float(spread) == pytest.approx(precision**-0.5, abs=0.08), "and not the behaviour's 0.3"


def chain(n: int = 3000) -> EpisodeDataset:
    """Five states in a row, action right if a > 0: each step right costs 0.1 and the end pays 2; left is free.

    Who goes either way seldom gets there, so on the left his right is worse than his left: one step of improvement of
    the behaviour stays there, and only planning leaves.
    """
    rng = Rng(0)
    s, a = rng.integers(0, 5, n), torch.where(rng.uniform(n, 1) < 0.6, -0.5, 0.5) + 0.1 * rng.normal(n, 1)
    right = a[:, 0] > 0
    after = torch.where(right, s + 1, (s - 1).clamp_min(0))
    over, eye, one = after == 5, torch.eye(5), torch.ones(1)
    reward = torch.where(right, -0.1, 0.0) + 2.0 * over
    return transitions(eye[s], a, reward, eye[after.clamp_max(4)], over, -one, one, "chain")


def test_iql_plans_through_states_by_dynamic_programming_inside_the_data() -> None:
    data = chain()
    made = policy(data, "gaussian", min_denoising_std=0.05)
    learned(
        iql,
        made,
        data,
        iterations=4,
        updates_per_iteration=60,
        inverse_temperature=30.0,
        expectile=0.95,
        tau=0.2,
        lr=1e-2,
    )
    way = served(made, torch.eye(5)).flatten()
    assert bool((way > 0.2).all()), f"right is best everywhere at γ = 0.9: {way}"


def test_dql_takes_the_better_mode() -> None:
    data = modes()
    made = policy(data, "diffusion")
    learned(
        dql, made, data, iterations=4, updates_per_iteration=35, q_weight=2.0, num_candidates=1, batch_size=64, lr=5e-3
    )
    drawn = served(made, torch.randn(400, 1)).flatten()
    assert float(((drawn - 0.5).abs() < 0.25).float().mean()) > 0.7, "the critic knows which is better"


def test_dql_imitates_where_its_chain_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the levels nothing is decided, and what is not imitated at a level may follow the critic anywhere."""
    seen: list[torch.Tensor] = []
    real = dql.training_losses
    monkeypatch.setattr(
        dql, "training_losses", lambda *given, t, **more: (seen.append(t), real(*given, t=t, **more))[1]
    )
    made = policy(modes(300), "diffusion", sampling_steps=4)
    learned(dql, made, modes(300), iterations=1, updates_per_iteration=3)
    assert torch.cat(seen).unique().tolist() == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_without_a_pull_both_modes_stay_and_the_control_chooses_what_the_critics_value(tmp_path: Path) -> None:
    data, shares = modes(), []
    for seed in range(4):
        made = policy(data, "diffusion", seed, sampling_steps=3)
        learned(
            dql,
            made,
            data,
            iterations=4,
            updates_per_iteration=25,
            q_weight=0.0,
            num_candidates=16,
            batch_size=64,
            tau=0.05,
            lr=5e-3,
        )
        obs = torch.randn(300, 1)
        best, alone = served(made, obs).flatten(), served(made.with_controller(None), obs).flatten()
        shares.append([float((x > 0).float().mean()) for x in (alone, best)])
    alone_share, best_share = np.mean(shares, 0).tolist()
    assert 0.15 < alone_share < 0.85 and best_share > 0.95
    made.save(tmp_path / "p")
    assert torch.equal(served(Policy.load(tmp_path / "p"), obs).flatten(), best), "it is saved with the policy"


# What is shared


RECIPES = [(td3_bc, "squashed"), (iql, "gaussian"), (dql, "diffusion")]


@pytest.mark.parametrize(("recipe", "kind"), RECIPES)
def test_the_same_seed_is_the_same_run_and_a_resumed_run_ends_where_it_would_have(
    recipe: Any, kind: str, tmp_path: Path
) -> None:
    data, few = bandit(300), {"iterations": 3, "updates_per_iteration": 3, "batch_size": 32}
    whole, twin, halves, resumed = (policy(data, kind) for _ in range(4))
    once = learned(recipe, whole, data, Run(tmp_path / "whole", every=1), **few)
    assert once == learned(recipe, twin, data, Run(tmp_path / "twin", every=1), **few)
    torch.manual_seed(1)
    a = recipe.Args(**{**SMALL, **few, "gamma": GAMMA})
    rows = recipe.improve(halves, data, a, Rng(3), Run(tmp_path / "half", every=1))
    for _ in range(2):
        next(rows)
    del rows
    assert learned(recipe, resumed, data, Run(tmp_path / "half", every=1), **few) == once[1:]
    for p, q in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q)
    obs = torch.randn(5, 2)
    assert torch.equal(served(whole, obs), served(resumed, obs)), "the control's critics are back too"


@pytest.mark.parametrize(("recipe", "kind"), RECIPES)
@pytest.mark.filterwarnings("ignore::denoiserl.envs.remarks.Remark")  # a bandit has one start
@pytest.mark.parametrize("word", ["maze:small-navigate", "ring"])
def test_two_iterations_of_every_recipe_on_logged_data(recipe: Any, kind: str, word: str) -> None:
    base = offline_task.Args(data=word, num_episodes=40, policy_width=16, action_horizon=2 if word != "ring" else 1)
    a, task = (
        recipe.Args(iterations=2, updates_per_iteration=2, batch_size=16, critic_width=16, n_step=2),
        dataclasses.replace(offline_task.task(base), num_eval_trials=2),
    )
    rows = list(experiment.run_recipe(recipe, task, a))
    assert recipe.START == kind and math.isfinite(rows[-1]["eval/return"]) and rows[0]["loss/critic"] > 0


def test_iql_fits_a_denoising_policy_to_the_same_weights() -> None:
    data = modes()
    made = policy(data, "flow")
    learned(iql, made, data, iterations=2, updates_per_iteration=60, inverse_temperature=4.0, tau=0.1, lr=5e-3)
    drawn = served(made, torch.randn(300, 1)).flatten()
    assert float((drawn > 0).float().mean()) > 0.8


@pytest.mark.parametrize("recipe", [dql, ofql, fql, iql, td3_bc])
def test_actions_beyond_the_end_of_an_episode_are_neither_imitated_nor_judged(
    recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of three of episodes of four ticks: what stands behind their ends changes no number."""
    rng, one = Rng(0), torch.ones(1)
    parts = [(rng.normal(4, 2), 0.5 * rng.normal(4, 1).clamp(-1, 1)) for _ in range(40)]
    demos = Demonstrations.of(parts, name="short")
    over = torch.arange(40) % 2 == 0
    data = EpisodeDataset(demos, rng.normal(160), rng.normal(40, 2), over, -one, one)
    learnt = []
    for beyond in (0.0, 0.9):

        def changed(*given: Any, beyond: float = beyond, **more: Any) -> Any:
            rows = to_transitions(*given, **more)
            assert 0 < float(rows.real.float().mean()) < 1
            return dataclasses.replace(rows, action=torch.where(rows.real[..., None], rows.action, beyond))

        monkeypatch.setattr(offline_rows, "to_transitions", changed)
        made = policy(data, recipe.START, action_horizon=3, sampling_steps=2)
        told = learned(recipe, made, data, iterations=1, updates_per_iteration=4, batch_size=32)
        learnt.append((told, [p.detach().clone() for p in made.parameters()]))
    (told, before), (again, after) = learnt
    assert told == again and all(torch.equal(p, q) for p, q in zip(before, after, strict=True))


def test_rows_are_in_the_policy_s_units() -> None:
    """A box that is not [−1, 1], observations standardised, and the same rows for every kind of policy."""
    data = regulator(200)
    flat, pressed = (
        offline_rows.to_replay_buffer(policy(data, kind), data, 16, 1, GAMMA) for kind in ("diffusion", "squashed")
    )
    order = [r.columns["obs"][:200].flatten().argsort() for r in (flat, pressed)]
    for replay, at in zip((flat, pressed), order, strict=True):
        action, seen = replay.columns["action"][at][:, 0, 0], replay.columns["obs"][at][:, 0]
        true = data.demos.observations.flatten().argsort()
        assert torch.allclose(2 * action, data.demos.actions[true, 0], atol=1e-5)
        assert float(seen.mean()) == pytest.approx(0, abs=1e-5)
        assert float(seen.std(correction=0)) == pytest.approx(1, abs=1e-4)


class Line(gymnasium.Env):
    """The regulator as an environment."""

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.action_space = gymnasium.spaces.Box(-2.0, 2.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.ticks = float(self.np_random.uniform(-1, 1)), 0
        return np.array([self.x], np.float32), {}

    def step(self, action):
        cost = self.x**2 + float(action[0]) ** 2 / 2
        self.x, self.ticks = self.x + 0.5 * float(action[0]), self.ticks + 1
        return np.array([self.x], np.float32), -cost, False, self.ticks >= 5, {}


def cost(made: Policy) -> float:
    """The mean cost of ten ticks from fixed starts, as the policy serves."""
    x, total = torch.linspace(-1, 1, 21)[:, None], 0.0
    for _ in range(10):
        a = served(made, x)[:, 0]
        total, x = total + float((x.square() + a.square() / 2).mean()), x + a / 2
    return total


def test_a_policy_learned_from_data_goes_on_online_with_td3() -> None:
    """A clone of even actions does nothing; TD3 takes the same policy up and regulates."""
    data = regulator(1000)
    made = policy(data, "squashed")
    learned(td3_bc, made, data, iterations=1, q_weight=0.0)
    before = cost(made)
    a = td3.Args(
        iterations=8,
        utd=0.5,
        num_envs=8,
        rollout_steps=8,
        learning_starts=64,
        batch_size=64,
        critic_width=32,
        lr=3e-3,
        gamma=GAMMA,
        tau=0.05,
        exploration_noise=0.3,
    )
    list(td3.improve(made, Collector(Line, 8, 1), a, Rng(3)))
    assert cost(made) < 0.7 * before, (before, cost(made))


def test_a_diffusion_policy_learned_from_data_goes_on_online_with_dppo() -> None:
    data = regulator(1000)
    made = policy(data, "diffusion")
    learned(dql, made, data, iterations=1, updates_per_iteration=5, num_candidates=2)
    before = [p.detach().clone() for p in made.parameters()]
    a = dppo.Args(iterations=2, rollout_steps=6, batch_size=64)
    rows = list(dppo.improve(made.with_controller(None), Collector(Line, 8, 1), a, Rng(5)))
    assert math.isfinite(rows[-1]["rollout/reward"])
    assert any(not torch.equal(p, q) for p, q in zip(before, made.parameters(), strict=True)), "the weights are shared"


def test_a_policy_goes_on_from_its_file_and_leaves_what_chose_for_it_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Critics that do not learn any more would choose worse and worse among what the policy becomes."""
    data = regulator(300)
    made = policy(data, "diffusion", sampling_steps=3)
    learned(dql, made, data, iterations=1, updates_per_iteration=1, num_candidates=4)
    made.save(tmp_path / "chosen")
    with pytest.warns(UserWarning, match="the policy goes on without it"):
        found = load_policy(str(tmp_path / "chosen"), torch.device("cpu"))
    obs = torch.randn(20, 1)
    assert torch.equal(served(found, obs), served(made.with_controller(None), obs))
    assert not torch.equal(served(found, obs), served(made, obs))

    flat = policy(data, "squashed")
    flat.save(tmp_path / "flat")
    monkeypatch.setattr(env_task, "make_env", lambda base: Line)
    start = env_task.squashed_start(env_task.Args(start=str(tmp_path / "flat")), 5, Run())
    assert torch.equal(served(start, obs), served(flat, obs))


@pytest.mark.parametrize("recipe", [td3, sac])
def test_who_knows_something_already_takes_the_first_decisions_itself(recipe: Any) -> None:
    """Nothing is learned before ``learning_starts``, and what was done stays near the edge, where this one decides."""
    centre = {}
    for first in ("random", "policy"):
        made, done = policy(regulator(300), "squashed"), []
        made.denoiser.net.leave.bias.data[0] += 3.0  # type: ignore[union-attr]

        class Heard(Line):
            def step(self, action: Any) -> Any:
                done.append(float(action[0]))  # noqa: B023
                return super().step(action)

        a = recipe.Args(
            iterations=9,
            num_envs=4,
            rollout_steps=30,
            learning_starts=1000,
            warmup_policy=first,
            **({"exploration_noise": 0.1} if recipe is td3 else {}),
        )
        before = [p.detach().clone() for p in made.parameters()]
        next(recipe.improve(made, Collector(Heard, 4, 1), a, Rng(3)))
        assert all(torch.equal(p, q) for p, q in zip(before, made.parameters(), strict=True))
        centre[first] = float(torch.tensor(done).mean())
    assert abs(centre["random"]) < 0.45 and centre["policy"] > 1.2, "in a box of [-2, 2]"
    with pytest.raises(RunError, match="policy"):
        list(recipe.improve(made, Collector(Line, 4, 1), dataclasses.replace(a, warmup_policy="polcy"), Rng(3)))


# Data


@pytest.mark.filterwarnings("ignore:.*of the range")  # one short episode sees a part of the box
def test_words_name_data_and_a_user_s_file_needs_a_place_to_be_judged(tmp_path: Path) -> None:
    path = recordings.write(tmp_path / "my.hdf5", regulator(50))
    played = record("Pendulum-v1", lambda obs, rng: rng.uniform(len(obs), 1, 1), 1, max_episode_steps=50)
    theirs = recordings.write(tmp_path / "pendulum.hdf5", played)
    mine = offline_task.task(offline_task.Args(data=str(theirs), env="Pendulum-v1"))
    assert mine.data is not None and len(mine.data(0).demos.actions) == 50 and mine.metric == "return"
    other = offline_task.task(offline_task.Args(data=str(path), env="Pendulum-v1"))
    with pytest.raises(RunError, match="the environment that the data were recorded in"):
        other.data(0)
    numbers = Demonstrations(torch.zeros(9, 4), torch.zeros(9, 1), torch.tensor([9])).save(tmp_path / "cart")
    for load, where in ((offline_task.load_dataset, offline_task), (env_task.load_demonstrations, env_task)):
        with pytest.raises(
            InvalidInputError, match=r"CartPole-v1 takes one of 2 choices \(Discrete\).*TransformAction"
        ):
            load(where.Args(data=str(numbers), env="CartPole-v1"), 0)
    for base, said in [
        (offline_task.Args(data="maze:medum-navigate"), "medium"),
        (offline_task.Args(data="maze:medium-navigat"), "navigate"),
        (offline_task.Args(data="maze:small-noisy", goal="all"), "goal of a maze"),
        (offline_task.Args(data="locosmall:pendulm-medium"), "pendulum"),
        (offline_task.Args(data="nothing.hdf5"), "a path that exists"),
        (offline_task.Args(data=str(path)), "--env"),
    ]:
        with pytest.raises(RunError, match=said):
            offline_task.task(base)


def test_fewer_rows_are_whole_episodes_drawn_by_the_seed() -> None:
    base = offline_task.Args(data="maze:small-navigate", num_episodes=30)
    whole = offline_task.load_dataset(base, 0)
    some, other = (offline_task.load_dataset(dataclasses.replace(base, max_transitions=500), seed) for seed in (0, 1))
    assert 250 < len(some.demos.actions) <= 500 and not torch.equal(some.demos.actions, other.demos.actions)
    for i in range(len(some.demos)):
        seen, _ = some.demos.episode(i)
        assert any(
            len(seen) == len(v) and torch.equal(seen, v) for v, _ in map(whole.demos.episode, range(len(whole.demos)))
        )


def test_locosmall_has_three_grades_and_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny run: the replay is what SAC saw, in order, and a second call reads what the first one stored."""
    monkeypatch.setenv("DENOISERL_CACHE", str(tmp_path))
    make, calls = locosmall.generate_grades, []
    monkeypatch.setattr(
        locosmall, "generate_grades", lambda name: calls.append(name) or make(name, iters=6, episodes=3)
    )
    first = {grade: locosmall.load_dataset("swingup", grade) for grade in locosmall.GRADES}
    locosmall._all.cache_clear()
    again = locosmall.load_dataset("swingup", "medium-replay")
    assert calls == ["swingup"] and len(list((tmp_path / "locosmall").iterdir())) == 1
    replay = first["medium-replay"]
    assert torch.equal(again.demos.actions, replay.demos.actions) and len(replay.demos.actions) == 6 * 8 * 25
    for data in first.values():
        obs, after = data.demos.observations, torch.cat([data.demos.observations[1:], data.last[-1:]])
        after[data.demos.ends - 1] = data.last
        state = torch.stack([obs[:, 0], torch.atan2(obs[:, 2], obs[:, 1]), obs[:, 3], obs[:, 4]], 1)
        for _ in range(2):
            state = locosmall.swingup._moved(state, 10 * data.demos.actions[:, 0].clamp(-1, 1))
        truth = torch.stack([state[:, 0], state[:, 1].cos(), state[:, 1].sin(), state[:, 2], state[:, 3]], 1)
        assert torch.allclose(truth, after, atol=1e-3), "every row is followed by its true successor"
    assert float(first["random"].demos.actions.abs().mean()) == pytest.approx(0.5, abs=0.1)


def test_equal_rewards_are_warned_of_and_what_does_not_fit_is_refused() -> None:
    data = bandit(200)
    few: dict[str, Any] = {"iterations": 1, "updates_per_iteration": 1, "batch_size": 16}
    assert data.rewards is not None
    with pytest.warns(UserWarning, match="all rewards of bandit are equal"):
        rows = learned(dql, policy(data, "diffusion"), dataclasses.replace(data, rewards=0 * data.rewards), **few)
    assert math.isfinite(rows[-1]["loss/bc"])
    with pytest.raises(InvalidInputError, match="200 decisions, fewer than a batch of 500"):
        learned(iql, policy(data, "gaussian"), data, batch_size=500)
    with pytest.raises(InvalidInputError, match="TD3\\+BC improves policies that decide"):
        learned(td3_bc, policy(data, "diffusion"), data, **few)
    with pytest.raises(InvalidInputError, match="start 'gaussian'"):
        learned(iql, policy(data, "squashed"), data, **few)
    with pytest.raises(InvalidInputError, match="start 'diffusion'"):
        learned(dql, policy(data, "gaussian"), data, **few)
    with pytest.raises(InvalidInputError, match="decides \\[1\\] numbers per step, the data have \\[2\\]"):
        learned(
            iql,
            policy(data, "gaussian"),
            offline_task.load_dataset(offline_task.Args(data="ring", num_episodes=50), 0),
            **few,
        )
