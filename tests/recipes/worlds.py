"""Small worlds in which every term counts: several dimensions, a box that is not [−1, 1], negative rewards, episodes
that truly end and episodes that a time limit cuts, at ticks that are no multiple of a chunk."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch


class Drift(gymnasium.Env):
    """s' = s + a / 2 (d = 2), reward −|s|² − |a|² / 4 − 1. Ends truly where |s| > 1.5; cut after ``LIMIT`` ticks."""

    LIMIT = 5

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = gymnasium.spaces.Box(np.array([-1, 0], np.float32), np.array([3, 2], np.float32))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.s, self.ticks = self.np_random.uniform(-1, 1, 2), 0
        return self.s.astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        a = np.asarray(action, float)
        self.s, self.ticks = self.s + 0.5 * (a - 1), self.ticks + 1
        reward = -float(self.s @ self.s) - float(a @ a) / 4 - 1
        return self.s.astype(np.float32), reward, bool(np.linalg.norm(self.s) > 1.5), self.ticks >= self.LIMIT, {}


class Planned(Drift):
    """Drift with episodes whose ends are planned, by turns: cut after 5 ticks, truly over after 3, broken in tick 4.

    One that is truly over is a success. One that breaks raises; without ``breaks`` it is cut after 5 ticks too. Copies
    are ``number``ed and out of step.
    """

    def __init__(self, number: int, breaks: bool = True) -> None:
        super().__init__()
        self.turn, self.breaks = number, breaks

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        self.turn += 1
        return super().reset(seed=seed)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        s, reward, _, cut, _ = super().step(action)
        if self.breaks and self.turn % 3 == 2 and self.ticks == 4:
            raise RuntimeError("broken by plan")
        over = self.turn % 3 == 1 and self.ticks == 3
        return s, reward, over, cut, {"success": over}


def planned(breaks: bool = True, world: type[Planned] = Planned) -> Callable[[], Planned]:
    """A factory of ``Planned`` worlds: the first of them has the number 0, the next one 1, and so on."""
    numbers = itertools.count()
    return lambda: world(next(numbers), breaks)


class Booked(Drift):
    """Drift whose episodes are booked by their seed: ``plan[seed]`` is their number of ticks, and whether they succeed.

    A success is a true end. Episodes that nobody booked are cut after ``LIMIT`` ticks.
    """

    plan: ClassVar[dict[int, tuple[int, bool]]] = {}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        self.last, self.good = self.plan.get(-1 if seed is None else seed, (self.LIMIT, False))
        return super().reset(seed=seed)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        s, reward, *_ = super().step(action)
        over = self.ticks >= self.last
        return s, reward, over and self.good, over and not self.good, {"success": over and self.good}


def discounted(ep: Any, gamma: float) -> torch.Tensor:
    """Σ_i γ^i r_i of the decisions [T, B] of an episode in ``Drift``, from what was seen and done: one step per row."""
    total = torch.zeros(ep.reward.shape, dtype=torch.float64)
    for t, b in itertools.product(*map(range, total.shape)):
        s = ep.obs[t, b].double()
        for i in range(int(ep.num_executed[t, b])):
            a = torch.minimum(torch.maximum(ep.action[t, b, i].double(), torch.tensor([-1, 0])), torch.tensor([3, 2]))
            s = s + 0.5 * (a - 1)
            total[t, b] += gamma**i * (-(s @ s) - (a @ a) / 4 - 1)
    return total
