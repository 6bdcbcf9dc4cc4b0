"""What the recipes for generators share: samples with their scores, micro-batches, and the check of the first ratio."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from denoiserl.core.rng import Rng
from denoiserl.core.tree import Tree, tree_map
from denoiserl.policy.chain import Chain
from denoiserl.policy.likelihood import assert_on_policy, tolerance_of
from denoiserl.policy.policy import Policy
from denoiserl.policy.sampler import Record, RecordAll
from denoiserl.processes import Noised
from denoiserl.rewards import Reward, RewardResult, evaluate_reward, micro_rows, repeat_prompts


class ScoredSamples(NamedTuple):
    """Samples of prompts: ``prompts`` [N, ...] as they were asked (None: nothing), the ``chain``, and its scores."""

    prompts: Tree
    chain: Chain
    scored: RewardResult


def sample_and_score(
    policy: Policy,
    reward: Reward,
    prompts: Tree | int | None,
    index: Tensor,
    group_size: int,
    args: Any,
    rng: Rng,
    record: Record = RecordAll(),
) -> ScoredSamples:
    """Draw and score ``group_size`` samples of each of the prompts ``index``, ``args.micro_batch_size`` rows a call."""
    asked, micro = repeat_prompts(prompts, index, group_size), args.micro_batch_size
    chain = policy.sample_chain(asked, rng, len(index) * group_size, record, micro_batch_size=micro)
    return ScoredSamples(
        asked,
        chain,
        evaluate_reward(
            reward,
            chain.sample,
            asked,
            args.reward_weights,
            args.invalid_rewards,
            micro,
            policy.codec.decode,
        ),
    )


def reward_metrics(scored: RewardResult) -> dict[str, float]:
    """Return the metrics of a reward: its mean, how many values were dropped, and the mean of each named part.

    The parts are ``reward/NAME``; a reward of one part, ``reward``, is told once.
    """
    row = {"rollout/reward": float(scored.total.nanmean()), "rollout/num_invalid_rewards": scored.dropped}
    return row | {f"reward/{k}": float(v.nanmean()) for k, v in scored.parts.items() if k != "reward"}


def check_first_ratio(policy: Policy, log_prob: Tensor, recorded: Tensor, tolerance: float | None) -> None:
    """Raise OffPolicy if steps are scored otherwise than they were drawn, before anything was learned.

    ``tolerance`` of a whole step's |log ratio|: by default that of the network's precision, and at least 0.02, because
    log-probs of large pictures have four digits after the point in float32.
    """
    own = max(0.02, tolerance_of(policy.weights.module))
    assert_on_policy(log_prob, recorded, own if tolerance is None else tolerance)


def micro_batches(index: Tensor, micro: int | None) -> tuple[Tensor, ...]:
    """Return the rows ``index`` of one update in parts of at most ``micro`` rows, all in one by default."""
    return index.split(micro_rows(micro, len(index)))


def select_rows(noised: Noised, part: Tensor) -> Noised:
    """Return the rows ``part`` of noised data."""
    return Noised(*(tree_map(lambda v: v[part], field) for field in noised))
