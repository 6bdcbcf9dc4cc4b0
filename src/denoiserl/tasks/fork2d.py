"""The task of claims about flow policies: fork2d, with clumsy demonstrations that pass the disc on both sides.

The mean of the two paths hits the disc: a Gaussian must drop one path to succeed, a flow can keep both.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from denoiserl.control.acting import eval_actor
from denoiserl.core.rng import Rng
from denoiserl.data import Demonstrations
from denoiserl.envs import Collector, evaluate
from denoiserl.envs.toy.fork2d import Fork2D, demonstrations
from denoiserl.policy.policy import Policy
from denoiserl.tasks import env as env_task
from denoiserl.tasks.base import Task
from denoiserl.train import Run

BASE = env_task.Args(action_horizon=12, execution_horizon=12, sampling_steps=4, policy_width=128, pretrain_updates=1500)
"""the policies: four denoising steps, chunks of twelve actions"""
DEMOS, CLUMSY, NOISE = 60, 0.7, 0.3
"""number of demonstrations, the share of clumsy ones, and the noise on the actions of the others"""


class TimeLimitTerminates:
    """``Fork2D`` whose time limit terminates the episode as a failure.

    Critics bootstrap past a limit that only truncates. Where touching the disc is the only bad end, every critic then
    learns that it is best not to arrive.
    """

    steps_some = True

    def __init__(self, copies: int) -> None:
        self.world, self.num_envs = Fork2D(copies), copies
        self.single_observation_space = self.world.single_observation_space
        self.single_action_space = self.world.single_action_space

    def reset(self, **how: Any) -> Any:
        """Reset all environments."""
        return self.world.reset(**how)

    def step(self, action: Any, mask: Any = None) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Step all environments; report truncated ones as terminated."""
        seen, reward, terminated, late, info = self.world.step(action, mask)
        return seen, reward, terminated | late, torch.zeros_like(late), info


Make = Callable[[env_task.Args, Demonstrations, int, str | torch.device], Policy]


def load_demonstrations(seed: int) -> Demonstrations:
    """Return the demonstrations, failures included."""
    return demonstrations(DEMOS, Rng(seed), NOISE, clumsy=CLUMSY)


def cloned_policy(make: Make, seed: int, run: Run) -> Generator[dict, None, Policy]:
    """Train a policy of a kind by imitation: yield metrics and return the policy."""
    demos = load_demonstrations(seed)
    made = make(BASE, demos, seed, run.device)
    yield from env_task.imitate(made, BASE, seed, BASE.pretrain_updates, BASE.pretrain_lr, run, demos=demos)
    return made


def task() -> Task:
    """Return the task fork2d: success is reaching the goal without touching the disc."""

    def outcomes(policy: Policy, seed: int, n: int) -> dict[str, Tensor]:
        done = evaluate(eval_actor(policy, BASE.execution_horizon), Fork2D(n), n, 1_000_000 + seed)
        assert done.success is not None
        return {"success": done.success.float(), "length": done.lengths.float()}

    kinds = {"flow": env_task.flow, "diffusion": env_task.diffusion, "gaussian": env_task.gaussian}
    return Task(
        "fork2d",
        {name: partial(cloned_policy, make) for name, make in kinds.items()},
        outcomes,
        {"success": ("success from held-out starts", "%"), "length": ("steps of an episode", "")},
        env=lambda copies, seed: Collector(TimeLimitTerminates(copies or 1), seed=seed),
    )
