"""diffu-GRPO: group-relative policy optimisation with a likelihood that costs one forward pass (d1).

paper: arXiv 2504.12216
signal: reward
family: one-pass policy gradient
side: B
base: masked diffusion
task: policy learning
stage: fine-tuning
output: language
process: masked
likelihood: elbo

The decoder draws G completions a prompt; their likelihood is not that of the decoder but a mean-field guess: the whole
completion is masked, so is each prompt token with probability p, and one pass gives log p_i of every completion token.
Each of the μ inner iterations draws one such mask, and the policy, the policy that drew and the reference are all
scored under it:

    L_j = mean over completion tokens of [ −min(ρ_i A, clip(ρ_i, 1 ± ε) A) + β k3(π_θ ‖ π_ref) ],   j = 1 ... μ

with A the reward minus its group's mean. A completion reaches up to and with its first end of text
(``Masked(end=)``). The reference is set to the policy every ``reference_sync_every`` iterations.

As published: ε 0.5, β 0.04, p 0.15, p-masks regularise and let one batch be used μ times. The released code counts
gradient steps between settings of the reference (64 there are 8 iterations of μ = 8 here). ``answer_mask`` (0.1, 0.9)
with ``prompt_mask`` 0 scores randomly masked completions instead, the "random masking" that TraceRL is compared with
(2509.06949): only masked tokens have a likelihood then. Differences: puzzles are
canvases filled in place, so clues are the prompt and holes the completion; the whole network is trained, at 1e-4.

Expect, with the defaults, sampled solve rates of unseen 4 x 4 sudokus to go from 0.80 to 0.91 at two cells a step and
from 0.62 to 0.73 at four in 80 iterations (one seed, a base of 1000 updates, 40 s of a CPU core): less than
``tracerl``, which scores the states in which the decoder decides; a wholly masked completion is not one of them. From a
base without typos in its text there was no gain. ``train/no_improvement`` is 1 where the training reward has not risen
after 40 iterations.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from denoiserl.advantages import dead_groups, group_relative
from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.settings import Count, CountOrZero, Fraction, NonNegative, Positive, Settings
from denoiserl.core.tree import Tree, index_rows
from denoiserl.distributions.categorical import token_log_prob
from denoiserl.losses import clip_fraction, k3, masked_mean, ppo_clip
from denoiserl.policy.likelihood import assert_on_policy
from denoiserl.policy.policy import Policy
from denoiserl.processes.denoiser import Denoiser
from denoiserl.processes.tokens import known_tokens
from denoiserl.recipes.generators.common import micro_batches, reward_metrics, sample_and_score
from denoiserl.recipes.language.common import canvases, generated_mask, require_masked
from denoiserl.rewards import RewardSignal, as_reward_signal, prompt_count
from denoiserl.train import Metrics, Run, accumulate_masked, adamw, check_optimizer_covers
from denoiserl.train.metric_means import MetricMeans

PATIENCE = 40
"""iterations after which the training reward should have risen"""
WINDOW = 10
"""iterations that are averaged to tell"""


@dataclass(frozen=True)
class Args(Settings):
    iterations: Count = 80
    """iterations of the run; sample and update"""
    num_prompts: Count = 24
    """prompts per iteration"""
    group_size: Count = 8
    """samples per prompt"""
    inner_updates: Count = 8
    """updates μ per batch of completions, each with its own mask"""
    prompt_mask: Fraction = 0.15
    """probability that a prompt token is masked"""
    answer_mask: tuple[Fraction, Fraction] = (1.0, 1.0)
    """lowest and highest fraction of the completion that is masked and scored, drawn uniformly between the two; (1, 1)
    is the published method"""
    clip_range: Positive = 0.5
    """range ε of the ratio, clipped to 1 ± ε"""
    kl_coef: NonNegative = 0.04
    """weight of the KL term; k3, to the reference"""
    reference_sync_every: CountOrZero = 64
    """iterations between copies of the policy to the reference; 0: never"""
    micro_batch_size: Count | None = None
    """rows per call of the network and of the reward; where a batch does not fit into memory (None: all); the update is
    that of the whole batch"""
    ratio_tolerance: NonNegative | None = None
    """largest absolute log ratio before the first update; of a token (None: that of the weights' precision)"""
    invalid_rewards: Literal["error", "drop"] = "error"
    """what happens to rewards that are not finite; raise an error that names the samples, or drop and count them"""
    reward_weights: dict[str, float] = field(default_factory=dict)
    """weights of the named parts of a reward in its total; none: 1 for each"""
    lr: NonNegative = 1e-4
    """learning rate; of Adam"""
    max_grad_norm: Positive = 0.2
    """largest norm of the gradient"""


def improve(
    policy: Policy, signal: RewardSignal, args: Args, rng: Rng | int, run: Run | None = None
) -> Iterator[Metrics]:
    """Improve a masked language model on a reward. The signal's prompts: canvases [P, L] with masks where to write."""
    rng = as_rng(rng, policy.device)
    process, run, (reward, prompts) = require_masked(policy, "diffu-GRPO"), run or Run(), as_reward_signal(signal)
    if bool((canvases(policy, prompts) != process.mask_token).all(-1).any()):
        raise InvalidInputError("a prompt has no mask: there is nothing to write, leave it out")
    policy.weights.snapshot("reference")
    opt, trend = adamw(policy.parameters(), args.lr), RewardTrend()
    check_optimizer_covers(opt, policy.weights.module)
    for it in run.loop(args.iterations, given=prompts, policy=policy, opt=opt, rng=rng, trend=trend):
        if args.reference_sync_every and it and it % args.reference_sync_every == 0:
            policy.weights.snapshot("reference")
        index = rng.integers(0, prompt_count(prompts), args.num_prompts)
        asked, chain, scored = sample_and_score(policy, reward, prompts, index, args.group_size, args, rng)
        sample: Any = chain.sample
        groups, valid = (
            scored.total.reshape(args.num_prompts, args.group_size),
            scored.valid.reshape(args.num_prompts, args.group_size),
        )
        advantage = group_relative(groups, "none", valid=valid).flatten()
        canvas, answer = canvases(policy, asked), generated_mask(policy, asked, sample)
        assert answer is not None
        answer = answer & scored.valid[:, None]
        masks = [
            mask_tokens(canvas, sample, process.mask_token, args.prompt_mask, args.answer_mask, rng)
            for _ in range(args.inner_updates)
        ]
        old = [_passes(policy, policy.denoiser, seen, sample, asked, args) for seen in masks]
        with torch.no_grad():
            kept = policy.weights.using("reference")
            reference = [_passes(policy, kept, seen, sample, asked, args) for seen in masks]
        metrics = MetricMeans()
        for seen, before, anchor in zip(masks, old, reference, strict=True):
            hole = (seen == process.mask_token) & answer
            new: list[Tensor] = []
            pieces = _pieces(policy, seen, sample, asked, (before, anchor, advantage, hole), new, args)
            update = accumulate_masked(opt, pieces, clip=args.max_grad_norm)
            if update is None:
                continue  # nothing was hidden: this mask teaches nothing
            now = torch.cat(new)
            if it == 0 and not len(metrics):
                assert_on_policy(now[hole], before[hole], args.ratio_tolerance, policy.denoiser)
            kl, clipped = masked_mean(k3(now, anchor), hole), clip_fraction(now, before, args.clip_range, mask=hole)
            metrics.add({"loss/policy": update["loss"], "loss/reference_kl": kl, "ppo/clip_fraction": clipped})
        row = reward_metrics(scored) | {
            "rollout/dead_group_fraction": float(dead_groups(groups, valid=valid).float().mean())
        }
        row |= metrics.mean()
        yield row | {"train/no_improvement": float(not trend.rose(row["rollout/reward"]))}


def _passes(policy: Policy, denoise: Denoiser, seen: Tensor, sample: Tensor, asked: Tree, args: Args) -> Tensor:
    """``one_pass`` in parts, detached: calls of the update's shapes and mode, by either of which some kernels round."""
    rows = micro_batches(torch.arange(len(seen), device=seen.device), args.micro_batch_size)
    return torch.cat([one_pass(denoise, seen[i], sample[i], policy, index_rows(asked, i)).detach() for i in rows])


def _pieces(
    policy: Policy, seen: Tensor, sample: Tensor, asked: Tree, given: tuple[Tensor, ...], new: list[Tensor], args: Args
) -> Iterator[tuple[Tensor, Tensor]]:
    """The losses of the rows in parts, and where they count; the log-probs are put into ``new``."""
    before, anchor, advantage, hole = given
    for i in micro_batches(torch.arange(len(seen), device=seen.device), args.micro_batch_size):
        logp = one_pass(policy.denoiser, seen[i], sample[i], policy, index_rows(asked, i))
        new.append(logp.detach())
        gain = advantage[i, None].expand_as(logp)
        loss = ppo_clip(logp, before[i], gain, args.clip_range) + args.kl_coef * k3(logp, anchor[i])
        del logp  # nothing of a piece outlives its turn
        yield loss, hole[i]
        del loss


def mask_tokens(canvas: Tensor, written: Tensor, mask: int, p: float, answer: tuple[float, float], rng: Rng) -> Tensor:
    """The canvas with each prompt token masked with probability p, and completed but for a share of its holes.

    The share is drawn for each row between the two numbers of ``answer``; at (1, 1) all holes stay masks. One draw
    for the batch's rows, shared by all who are scored under it.
    """
    prompt = torch.where(rng.uniform(*canvas.shape) < p, mask, canvas)
    low, high = answer
    if low == high == 1:
        return prompt
    share = low + (high - low) * rng.uniform(len(canvas), 1)
    shown = (rng.uniform(*canvas.shape) >= share) & (canvas == mask)
    return torch.where(shown, written, prompt)


def one_pass(denoise: Denoiser, seen: Tensor, sample: Tensor, policy: Policy, asked: Tree) -> Tensor:
    """Mean-field log-probabilities [B, L] of every written token given ``seen``, from one pass.

    A prompt may hold ids that are no token: what stands there means nothing and is never read.
    """
    process, full = require_masked(policy, "diffu-GRPO"), torch.ones(len(seen), device=seen.device)
    estimate = denoise(seen, denoise.embed_time(full), denoise.embed_condition(policy.codec.condition(asked)))
    logits = known_tokens(estimate.mean, process.vocab, process.mask_token)
    return token_log_prob(logits, torch.where(sample < logits.shape[-1], sample, 0))


class RewardTrend:
    """Has the training reward risen? The mean of the first ``WINDOW`` iterations against that of the last ones."""

    def __init__(self) -> None:
        self.first: list[float] = []
        self.last: deque[float] = deque(maxlen=WINDOW)
        self.n = 0

    def rose(self, reward: float) -> bool:
        """Take in one iteration; False when ``PATIENCE`` is over and the reward is not above where it began."""
        self.n += 1
        self.last.append(reward)
        if len(self.first) < WINDOW:
            self.first.append(reward)
        return self.n < PATIENCE or sum(self.last) / len(self.last) > sum(self.first) / len(self.first)

    def state_dict(self) -> dict[str, Any]:
        """What was seen."""
        return {"first": list(self.first), "last": list(self.last), "n": self.n}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.first, self.last, self.n = list(state["first"]), deque(state["last"], maxlen=WINDOW), int(state["n"])


SIGNAL = "reward"
START = None
DEFAULT_TASK = "sudoku"
GROWS: dict[str, Any] = {}
