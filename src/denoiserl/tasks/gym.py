"""The Gymnasium experiment: a task that Gymnasium knows, learned from nothing; returns compare with published ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from denoiserl.control.acting import eval_actor, suits
from denoiserl.data import TanhCodec
from denoiserl.envs import Collector, evaluate
from denoiserl.envs.by_name import environment
from denoiserl.nn import MLP
from denoiserl.policy.policy import Policy
from denoiserl.processes import GaussianHead, OneStep, time_grid
from denoiserl.tasks import policies as _kinds
from denoiserl.tasks.base import Task
from denoiserl.tasks.user_inputs import opened
from denoiserl.train import Keep


@dataclass(frozen=True)
class Base:
    """The task, and the policy before it has learned there."""

    env: str = "Pendulum-v1"
    """a Gymnasium id, envpool:ID, metaworld:TASK, pusht or my_file.py:make_env, with bounded actions"""
    start: str | None = None
    """a policy to improve instead of an untrained one: a run, or a saved policy"""
    ticks: int | None = None
    """ticks until an episode is over (None: the environment's own number)"""
    chunk: int = 1
    """actions decided at once"""
    width: int = 64
    """the network's width"""
    depth: int = 2
    """its hidden layers"""
    std: float = 0.6
    """where the std of the "gaussian" kind starts"""


def make(base: Base) -> Any:
    """What streams and evaluations take: the environment."""
    return environment(base.env, base.ticks)


def given(word: str, env: Collector, keep: Keep) -> Policy:
    """Return the policy at ``word``; refused where it does not fit the environment."""
    made = opened(word, keep.device)
    suits(made, env, word)
    return made


def squashed(base: Base, seed: int, keep: Keep) -> Policy:
    """A Gaussian policy pressed into the box of the actions: mean and std are the network's. Untrained, unless one is
    given."""
    env = _kinds.probe(make(base))
    if base.start is not None:
        return given(base.start, env, keep)
    _kinds.facts(env)  # refuses what no network here can see or decide
    event, codec = (base.chunk, env.action_dim), TanhCodec.box(env.spec.low, env.spec.high)
    return _kinds.squashed(event, env.obs_dim, base.width, base.depth, codec, seed).to(keep.device)


def gaussian(base: Base, seed: int, keep: Keep) -> Policy:
    """A Gaussian policy with one std for all states; observations are standardised as they come. Untrained, unless one
    is given."""
    env = _kinds.probe(make(base))
    if base.start is not None:
        return given(base.start, env, keep)
    known = _kinds.facts(env)
    torch.manual_seed(seed)
    event = (base.chunk, known.actions)
    net = MLP(event, known.seen, base.width, base.depth, 0, False, zero=True)
    process = OneStep()
    steps, serve = process.steps(time_grid(1)), process.steps(time_grid(1), spread=0.0)
    head = GaussianHead(net, known.actions, base.std)
    return Policy.of(process, head, event, steps, serve, known.codec).to(keep.device)


def outcomes(base: Base, policy: Policy, seed: int, n: int) -> Mapping[str, Tensor]:
    """Returns and ticks of n episodes, and success where the environment reports it."""
    return evaluate(eval_actor(policy), make(base), n, 1_000_000 + seed).outcomes


METRICS = {
    "return": ("return of an episode", ""),
    "ticks": ("ticks of an episode", ""),
    "success": ("episodes that succeed", "%"),
}


def task(base: Base) -> Task:
    """The task: learn from the environment's reward."""
    return Task(
        base.env,
        "env",
        {"squashed": partial(squashed, base), "gaussian": partial(gaussian, base)},
        lambda policy, seed, n: outcomes(base, policy, seed, n),
        METRICS,
        env=lambda copies, seed: Collector(make(base), copies, seed),
        watch=20,
    )
