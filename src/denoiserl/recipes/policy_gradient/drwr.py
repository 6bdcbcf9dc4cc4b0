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

Play whole episodes, then imitate the own chunks, those of good episodes more:

    L = mean over decisions of w ℓ(a),   w = min(exp(β z), cap),   z = (G − mean G) / std G

with ℓ the denoising loss of the executed chunk and G the rewards from there on, discounted from the decision. As
published: β is 10 and the cap 100, only finished episodes count, all copies start afresh every iteration, sixteen
passes over each. With β = 10 half a std more or less is the difference between the cap and nothing, so this is
imitation of the better part of the decisions. Differences: chunks are drawn as they are served, while the released code
floors the std of exploration (``rollout_sampler="train"``): what is imitated is what was drawn, so every round adds the
floor's noise to the policy. The discount counts ticks, not chunks; what a chunk planned and did not execute has no
loss; gradients are clipped at 1.

Expect, with the defaults, Meta-World's drawer-open from a success of about 0.6 to 0.7 (the best policies of three seeds
0.79, 0.68 and 0.70 of 100 held-out starts), up and down on the way: 0.62, 0.20, 0.62 and 0.76 of 50 after 10, 20, 30
and 40 iterations. With ``rollout_sampler="train"`` 0.98 (0.46, 0.90, 0.98 and 0.58; one seed). A reward at the end,
discounted from the decision, favours the last decisions of an episode, and a policy that imitates its own samples
forgets: with ``lr=3e-5`` it is at 0.32, 0.08, 0.32 and 0.56.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from denoiserl.advantages import normalise, returns
from denoiserl.control.acting import carry, observe, rollout_metrics, statistics
from denoiserl.core.errors import InvalidInputError, unknown_name_message
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.settings import Count, Fraction, NonNegative, Positive, Settings
from denoiserl.core.tree import Tree, tree_map
from denoiserl.data.rollout import Rollout
from denoiserl.envs import Collector
from denoiserl.losses import exp_weights, weighted_loss
from denoiserl.policy.chain import Chain
from denoiserl.policy.policy import Policy
from denoiserl.policy.sampler import RecordSample
from denoiserl.train import Metrics, Run, adamw, check_optimizer_covers, optimizer_step, stratified
from denoiserl.train.minibatches import minibatches

DRAWS = ("eval", "train")


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
    lr: NonNegative = 1e-4
    """learning rate; of AdamW"""
    epochs: Count = 16
    """passes over the data of an iteration"""
    batch_size: Count = 220
    """items per gradient step; decisions"""


def improve(policy: Policy, env: Collector, args: Args, rng: Rng | int, run: Run | None = None) -> Iterator[Metrics]:
    """Improve any policy over chunks of actions in an environment; its steps need no density."""
    rng = as_rng(rng, policy.device)
    run = run or Run()
    execute = carry(policy)
    env.discount(args.gamma)
    if args.rollout_sampler not in DRAWS:
        raise InvalidInputError(unknown_name_message(args.rollout_sampler, DRAWS, "kind of steps"))
    opt = adamw(policy.parameters(), args.lr)
    check_optimizer_covers(opt, policy.weights.module)

    def act(obs: Tree, rng: Rng) -> tuple[Tensor, Chain]:
        chain = policy.sample_chain(
            observe(policy, obs), rng, record=RecordSample(), use_eval_steps=args.rollout_sampler == "eval"
        )
        return policy.codec.decode(chain.sample)[:, :execute], chain

    for it in run.loop(args.iterations, policy=policy, opt=opt, rng=rng, seen=statistics(policy)):
        env.on_checkpoint(it)  # in every iteration, so the loop needs no borders of its own
        ep = env.collect(act, args.rollout_steps, rng)
        assert ep.chain is not None
        whole = finished_mask(ep)
        if int(whole.sum()) < 2:
            raise InvalidInputError(
                f"no episode ended within {args.rollout_steps} decisions, so nothing has a return: raise rollout_steps"
            )
        weight = (
            exp_weights(normalise(to_go(ep, args.gamma), whole), 1 / args.inverse_temperature, args.max_weight)
            .flatten()
            .to(policy.device)
        )
        chunk, cond = (tree_map(lambda v: v.flatten(0, 1), part) for part in (ep.chain.sample, ep.chain.cond))
        live = torch.zeros(chunk.shape, dtype=torch.bool, device=policy.device)
        live[:, :execute] = ep.executed_mask.flatten(0, 1).to(policy.device)[..., None]
        index = torch.nonzero(whole.flatten().to(policy.device)).flatten()
        losses = []
        for i in minibatches(index, args.batch_size, args.epochs, rng, even=True):
            noised = policy.process.noise(chunk[i], stratified(len(i), rng).to(policy.device), rng)
            noised = noised._replace(mask=live[i])  # everything is noised, what was executed has a loss
            context = policy.denoiser.embed_condition(tree_map(lambda v, i=i: v[i], cond))
            loss = policy.process.loss(policy.denoiser, noised, context)
            losses.append(optimizer_step(opt, weighted_loss(loss, weight[i]).mean(), clip=1.0)["loss"])
        share = effective(weight[index])
        yield rollout_metrics(ep) | {"loss/policy": sum(losses) / len(losses), "awr/ess_fraction": share}


def finished_mask(ep: Rollout) -> Tensor:
    """[T, B] bool: decisions of episodes that ended within the record, and not by a fault, which loses a decision."""
    later, whole = torch.zeros_like(ep.done[0]), torch.zeros_like(ep.done)
    for t in reversed(range(len(whole))):
        later = torch.where(ep.done[t], ep.valid[t], later)
        whole[t] = later & ep.valid[t]
    return whole


def to_go(ep: Rollout, gamma: float) -> Tensor:
    """Return Σ_{k ≥ t} γ^{ticks from t to k} r_k, [T, B]: the rewards of an episode from a decision on, discounted from
    there."""
    return returns(ep.reward, gamma ** ep.num_executed.float(), ep.done)


def effective(weight: Tensor) -> float:
    """(Σw)² / (n Σw²): the share of the rows that would teach as much with equal weights."""
    return float(weight.sum().square() / (len(weight) * weight.square().sum()))


SIGNAL = "env"
START = None
DEFAULT_TASK = "env"
GROWS: dict[str, Any] = {}
