"""Checks before training: find common problems of a policy and its environment or reward in about a minute.

``examine`` finds a wrong prediction type or time convention, and rescored log-probs that differ from the sampled ones.
It also finds exploration noise that hides success, groups without a learning signal, and too little memory. It does not
change the weights, the modules' modes or the global random state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from denoiserl.core.counters import no_usage_counting
from denoiserl.core.errors import RunError
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.tree import Tree, first, index_rows, tree_map
from denoiserl.core.tree import batch_size as count_rows
from denoiserl.data import ActionChunkCodec, Demonstrations
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.doctor import cost, network, prediction_type, signal, steps, values
from denoiserl.doctor import data as recorded
from denoiserl.doctor.finding import Finding, Level, print_findings, run_check, worst_level
from denoiserl.envs import Collector
from denoiserl.policy.policy import Policy
from denoiserl.policy.sampler import RecordSample
from denoiserl.rewards import Reward, prompt_count, repeat_prompts

__all__ = ["Finding", "Level", "conditions", "examine", "print_findings", "worst_level"]


def examine(
    policy: Policy,
    env: Any = None,
    reward: Reward | None = None,
    prompts: Tree | None = None,
    rng: Rng | int | None = None,
    *,
    num_samples: int = 64,
    group_size: int = 8,
    batch_size: int = 1024,
    execution_horizon: int | None = None,
    data: tuple[Tree, Tree] | None = None,
    recording: EpisodeDataset | Demonstrations | None = None,
    on_finding: Callable[[Finding], None] | None = None,
) -> list[Finding]:
    """Return the findings about a policy and its signal, in the order in which to read them.

    ``env``: a ``Collector``, or an environment that it accepts. ``reward(sample, prompts)`` and ``prompts`` [P, ...]:
    evaluated on ``num_samples`` samples, ``group_size`` of them per prompt. ``batch_size``: rows (sample, step) per
    gradient step, for the memory estimate. ``execution_horizon``: actions executed of a chunk (None: the policy's own
    number, or all). ``data``: clean data and their conditions (or None) in data units; the most reliable test of the
    prediction type. ``recording``: recorded episodes, whose ranges, units and reward timing are checked.
    ``on_finding`` is called with each finding. Checks without the environment, reward or prompts that they need return
    a note.

    Raise RunError for a batch of fewer than two groups, for an environment together with a reward, and for ``data``
    that are not a pair.
    """
    if env is not None and reward is not None:
        raise RunError("A policy learns from an environment or from a reward: give one of them.")
    if group_size < 2 or num_samples < 2 * group_size:
        raise RunError(
            f"num_samples = {num_samples} has no two groups of group_size = {group_size}: raise num_samples, or lower "
            "group_size (at least 2)."
        )
    if data is not None and not (isinstance(data, tuple | list) and len(data) == 2):
        raise RunError(
            f"data= is a pair of clean data and their conditions, not a {type(data).__name__}: give (x0, conditions), "
            "or (x0, None) for a network without a condition."
        )
    if data is not None and data[1] is not None and (n := count_rows(data[0])) != (m := count_rows(data[1])):
        raise RunError(f"data= has {n} rows of data with {m} conditions: give one condition per row.")
    rng, found = as_rng(0 if rng is None else rng, policy.device), []

    def add(finding: Finding) -> None:
        found.append(finding)
        if on_finding is not None:
            on_finding(finding)

    own = env is not None and not isinstance(env, Collector)
    stream: Collector | None = (
        Collector(env, None if hasattr(env, "num_envs") else min(num_samples, 32)) if own else env
    )
    try:
        with no_usage_counting():
            sizes = (num_samples, group_size, batch_size)
            _examine(policy, stream, reward, prompts, rng, sizes, execution_horizon, data, recording, add)
    finally:
        if own and stream is not None:
            stream.close()
    return found


def _examine(
    policy: Policy,
    env: Collector | None,
    reward: Reward | None,
    prompts: Tree | None,
    rng: Rng,
    sizes: tuple[int, int, int],
    execution_horizon: int | None,
    data: tuple[Tree, Tree] | None,
    recording: EpisodeDataset | Demonstrations | None,
    add: Callable[[Finding], None],
) -> None:
    num_samples, group_size, batch_size = sizes
    count = num_samples // group_size * group_size
    try:
        cond = conditions(policy, env, prompts, count // group_size, group_size, rng)
        chain = policy.sample_chain(cond, rng, None if cond is not None else count)
        eval_samples = policy.sample_chain(
            cond, rng, None if cond is not None else count, RecordSample(), use_eval_steps=True
        ).sample
        given = policy.codec.condition(cond)
        with torch.no_grad():
            decoded = first(policy.codec.decode(eval_samples))  # of several parts the first
    except Exception as error:  # the user's network, codec or environment may raise any error
        message = " ".join(str(error).split()) or type(error).__name__
        bare = env is None and prompts is None
        remedy = "Give prompts, or an environment, that fit the policy." if bare else "Correct this first."
        add(Finding("drawing", "error", f"the policy cannot be sampled: {message}", remedy))
        return
    if not isinstance(chain.sample, Tensor):
        add(Finding("drawing", "note", "the state has several parts: only single tensors are checked"))
        return
    encoded = None
    if data is not None:
        encoded = (first(policy.codec.encode(data[0])), policy.codec.condition(data[1]))
    spec = None if env is None else env.spec
    add(run_check("ranges", recorded.check_data_ranges, policy, recording, spec))
    if isinstance(recording, EpisodeDataset):
        add(run_check("rewards in time", recorded.check_reward_delay, recording))
    add(run_check("network", network.check_alive, policy, eval_samples, given, rng))
    add(run_check("prediction", prediction_type.prediction, policy, eval_samples, given, rng, encoded))
    add(run_check("condition", network.check_conditions, policy, eval_samples, cond, given, rng))
    add(run_check("values", values.check_ranges, policy, eval_samples, decoded, spec))
    add(run_check("densities", steps.densities, chain))
    spread = eval_samples.float().std(0).mean()
    add(run_check("noise", steps.exploration, policy, spread))
    add(
        run_check("train against eval", steps.train_vs_eval_samples, policy, chain.sample[::2], eval_samples[1::2], rng)
    )
    add(run_check("first ratio", steps.first_ratio, policy, chain, rng))
    add(run_check("gradients", network.gradients, policy, chain, rng))
    add(run_check("memory", cost.memory, policy, chain, batch_size))
    add(run_check("speed", cost.measure_speed, policy, cond, chain, rng))
    if env is not None:
        add(run_check("success", _success, policy, env, rng, execution_horizon))
    elif reward is not None and (prompts is not None or cond is None):
        try:
            rewards = signal.ask_reward(policy, reward, chain.sample, cond)
            again = signal.ask_reward(policy, reward, chain.sample[:16], tree_map(lambda v: v[:16], cond))
            there = signal.ask_reward(policy, reward, eval_samples, cond)
        except Exception as error:  # a user's reward may raise any error
            message = " ".join(str(error).split()) or type(error).__name__
            remedy = "Give reward(sample [B, ...], prompts [B, ...]) -> [B]."
            add(Finding("reward", "error", f"stopped by: {message}", remedy))
            return
        grouped = rewards.reshape(-1, group_size)
        add(run_check("reward", signal.check_rewards, grouped, again, there))
        if prompts is not None and bool(grouped.isfinite().all()):
            add(run_check("groups", signal.groups, grouped))
    else:
        what = "no prompts given" if reward is not None else "neither an environment nor a reward given"
        add(Finding("success", "note", f"{what}: success was not measured"))


def _success(policy: Policy, env: Collector, rng: Rng, execution_horizon: int | None) -> Finding:
    seed = int(rng.integers(0, 2**31 - 1, 1)[0])
    train = signal.play_episodes(policy, env, seed, False, execution_horizon)
    eval_samples = (
        None
        if policy.train_steps is policy.eval_steps
        else signal.play_episodes(policy, env, seed, True, execution_horizon)
    )
    return signal.episodes(train, eval_samples)


def conditions(
    policy: Policy, env: Collector | None, prompts: Tree | None, n: int, group_size: int, rng: Rng | int
) -> Tree | None:
    """Return n conditions in data units, each ``group_size`` times in a row; None if there is no source of them.

    They are different if there are enough. They come from the prompts, from the first observations of the environment,
    or, for an ``ActionChunkCodec``, uniformly from the range that it was fitted to.
    """
    rng = as_rng(rng, policy.device)
    if prompts is not None:
        many = prompt_count(prompts)
        index = rng.permutation(many)[:n] if many >= n else torch.arange(n, device=rng.device) % many
        return repeat_prompts(prompts, index.to(policy.device), group_size)
    if env is not None:
        env.on_checkpoint(0)
        index = torch.arange(n * group_size) % env.num_envs  # observations are not grouped: use all of them
        return tree_map(lambda v: v.to(policy.device), index_rows(env.obs, index))
    if isinstance(policy.codec, ActionChunkCodec):
        seen = policy.codec.observation
        u = rng.uniform(n * group_size, seen.dim).to(seen.low.device)
        return seen.low + u * (seen.high - seen.low)
    return None
