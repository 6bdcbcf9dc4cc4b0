"""The fork: geometry, demonstrations of both modes, and a world that depends on its seeds alone."""

import torch

from denoiserl.core.rng import Rng
from denoiserl.envs.toy.fork2d import GOAL_X, MAX_EPISODE_STEPS, RADIUS, SPEED, Fork2D, demonstrations, mode


def test_demonstrations_go_both_ways_and_succeed():
    demos = demonstrations(200, Rng(0))
    assert demos.statistics()["success"] > 0.97
    ways = torch.stack([mode(demos.episode(i)[0][:, :2]) for i in range(200)])
    left = float((ways == 1).float().mean())
    assert 0.4 < left < 0.6 and bool((ways != 0).all())
    assert 30 < demos.statistics()["length"] < MAX_EPISODE_STEPS
    for i in range(200):
        path = demos.episode(i)[0][:, :2]
        assert float(path.norm(dim=-1).min()) >= RADIUS


def test_clumsy_demonstrations_fail():
    assert demonstrations(200, Rng(0), clumsy=1.0).statistics()["success"] < 0.8


def test_driving_straight_hits_the_disc():
    world = Fork2D(8)
    world.reset(seed=list(range(8)))
    ahead = torch.tensor([[1.0, 0.0]]).expand(8, 2)
    for _ in range(4):
        assert not bool(world.step(ahead)[2].any())
    *_, terminated, truncated, info = world.step(ahead)  # -0.6 + 5 · 0.06 reaches the rim
    terminated = terminated | world.step(ahead)[2]
    assert bool(terminated.all()) and not bool(info["success"].any()) and not bool(truncated.any())


def test_time_limit_truncates_and_does_not_terminate():
    world = Fork2D(2)
    world.reset(seed=[0, 1])
    for tick in range(MAX_EPISODE_STEPS):
        _, _, terminated, truncated, _ = world.step(torch.zeros(2, 2))
        assert bool(truncated.all()) == (tick == MAX_EPISODE_STEPS - 1) and not bool(terminated.any())


def test_standing_copies_do_not_move():
    world = Fork2D(2)
    world.reset(seed=[0, 1])
    before = world.position.clone()
    world.step(torch.ones(2, 2), torch.tensor([True, False]))
    torch.testing.assert_close(world.position[0], before[0] + SPEED)
    assert torch.equal(world.position[1], before[1]) and world.steps.tolist() == [1, 0]


def test_start_states_depend_on_their_seed_alone():
    a, b = Fork2D(3), Fork2D(2)
    first, _ = a.reset(seed=[5, 6, 7])
    other, _ = b.reset(seed=[7, 5])
    assert torch.equal(first[[2, 0]], other)
    a.reset(options={"reset_mask": torch.tensor([True, False, False])})
    b.step(torch.ones(2, 2))
    second, _ = b.reset(options={"reset_mask": torch.tensor([False, True])})
    assert torch.equal(a.observation[0], second[1])  # the second episode of seed 5, in any company
    assert not torch.equal(a.observation[0], first[0]) and torch.equal(a.observation[1], first[1])
    assert float(first[:, 2].unique()) == GOAL_X


def test_the_mode_of_a_path_is_its_side():
    left = torch.tensor([[-0.6, 0.0], [-0.2, 0.6], [0.2, 0.6]])
    right, short = left * torch.tensor([1.0, -1.0]), left[:2]
    assert [int(mode(p)) for p in (left, right, short)] == [1, -1, 0]
