"""The robot experiment: a Meta-World task, demonstrated by a script that misjudges where things are.

The demonstrator is right about how and wrong about where: each episode he believes the object and the goal a few
centimetres from where they are. A clone of his learns the average, succeeds about as often as he does, and no amount of
imitation tells it more; the simulator's success can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from denoiserl.data import Demos, Robot
from denoiserl.env import Evaluation
from denoiserl.env import evaluate as play
from denoiserl.env.metaworld import Flaws, MetaWorld, demonstrations
from denoiserl.net import MLP
from denoiserl.policy import Policy
from denoiserl.process import Diffusion, Gauss, cosine, ddim, floored, grid, quiet
from denoiserl.rng import Rng
from denoiserl.train import Keep


@dataclass(frozen=True)
class Base:
    """The task, and the policy before reward."""

    task: str = "window-open-v3"
    """a Meta-World task"""
    ticks: int = 100
    """ticks until an episode is over"""
    demos: int = 60
    """demonstrations"""
    aim: float = 0.04
    """metres by which the demonstrator misjudges object and goal"""
    slip: float = 0.2
    """noise on the demonstrator's commands"""
    chunk: int = 4
    """actions planned at once (H)"""
    execute: int = 4
    """actions executed of each plan (T_a)"""
    denoise: int = 8
    """denoising steps"""
    floor: float = 0.1
    """least std of a denoising step while learning from reward"""
    width: int = 256
    """the network's width"""
    updates: int = 3000
    """gradient steps of imitation"""
    batch: int = 256
    """windows a gradient step"""
    lr: float = 1e-3
    """AdamW's learning rate, with warm-up and cosine decay"""


def make(base: Base) -> Callable[[], MetaWorld]:
    """A factory of the environment."""
    return partial(MetaWorld, base.task, base.ticks)


def policy(base: Base, demos: Demos, seed: int, device: str | torch.device = "cpu") -> Policy:
    """A diffusion policy: trained and explored under a floored posterior, served nearly without noise."""
    torch.manual_seed(seed)
    codec = Robot.fit(demos)
    assert isinstance(demos.observations, Tensor)
    event = (base.chunk, demos.actions.shape[-1])
    net = MLP(event, cond=demos.observations.shape[-1], width=base.width, layer_norm=True)
    process = Diffusion(cosine, floored(ddim(1.0), base.floor), clip=1.0)
    times = grid(base.denoise)
    serve = process.steps(times, quiet(ddim(1.0), 1e-3))
    return Policy.of(process, Gauss(net, cosine, "v").to(device), event, process.steps(times), serve, codec)


def imitate(made: Policy, demos: Demos, base: Base, updates: int | None, lr: float, rng: Rng, keep: Keep) -> Iterator[dict]:
    """Clone the demonstrations."""
    from denoiserl.recipes import diffusion_policy

    a = SimpleNamespace(updates=updates, batch=base.batch, lr=lr, history=1, execute=base.execute)
    yield from diffusion_policy.improve(made, demos, a, rng, keep)


def record(base: Base, seed: int) -> Demos:
    """The demonstrations, failures included: the demonstrator does not know."""
    return demonstrations(base.task, base.demos, seed, base.ticks, Flaws(base.aim, base.slip))


def pretrain(base: Base, seed: int, keep: Keep) -> Iterator[dict]:
    """A policy that has imitated; a generator that yields metrics and returns the policy."""
    demos = record(base, seed)
    made = policy(base, demos, seed, keep.device)
    yield from imitate(made, demos, base, base.updates, base.lr, Rng(seed, keep.device), keep)
    return made


def server(made: Policy, base: Base) -> Any:
    """Acts as users run the policy: ``act(obs, rng) -> chunk``."""

    def act(obs: Tensor, rng: Rng) -> Tensor:
        sample = made.draw(obs.to(made.device), rng)
        assert isinstance(sample, Tensor)
        return sample[:, : base.execute]

    return act


def trials(made: Policy, base: Base, seed: int, episodes: int = 100, watch: Any = None) -> Evaluation:
    """Episodes from start states that neither demonstrations nor learning have seen."""
    return play(server(made, base), make(base), episodes, 1_000_000 + seed, watch=watch)


def evaluate(made: Policy, base: Base, seed: int, episodes: int = 100) -> dict[str, float]:
    """The success rate over held-out start states."""
    done = trials(made, base, seed, episodes)
    assert done.success is not None
    return {"held-out success": float(done.success.float().mean()), "held-out ticks": float(done.ticks.float().mean())}
