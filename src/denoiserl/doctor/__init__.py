"""The doctor: what would be found out after three days, in a minute.

``examine`` looks at a policy, and at the environment or reward that it shall learn from, and says what will go wrong: a
network that is read as another kind than it was trained, replay that is not the run, noise that hides success, groups
that teach nothing, memory that will not do. It changes nothing: not the weights, not the modes, not global randomness.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from denoiserl.core.counters import no_usage_counting
from denoiserl.core.errors import RunError
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.tree import Tree, batch_size, first, index_rows, tree_map
from denoiserl.data import ActionChunkCodec, Demonstrations
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.doctor import cost, network, reading, signal, steps, values
from denoiserl.doctor import data as recorded
from denoiserl.doctor.finding import Finding, Level, print_findings, run_check, worst
from denoiserl.envs import Collector
from denoiserl.policy.policy import Policy
from denoiserl.policy.sampler import RecordSample
from denoiserl.rewards import Reward, prompt_count, repeat_prompts

__all__ = ["Finding", "Level", "conditions", "examine", "print_findings", "worst"]


def examine(
    policy: Policy,
    env: Any = None,
    reward: Reward | None = None,
    prompts: Tree | None = None,
    rng: Rng | int | None = None,
    *,
    batch: int = 64,
    group: int = 8,
    rows_a_step: int = 1024,
    execute: int | None = None,
    data: tuple[Tree, Tree] | None = None,
    recording: EpisodeDataset | Demonstrations | None = None,
    watch: Callable[[Finding], None] | None = None,
) -> list[Finding]:
    """Findings about a policy and what it shall learn from, in the order in which to read them.

    ``env``: a ``Collector``, or what one takes. ``reward(sample, prompts)`` and ``prompts`` [P, ...]: in groups of
    ``group`` samples a prompt. ``batch``: samples that are drawn. ``rows_a_step``: rows (sample, step) a gradient step,
    for the estimate of memory. ``execute``: actions of a chunk that are played (None: as the policy carries, or all).
    ``data``: a pair of clean data and their conditions (or None) in data units: the surest way to tell how a network
    was trained. ``recording``: recorded episodes, of which ranges, units and the time of rewards are examined.
    ``watch`` is told each finding as it is made. Without an environment, a reward or prompts the checks that need them
    say so.

    Raises RunError for a batch that has no two groups, for an environment together with a reward, and for data that are
    no pair.
    """
    if env is not None and reward is not None:
        raise RunError("A policy learns from an environment or from a reward: give one of them.")
    if group < 2 or batch < 2 * group:
        raise RunError(
            f"A batch of {batch} has no two groups of {group}: draw more samples (--num-samples), or make the groups "
            "smaller (--group-size, at least 2)."
        )
    if data is not None and not (isinstance(data, tuple | list) and len(data) == 2):
        raise RunError(
            f"data= is a pair of clean data and their conditions, not a {type(data).__name__}: give (x0, conditions), "
            "or (x0, None) where the network takes no condition."
        )
    if data is not None and data[1] is not None and (n := batch_size(data[0])) != (m := batch_size(data[1])):
        raise RunError(f"data= is a pair with a condition for each row of data, not {n} rows with {m} conditions.")
    rng, found = as_rng(0 if rng is None else rng, policy.device), []

    def told(finding: Finding) -> None:
        found.append(finding)
        if watch is not None:
            watch(finding)

    own = env is not None and not isinstance(env, Collector)
    stream: Collector | None = Collector(env, None if hasattr(env, "num_envs") else min(batch, 32)) if own else env
    try:
        with no_usage_counting():
            sizes = (batch, group, rows_a_step)
            _examine(policy, stream, reward, prompts, rng, sizes, execute, data, recording, told)
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
    execute: int | None,
    data: tuple[Tree, Tree] | None,
    recording: EpisodeDataset | Demonstrations | None,
    told: Callable[[Finding], None],
) -> None:
    batch, group, rows_a_step = sizes
    count = batch // group * group
    try:
        cond = conditions(policy, env, prompts, count // group, group, rng)
        chain = policy.sample_chain(cond, rng, None if cond is not None else count)
        serve = policy.sample_chain(
            cond, rng, None if cond is not None else count, RecordSample(), use_eval_steps=True
        ).sample
        given = policy.codec.condition(cond)
        with torch.no_grad():
            decoded = first(policy.codec.decode(serve))  # of several parts the first
    except Exception as error:  # whatever the user's network, codec or environment raises
        said = " ".join(str(error).split()) or type(error).__name__
        bare = env is None and prompts is None
        remedy = "Give prompts, or an environment, that fit the policy." if bare else "Repair this first."
        told(Finding("drawing", "error", f"the policy cannot be drawn from: {said}", remedy))
        return
    if not isinstance(chain.sample, Tensor):
        told(Finding("drawing", "note", "states of several parts: only single tensors are examined"))
        return
    seen = None
    if data is not None:
        seen = (first(policy.codec.encode(data[0])), policy.codec.condition(data[1]))
    spec = None if env is None else env.spec
    told(run_check("ranges", recorded.ranges, policy, recording, spec))
    if isinstance(recording, EpisodeDataset):
        told(run_check("rewards in time", recorded.delay, recording))
    told(run_check("network", network.alive, policy, serve, given, rng))
    told(run_check("prediction", reading.prediction, policy, serve, given, rng, seen))
    told(run_check("condition", network.check_conditions, policy, serve, cond, given, rng))
    told(run_check("values", values.ranges, policy, serve, decoded, spec))
    told(run_check("densities", steps.densities, chain))
    spread = serve.float().std(0).mean()
    told(run_check("noise", steps.exploration, policy, spread))
    told(run_check("train against serve", steps.train_vs_eval_samples, policy, chain.sample[::2], serve[1::2], rng))
    told(run_check("first ratio", steps.first_ratio, policy, chain, rng))
    told(run_check("gradients", network.gradients, policy, chain, rng))
    told(run_check("memory", cost.memory, policy, chain, rows_a_step))
    told(run_check("speed", cost.speed, policy, cond, chain, rng))
    if env is not None:
        told(run_check("success", _success, policy, env, rng, execute))
    elif reward is not None and (prompts is not None or cond is None):
        try:
            rewards = signal.ask_reward(policy, reward, chain.sample, cond)
            again = signal.ask_reward(policy, reward, chain.sample[:16], tree_map(lambda v: v[:16], cond))
            there = signal.ask_reward(policy, reward, serve, cond)
        except Exception as error:  # a reward is anybody's function
            said = " ".join(str(error).split()) or type(error).__name__
            told(Finding("reward", "error", f"stopped by: {said}", "reward(sample [B, ...], prompts [B, ...]) -> [B]."))
            return
        grouped = rewards.reshape(-1, group)
        told(run_check("reward", signal.check_rewards, grouped, again, there))
        if prompts is not None and bool(grouped.isfinite().all()):
            told(run_check("groups", signal.groups, grouped))
    else:
        what = "no prompts given" if reward is not None else "neither an environment nor a reward given"
        told(Finding("success", "note", f"{what}: success was not measured"))


def _success(policy: Policy, env: Collector, rng: Rng, execute: int | None) -> Finding:
    seed = int(rng.integers(0, 2**31 - 1, 1)[0])
    train = signal.play(policy, env, seed, False, execute)
    serve = None if policy.train_steps is policy.eval_steps else signal.play(policy, env, seed, True, execute)
    return signal.episodes(train, serve)


def conditions(
    policy: Policy, env: Collector | None, prompts: Tree | None, n: int, group: int, rng: Rng
) -> Tree | None:
    """Conditions in data units, n different ones where there are so many, each ``group`` times in a row; or None.

    From the prompts, from the first observations of the environment, or, for a ``ActionChunkCodec`` codec, uniformly
    from the range that it was fitted to.
    """
    if prompts is not None:
        many = prompt_count(prompts)
        index = rng.permutation(many)[:n] if many >= n else torch.arange(n, device=rng.device) % many
        return repeat_prompts(prompts, index.to(policy.device), group)
    if env is not None:
        env.on_checkpoint(0)
        index = torch.arange(n * group) % env.num_envs  # observations are not grouped: as many as there are
        return tree_map(lambda v: v.to(policy.device), index_rows(env.obs, index))
    if isinstance(policy.codec, ActionChunkCodec):
        seen = policy.codec.observation
        u = rng.uniform(n * group, seen.dim).to(seen.low.device)
        return seen.low + u * (seen.high - seen.low)
    return None
