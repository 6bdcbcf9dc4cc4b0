"""locosmall: logged data of three small continuous-control tasks in three grades, generated in a minute and cached.

    pendulum (Gymnasium's Pendulum-v1)   reacher (Reacher-v5, MuJoCo)   swingup (``envs.toy.swingup``)

A SAC run of fixed length and seed generates them. ``random``: actions uniform in their bounds. ``medium-replay``: all
that SAC collected until its policy was about half way between random and expert, in order. ``medium``: episodes of that
policy, with its own noise. The grades are those of D4RL (2004.07219); the data are not.

The cache is DENOISERL_CACHE (else ~/.cache/denoiserl). The folder's name is a hash of all source files that affect the
data, the task's name and the version of torch. So a change generates new data.
"""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from denoiserl.control import squashed_actions
from denoiserl.core.counters import no_usage_counting
from denoiserl.core.errors import RunError, unknown_name_message
from denoiserl.core.rng import Rng
from denoiserl.core.serialization import store
from denoiserl.core.tree import batch_size, tree_map
from denoiserl.data import Demonstrations, TanhCodec
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.data.rollout import Rollout
from denoiserl.envs import Collector
from denoiserl.envs.record import record
from denoiserl.envs.toy import swingup
from denoiserl.envs.toy.swingup import SwingUp
from denoiserl.recipes.off_policy import sac
from denoiserl.tasks import policies
from denoiserl.train import Run

GRADES = ("random", "medium", "medium-replay")
COPIES = 8


@dataclass(frozen=True)
class World:
    """An environment ``make`` for ``Collector`` and ``evaluate``, and how to generate its data.

    SAC is medium after ``iters`` · 8 · 25 steps; the grades random and medium have ``episodes`` each. ``known``: the
    returns of a random and an expert policy.
    """

    make: Any
    iters: int
    episodes: int
    known: tuple[float, float]


WORLDS = {
    "pendulum": World("Pendulum-v1", 16, 50, (-1206.0, -140.0)),
    "reacher": World("Reacher-v5", 12, 200, (-43.0, -4.0)),
    "swingup": World(partial(SwingUp, COPIES), 25, 40, (16.0, 145.0)),
}


def find_world(name: str) -> World:
    """Return a world by name. Raise RunError for an unknown one."""
    if name not in WORLDS:
        raise RunError(
            unknown_name_message(name, WORLDS, "world of locosmall") + " Data are named locosmall:WORLD-GRADE."
        )
    return WORLDS[name]


def load_dataset(name: str, grade: str) -> EpisodeDataset:
    """Return the data set of a world and a grade; generate it on the first call."""
    if grade not in GRADES:
        raise RunError(
            unknown_name_message(grade, GRADES, "grade of locosmall") + " Data are named locosmall:WORLD-GRADE."
        )
    return _all(name)[grade]


@lru_cache(maxsize=3)
def _all(name: str) -> dict[str, EpisodeDataset]:
    found = folder(name)
    if not all(store.exists(found / grade) for grade in GRADES):
        for grade, data in generate_grades(name).items():
            data.save(found / grade)
    return {grade: EpisodeDataset.load(found / grade) for grade in GRADES}


def folder(name: str) -> Path:
    """Return the cache folder of a world's data."""
    given = os.environ.get("DENOISERL_CACHE")
    root = Path(given) if given else Path.home() / ".cache" / "denoiserl"
    here = inspect.getmodule(folder)
    assert isinstance(here, ModuleType)
    deciding = [inspect.getsource(m) for m in (here, sac, squashed_actions, policies, swingup)]
    digest = hashlib.sha256("\n".join([*deciding, name, torch.__version__]).encode()).hexdigest()[:16]
    return root / "locosmall" / f"{name}-{digest}"


def generate_grades(
    name: str, seed: int = 0, iters: int | None = None, episodes: int | None = None
) -> dict[str, EpisodeDataset]:
    """Generate all grades of a world: a SAC run of ``iters`` iterations and ``episodes`` episodes of its policy."""
    this = find_world(name)
    iters, episodes = this.iters if iters is None else iters, this.episodes if episodes is None else episodes
    collector = RecordingCollector(this.make, COPIES, seed)
    a = sac.Args(iterations=iters, num_envs=COPIES, rollout_steps=25, learning_starts=1000, utd=1.0, critic_width=64)
    with no_usage_counting():
        codec = TanhCodec.from_box(collector.spec.low, collector.spec.high)
        player = policies.squashed_gaussian((1, collector.action_dim), collector.obs_dim, 64, 2, codec, seed)
        for _ in sac.improve(player, collector, a, Rng(seed), Run(restart=iters)):
            pass
        collector.close()
        box = collector.spec

        def even(obs: Tensor, rng: Rng) -> Tensor:
            low, high = (torch.as_tensor(v, dtype=torch.float32) for v in (box.low, box.high))
            return low + (high - low) * rng.uniform(batch_size(obs), *low.shape)

        def played(obs: Tensor, rng: Rng) -> Tensor:
            return player.codec.decode(player.sample_chain(obs, rng).sample)

        grades = {k: record(this.make, act, episodes, seed + i, COPIES) for i, (k, act) in enumerate(
            (("random", even), ("medium", played)), 1
        )}  # fmt: skip
    grades["medium-replay"] = rollouts_to_dataset(collector.episodes, name)
    return {k: replace(v, demos=replace(v.demos, name=f"{name}-{k}")) for k, v in grades.items()}


class RecordingCollector(Collector):
    """A collector that keeps every rollout."""

    def __init__(self, env: Any, copies: int, seed: int) -> None:
        super().__init__(env, None if callable(env) and hasattr(env(), "num_envs") else copies, seed)
        self.episodes: list[Rollout] = []

    def collect(self, act: Any, steps: int, rng: Rng | int) -> Rollout:
        """Collect a rollout and keep it."""
        self.episodes.append(super().collect(act, steps, rng))
        return self.episodes[-1]


def rollouts_to_dataset(parts: list[Rollout], name: str) -> EpisodeDataset:
    """Convert rollouts of one action per decision to a data set: the episodes of each environment."""
    join: Callable[..., Any] = lambda *v: torch.cat(v)  # noqa: E731
    obs, after = (tree_map(join, *(getattr(ep, k) for ep in parts)) for k in ("obs", "next_obs"))
    action, reward, over, done = (
        torch.cat([getattr(ep, k) for ep in parts]) for k in ("action", "reward", "terminated", "done")
    )
    done[:-1] |= (after[:-1] != obs[1:]).any(-1)  # a checkpoint resets the environments without done
    done[-1] = True
    flat = lambda v: v.transpose(0, 1).flatten(0, 1)  # noqa: E731
    stop = flat(done).nonzero().flatten()
    rewards, actions = flat(reward), flat(action).flatten(1)
    total = rewards.double().cumsum(0)[stop].diff(prepend=torch.zeros(1, dtype=torch.float64)).float()
    demos = Demonstrations(flat(obs), actions, stop + 1, None, total, name)
    low, high = actions.amin(0), actions.amax(0)
    return EpisodeDataset(demos, rewards, flat(after)[stop], flat(over)[stop], low, high)
