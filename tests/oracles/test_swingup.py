"""The cart-pole obeys its own mechanics, and mazes are recorded as their dynamics say."""

from __future__ import annotations

import math

import pytest
import torch

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.envs import evaluate
from denoiserl.envs.toy import swingup
from denoiserl.envs.toy.maze import REACH, Maze, PointMaze, demonstrations, expert
from denoiserl.envs.toy.offline_data import bandit, farthest_cell, mazes, relabel_rewards
from denoiserl.envs.toy.ring import reward
from denoiserl.envs.toy.swingup import SwingUp, energy


def test_a_free_cart_pole_keeps_its_energy_the_better_the_finer_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kinetic and potential energy from mechanics alone; the integrator's error falls with its step."""
    start = torch.tensor([[0.1, 1.0, 0.3, 0.5], [0.0, 3.0, 0.0, 2.0]], dtype=torch.float64)
    lost = []
    for step, ticks in ((0.02, 50), (0.002, 500)):
        monkeypatch.setattr(swingup, "STEP", step)
        state = start
        for _ in range(ticks):
            state = swingup._moved(state, torch.zeros(2, dtype=torch.float64))
        lost.append(float((energy(state) - energy(start)).abs().max()))
        assert float((state - start).abs().max()) > 0.5, "something moved"
    assert lost[1] < 0.2 * lost[0] and lost[1] < 2e-3, lost


def test_a_hanging_pole_hangs_an_upright_one_falls_and_the_reward_says_so() -> None:
    world = SwingUp(3)
    world.reset(seed=[1, 2, 1])
    assert torch.equal(world.state[0], world.state[2]) and not torch.equal(world.state[0], world.state[1])
    world.state = torch.tensor([[0.0, math.pi, 0, 0], [0.0, 0.0, 0, 0], [swingup.TRACK, 0.0, 0, 0]])
    _, gain, over, late, _ = world.step(torch.zeros(3, 1))
    assert gain[0] == pytest.approx(0, abs=1e-6) and gain[1] == pytest.approx(1, abs=1e-6)
    assert gain[2] == pytest.approx(0, abs=1e-6) and not bool(over.any() | late.any())
    world.state[1, 1] = 0.01
    for _ in range(30):
        world.step(torch.zeros(3, 1))
    assert abs(float(world.state[1, 1])) > 0.5, "upright is unstable"
    with pytest.raises(InvalidInputError, match="takes actions"):
        world.step(torch.zeros(3, 2))


def test_a_hand_made_controller_swings_it_up() -> None:
    """Pump energy until it suffices, then hold: the task can be done with its force on its track."""

    def act(obs: torch.Tensor, rng: Rng) -> torch.Tensor:
        x, cos, sin, speed, spin = obs.unbind(-1)
        high = 0.5 * (4 / 3) * swingup.HALF * spin.square() / swingup.GRAVITY + cos - 1.0
        pump = (4 * high * spin * cos).clamp(-1, 1) * 0.8 - 0.3 * x - 0.1 * speed
        hold = 3.0 * sin + 0.6 * spin + 0.12 * x + 0.2 * speed
        near = (cos > 0.85) & (spin.abs() < 4)
        return torch.where(near, hold, pump).clamp(-1, 1)[:, None]

    done = evaluate(act, SwingUp(8), 8, 0)
    still = evaluate(lambda obs, rng: torch.zeros(len(obs), 1), SwingUp(8), 8, 0)
    assert float(still.returns.max()) < 5 and float(done.returns.min()) > 60, done.returns
    assert bool((done.lengths == swingup.MAX_EPISODE_STEPS).all())


MAZE = Maze.random(3, Rng(7))


def test_a_recording_is_what_the_world_says_when_it_is_played_again() -> None:
    """Tick by tick in a world of its own: the same states, rewards, ends and last observations."""
    data = mazes(MAZE, 6, Rng(0), "expert")
    assert data.rewards is not None and data.terminated is not None
    assert bool(data.terminated.all()) and torch.equal(data.rewards > 0, _ends(data))
    world = PointMaze(1, MAZE)
    for i in range(3):
        seen, done = data.demos.episode(i)
        world.position, world.goal = seen[:1, :2].clone(), seen[:1, 2:].clone()
        after = seen[:1]
        for t in range(len(done)):
            assert torch.allclose(world.observation[0], seen[t])
            after, gain, over, _, _ = world.step(done[t : t + 1])
            assert bool(over[0]) == (t == len(done) - 1) == (float(gain[0]) == 1)
        assert torch.allclose(after[0], data.last[i])


def _ends(data: EpisodeDataset) -> torch.Tensor:
    made = torch.zeros(len(data.demos.actions), dtype=torch.bool)
    made[data.demos.ends - 1] = True
    return made


def test_the_same_ticks_told_for_another_goal_end_where_that_one_is_reached() -> None:
    demos = demonstrations(MAZE, 30, Rng(1), "navigate", 80)
    goal = farthest_cell(MAZE)
    data = relabel_rewards(MAZE, demos, goal)
    assert data.rewards is not None and data.terminated is not None and torch.equal(data.demos.actions, demos.actions)
    near = (data.last[:, :2] - goal).norm(dim=1) < REACH
    assert torch.equal(near, data.terminated) and 0 < int(near.sum()) < len(near)
    assert float(data.rewards.sum()) == float(near.sum()), "reward nowhere else"
    assert set(demos.ends.tolist()) <= set(data.demos.ends.tolist()), "no episode runs over another player's"
    assert torch.equal(data.demos.observations[:, 2:], goal.expand(len(demos.actions), 2))
    far = MAZE.distance[MAZE.cell(goal)].max()
    assert int(far) == int(MAZE.distance.max())


def test_decisions_of_the_bandit_carry_their_reward() -> None:
    data = bandit(50, Rng(0))
    assert data.rewards is not None and data.terminated is not None and bool(data.terminated.all())
    assert torch.allclose(data.rewards, reward(data.demos.actions))


def test_the_expert_of_a_maze_reaches_the_one_goal() -> None:
    goal = farthest_cell(MAZE)
    world = PointMaze(16, MAZE, (float(goal[0]), float(goal[1])))
    done = evaluate(lambda obs, rng: expert(world), world, 16, 0)
    assert done.success is not None and bool(done.success.all())
