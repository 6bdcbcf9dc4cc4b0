"""TraceRL: policy gradients on exactly the states that a masked language model's own decoder visited.

paper: arXiv 2509.06949
signal: reward
family: path policy gradient
side: B
base: masked diffusion
task: policy learning
stage: fine-tuning
output: language
process: masked
likelihood: replay

G completions a prompt are drawn with the decoder that serves, and verified. Every decoding step is one row: the state
it saw (tokens revealed later are masks) and the tokens it revealed. With A the group's z-score and old log-probs from
a pass with the update's shapes,

    L = mean over revealed tokens of [ −min(ρ_i A, clip(ρ_i, 1 ± ε) A) + β k3(π_θ ‖ π_old) ]

Groups of equal rewards teach nothing; the published filter of prompts by their share of right answers is
``prompt_accuracy_range``. The temperature, top-k and top-p of the decoder are part of the policy, in both passes. Text
behind an answer's end (``Masked(end=)``) is neither scored nor learned from. This is the part on full attention without
the value model.

As published: ``likelihood="tokens"`` (one ratio a revealed token), beta 0.01. ``"exact"`` is ours: the probability of
the whole step, tokens and positions, which the unmasking law has in closed form; one ratio a step. On sudoku the two
gained alike (one seed: 0.78 and 0.80 from 0.59 at four cells a step). Its log-ratio grows with the positions that a
step leaves open, far beyond any ``clip_range``: 0.1 nats after one Adam step at 16 positions, 38 at 256. So it is the
default for sequences of up to 16 alone. Other differences: steps are not merged (shrink 1), steps that could hardly go
otherwise are skipped (``min_step_nll``), the learning rate warms up and falls, and three passes are made over each
batch because so few rows are left.

What an update has made impossible (a set of positions or a token that the decoder would no longer choose) carries no
loss: the row says its share as ``impossible``, and a minibatch of nothing else is ``skipped``. Before the first update
the decoder's own calls must give the recorded log-probs, and the update's calls the same token log-probs up to
rounding, all but one in a hundred within ``ratio_tolerance``. Ranks may flip where two confidences round to equal: the
share of steps whose exact probability that changes is told as ``flipped``.

Expect, with the defaults, sampled solve rates of unseen 4 x 4 sudokus to go from 0.79 to 0.95 at two cells a step and
from 0.62 to 0.86 at four, in 40 s of a CPU core; as long of more imitation leaves 0.80 and 0.63 (means of three seeds).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from denoiserl.advantages import dead_groups, group_relative
from denoiserl.advantages.group import Scale
from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.settings import Count, CountOrZero, NonNegative, Positive, Settings
from denoiserl.distributions import Unmasking
from denoiserl.losses import approx_kl, k3, ppo_clip
from denoiserl.policy.chain import Chain, ChainSteps
from denoiserl.policy.likelihood import assert_on_policy, tolerance_of
from denoiserl.policy.policy import Policy
from denoiserl.recipes.generators.common import micro_batches, reward_metrics, sample_and_score
from denoiserl.recipes.language.common import generated_mask, require_masked
from denoiserl.rewards import RewardSignal, as_reward_signal, prompt_count
from denoiserl.train import Metrics, Run, accumulate_masked, adamw, check_optimizer_covers, warmup_cosine
from denoiserl.train.minibatches import minibatches

SHORT = 16
"""positions of the longest sequence whose steps are scored exactly by default"""


@dataclass(frozen=True)
class Args(Settings):
    iterations: Count = 80
    """iterations of the run; sample and update"""
    num_prompts: Count = 64
    """prompts per iteration"""
    group_size: Count = 8
    """samples per prompt"""
    epochs: Count = 3
    """passes over the data of an iteration"""
    batch_size: Count = 1024
    """items per gradient step; rows (decoding steps)"""
    micro_batch_size: Count | None = None
    """rows per call of the network and of the reward; where a batch does not fit into memory (None: all); the update is
    that of the whole batch"""
    clip_range: Positive = 0.2
    """range ε of the ratio, clipped to 1 ± ε"""
    kl_coef: NonNegative = 0.0
    """weight of the KL term; k3, to the policy that sampled"""
    prompt_accuracy_range: tuple[float, float] | None = None
    """lowest and highest mean reward of the prompts that are kept; for rewards in 0 to 1; the paper keeps 0.2 to 0.8
    with groups of 16"""
    min_step_nll: NonNegative = 1e-3
    """steps with a smaller −log p are skipped; they could hardly go otherwise"""
    likelihood: Literal["tokens", "exact"] | None = None
    """what the ratio is of; each revealed token, or the whole step; None: the whole step up to 16 positions"""
    ratio_tolerance: NonNegative | None = None
    """largest absolute log ratio before the first update; of a token (None: that of the weights' precision)"""
    invalid_rewards: Literal["error", "drop"] = "error"
    """what happens to rewards that are not finite; raise an error that names the samples, or drop and count them"""
    reward_weights: dict[str, float] = field(default_factory=dict)
    """weights of the named parts of a reward in its total; none: 1 for each"""
    advantage_scale: Scale = "std"
    """what advantages of a group are divided by; "std" is the published z-score"""
    lr: NonNegative = 3e-4
    """learning rate; of Adam, with warm-up and cosine decay"""
    lr_warmup: CountOrZero = 5
    """iterations of the linear warm-up of the learning rate"""


def improve(
    policy: Policy, signal: RewardSignal, args: Args, rng: Rng | int, run: Run | None = None
) -> Iterator[Metrics]:
    """Improve a masked language model on a verifier.

    The signal's prompts: canvases [P, L] with masks where to write.
    """
    rng = as_rng(rng, policy.device)
    run, (reward, prompts) = run or Run(), as_reward_signal(signal)
    require_masked(policy, "TraceRL")
    exact = policy.event_shape[-1] <= SHORT if args.likelihood is None else args.likelihood == "exact"
    opt = adamw(policy.parameters(), args.lr)
    check_optimizer_covers(opt, policy.weights.module)
    schedule = warmup_cosine(opt, min(args.lr_warmup, args.iterations), args.iterations)
    for it in run.loop(args.iterations, given=prompts, policy=policy, opt=opt, schedule=schedule, rng=rng):
        index = rng.integers(0, prompt_count(prompts), args.num_prompts)
        asked, chain, scored = sample_and_score(policy, reward, prompts, index, args.group_size, args, rng)
        groups, valid = (
            scored.total.reshape(args.num_prompts, args.group_size),
            scored.valid.reshape(args.num_prompts, args.group_size),
        )
        kept = _kept(groups, valid, args.prompt_accuracy_range)
        advantage = torch.where(kept, group_relative(groups, args.advantage_scale, valid=valid), 0.0).flatten()
        chain = chain.with_condition(mask=generated_mask(policy, asked, chain.sample))
        trace = chain.steps_at(torch.nonzero(_teaches(chain, advantage, args.min_step_nll).flatten())[:, 0])
        dead = float(dead_groups(groups, valid=valid).float().mean())
        row = reward_metrics(scored) | {"rollout/dead_group_fraction": dead, "rollout/num_learned_steps": len(trace)}
        if len(trace):
            everything = torch.arange(len(trace), device=trace.step.device)
            seen = [_old(policy, trace.select(i), exact, args) for i in everything.split(args.batch_size)]
            old, could = torch.cat([value for value, _ in seen]), torch.cat([counts for _, counts in seen])
            if it == 0:
                row |= _first(policy, chain, trace, old, could, exact, args)
            row |= _learn(policy, opt, trace, old, could, advantage, exact, args, rng)
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "Detected call of"
            )  # where nothing teaches, no step of ``opt`` comes first
            schedule.step()
        yield row


def _kept(groups: Tensor, valid: Tensor, accuracy: tuple[float, float] | None) -> Tensor:
    """[P, 1]: prompts whose mean reward lies in the range, all where there is none."""
    if accuracy is None:
        return torch.ones_like(valid[:, :1])
    seen = groups[valid]
    if bool(((seen < 0) | (seen > 1)).any()):
        raise InvalidInputError(
            f"prompt_accuracy_range={accuracy} is a range of right answers' shares, and rewards reach from "
            f"{float(seen.min()):g} to {float(seen.max()):g}: leave it out, or return rewards in 0 to 1"
        )
    solved = groups.nanmean(-1, keepdim=True)
    return (solved >= accuracy[0]) & (solved <= accuracy[1])


def _teaches(chain: Chain, advantage: Tensor, sure: float) -> Tensor:
    """[B, S]: steps with an advantage that could have gone another way and wrote into the answer."""
    wrote = ((chain.x != chain.y) & chain.mask[:, None]).any(-1)  # type: ignore[index]
    return (chain.log_prob < -sure) & (advantage != 0)[:, None] & wrote


def _log_probs(policy: Policy, trace: ChainSteps, exact: bool) -> tuple[Tensor, Tensor]:
    """Return what the ratio is of, [N, L] or [N, 1], and where it counts: in the answer, and possible."""
    law, y = policy.rescore(trace)
    assert isinstance(law, Unmasking) and isinstance(y, Tensor) and isinstance(trace.x, Tensor)
    if exact:
        value = law.log_prob(y)[:, None]
        counts = torch.ones_like(value, dtype=torch.bool)
    else:
        value, counts = law.token_log_prob(y), (trace.x != y) & law.mask
    possible = value > -torch.inf
    return torch.where(possible, value, 0.0), counts & possible


def _old(policy: Policy, trace: ChainSteps, exact: bool, args: Args) -> tuple[Tensor, Tensor]:
    """Log-probs before the update, from calls of the update's shapes and mode: some kernels round by either."""
    index, found = torch.arange(len(trace), device=trace.step.device), []
    for i in micro_batches(index, args.micro_batch_size):
        value, counts = _log_probs(policy, trace.select(i), exact)
        found.append((value.detach(), counts))
    return torch.cat([value for value, _ in found]), torch.cat([counts for _, counts in found])


def _learn(
    policy: Policy,
    opt: Any,
    trace: ChainSteps,
    old: Tensor,
    could: Tensor,
    advantage: Tensor,
    exact: bool,
    args: Args,
    rng: Rng,
) -> dict[str, float]:
    """Pass over the rows ``epochs`` times; says the loss, the KL to what drew, and how much carried no loss."""
    losses, seen, left, asked = [], [], 0, 0

    def pieces(batch: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for i in micro_batches(batch, args.micro_batch_size):
            new, counts = _log_probs(policy, trace.select(i), exact)
            counts = counts & could[i]
            seen.append((new.detach(), old[i], counts))
            gain = advantage[trace.chain_index[i], None].expand_as(new)
            loss = ppo_clip(new, old[i], gain, args.clip_range) + args.kl_coef * k3(new, old[i])
            del new, gain  # nothing of a piece outlives its turn
            yield loss, counts
            del loss

    wrote = torch.ones_like(could) if exact else (trace.x != trace.y) & trace.mask  # type: ignore[operator]
    for batch in minibatches(len(trace), args.batch_size, args.epochs, rng):
        seen.clear()
        done = accumulate_masked(opt, pieces(batch), clip=1.0)
        losses += [] if done is None else [done["loss"]]
        left, asked = left + sum(int(counts.sum()) for *_, counts in seen), asked + int(wrote[batch].sum())
    row = {"loss/impossible_fraction": 1 - left / asked}
    row["train/skipped_updates"] = args.epochs * -(-len(trace) // args.batch_size) - len(losses)
    if losses:
        new, before, counts = (torch.cat(v) for v in zip(*seen, strict=True))
        row["loss/policy"] = sum(losses) / len(losses)
        if bool(counts.any()):
            row["ppo/approx_kl"] = float(approx_kl(new, before, counts))
    return row


@torch.no_grad()
def _first(
    policy: Policy, chain: Chain, trace: ChainSteps, old: Tensor, could: Tensor, exact: bool, args: Args
) -> dict:
    """Compare a run, its replay by calls of the run's own shapes, and the update's calls, on rows drawn together.

    Returns the share of steps that are ``flipped`` where they are scored exactly. Raises OffPolicy if the policy that
    learns is not the one that drew.
    """
    many, steps, size = len(chain.log_prob), len(chain), args.micro_batch_size or len(chain.log_prob)
    low = int(trace.chain_index[0]) // size * size  # the rows that were drawn together with the first that teaches
    n = min(size, many - low)
    limit = tolerance_of(policy.denoiser) if args.ratio_tolerance is None else args.ratio_tolerance
    at, gaps, tokens, joints = torch.arange(low, low + n, device=trace.step.device) * steps, [], [], []
    for k in range(steps):
        part = chain.steps_at(at + k)
        law, y = policy.rescore(part, micro_batch_size=n)
        assert isinstance(law, Unmasking) and isinstance(y, Tensor)
        gap = (replace(law, mask=law.is_open).log_prob(y) - part.log_prob).abs()
        gaps.append(gap[part.log_prob < -args.min_step_nll])
        tokens.append(law.token_log_prob(y))
        joints.append(law.log_prob(y) if exact else gap)
    # The median: a rank that flips moves single steps by nats, another law moves nearly all.
    typical = torch.cat(gaps).median()[None]
    assert_on_policy(typical, torch.zeros_like(typical), limit)
    mine = torch.nonzero((trace.chain_index >= low) & (trace.chain_index < low + n))[:, 0]
    place = trace.chain_index[mine] - low, torch.searchsorted(chain.step, trace.step[mine])
    run = torch.stack(tokens, 1)[place]
    now = torch.cat(
        [
            _log_probs(policy, trace.select(i), False)[0]
            for i in micro_batches(mine, args.micro_batch_size or args.batch_size)
        ]
    )
    apart = (now - run).abs()[run != 0].sort().values
    most = apart[: max(1, math.ceil(0.99 * len(apart)))]
    assert_on_policy(most, torch.zeros_like(most), limit)
    if not exact:
        return {}
    joint = torch.where(could, old, -torch.inf)[mine, 0]
    moved = (joint - now.sum(-1) - torch.stack(joints, 1)[place] + run.sum(-1)).abs()
    return {"ppo/flipped_fraction": float((~(moved <= limit)).float().mean())}


SIGNAL = "reward"
START = None
DEFAULT_TASK = "sudoku"
DEMO = Args()
