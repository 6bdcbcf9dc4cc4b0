"""Helpers that recipes of several families share: samples and their rewards, micro-batches, answers, first ratios."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from denoiserl.core.rng import Rng
from denoiserl.core.tree import Tree, micro_rows, tree_map
from denoiserl.policy.chain import Chain
from denoiserl.policy.likelihood import assert_on_policy, tolerance_of
from denoiserl.policy.policy import Policy
from denoiserl.policy.sampler import Record, RecordAll
from denoiserl.processes import Autoregressive, Masked, Noised
from denoiserl.processes.tokens import answer
from denoiserl.rewards import Reward, RewardResult, evaluate_reward, repeat_prompts


class ScoredSamples(NamedTuple):
    """G samples of each of P prompts, with their rewards."""

    prompts: Tree
    """the prompt of each sample, [P·G, ...] (None: there are none)"""
    chain: Chain
    """the denoising steps, [P·G, S]"""
    result: RewardResult
    """rewards [P·G] and their parts"""
    rewards: Tensor
    """total rewards by prompt, [P, G]"""
    valid: Tensor
    """rewards that are finite, [P, G] bool"""


def sample_and_score(
    policy: Policy,
    reward: Reward,
    prompts: Tree | int | None,
    index: Tensor,
    group_size: int,
    rng: Rng | int,
    reward_weights: Mapping[str, float],
    invalid_rewards: Literal["error", "drop"],
    micro_batch_size: int | None = None,
    record: Record = RecordAll(),
) -> ScoredSamples:
    """Draw and score ``group_size`` samples of each of the prompts ``index``, ``micro_batch_size`` rows per call."""
    repeated = repeat_prompts(prompts, index, group_size)
    num_samples = len(index) * group_size
    chain = policy.sample_chain(repeated, rng, num_samples, record, micro_batch_size=micro_batch_size)
    options = reward_weights, invalid_rewards, micro_batch_size, policy.codec.decode
    result = evaluate_reward(reward, chain.sample, repeated, *options)
    rewards, valid = (v.reshape(len(index), group_size) for v in (result.total, result.valid))
    return ScoredSamples(repeated, chain, result, rewards, valid)


def reward_metrics(result: RewardResult) -> dict[str, float]:
    """Return the metrics of a reward: its mean, how many values were dropped, and the mean of each named part.

    The parts are ``reward/NAME``; a reward of one part, ``reward``, is not repeated.
    """
    row = {"rollout/reward": float(result.total.nanmean()), "rollout/num_invalid_rewards": result.dropped}
    return row | {f"reward/{k}": float(v.nanmean()) for k, v in result.parts.items() if k != "reward"}


def check_first_ratio(policy: Policy, log_prob: Tensor, recorded: Tensor, tolerance: float | None) -> None:
    """Raise OffPolicyError if the log-probabilities of steps differ from the recorded ones before the first update.

    ``tolerance`` of a whole step's |log ratio|: by default that of the network's precision, and at least 0.02. The
    reason is that log-probs of large images have four digits after the point in float32.
    """
    default = max(0.02, tolerance_of(policy.weights.module))
    assert_on_policy(log_prob, recorded, default if tolerance is None else tolerance)


def micro_batches(index: Tensor, micro_batch_size: int | None) -> tuple[Tensor, ...]:
    """Return the rows ``index`` of one update in parts of at most ``micro_batch_size`` rows; None: all in one."""
    return index.split(micro_rows(micro_batch_size, len(index)))


def select_rows(noised: Noised, index: Tensor) -> Noised:
    """Return the rows ``index`` of noised data."""
    return Noised(*(tree_map(lambda v: v[index], field) for field in noised))


def generated_mask(policy: Policy, prompts: Tree, sample: Any) -> Tensor | None:
    """Return the mask of the answers, [B, L] bool: the canvas's masks, up to and with the first end of text.

    None for policies that write no tokens.
    """
    process, start = policy.process, policy.codec.initial_state(prompts)
    if not isinstance(process, Masked | Autoregressive):
        return None
    masked = torch.ones_like(sample, dtype=torch.bool) if start is None else start == process.mask_token
    return answer(sample, masked, process.end)
