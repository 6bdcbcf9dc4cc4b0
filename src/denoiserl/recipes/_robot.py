"""The robot experiment: a Meta-World task, demonstrated by a script that misjudges where things are.

The demonstrator is right about how and wrong about where: each episode he believes the object and the goal a few
centimetres from where they are. A clone of his learns the average, succeeds about as often as he does, and no amount of
imitation tells it more; the simulator's success can.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from types import SimpleNamespace

import torch
from torch import Tensor

from denoiserl.data import Demos, Robot
from denoiserl.env import Evaluation, Stream, filmed
from denoiserl.env import evaluate as play
from denoiserl.env.metaworld import Flaws, MetaWorld, demonstrations
from denoiserl.env.planner import serving
from denoiserl.env.steering import deterministic, steer
from denoiserl.errors import BadRun
from denoiserl.net import MLP
from denoiserl.policy import Policy
from denoiserl.process import Diffusion, Gauss, GaussianHead, OneStep, cosine, ddim, floored, grid, linear
from denoiserl.rng import Rng
from denoiserl.show.films import film_grid
from denoiserl.show.media import gif
from denoiserl.task import Task
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
    made: Policy,
    base: Base,
    seed: int,
    updates: int,
    lr: float,
    keep: Keep,
    stream: int = 0,
    demos: Demos | None = None,
) -> Iterator[dict]:
    """Clone the demonstrations of ``seed`` (or others); minibatches and noise are of their own for every ``stream``."""
    from denoiserl.recipes import diffusion_policy  # the method; its experiment is this one

    a = SimpleNamespace(updates=updates, batch=base.batch, lr=lr, history=1, execute=base.execute)
    rng = Rng(seed + 1_000_003 * stream, keep.device)
    yield from diffusion_policy.improve(made, demos or record(base, seed), a, rng, keep)


def pretrain(base: Base, seed: int, keep: Keep) -> Generator[dict, None, Policy]:
    """A policy that has imitated; a generator that yields metrics and returns the policy."""
    made = policy(base, record(base, seed), seed, keep.device)
    yield from imitate(made, base, seed, base.updates, base.lr, keep)
    return made


def pretrain_successes(base: Base, seed: int, keep: Keep) -> Generator[dict, None, Policy]:
    """A policy that has imitated, for as many updates, only those demonstrations that succeeded."""
    demos = record(base, seed)
    made = policy(base, demos, seed, keep.device)
    yield from imitate(made, base, seed, base.updates, base.lr, keep, demos=demos.successful())
    return made


def trials(made: Policy, base: Base, seed: int, episodes: int, copies: int = 32) -> Evaluation:
    """Episodes from start states that neither demonstrations nor learning have seen."""
    return play(serving(made, base.execute), make(base), episodes, 1_000_000 + seed, copies)


METRICS = {"success": ("success from held-out starts", "%")}


def outcomes(made: Policy, base: Base, seed: int, n: int) -> dict[str, Tensor]:
    """Success and ticks of n episodes, [n] each."""
    done = trials(made, base, seed, n)
    assert done.success is not None
    return {"success": done.success.float(), "ticks": done.ticks.float()}


def look(made: Policy, base: Base, seed: int, n: int, size: int = 160) -> dict[str, bytes | str]:
    """The first episodes, eight at most, as one film; a sentence on a machine that cannot render."""
    try:
        films, won = filmed(serving(made, base.execute), make(base), min(n, 8), 1_000_000 + seed, size)
    except BadRun as error:
        return {"episodes.txt": f"No film of the robot: {error}."}
    return {"episodes.gif": gif(film_grid(films, won), 20.0)}


def task(base: Base) -> Task:
    """The task: learn from the simulator's success."""
    return Task(
        base.task,
        "env",
        {
            "diffusion": partial(pretrain, base),
            "gaussian": partial(pretrain_gaussian, base),
            "flow": partial(pretrain_flow, base),
            "successes": partial(pretrain_successes, base),
            "steered": partial(pretrain_steered, base),
            "narrow": partial(pretrain_steered, base, spread=1.0),
        },
        lambda made, seed, n: outcomes(made, base, seed, n),
        METRICS,
        env=lambda copies, seed: Stream(make(base), copies, seed),
        look=lambda made, seed, n: look(made, base, seed, n),
        imitate=lambda made, seed, updates, keep, stream: imitate(made, base, seed, updates, base.lr, keep, stream),
        caption="Episodes from held-out starts, at twice their speed: the first ones, not the best.",
    )


def cloning(base: Base) -> Task:
    """The task of who learns from the demonstrations: an untrained policy, and the same trials."""
    start = {"diffusion": lambda seed, keep: policy(base, record(base, seed), seed, keep.device)}
    return replace(task(base), signal="data", starts=start, data=lambda seed: record(base, seed), imitate=None)


def gaussian(base: Base, demos: Demos, seed: int, device: str | torch.device = "cpu") -> Policy:
    """A Gaussian policy with the same perceptron: explored with its learned std, served by its mean."""
    torch.manual_seed(seed)
    codec = Robot.fit(demos)
    event = (base.chunk, demos.actions.shape[-1])
    net = MLP(event, cond=demos.observations.shape[-1], width=base.width, layer_norm=True, time=0)
    process, head = OneStep(), GaussianHead(net, event[-1], 0.5, base.floor)
    steps, serve = process.steps(grid(1)), process.steps(grid(1), spread=0.0)
    return Policy.of(process, head.to(device), event, steps, serve, codec)


def pretrain_gaussian(base: Base, seed: int, keep: Keep) -> Generator[dict, None, Policy]:
    """A Gaussian policy that has imitated the same demonstrations for as many updates, by maximum likelihood."""
    made = gaussian(base, record(base, seed), seed, keep.device)
    yield from imitate(made, base, seed, base.updates, base.lr, keep)
    return made


def flow(base: Base, demos: Demos, seed: int, device: str | torch.device = "cpu") -> Policy:
    """A flow policy with the same perceptron: explored with a fixed noise on its steps, served by its ODE."""
    torch.manual_seed(seed)
    codec = Robot.fit(demos)
    event = (base.chunk, demos.actions.shape[-1])
    net = MLP(event, cond=demos.observations.shape[-1], width=base.width, layer_norm=True)
    process, times = Diffusion(linear, floored(ddim(0.0), base.floor), clip=1.0), grid(base.denoise)
    serve = process.steps(times, ddim(0.0))
    return Policy.of(process, Gauss(net, linear, "v").to(device), event, process.steps(times), serve, codec)


def pretrain_flow(base: Base, seed: int, keep: Keep) -> Generator[dict, None, Policy]:
    """A flow policy that has imitated the same demonstrations for as many updates."""
    made = flow(base, record(base, seed), seed, keep.device)
    yield from imitate(made, base, seed, base.updates, base.lr, keep)
    return made


def pretrain_steered(base: Base, seed: int, keep: Keep, spread: float = 0.0) -> Generator[dict, None, Policy]:
    """The diffusion policy, frozen and served by its ODE, whose noise another policy decides; ``spread=1`` and no
    training: narrow noise."""
    made = yield from pretrain(base, seed, keep)
    return steer(deterministic(made), record(base, seed).observations.shape[-1], spread=spread)
