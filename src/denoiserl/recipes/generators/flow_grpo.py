"""Flow-GRPO: group-relative fine-tuning of a flow generator on any reward.

paper: arXiv 2505.05470
signal: reward
family: path policy gradient
side: B
base: diffusion
task: policy learning
stage: fine-tuning
output: images
process: flow, diffusion
likelihood: replay

A deterministic flow is run as an SDE with the same marginals, so that every step has a density. Each prompt is drawn
G times; a sample's advantage is its reward relative to its group; every step of its chain gets that advantage in a
clipped surrogate, with a KL to the pretrained generator a step:

    A_i = (r_i − mean_G r) / std r,    L = mean_k [ −min(ρ_k A, clip(ρ_k, 1 ± ε) A) + β KL(π_θ ‖ π_ref)_k ]

As published: ρ is the geometric mean over dimensions (log-probs divided by ``law.num_factors``) and the KL is a
dimension's, the std is that of the whole batch, sampling trains under the SDE and serves under the ODE;
``sde_window=0`` trains the whole chain. ``sde_window`` > 0 is like the fast variant: only the first ``sde_window``
steps are stochastic and trained, the rest is the ODE. Differences: the released fast variant has one or two such steps
anywhere among the early ones, with a = 0.8 and without a KL. The KL carries its dt factor (the released code divides by
2g² and not by 2g²|dt|), nothing is guided, the whole network is trained rather than LoRA adapters, there is no moving
average of the weights, groups that are tied get no advantage, and ε is 1e-3, not 1e-4, because a picture of 432 numbers
is not a latent of 16 thousand.

Expect, with the defaults, strict hits of the ODE on held-out SHAPES prompts to go from 0.50 to 0.98 in half a minute
of one core, where as long of more imitation leaves 0.49; pictures on the manifold from 0.89 to 0.99; the distance of
two pictures of a prompt from 0.36, wrong colours included, to 0.17 (data: 0.20; without the KL: below 0.11).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from denoiserl.advantages import dead_groups, group_relative
from denoiserl.core.errors import InvalidInputError, NoDensityError
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.settings import Count, CountOrZero, NonNegative, Positive, Settings
from denoiserl.distributions.base import NO_DENSITY_HELP
from denoiserl.losses import ppo_clip
from denoiserl.policy.chain import Chain, ChainSteps
from denoiserl.policy.policy import Policy
from denoiserl.processes import Diffusion, StepTable, ddim
from denoiserl.recipes.generators.common import check_first_ratio, micro_batches, reward_metrics, sample_and_score
from denoiserl.rewards import RewardSignal, as_reward_signal, prompt_count
from denoiserl.train import Metrics, Run, accumulate, adamw, check_optimizer_covers
from denoiserl.train.minibatches import minibatches


@dataclass(frozen=True)
class Args(Settings):
    iterations: Count = 50
    """iterations of the run; sample and update"""
    num_prompts: Count = 24
    """prompts per iteration"""
    group_size: Count = 12
    """samples per prompt"""
    sde_window: CountOrZero = 3
    """number of first steps that are stochastic and trained; 0: the whole chain, as first published"""
    epochs: Count = 1
    """passes over the data of an iteration"""
    batch_size: Count = 72
    """items per gradient step; chains"""
    micro_batch_size: Count | None = None
    """rows per call of the network and of the reward; where a batch does not fit into memory (None: all); the update is
    that of the whole batch"""
    clip_range: Positive = 1e-3
    """range ε of the ratio, clipped to 1 ± ε; of the geometric mean over dimensions"""
    adv_clip: Positive = 5.0
    """largest absolute advantage, in standard deviations"""
    kl_coef: NonNegative = 0.2
    """weight of the KL term; to the pretrained generator, per dimension and step; 0 needs no pass of the reference"""
    lr: NonNegative = 3e-4
    """learning rate; of Adam"""
    invalid_rewards: Literal["error", "drop"] = "error"
    """what happens to rewards that are not finite; raise an error that names the samples, or drop and count them"""
    reward_weights: dict[str, float] = field(default_factory=dict)
    """weights of the named parts of a reward in its total; none: 1 for each"""
    ratio_tolerance: NonNegative | None = None
    """largest absolute log ratio before the first update; of a whole step (None: 0.02, or more where the network's
    precision is lower)"""


def improve(
    policy: Policy, signal: RewardSignal, args: Args, rng: Rng | int, run: Run | None = None
) -> Iterator[Metrics]:
    """Improve a flow generator on a reward.

    The signal's prompts: a tree of [P, ...], of which every iteration asks some; None or a number where there are none.
    """
    rng = as_rng(rng, policy.device)
    if args.group_size < 2:
        raise InvalidInputError("A group of one has nothing to be compared with: draw at least two samples a prompt.")
    run, policy, (reward, prompts) = run or Run(), sde_window_policy(policy, args.sde_window), as_reward_signal(signal)
    many = prompt_count(prompts)
    if args.kl_coef > 0:
        _refuse_truncation(policy)
        policy.weights.snapshot("reference")
    opt = adamw(policy.parameters(), args.lr)
    check_optimizer_covers(opt, policy.weights.module)
    for it in run.loop(args.iterations, given=prompts, policy=policy, opt=opt, rng=rng):
        _, chain, scored = sample_and_score(
            policy, reward, prompts, rng.integers(0, many, args.num_prompts), args.group_size, args, rng
        )
        groups, valid = (v.reshape(args.num_prompts, args.group_size) for v in (scored.total, scored.valid))
        advantage = group_relative(groups, "batch", clip=args.adv_clip, valid=valid).flatten()
        dead = float(dead_groups(groups, valid=valid).float().mean())
        row, losses, watch = reward_metrics(scored) | {"rollout/dead_group_fraction": dead}, [], []
        epochs = args.epochs if dead < 1 else 0  # nothing to learn where every group is constant
        for index in minibatches(len(advantage), args.batch_size, epochs, rng):
            check, size = it == 0 and not losses, len(index) * len(chain)
            parts = chain_parts(chain, index, advantage, args.micro_batch_size)
            pieces = (surrogate(policy, *part, args, check, watch) for part in parts)
            losses.append(accumulate(opt, pieces, size, clip=1.0)["loss"])
        if losses:
            kl, outside = (torch.cat(v).mean() for v in zip(*watch, strict=True))
            row |= {
                "loss/policy": sum(losses) / len(losses),
                "loss/reference_kl": float(kl),
                "ppo/clip_fraction": float(outside),
            }
        yield row


def chain_parts(
    chain: Chain, index: Tensor, advantage: Tensor, micro: int | None
) -> Iterator[tuple[Chain | ChainSteps, Tensor]]:
    """Yield the chains ``index`` with their advantages [b, S], all at once, or in parts of ``micro`` steps, [micro].

    All at once they are scored in the calls of the run, so that the first ratio is bitwise 1 in float32.
    """
    if micro is None:
        yield chain.take(index), advantage[index, None].expand(-1, len(chain))
        return
    flat = index[:, None] * len(chain) + torch.arange(len(chain), device=index.device)
    for part in micro_batches(flat.flatten(), micro):
        rows = chain.steps_at(part)
        yield rows, advantage[rows.chain_index]


def surrogate(
    policy: Policy,
    part: Chain | ChainSteps,
    advantage: Tensor,
    args: Args,
    check: bool,
    watch: list[tuple[Tensor, Tensor]],
) -> Tensor:
    """Return −min(ρ A, clip(ρ, 1 ± ε) A) + β KL of every step, and add to ``watch`` the KL and which ρ left the range.

    A function, so that nothing of a part is in memory when the next one runs. ``check``: nothing was learned yet, so
    the ratio must be 1.
    """
    law, y = policy.rescore(part)
    logp, old = law.log_prob(y), part.log_prob
    if check:
        check_first_ratio(policy, logp, old, args.ratio_tolerance)
    size = law.num_factors.clamp_min(1)  # of tokens, a step of a finished text decides nothing
    logp, old = logp / size, old / size
    loss, kl = ppo_clip(logp, old, advantage, args.clip_range), torch.zeros_like(old)
    if args.kl_coef > 0:
        with torch.no_grad():
            reference, _ = policy.rescore(part, weights="reference")
        kl = law.kl(reference) / size
        loss = loss + args.kl_coef * kl
    watch.append((kl.detach().flatten(), (((logp.detach() - old).exp() - 1).abs() > args.clip_range).float().flatten()))
    return loss


def sde_window_policy(policy: Policy, window: int) -> Policy:
    """The policy whose training chain has a density at the first ``window`` steps only and is the ODE after them."""
    if not any(policy.train_steps.dense):
        raise NoDensityError(
            f"the policy's training steps are all deterministic (an ODE): {NO_DENSITY_HELP}; flow_sde() here"
        )
    if window == 0:
        return policy
    if not isinstance(policy.process, Diffusion) or not 0 < window <= len(policy.train_steps):
        raise InvalidInputError(
            f"a window of {window} steps does not fit a Gaussian chain of {len(policy.train_steps)} steps"
        )
    sde, ode = policy.train_steps, policy.process.steps(policy.train_steps.times, ddim(0.0))
    table = {k: torch.cat([sde.table[k][:window], v[window:]]) for k, v in ode.table.items()}
    return replace(policy, train_steps=StepTable(sde.times, table, sde.dense[:window] + ode.dense[window:]))


def _refuse_truncation(policy: Policy) -> None:
    """Raise InvalidInputError if a decoder rules tokens out: where the reference rules out others the KL is
    infinite."""
    top_k, top_p = (getattr(policy.process, name, None) for name in ("top_k", "top_p"))
    if top_k is not None or top_p not in (None, 1):
        raise InvalidInputError(
            f"top_k={top_k} and top_p={top_p} rule out other tokens here and in the reference, so the KL between them "
            "is infinite: set kl_coef=0, or make the policy without them"
        )


SIGNAL = "reward"
START = None
DEFAULT_TASK = "shapes"
GROWS: dict[str, Any] = {}
DEMO = Args()
