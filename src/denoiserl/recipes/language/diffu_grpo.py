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

The decoder draws G completions per prompt. Their likelihood is not that of the decoder but a mean-field estimate. The
whole completion is masked, and so is each prompt token with probability p. Then one pass gives log p_i of every
completion token. Each of the μ inner iterations draws one such mask, under which the policy, the policy that drew and
the reference are all scored:

    L_j = mean over completion tokens of [ −min(ρ_i A, clip(ρ_i, 1 ± ε) A) + β k3(π_θ ‖ π_ref) ],   j = 1 ... μ

with A the reward minus its group's mean. A completion reaches up to and with its first end of text
(``Masked(end=)``). The reference is set to the policy every ``reference_sync_every`` iterations.

As published: ε 0.5, β 0.04, p 0.15; p-masks regularise, so that one batch can be used μ times. The released code counts
gradient steps between copies to the reference (64 there are 8 iterations of μ = 8 here). ``answer_mask`` (0.1, 0.9)
with ``prompt_mask`` 0 scores randomly masked completions instead, the "random masking" that TraceRL is compared with
(2509.06949): only masked tokens have a likelihood then.

Differences:

- Puzzles are canvases filled in place, so clues are the prompt and masks the completion.
- The whole network is trained, at 1e-4.

Expect, with the defaults, after 80 iterations, on unseen 4 x 4 sudokus (one seed, a base of 1000 updates, 40 s of a CPU
core):

| cells per step | sampled solve rate before | after |
|---|---|---|
| 2 | 0.80 | 0.91 |
| 4 | 0.62 | 0.73 |

That is less than ``tracerl``, which scores the states in which the decoder decides; a wholly masked completion is not
one of them. From a base without typos in its text there was no gain. ``train/no_improvement`` is 1 where the training
reward has not risen after 40 iterations.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from denoiserl.advantages import dead_groups, group_relative
from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.settings import (
    Count,
    CountFromTwo,
    CountOrZero,
    Fraction,
    NonNegative,
    OpenFraction,
    Positive,
    Settings,
    Weights,
)
from denoiserl.core.tree import Tree, index_rows
from denoiserl.distributions.categorical import token_log_prob
from denoiserl.losses import clip_fraction, k3, masked_mean, ppo_clip
from denoiserl.policy.likelihood import assert_on_policy
from denoiserl.policy.policy import Policy
from denoiserl.processes.denoiser import Denoiser
from denoiserl.processes.tokens import known_tokens
from denoiserl.recipes import check_inputs
from denoiserl.recipes.common import generated_mask, micro_batches, reward_metrics, sample_and_score
from denoiserl.recipes.language.common import canvases, require_masked
from denoiserl.rewards import RewardSignal, as_reward_signal, prompt_count
from denoiserl.train import Metrics, Run, accumulate_masked, adamw, check_optimizer_covers
from denoiserl.train.metric_means import MetricMeans

PATIENCE = 40
"""iterations after which the training reward should have risen"""
WINDOW = 10
"""iterations that are averaged to compare rewards"""


@dataclass(frozen=True)
class Args(Settings):
    iterations: Count = 80
    """iterations of the run; sample and update"""
    num_prompts: Count = 24
    """prompts per iteration"""
    group_size: CountFromTwo = 8
    """samples per prompt"""
    inner_updates: Count = 8
    """updates μ per batch of completions, each with its own mask"""
    prompt_mask: Fraction = 0.15
    """probability that a prompt token is masked"""
    answer_mask: tuple[Fraction, Fraction] = (1.0, 1.0)
    """lowest and highest fraction of the completion that is masked and scored, drawn uniformly between the two; (1, 1)
    is the published method"""
    clip_range: OpenFraction = 0.5
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
    reward_weights: Weights = field(default_factory=dict)
    """weights of the named parts of a reward in its total; none: 1 for each"""
    lr: Positive = 1e-4
    """learning rate; of Adam"""
    max_grad_norm: Positive = 0.2
    """largest norm of the gradient"""

    def check_relations(self) -> None:
        """Raise RunError if settings do not fit each other."""
        self.require_ordered_pair("answer_mask")
        problem = f"answer_mask = {self.answer_mask} masks nothing: give a highest fraction above 0"
        self.require_fit(self.answer_mask[1] > 0, problem)


def improve(
    policy: Policy, signal: RewardSignal, args: Args, rng: Rng | int, run: Run | None = None
) -> Iterator[Metrics]:
    """Improve a masked language model on a reward. The signal's prompts: canvases [P, L] with masks where to write."""
    check_inputs(policy, signal, SIGNAL, args, Args)
    rng = as_rng(rng, policy.device)
    process, run, (reward, prompts) = require_masked(policy, "diffu-GRPO"), run or Run(), as_reward_signal(signal)
    mask_token = process.mask_token
    if bool((canvases(policy, prompts) != mask_token).all(-1).any()):
        raise InvalidInputError("a prompt has no mask, so there is nothing to write: leave it out")
    policy.weights.snapshot("reference")
    optimizer, trend = adamw(policy.parameters(), args.lr), RewardTrend()
    check_optimizer_covers(optimizer, policy.weights.module)

    scoring = args.reward_weights, args.invalid_rewards, args.micro_batch_size
    for iteration in run.loop(args.iterations, given=prompts, policy=policy, optimizer=optimizer, rng=rng, trend=trend):
        if args.reference_sync_every and iteration and iteration % args.reference_sync_every == 0:
            policy.weights.snapshot("reference")

        # Collect groups of completions and their rewards.
        index = rng.integers(0, prompt_count(prompts), args.num_prompts)
        samples = sample_and_score(policy, reward, prompts, index, args.group_size, rng, *scoring)
        texts = Texts(policy, samples.prompts, samples.chain.sample, args.micro_batch_size)

        # Estimate advantages; draw μ masks, and score the completions under each before the update.
        advantage = group_relative(samples.rewards, "none", valid=samples.valid).flatten()  # r − mean_G r
        dead = float(dead_groups(samples.rewards, valid=samples.valid).float().mean())
        canvas, answer = canvases(policy, samples.prompts), generated_mask(policy, samples.prompts, texts.sample)
        assert answer is not None
        answer = answer & samples.result.valid[:, None]
        masks = args.prompt_mask, args.answer_mask
        inputs = [mask_tokens(canvas, texts.sample, mask_token, *masks, rng) for _ in range(args.inner_updates)]
        old_log_probs = [texts.score(policy.denoiser, masked) for masked in inputs]
        with torch.no_grad():
            reference = policy.weights.using("reference")
            reference_log_probs = [texts.score(reference, masked) for masked in inputs]

        # Update the policy, once per mask.
        metrics = MetricMeans()
        for masked, old, ref in zip(inputs, old_log_probs, reference_log_probs, strict=True):
            counts, log_probs = (masked == mask_token) & answer, list[Tensor]()
            losses = surrogates(texts, masked, old, ref, advantage, counts, log_probs, args)
            step = accumulate_masked(optimizer, losses, clip=args.max_grad_norm)
            if step is None:
                continue  # this mask hides no token of an answer
            log_prob = torch.cat(log_probs)
            if iteration == 0 and not len(metrics):
                assert_on_policy(log_prob[counts], old[counts], args.ratio_tolerance, policy.denoiser)
            row = {"loss/policy": step["loss"], "loss/reference_kl": masked_mean(k3(log_prob, ref), counts)}
            metrics.add(row | {"ppo/clip_fraction": clip_fraction(log_prob, old, args.clip_range, mask=counts)})
        row = reward_metrics(samples.result) | {"rollout/dead_group_fraction": dead} | metrics.mean()
        yield row | {"train/no_improvement": float(not trend.update(row["rollout/reward"]))}


class Texts(NamedTuple):
    """Completions ``sample`` [N, L] of ``prompts`` [N, ...]."""

    policy: Policy
    prompts: Tree
    sample: Any
    micro_batch_size: int | None

    def parts(self) -> tuple[Tensor, ...]:
        """Return the rows of each call of the network."""
        return micro_batches(torch.arange(len(self.sample), device=self.sample.device), self.micro_batch_size)

    def log_probs(self, denoiser: Denoiser, masked: Tensor, index: Tensor) -> Tensor:
        """Return the mean-field log-probabilities of the rows ``index`` under their masks, [n, L]; differentiable."""
        return one_pass(denoiser, masked[index], self.sample[index], self.policy, index_rows(self.prompts, index))

    def score(self, denoiser: Denoiser, masked: Tensor) -> Tensor:
        """Return detached log-probabilities [N, L], in calls of the update's shapes, on which rounding may depend."""
        return torch.cat([self.log_probs(denoiser, masked, i).detach() for i in self.parts()])


def surrogates(
    texts: Texts,
    masked: Tensor,
    old: Tensor,
    ref: Tensor,
    advantage: Tensor,
    counts: Tensor,
    log_probs: list[Tensor],
    args: Args,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the losses of the rows in parts, and where they count; append the log-probabilities to ``log_probs``."""
    for i in texts.parts():
        log_prob = texts.log_probs(texts.policy.denoiser, masked, i)
        log_probs.append(log_prob.detach())
        gain = advantage[i, None].expand_as(log_prob)
        loss = ppo_clip(log_prob, old[i], gain, args.clip_range) + args.kl_coef * k3(log_prob, ref[i])
        del log_prob  # nothing of a part is kept while the next one runs
        yield loss, counts[i]
        del loss


def mask_tokens(
    canvas: Tensor, sample: Tensor, mask_token: int, p: float, answer_mask: tuple[float, float], rng: Rng | int
) -> Tensor:
    """Return the canvas with each prompt token masked with probability p, and filled but for a fraction of its masks.

    The fraction is drawn per row between the two numbers of ``answer_mask``; at (1, 1) all masks stay. One draw serves
    all networks that are scored under it.
    """
    rng = as_rng(rng, canvas.device)
    prompt = torch.where(rng.uniform(*canvas.shape) < p, mask_token, canvas)
    low, high = answer_mask
    if low == high == 1:
        return prompt
    fraction = low + (high - low) * rng.uniform(len(canvas), 1)
    shown = (rng.uniform(*canvas.shape) >= fraction) & (canvas == mask_token)
    return torch.where(shown, sample, prompt)


def one_pass(denoiser: Denoiser, masked: Tensor, sample: Tensor, policy: Policy, prompts: Tree) -> Tensor:
    """Return mean-field log-probabilities [B, L] of every token of ``sample`` given ``masked``, from one pass.

    A prompt may hold ids that are no token; the numbers at such positions have no meaning and are never read.
    """
    process, time = require_masked(policy, "diffu-GRPO"), torch.ones(len(masked), device=masked.device)
    context = denoiser.embed_condition(policy.codec.condition(prompts))
    logits = known_tokens(denoiser(masked, denoiser.embed_time(time), context).mean, process.vocab, process.mask_token)
    return token_log_prob(logits, torch.where(sample < logits.shape[-1], sample, 0))


class RewardTrend:
    """Compare the mean training reward of the first ``WINDOW`` iterations with that of the last ones."""

    def __init__(self) -> None:
        self.first: list[float] = []
        self.last: deque[float] = deque(maxlen=WINDOW)
        self.n = 0

    def update(self, reward: float) -> bool:
        """Add an iteration; return False if ``PATIENCE`` is over and the reward is not above that of the start."""
        self.n += 1
        self.last.append(reward)
        if len(self.first) < WINDOW:
            self.first.append(reward)
        return self.n < PATIENCE or sum(self.last) / len(self.last) > sum(self.first) / len(self.first)

    def state_dict(self) -> dict[str, Any]:
        """Return the rewards that are compared."""
        return {"first": list(self.first), "last": list(self.last), "n": self.n}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the rewards that are compared."""
        self.first, self.last, self.n = list(state["first"]), deque(state["last"], maxlen=WINDOW), int(state["n"])


SIGNAL = "reward"
START = None
DEFAULT_TASK = "sudoku"
EXTENDABLE: dict[str, Any] = {}
