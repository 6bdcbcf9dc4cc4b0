"""D-RWR: reward-weighted regression of a diffusion policy, online; no likelihoods, no critic.

paper: arXiv 2409.00588
signal: env
family: weighted regression
side: B
base: diffusion
task: policy learning
stage: fine-tuning
output: actions
process: diffusion, flow, one-step
likelihood: none

The baseline of that paper, after Peters & Schaal (2007).

Play whole episodes, then imitate the policy's own chunks, those of good episodes more:

    L = mean over decisions of w ℓ(a),   w = min(exp(β z), cap),   z = (G − mean G) / std G

with ℓ the denoising loss of the executed chunk and G the rewards from there on, discounted from the decision.

As published: β is 10 and the cap 100. Only finished episodes count. All environments start afresh in every iteration,
and sixteen passes are made over each. With β = 10 half a std is the difference between the cap and nothing, so this
imitates the better part of the decisions.

Differences:

- Chunks are drawn by the evaluation steps. The released code floors the std of exploration
  (``rollout_sampler="train"``). The policy imitates its draws, so every iteration there adds the floor's noise to it.
- The discount counts environment steps, not chunks.
- Actions of a chunk that were not executed have no loss.
- Gradients are clipped at 1.

Expect, with the defaults, Meta-World's drawer-open from a success of about 0.6 to 0.7, up and down on the way (50
held-out starts with the defaults):

| iterations | 10 | 20 | 30 | 40 |
|---|---|---|---|---|
| success | 0.62 | 0.20 | 0.62 | 0.76 |
| with ``rollout_sampler="train"`` (one seed) | 0.46 | 0.90 | 0.98 | 0.58 |
| with ``lr=3e-5`` | 0.32 | 0.08 | 0.32 | 0.56 |

The best policies of three seeds have 0.79, 0.68 and 0.70 (100 held-out starts). A reward at the end, discounted from
the decision, favours the last decisions of an episode. And a policy that imitates its own samples forgets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from denoiserl.advantages import normalise, returns
from denoiserl.control.acting import rollout_metrics, statistics
from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.settings import Count, Fraction, NonNegative, Positive, Settings
from denoiserl.core.tree import index_rows
from denoiserl.data.rollout import Rollout
from denoiserl.envs import Collector
from denoiserl.losses import ess_fraction, exp_weights, weighted_loss
from denoiserl.policy.policy import Policy
from denoiserl.recipes import check_inputs
from denoiserl.recipes.policy_gradient.common import chunk_actor, recorded_chunks
from denoiserl.train import Metrics, Run, adamw, check_optimizer_covers, draw_antithetic_times, optimizer_step
from denoiserl.train.metric_means import MetricMeans
from denoiserl.train.minibatches import minibatches


@dataclass(frozen=True)
class Args(Settings):
    iterations: Count = 40
    """iterations of the run; collect and update"""
    num_envs: Count = 40
    """parallel environments"""
    rollout_steps: Count = 22
    """decisions per environment and iteration; at least an episode's"""
    gamma: Fraction = 0.99
    """discount factor per environment step"""
    inverse_temperature: NonNegative = 10.0
    """inverse temperature β of the exponential weights; of returns, in standard deviations"""
    max_weight: Positive = 100.0
    """largest exponential weight"""
    rollout_sampler: Literal["eval", "train"] = "eval"
    """the denoising steps that act; those that users run, or those with noise, which policy gradients need"""
    lr: Positive = 1e-4
    """learning rate; of AdamW"""
    epochs: Count = 16
    """passes over the data of an iteration"""
    batch_size: Count = 220
    """items per gradient step; decisions"""


def improve(policy: Policy, env: Collector, args: Args, rng: Rng | int, run: Run | None = None) -> Iterator[Metrics]:
    """Improve any policy over chunks of actions in an environment; its steps need no density."""
    check_inputs(policy, env, SIGNAL, args, Args)
    rng = as_rng(rng, policy.device)
    run = run or Run()
    act = chunk_actor(policy, args.rollout_sampler)
    env.discount(args.gamma)
    optimizer = adamw(policy.parameters(), args.lr)
    check_optimizer_covers(optimizer, policy.weights.module)

    state = {"policy": policy, "optimizer": optimizer, "rng": rng, "statistics": statistics(policy)}
    for iteration in run.loop(args.iterations, **state):
        # Collect whole episodes.
        env.on_checkpoint(iteration)  # all environments start afresh in every iteration
        rollout = env.collect(act, args.rollout_steps, rng)
        finished = finished_mask(rollout)
        if int(finished.sum()) < 2:
            raise InvalidInputError(
                f"no episode ended within {args.rollout_steps} decisions, so nothing has a return: raise rollout_steps"
            )

        # Estimate the weights of decisions by their returns.
        z = normalise(returns_to_go(rollout, args.gamma), finished)  # (G − mean G) / std G
        weight = exp_weights(args.inverse_temperature * z, 1.0, args.max_weight)  # min(exp(β z), cap)
        weight = weight.flatten().to(policy.device)
        chunk, cond, mask = recorded_chunks(rollout)
        index = torch.nonzero(finished.flatten().to(policy.device)).flatten()

        # Update the policy by weighted imitation, w ℓ(a).
        metrics = MetricMeans()
        for i in minibatches(index, args.batch_size, args.epochs, rng, even=True):
            noised = policy.process.noise(chunk[i], draw_antithetic_times(len(i), rng).to(policy.device), rng)
            noised = noised._replace(mask=mask[i])  # the whole chunk is noised; what was executed has a loss
            context = policy.denoiser.embed_condition(index_rows(cond, i))
            loss = weighted_loss(policy.process.loss(policy.denoiser, noised, context), weight[i]).mean()
            metrics.add({"loss/policy": optimizer_step(optimizer, loss, clip=1.0)["loss"]})
        yield rollout_metrics(rollout) | metrics.mean() | {"awr/ess_fraction": float(ess_fraction(weight[index]))}


def finished_mask(rollout: Rollout) -> Tensor:
    """Return [T, B] bool: decisions of episodes that ended within the rollout, and not by a fault."""
    later, finished = torch.zeros_like(rollout.done[0]), torch.zeros_like(rollout.done)
    for t in reversed(range(len(finished))):
        later = torch.where(rollout.done[t], rollout.valid[t], later)
        finished[t] = later & rollout.valid[t]
    return finished


def returns_to_go(rollout: Rollout, gamma: float) -> Tensor:
    """Return Σ_{k ≥ t} γ^{steps from t to k} r_k, [T, B]: the rewards from a decision on, discounted from there."""
    return returns(rollout.reward, gamma ** rollout.num_executed.float(), rollout.done)


SIGNAL = "env"
START = None
DEFAULT_TASK = "env"
EXTENDABLE: dict[str, Any] = {}
