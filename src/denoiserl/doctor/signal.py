"""Checks of the learning signal: the reward, success, and groups without a signal."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import betaln
from torch import Tensor

from denoiserl.advantages import dead_groups
from denoiserl.core.counters import no_usage_counting
from denoiserl.core.rng import Rng
from denoiserl.core.tree import Tree
from denoiserl.doctor.finding import Finding, Level
from denoiserl.envs import Collector
from denoiserl.policy.policy import Policy
from denoiserl.rewards import Reward, rate
from denoiserl.stats import auto_interval

LEARNABLE = (0.2, 0.7)
"""success rates at which RL learns fastest"""
BARELY = (0.03, 0.95)
"""success rates outside this range leave almost nothing to learn from, or to gain"""
GROUPS = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64)
DEAD = 0.2
"""acceptable share of dead groups"""


def dead_share(solved: Tensor, group: int, size: int) -> float:
    """Return the expected share of groups of ``size`` with equal outcomes, from ``solved`` [P] successes of ``group``.

    Success rates of prompts are modelled as Beta(a, b), fitted by moments to the counts:
    E[p^G + (1 − p)^G] = B(a + G, b)/B(a, b) + B(a, b + G)/B(a, b). If the counts vary no more than a binomial, all
    prompts have one rate.
    """
    rate = solved.double() / group
    p = float(rate.mean())
    if p in (0.0, 1.0):
        return 1.0
    var = float(rate.var(correction=0))
    inside = (var / (p * (1 - p)) * group - 1) / (group - 1)  # intraclass correlation
    if inside <= 1e-3:
        return p**size + (1 - p) ** size
    if inside >= 1 - 1e-9:
        return 1.0
    a, b = p * (1 / inside - 1), (1 - p) * (1 / inside - 1)
    return float(np.exp(betaln(a + size, b) - betaln(a, b)) + np.exp(betaln(a, b + size) - betaln(a, b)))


def groups(rewards: Tensor) -> Finding:
    """Check for groups of one prompt [P, G] with equal rewards: their advantages are zero."""
    name, size = "groups", rewards.shape[1]
    share = float(dead_groups(rewards).float().mean())
    said = f"{share:.0%} of the groups of {size} are dead (all rewards equal)"
    if not bool(((rewards == 0) | (rewards == 1)).all()):
        if share > 0.5:
            return Finding(name, "warning", said, "Make the reward finer, or the groups larger (--group-size).")
        return Finding(name, "ok", said)
    solved = rewards.sum(1)
    enough = next((g for g in GROUPS if dead_share(solved, size, g) <= DEAD), None)
    if share > 0.5:
        if enough is None:
            remedy = (
                "No group size up to 64 suffices: choose prompts that are sometimes solved, or make the reward finer."
            )
        else:
            left = dead_share(solved, size, enough)
            remedy = f"Groups of {enough} (--group-size {enough}) would leave {left:.0%} dead."
        return Finding(name, "warning", said, remedy)
    more = "" if enough is None else f"; {enough} samples per prompt leave at most {DEAD:.0%} dead"
    return Finding(name, "ok", said + more)


def check_rewards(rewards: Tensor, again: Tensor | None = None, serve: Tensor | None = None) -> Finding:
    """Check rewards of training samples in groups [P, G]: finite, not constant, of sane scale, in a learnable range.

    ``again``: the reward's second values for the first m samples, [m]; ``serve``: rewards under eval steps, [n].
    """
    name, flat = "reward", rewards.flatten()
    bad = ~flat.isfinite()
    if bool(bad.any()):
        said = f"{int(bad.sum())} of {len(flat)} rewards are NaN or infinite"
        remedy = "Return a finite number for every sample, or drop them (--invalid-rewards drop)."
        return Finding(name, "error", said, remedy)
    interval, rate = auto_interval(flat)
    said = f"{format(interval, '.1%' if rate else '.3g')} under training steps"
    if serve is not None and bool(serve.isfinite().all()):
        there = float(serve.float().mean())
        said += f", {there:.1%} under eval steps" if rate else f", {there:.3g} under eval steps"
    if bool(dead_groups(flat[None])):
        return Finding(
            name,
            "error",
            f"all {len(flat)} rewards are {float(flat[0]):g}: all advantages are zero",
            "Check the units of the reward's input, and test it on data; give partial rewards if success is rare.",
        )
    if rate:
        return _rate(name, float(flat.mean()), said)
    if serve is not None and (gap := float(serve.float().mean()) - interval.mean) > float(flat.std()):
        return Finding(
            name,
            "warning",
            f"{said}: training samples are worse by {gap:.3g}, more than their std",
            "Lower the minimum std or the churn of the training steps, or use more steps.",
        )
    inside = min(1.0, float(rewards.var(1).mean()) / max(float(flat.var()), 1e-30)) if rewards.shape[1] > 1 else 1.0
    if again is not None and float((again - flat[: len(again)]).abs().max()) > 1e-6 * float(flat.abs().max()):
        noise = float((again - flat[: len(again)]).square().mean().sqrt()) / math.sqrt(2)
        said += f"; two rewards of one sample differ (std {noise:.2g}, all samples {float(flat.std()):.2g})"
        if noise > 0.5 * float(flat.std()):
            return Finding(
                name, "warning", said, "More than half of its std is noise: average several calls, or fix its seed."
            )
    if float(flat.abs().max()) > 1e4 * float(flat.std()):
        return Finding(
            name, "warning", f"{said}, with a large offset", "Subtract a constant: float32 loses the differences."
        )
    peak = (flat - flat.mean()).square()
    if len(flat) >= 16 and float(peak.max() / peak.sum()) > 0.5:
        remedy = "One sample has most of the variance and dominates the batch: bound the reward, or clip (--adv-clip)."
        return Finding(name, "warning", said, remedy)
    return Finding(name, "ok", f"{said}; {inside:.0%} of its variance is between samples of one prompt")


def _rate(name: str, p: float, said: str) -> Finding:
    level: Level = "ok" if LEARNABLE[0] <= p <= LEARNABLE[1] else "note"
    if p < BARELY[0]:
        return Finding(
            name, "warning", said, "Success is too rare to learn from: improve the clone, ease the task, reward parts."
        )
    if p > BARELY[1]:
        return Finding(name, "warning", said, "There is almost nothing to gain: choose a harder task or prompts.")
    if level == "note":
        low, high = LEARNABLE
        return Finding(name, level, said, f"Learning is fastest at success rates of {low:.0%} to {high:.0%}.")
    return Finding(name, level, said)


def ask_reward(policy: Policy, reward: Reward, sample: Tree, prompts: Tree) -> Tensor:
    """Return the total reward of samples in model units, [n], NaN where it is not finite."""
    with no_usage_counting():
        total, _ = rate(reward, sample, prompts, decode=policy.codec.decode)
        return total.masked_fill(~total.isfinite(), torch.nan)


class EpisodeOutcomes(NamedTuple):
    """The first episode of each environment, [B] each; ``over``: it ended, ``timed``: by the time limit.

    ``success`` is None if the environment never reports it.
    """

    success: Tensor | None
    returns: Tensor
    lengths: Tensor
    over: Tensor
    timed: Tensor


def play_episodes(
    policy: Policy, env: Collector, seed: int, serve: bool, execute: int | None = None, max_steps: int = 1000
) -> EpisodeOutcomes:
    """Run one episode per environment, with start states and noise of ``seed``, for at most ``max_steps`` steps."""
    rng, execute = Rng(seed, policy.device), policy.weights.execute if execute is None else execute

    def act(obs: Any, rng: Rng) -> tuple[Tensor, None]:
        sample = policy.codec.decode(policy.sample_chain(obs, rng, use_eval_steps=serve).sample)
        chunk = sample.ndim > 1 + len(env.spec.action)
        return (sample[:, :execute] if chunk else sample), None

    n = env.num_envs
    returns, lengths = torch.zeros(n), torch.zeros(n, dtype=torch.int64)
    over, timed = torch.zeros(n, dtype=torch.bool), torch.zeros(n, dtype=torch.bool)
    success: Tensor | None = None
    with no_usage_counting(), torch.no_grad():
        env.on_checkpoint(0)
        while not bool(over.all()) and int(lengths.max()) < max_steps:
            ep = env.collect(act, 1, rng)
            now, done = ~over & ep.valid[0], ep.done[0] & ~over & ep.valid[0]
            returns = torch.where(now, ep.info["return"][0], returns)
            lengths = torch.where(now, ep.info["length"][0], lengths)
            if "success" in ep.info:
                success = torch.zeros(n, dtype=torch.bool) if success is None else success
                success = success | (ep.info["success"][0] & now)
            over, timed = over | done, timed | (done & ~ep.terminated[0])
    return EpisodeOutcomes(success, returns, lengths, over, timed)


def episodes(train: EpisodeOutcomes, serve: EpisodeOutcomes | None, max_steps: int = 1000) -> Finding:
    """Check success (or return) of the policy under training steps and under eval steps."""
    name = "success"
    if not bool(train.over.all()):
        return Finding(
            name,
            "warning",
            f"{int((~train.over).sum())} of {len(train.over)} episodes did not end in {max_steps} steps",
            "Give the environment a time limit (gymnasium's TimeLimit): returns without an end cannot be compared.",
        )
    ends = (
        f"{float(train.lengths.float().mean()):.0f} steps, {float(train.timed.float().mean()):.0%} ended by time limit"
    )
    if train.success is None:
        interval, _ = auto_interval(train.returns)
        said = f"success is not reported; return {interval:.3g} ({ends})"
        if float(train.returns.std()) == 0:
            return Finding(name, "error", f"{said}: all equal", "Check the reward: shape it, or report success.")
        return Finding(name, "note", said, "Report success in info['success'] to see it.")
    p = float(train.success.float().mean())
    said = f"{auto_interval(train.success.float())[0]:.1%} under training steps"
    if serve is not None and serve.success is not None:
        other = float(serve.success.float().mean())
        said += f", {other:.1%} under eval steps"
        if other - p > 2 * math.sqrt(2 * 0.25 / len(train.over)) and p < 0.7 * other:
            return Finding(
                name,
                "warning",
                f"{said} ({ends}): the exploration noise reduces success",
                "Lower the minimum std or the churn of the training steps, or use more steps.",
            )
    if bool(train.returns.std() == 0):
        said += "; all returns are equal"
    return _rate(name, p, f"{said} ({ends})")
