"""What a user gives to an experiment: a recording of his own, and a policy to go on from."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal

import torch

from denoiserl.data.collect import Recording
from denoiserl.env import Stream
from denoiserl.env.control import Best, BestNoise
from denoiserl.env.planner import blank, placed
from denoiserl.env.valued import Weighed
from denoiserl.errors import BadRun, DenoiseError
from denoiserl.hub.recordings import read
from denoiserl.policy import Policy
from denoiserl.process import ddim, floored
from denoiserl.recipes._kinds import probe
from denoiserl.rng import Rng
from denoiserl.train.keep import saved
from denoiserl.tree import tree_map

CHOOSING = (Best, Weighed, BestNoise)
"""controls that choose among a policy's decisions by what was learned before"""


def recorded(path: str, env: Any, outside: Literal["refuse", "clip"]) -> Recording:
    """What a user recorded in ``env`` (what ``Stream`` takes). Refused: data of another environment."""
    data, found = read(path, outside=outside), probe(env)
    shape = tree_map(lambda v: tuple(v.shape[1:]), data.demos.observations)
    seen = found.spec.obs if isinstance(found.spec.obs, dict) else tuple(found.spec.obs)
    done = data.demos.actions.shape[-1]
    if shape != seen or done != found.action_dim:
        raise BadRun(
            f"{path} observes {shape} and acts in {done} numbers, {found.name} observes {seen} and takes "
            f"{found.action_dim}: name the environment that it was recorded in"
        )
    return data


def opened(word: str, device: torch.device, denoise: int = 5, floor: float = 0.1) -> Policy:
    """The policy at ``word``: the best of a run, a saved one, or LeRobot's, which learns under a floored posterior of
    ``denoise`` steps.

    A control that chooses among its decisions is left out, with a warning: what learns here is the policy, and critics
    that stay behind would choose worse and worse.
    """
    path = Path(word)
    if (path / "config.json").is_file():
        from denoiserl.hub.lerobot import diffusion_policy

        return diffusion_policy(path, denoise, floored(ddim(1.0), floor)).to(device)
    if (path / "run.json").is_file():
        try:
            path = saved(path, "best")
        except BadRun:  # a recipe that selects nothing
            path = saved(path, "last")
    policy = Policy.load(path, None, device)
    if isinstance(policy.weights.control, CHOOSING):
        warnings.warn(
            f"{word} chooses among its decisions by what it learned before ({type(policy.weights.control).__name__}): "
            "the policy alone goes on from here",
            stacklevel=2,
        )
        policy.weights.control = None
    return policy


def suits(policy: Policy, env: Stream, word: str) -> None:
    """Raise BadRun if the policy at ``word`` does not observe what ``env`` shows or does not act in its box."""
    try:
        plan = policy.draw(placed(blank(env.spec.obs), policy), Rng(0, policy.device))
    except (DenoiseError, ValueError, RuntimeError, KeyError, TypeError, IndexError) as error:
        raise BadRun(
            f"{word} does not observe what {env.name} shows, {env.spec.obs} ({error}): give a policy that was made for "
            "it, or say --history where the policy sees several observations"
        ) from error
    if tuple(plan.shape[2:]) != tuple(env.spec.action):
        raise BadRun(
            f"{word} decides actions {list(plan.shape[2:])}, {env.name} takes {list(env.spec.action)}: give a policy "
            "that was made for it"
        )
