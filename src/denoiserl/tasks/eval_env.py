"""A task made of any environment: the one that ``eval --env`` evaluates policies on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from denoiserl.control.acting import check_policy_fits, eval_actor
from denoiserl.core.errors import RunError
from denoiserl.envs import Collector, evaluate
from denoiserl.envs.by_name import environment
from denoiserl.envs.evaluate import HELD, REACHED, SUCCESS, WORDS
from denoiserl.envs.frame_stack import with_policy_history
from denoiserl.policy.policy import Policy
from denoiserl.report.episode_video import episode_video
from denoiserl.tasks.base import Task


def env_task(word: str, execute: int | None = None, max_episode_steps: int | None = None) -> Task:
    """Return the task of acting in an environment: the return, and success if it reports ``info["success"]``.

    A policy with a history gets its last observations. ``execute``: actions of a chunk that are executed before the
    policy plans again (None: the policy's own number, or all). ``max_episode_steps``:
    time limit of an episode.
    """
    env = environment(word, max_episode_steps)

    def outcomes(policy: Policy, seed: int, n: int) -> Mapping[str, Tensor]:
        stacked = with_policy_history(env, policy)
        probe = Collector(stacked, 1)
        probe.close()
        check_policy_fits(policy, probe, "the policy")
        return evaluate(eval_actor(policy, execute), stacked, n, seed).outcomes

    def render(policy: Policy, seed: int, n: int) -> Mapping[str, bytes | str]:
        return episode_video(eval_actor(policy, execute), with_policy_history(env, policy), n, seed)

    def start(seed: int, run: Any) -> Policy:
        raise RunError(f"{word} is an environment and no task: to train, write a task with a starting policy")

    words = {name: WORDS[name] for name in ("return", SUCCESS, HELD, REACHED, "length")}
    return Task(word, start, outcomes, words, env=lambda num_envs, seed: Collector(env, num_envs, seed), render=render)
