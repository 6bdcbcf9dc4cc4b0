"""The robot experiment: a Meta-World task, demonstrated by a script that misjudges where things are.

The demonstrator is right about how and wrong about where: each episode he believes the object and the goal a few
centimetres from where they are. A clone of his learns the average, succeeds about as often as he does, and no amount of
imitation tells it more; the simulator's success can.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from denoiserl.data import Demos, Robot
from denoiserl.env import Evaluation
from denoiserl.env import evaluate as play
from denoiserl.env.metaworld import Flaws, MetaWorld, demonstrations
from denoiserl.errors import BadRun
from denoiserl.net import MLP
from denoiserl.policy import Policy
from denoiserl.process import Diffusion, Gauss, cosine, ddim, floored, grid
from denoiserl.rng import Rng
from denoiserl.show.media import gif
from denoiserl.train import Keep


@dataclass(frozen=True)
class Base:
    """The task, and the policy before reward."""

    task: str = "drawer-open-v3"
    """a Meta-World task"""
    ticks: int = 105
    """ticks until an episode is over"""
    demos: int = 100
    """demonstrations"""
    aim: float = 0.04
    """metres by which the demonstrator misjudges object and goal"""
    slip: float = 0.2
    """noise on the demonstrator's commands"""
    chunk: int = 5
    """actions planned at once (H)"""
    execute: int = 5
    """actions executed of each plan (T_a)"""
    denoise: int = 5
    """denoising steps"""
    floor: float = 0.1
    """least std of a denoising step while learning from reward"""
    width: int = 256
    """the network's width"""
    updates: int = 9000
    """gradient steps of imitation"""
    batch: int = 256
    """windows a gradient step"""
    lr: float = 1e-3
    """AdamW's learning rate, with warm-up and cosine decay"""


def make(base: Base) -> Callable[[], MetaWorld]:
    """A factory of the environment."""
    return partial(MetaWorld, base.task, base.ticks)


def policy(base: Base, demos: Demos, seed: int, device: str | torch.device = "cpu") -> Policy:
    """A diffusion policy: explored under a floored posterior, served under the posterior itself."""
    torch.manual_seed(seed)
    codec = Robot.fit(demos)
    event = (base.chunk, demos.actions.shape[-1])
    net = MLP(event, cond=demos.observations.shape[-1], width=base.width, layer_norm=True)
    process = Diffusion(cosine, floored(ddim(1.0), base.floor), clip=1.0)
    times = grid(base.denoise)
    serve = process.steps(times, ddim(1.0))
    return Policy.of(process, Gauss(net, cosine, "v").to(device), event, process.steps(times), serve, codec)


@lru_cache(maxsize=2)
def record(base: Base, seed: int) -> Demos:
    """The demonstrations, failures included: the demonstrator does not know."""
    return demonstrations(base.task, base.demos, seed, base.ticks, Flaws(base.aim, base.slip))


def imitate(
    made: Policy, base: Base, seed: int, updates: int, lr: float, keep: Keep, stream: int = 0
) -> Iterator[dict]:
    """Clone the demonstrations of ``seed``, with minibatches and noise of their own for every ``stream``."""
    from denoiserl.recipes import diffusion_policy  # the method; its experiment is this one

    a = SimpleNamespace(updates=updates, batch=base.batch, lr=lr, history=1, execute=base.execute)
    rng = Rng(seed + 1_000_003 * stream, keep.device)
    yield from diffusion_policy.improve(made, record(base, seed), a, rng, keep)


def pretrain(base: Base, seed: int, keep: Keep) -> Iterator[dict]:
    """A policy that has imitated; a generator that yields metrics and returns the policy."""
    made = policy(base, record(base, seed), seed, keep.device)
    yield from imitate(made, base, seed, base.updates, base.lr, keep)
    return made


def server(made: Policy, base: Base) -> Any:
    """Acts as users run the policy: ``act(obs, rng) -> chunk``."""

    def act(obs: Tensor, rng: Rng) -> Tensor:
        sample = made.draw(obs.to(made.device), rng)
        return sample[:, : base.execute]

    return act


def trials(made: Policy, base: Base, seed: int, episodes: int, watch: Any = None, copies: int = 32) -> Evaluation:
    """Episodes from start states that neither demonstrations nor learning have seen."""
    return play(server(made, base), make(base), episodes, 1_000_000 + seed, copies, watch=watch)


CAPTION = "Four episodes from held-out starts, at twice their speed."
METRICS = {"success": ("success from held-out starts", "%")}


def outcomes(made: Policy, base: Base, seed: int, n: int) -> dict[str, Tensor]:
    """Success and ticks of n episodes, [n] each."""
    done = trials(made, base, seed, n)
    assert done.success is not None
    return {"success": done.success.float(), "ticks": done.ticks.float()}


def look(made: Policy, base: Base, seed: int, n: int, size: int = 160) -> dict[str, bytes | str]:
    """Four episodes side by side as a GIF; a sentence on a machine that cannot render."""
    shown, frames = min(n, 4), defaultdict(list)

    def watch(episode: int, env: Any) -> None:
        if episode < shown and len(frames[episode]) * 2 <= env.ticks:
            frames[episode].append(env.render(size))

    try:
        trials(made, base, seed, shown, watch, copies=shown)
    except BadRun as error:
        return {"episodes.txt": f"No film of the robot: {error}."}
    return {"episodes.gif": gif(_joined([np.stack(frames[i]) for i in range(shown)]), 20.0)}


def _joined(films: list[np.ndarray]) -> np.ndarray:
    """Films in a row; the shorter ones wait on their last frame."""
    most = max(len(f) for f in films)
    films = [np.concatenate([f, f[-1:].repeat(most - len(f), 0)]) for f in films]
    return np.concatenate(films, 2)


def report(made: Policy, base: Base, seed: int) -> tuple[dict[str, float], float]:
    """Means over 50 held-out episodes, and their success."""
    means = {f"held-out {k}": float(v.mean()) for k, v in outcomes(made, base, seed, 50).items()}
    return means, means["held-out success"]
