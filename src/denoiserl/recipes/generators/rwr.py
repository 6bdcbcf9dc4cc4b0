"""RWR: reward-weighted regression of a generator on its own samples; no likelihoods, any process.

paper: arXiv 2305.13301
signal: reward
family: weighted regression
side: B
base: diffusion, masked diffusion
task: policy learning
stage: fine-tuning
output: images, language
process: diffusion, flow, masked
likelihood: none

The baseline of that paper, after Peters & Schaal (2007) and Lee et al. (arXiv 2302.12192).

Draw a data set, weight it by its rewards, fit it as any data set, and repeat:

    L = mean over samples of w(x, c) ℓ(x),   w = exp(β r) / mean exp(β r)     (``top_fraction=None``)
                                             w = 1[r in the top share] / share     (``top_fraction=0.1``: RWR-sparse)

with ℓ the denoising loss. The minimiser of one iteration is p(x | c) exp(β r) / Z(c): k iterations with enough capacity
tilt by k β. But ℓ is a bound, not the likelihood. Only for exact fits is the minimiser the same.

As published: a softmax of the rewards over the data set or within each prompt, and weights of mean 1. Several passes
are made over a data set of ten thousand samples (sparse: the best tenth). Otherwise it is plain supervised learning. β
is 5 for rewards of about unit range; it has the unit of 1 / reward.

Differences:

- Prompts come in groups, so that ``compare_within="prompt"`` has samples to compare.
- Rewards that are not finite are dropped and counted.
- The whole network is trained.

Expect, with the defaults, on held-out SHAPES prompts by the ODE (512 samples per iteration; one seed, not a claim):

| metric | before | after | data |
|---|---|---|---|
| ``exact_match`` | 0.49 | 0.97 after 10 iterations, 0.98 after 20 | |
| ``clean_image`` | 0.90 | 0.98 | |
| ``diversity`` | 0.36, wrong colours included | 0.09 | 0.20 |

For ``clean_image`` and ``diversity`` the number of iterations was not recorded. Diversity falls because samples that
one iteration did not draw are lost for the next ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from denoiserl.advantages.checks import resolution
from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.settings import Count, NonNegative, Positive, PositiveFraction, Settings, Weights
from denoiserl.core.tree import Tree, index_rows
from denoiserl.losses import ess_fraction, weighted_loss
from denoiserl.policy.policy import Policy
from denoiserl.policy.sampler import RecordSample
from denoiserl.processes import Noised
from denoiserl.recipes import check_inputs
from denoiserl.recipes.common import generated_mask, micro_batches, reward_metrics, sample_and_score, select_rows
from denoiserl.rewards import RewardSignal, as_reward_signal, prompt_count
from denoiserl.train import Metrics, Run, accumulate, adamw, check_optimizer_covers
from denoiserl.train.fit import draw_antithetic_times
from denoiserl.train.metric_means import MetricMeans
from denoiserl.train.minibatches import minibatches


@dataclass(frozen=True)
class Args(Settings):
    iterations: Count = 20
    """iterations of the run; sample and fit"""
    num_prompts: Count = 64
    """prompts per iteration"""
    group_size: Count = 8
    """samples per prompt"""
    inverse_temperature: NonNegative = 5.0
    """inverse temperature β of the exponential weights; per unit of reward"""
    top_fraction: PositiveFraction | None = None
    """learn only from this top fraction of the samples, with equal weights; None: exponential weights"""
    compare_within: Literal["prompt", "batch"] = "prompt"
    """the samples that a reward is compared with; those of its prompt, or all of the iteration"""
    epochs: Count = 4
    """passes over the data of an iteration"""
    batch_size: Count = 64
    """items per gradient step; samples"""
    micro_batch_size: Count | None = None
    """rows per call of the network and of the reward; where a batch does not fit into memory (None: all); the update is
    that of the whole batch"""
    lr: Positive = 3e-4
    """learning rate; of AdamW"""
    invalid_rewards: Literal["error", "drop"] = "drop"
    """what happens to rewards that are not finite; raise an error that names the samples, or drop and count them"""
    reward_weights: Weights = field(default_factory=dict)
    """weights of the named parts of a reward in its total; none: 1 for each"""

    def check_relations(self) -> None:
        """Raise RunError if settings do not fit each other."""
        fits = self.group_size > 1 or self.compare_within == "batch"
        self.require_fit(fits, "group_size = 1 leaves nothing to compare: give at least 2, or compare_within batch")


def improve(
    policy: Policy, signal: RewardSignal, args: Args, rng: Rng | int, run: Run | None = None
) -> Iterator[Metrics]:
    """Improve a generator on a reward. Its steps need no density.

    The signal's prompts: a tree of [P, ...]; None or a number if there are none.
    """
    check_inputs(policy, signal, SIGNAL, args, Args)
    rng = as_rng(rng, policy.device)
    run, (reward, prompts) = run or Run(), as_reward_signal(signal)
    num_prompts = prompt_count(prompts)
    optimizer = adamw(policy.parameters(), args.lr)
    check_optimizer_covers(optimizer, policy.weights.module)

    scoring = args.reward_weights, args.invalid_rewards, args.micro_batch_size, RecordSample()
    for _ in run.loop(args.iterations, given=prompts, policy=policy, optimizer=optimizer, rng=rng):
        # Collect samples and their rewards.
        index = rng.integers(0, num_prompts, args.num_prompts)
        samples = sample_and_score(policy, reward, prompts, index, args.group_size, rng, *scoring)
        sample, rewards, valid = samples.chain.sample, samples.rewards, samples.valid

        # Estimate the weights: exp(β r) / mean exp(β r), or 1[r in the top share] / share.
        if args.compare_within == "batch":
            rewards, valid = rewards.reshape(1, -1), valid.reshape(1, -1)
        if args.top_fraction is None:
            weight = exponential_weights(rewards, args.inverse_temperature, valid).flatten()
        else:
            weight = top_share_weights(rewards, args.top_fraction, valid).flatten()

        # Update the generator by its weighted denoising loss, w ℓ(x).
        cond, mask = policy.codec.condition(samples.prompts), generated_mask(policy, samples.prompts, sample)
        metrics = MetricMeans()
        for i in minibatches(torch.nonzero(weight).flatten(), args.batch_size, args.epochs, rng, even=True):
            noised = policy.process.noise(
                index_rows(sample, i), draw_antithetic_times(len(i), rng), rng, index_rows(mask, i)
            )
            parts = micro_batches(torch.arange(len(i), device=i.device), args.micro_batch_size)
            losses = (
                weighted_loss(denoising_loss(policy, select_rows(noised, j), index_rows(cond, i[j])), weight[i[j]])
                for j in parts
            )
            metrics.add({"loss/policy": accumulate(optimizer, losses, len(i), clip=1.0)["loss"]})
        row = reward_metrics(samples.result) | metrics.mean()
        yield row | {"awr/ess_fraction": float(ess_fraction(weight))}


def denoising_loss(policy: Policy, noised: Noised, cond: Tree) -> Tensor:
    """Return the denoising loss of noised samples, [N]."""
    return policy.process.loss(policy.denoiser, noised, policy.denoiser.embed_condition(cond))


def exponential_weights(reward: Tensor, beta: float, valid: Tensor) -> Tensor:
    """Return exp(β r) over its mean, [P, G] to [P, G]: G times the softmax of each row; 0 outside ``valid``."""
    if beta < 0:
        raise InvalidInputError(
            f"inverse_temperature = {beta} prefers smaller rewards: set one of 0 or more, or negate the reward"
        )
    logits = (beta * reward).masked_fill(~valid, -torch.inf)
    return (logits.softmax(-1) * valid.sum(-1, keepdim=True)).nan_to_num(0.0)


def top_share_weights(reward: Tensor, share: float, valid: Tensor) -> Tensor:
    """Return weights of mean 1 for the top ``share`` of each row, with ties, and 0 for the rest: [P, G] to [P, G].

    Rewards within 4 units in the last place of the row's largest are a tie. A row of ties has the weights 1.
    """
    if not 0 < share <= 1:
        raise InvalidInputError(f"share is in (0, 1], not {share}")
    ranked = reward.masked_fill(~valid, -torch.inf)
    count = (share * valid.sum(-1, keepdim=True)).ceil().long().clamp_min(1)
    least = ranked.sort(-1, descending=True).values.gather(-1, count - 1)
    largest = reward.masked_fill(~valid, 0.0).abs().amax(-1, keepdim=True)
    top = ((ranked >= least) | (least - ranked < resolution(largest))) & valid
    return top * valid.sum(-1, keepdim=True) / top.sum(-1, keepdim=True).clamp_min(1)


SIGNAL = "reward"
START = None
DEFAULT_TASK = "shapes"
