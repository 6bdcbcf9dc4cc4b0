"""Mazes: plans that hang together, walls that hold, and players of the kinds that they claim to be."""

from collections import deque

import pytest
import torch

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng
from denoiserl.envs import Collector, evaluate
from denoiserl.envs.toy.maze import KINDS, REACH, SEGMENT, SPEED, Maze, PointMaze, demonstrations, expert

BEND = Maze.parse("""
    #####
    #...#
    ###.#
    #...#
    #####
""")


def searched(maze, start):
    """Distances from a cell by a breadth-first search over the plan."""
    found, queue = {start: 0}, deque([start])
    while queue:
        i, j = queue.popleft()
        for step in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
            if not bool(maze.walls[step]) and step not in found:
                found[step] = found[i, j] + 1
                queue.append(step)
    return found


@pytest.mark.parametrize("n", [2, 5, 9])
def test_random_mazes_hang_together(n):
    tree, loopy = Maze.random(n, Rng(n), loops=0.0), Maze.random(n, Rng(n), loops=0.5)
    # a tree has one passage fewer than rooms, so any two rooms are joined in exactly one way
    assert len(tree.cells) == n * n + n * n - 1 and len(loopy.cells) >= len(tree.cells) + (n > 2)
    assert bool((~tree.walls[1::2, 1::2]).all()) and bool(tree.walls[::2, ::2].all())
    cells = [(int(y), int(x)) for x, y in loopy.cells]
    for start in (0, len(cells) // 2):
        found = searched(loopy, cells[start])
        assert loopy.distance[start].tolist() == [found[c] for c in cells]
    assert str(Maze.random(n, Rng(1))) == str(Maze.random(n, Rng(1))) != str(Maze.random(n, Rng(2)))


def test_following_the_table_is_a_shortest_way():
    maze = Maze.random(6, Rng(0), loops=0.3)
    number = torch.arange(len(maze.cells))
    at, end = torch.meshgrid(number, number, indexing="ij")
    nearer = maze.next_cell[at, end]
    away = at != end
    assert torch.equal(maze.distance[nearer, end][away], maze.distance[at, end][away] - 1)
    assert bool((maze.distance[at, nearer][away] == 1).all()) and torch.equal(nearer.diagonal(), number)
    assert torch.equal(maze.cell(maze.cells), number) and int(maze.cell(torch.tensor([0.5, 0.5]))) == -1


def test_walls_hold_and_the_point_slides_along_them():
    world = PointMaze(1, BEND, goal=(1.5, 3.5))
    world.reset(seed=0)
    world.position = torch.tensor([[1.5, 1.5]])
    for _ in range(30):
        world.step(torch.tensor([[1.0, -1.0]]))  # into the upper wall, to the right
    assert 3.8 < float(world.position[0, 0]) < 4 and 1 < float(world.position[0, 1]) < 1.2
    world.step(torch.tensor([[0.0, 1.0]]))
    assert float(world.velocity[0, 1]) == pytest.approx(SPEED)


@pytest.mark.parametrize("accelerate", [False, True])
def test_the_expert_takes_the_shortest_way(accelerate):
    maze = Maze.random(5, Rng(3))
    world = PointMaze(256, maze, accelerate=accelerate)
    world.reset(seed=0)
    steps = maze.distance[maze.cell(world.position), maze.cell(world.goal)]
    assert int(steps.min()) >= 1
    took, walked, live = torch.zeros(256), torch.zeros(256), torch.ones(256, dtype=torch.bool)
    while bool(live.any()):
        before = world.position
        _, reward, over, late, _ = world.step(expert(world), live)
        took += live
        walked += (world.position - before).abs().sum(-1)
        assert not bool(late.any()) and torch.equal(reward, over.float())
        live = live & ~over
    # horizontal and vertical ways add up to the steps, less what the goal's reach and an uncentred start may save
    assert bool((walked >= steps - 2**0.5 * REACH - 0.4).all())
    assert bool((walked <= (1.1 if accelerate else 1.0) * steps + 0.8).all())
    assert bool((took <= (steps + 1) / SPEED * (2 if accelerate else 1) + 8).all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("accelerate", [False, True])
def test_data_stay_in_the_corridors_and_obey_the_speed(kind, accelerate):
    maze = Maze.random(4, Rng(0))
    demos = demonstrations(maze, 40, Rng(1), kind, max_episode_steps=150, accelerate=accelerate)
    where = demos.observations[:, :2]
    assert int(maze.cell(where).min()) >= 0 and float(demos.actions.abs().max()) <= 1
    for i in range(40):
        path = demos.episode(i)[0][:, :2]
        assert len(path) == 1 or float((path[1:] - path[:-1]).abs().max()) <= SPEED + 1e-6
    assert demos.observations.shape[1] == (6 if accelerate else 4)


def test_kinds_differ_as_they_claim():
    maze = Maze.random(6, Rng(0))
    told = {k: demonstrations(maze, 100, Rng(1), k, max_episode_steps=300) for k in KINDS}
    stats = {k: d.statistics() for k, d in told.items()}
    assert stats["expert"]["success"] == 1.0 and stats["noisy"]["success"] > 0.9 and stats["stitch"]["success"] == 1.0
    assert stats["noisy"]["length"] > stats["expert"]["length"] and stats["random"]["success"] < 0.7
    assert set(told["navigate"].lengths.tolist()) == {300} and stats["navigate"]["return"] > 3
    ends = told["navigate"].episode(0)[0][:, 2:].unique(dim=0)
    assert len(ends) >= 3
    # no stitch episode goes farther than four cells, but together they visit all and join them
    start = torch.stack([told["stitch"].episode(i)[0][0] for i in range(100)])
    steps = maze.distance[maze.cell(start[:, :2]), maze.cell(start[:, 2:])]
    assert 1 <= int(steps.min()) and int(steps.max()) == SEGMENT < int(maze.distance.max())
    many = demonstrations(maze, 600, Rng(2), "stitch")
    cells = maze.cell(many.observations[:, :2])
    joined = torch.eye(len(maze.cells), dtype=torch.bool)
    for i in range(600):
        visited = maze.cell(many.episode(i)[0][:, :2])
        joined[visited[:-1], visited[1:]] = True
        joined[visited[-1], maze.cell(many.episode(i)[0][-1, 2:])] = True  # the last tick reaches the goal
    reach = torch.linalg.matrix_power(joined.double(), len(maze.cells)) > 0
    assert len(cells.unique()) == len(maze.cells) and bool(reach.all())


def test_starts_depend_on_their_seed_alone():
    maze = Maze.random(4, Rng(0))
    a, b = PointMaze(3, maze), PointMaze(2, maze)
    first, _ = a.reset(seed=[5, 6, 7])
    assert torch.equal(first[[2, 0]], b.reset(seed=[7, 5])[0])
    a.reset(options={"reset_mask": torch.tensor([True, False, False])})
    assert not torch.equal(a.observation[0], first[0]) and torch.equal(a.observation[1:], first[1:])


def test_it_streams_and_is_evaluated():
    maze = Maze.random(3, Rng(0))
    world = PointMaze(32, maze)
    told = evaluate(lambda o, r: expert(world), world, 64)
    assert bool(told.success.all()) and told.returns.tolist() == [1.0] * 64
    ep = Collector(PointMaze(8, maze, max_episode_steps=6), seed=0).collect(
        lambda o, r: (torch.zeros(8, 4, 2), None), 3, Rng(0)
    )
    assert ep.num_executed.tolist() == [[4] * 8, [2] * 8, [4] * 8]  # a chunk ends with its episode
    assert bool(ep.done[1].all()) and not bool(ep.terminated.any())


def test_what_does_not_fit_is_refused():
    for plan, said in (
        ("###\n#.#\n#.#", "all around"),
        ("#####\n#.#.#\n#####", "in parts"),
        ("###\n#.##\n###", "equally"),
    ):
        with pytest.raises(InvalidInputError, match=said):
            Maze.parse(plan)
    with pytest.raises(InvalidInputError, match="2 x 2 rooms"):
        Maze.random(1, Rng(0))
    with pytest.raises(InvalidInputError, match="in a wall"):
        PointMaze(1, BEND, goal=(0.5, 0.5))
    with pytest.raises(InvalidInputError, match="Did you mean 'navigate'"):
        demonstrations(BEND, 1, Rng(0), "navigat")
