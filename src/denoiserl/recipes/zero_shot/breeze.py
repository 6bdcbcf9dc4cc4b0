"""BREEZE: zero-shot rewards from forward-backward representations and a diffusion policy that stays in the data

paper: arXiv 2510.15382
signal: data
family: successor measures
side: B
base: diffusion
task: policy learning, state representation
stage: from scratch
output: actions
process: diffusion
likelihood: none

Training sees no reward. F and B learn the successor measure of the policies π_z that are optimal for tasks z. Any
reward is answered later by z = E[r B] alone. The policy is a diffusion model that regresses onto good actions of the
data:

    F(s, a, z)ᵀ B(s') ρ(ds') = M^{π_z}(s, a, ds'),   Q(s, a, z) = F(s, a, z)ᵀ z
    L_F,B = L_FB + 10 L_ortho + ω (Q − [r_z(s') + γ V(s', z)])²,   r_z(s') = B(s')ᵀ E[B Bᵀ]⁻¹ z
    L_V = |τ − 1{Q < V}| (Q − V)²,   L_π = min(e^{α (Q − V)}, 100) · ‖ε − ε_θ‖²

The next action in L_FB is the best of ``num_proposals`` that the policy draws. In a ``data_action_fraction`` of the
rows it is the action that follows in the data. Half of the tasks are Gaussian and half are B of states, all of norm √d.
``policy_for_reward`` makes the policy for a reward, which executes the best of ``num_candidates`` actions by Q.

As published: γ = 0.98, τ = 0.99, α = 0.05, ω = 1e-3, AdamW with weight decay 0.03 and cosine restarts. Twin F count by
their minimum. F and B have an attention variant. For few updates target networks and averages follow faster, and d =
32.

Differences:

- One optimiser with one learning rate serves everything. Its gradients are not clipped.
- r_z is a constant (the released code lets gradients of B through it). There is no dropout.
- Networks are perceptrons by default, and smaller. ``attention_layers=2`` has two layers of attention over the
  embeddings of (s, a) and (s, z), and over 4 tokens for B.
- Times of the diffusion are continuous.
- A decision may be a chunk of actions, with γ per environment step.
- α = 0.05 is in units of Q, which grows like √d.

If B maps different states to the same embedding, no reward that distinguishes them can be represented. Every row
therefore holds the effective rank of B, and a warning follows at the end if it is below d/2. Expectiles of 0.99
overestimate on small data, and a larger ``num_candidates`` exploits the errors of Q.

Expect, with the defaults, after 4 000 updates (50 starts; staying scores 0, the shortest path 100):

| method | score |
|---|---|
| BREEZE | 86 (80 to 94 in five seeds); 84 (78 to 93) on another processor |
| FB | 76 |
| BREEZE without a choice among actions (``num_candidates=1``) | 31 |
| cloning goal by goal for 4 000 updates | 35 |

By reward BREEZE has 73 to 94 for the six goals, 101 and 96 for the corners, and 90 for staying left.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

from denoiserl.control.best_of_n import BestOfN, candidates
from denoiserl.control.zero_shot import SuccessorVerifier, policy_for_reward
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.settings import (
    Count,
    CountFromTwo,
    CountOrZero,
    Fraction,
    FractionBelowOne,
    NonNegative,
    OpenFraction,
    Positive,
    PositiveFraction,
    Settings,
)
from denoiserl.data import Demonstrations
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.losses import exp_weights, weighted_loss
from denoiserl.losses.successor import forward_backward, implied_reward, orthonormal, successor_density
from denoiserl.losses.value import expectile
from denoiserl.nn import Value, polyak_update, target_copy
from denoiserl.nn.forward_backward import ForwardBackward, effective_rank
from denoiserl.policy.codec import IdentityCodec
from denoiserl.policy.policy import Policy
from denoiserl.recipes import check_inputs
from denoiserl.recipes.zero_shot import common
from denoiserl.train import Metrics, Run, adamw, check_optimizer_covers, optimizer_step, training_losses

__all__ = ["Args", "improve", "policy_for_reward"]


@dataclass(frozen=True)
class Args(Settings):
    num_updates: Count = 4000
    """gradient steps; 1 M as published"""
    batch_size: CountFromTwo = 256
    """items per gradient step; transitions (512 as published)"""
    lr: Positive = 1e-3
    """learning rate; of AdamW (1e-4 as published)"""
    weight_decay: NonNegative = 0.03
    """weight decay of AdamW"""
    representation_width: Count = 128
    """width of F and B; and of V"""
    attention_layers: CountOrZero = 0
    """layers of self-attention in F and B; 0: perceptrons"""
    ortho_weight: NonNegative = 10.0
    """weight of the orthonormality loss"""
    gamma: FractionBelowOne = 0.98
    """discount factor per environment step"""
    tau: PositiveFraction = 0.02
    """Polyak rate of the target networks; of F and B (0.01 as published)"""
    policy_ema: Fraction = 0.01
    """rate at which the average of the policy follows; 0.001 as published"""
    goal_task_fraction: Fraction = 0.5
    """fraction of task vectors that are B of states"""
    expectile: OpenFraction = 0.99
    """expectile τ of Q that V is fitted to"""
    bellman_weight: NonNegative = 1e-3
    """weight ω of the Bellman error of Q"""
    inverse_temperature: NonNegative = 0.05
    """inverse temperature β of the exponential weights; of Q"""
    num_proposals: Count = 1
    """actions per next state that the policy proposes, of which the best counts; 1 to 9 as published"""
    data_action_fraction: Fraction = 0.1
    """fraction of next actions that are taken from the data"""
    num_candidates: Count = 16
    """candidates that the served action is chosen from; the best by Q (64 as published)"""


def improve(
    policy: Policy, data: Demonstrations | EpisodeDataset, args: Args, rng: Rng | int, run: Run | None = None
) -> Iterator[Metrics]:
    """Train a policy that sees (s, z) for all tasks z, from data without rewards."""
    check_inputs(policy, data, SIGNAL, args, Args)
    rng = as_rng(rng, policy.device)
    run = run or Run()
    codec, dataset = common.prepare_transitions(policy, data, args.batch_size, args.gamma, "BREEZE")
    obs_dim, z_dim, width = dataset["obs"].shape[1], len(codec.z), args.representation_width
    represent = rng.init(ForwardBackward, obs_dim, policy.event_shape, z_dim, width, args.attention_layers)  # F and B
    represent = represent.to(policy.device)
    value = rng.init(Value, obs_dim + z_dim, width, layer_norm=True).to(policy.device)  # V
    represent_target, _ = target_copy(represent), policy.weights.snapshot("ema")
    policy.weights.control = BestOfN(SuccessorVerifier(represent, args.gamma), args.num_candidates)
    params = [*represent.parameters(), *value.parameters(), *policy.parameters()]
    optimizer = adamw(params, args.lr, args.weight_decay, (0.9, 0.99))
    check_optimizer_covers(optimizer, represent, value, policy.weights.module)
    lr_schedule = CosineAnnealingWarmRestarts(optimizer, 5, 2, 0.1 * args.lr)
    ema_policy = replace(policy, active_weights="ema", codec=IdentityCodec())

    log_every = max(1, args.num_updates // 50)
    state = {"policy": policy, "value": value, "represent_target": represent_target, "optimizer": optimizer, "rng": rng}
    for iteration in run.loop(args.num_updates, given=data, **state, lr_schedule=lr_schedule):
        # Draw transitions and tasks z.
        index = rng.integers(0, len(dataset["obs"]), args.batch_size)
        batch = {name: column[index] for name, column in dataset.items()}
        obs, next_obs = batch["obs"], batch["next_obs"]
        z = common.sample_task_vectors(represent, obs, rng, args.goal_task_fraction)
        cond, next_cond = torch.cat([obs, z], 1), torch.cat([next_obs, z], 1)

        # Estimate the successor measure (L_FB + L_ortho) and V.
        with torch.no_grad():  # a': the best proposal of the policy, or the action of the data
            proposals = codec.unit(candidates(ema_policy, next_cond, args.num_proposals, rng))
            next_action = best_by_q(represent, next_obs, z, proposals)
            from_data = batch["has_next_action"] & (rng.uniform(args.batch_size) < args.data_action_fraction)
            next_action = torch.where(from_data[:, None, None], batch["next_action"], next_action)
            next_value = value(next_cond)  # V(s', z)
            target_forward = represent_target.forward_embedding(next_obs, next_action, z)
            target_backward = represent_target.backward_embedding(next_obs)
            target = successor_density(target_forward, target_backward).amin(0)  # M̄ = min F̄(s', a', z)ᵀ B̄(s')
        forward = represent.forward_embedding(obs, batch["action"], z)  # F(s, a, z)
        backward = represent.backward_embedding(next_obs)  # B(s')
        fb_loss = forward_backward(successor_density(forward, backward), target, batch["discount"]).sum(0)
        fb_loss = (fb_loss + args.ortho_weight * orthonormal(backward)).mean()
        q, v = (forward * z).sum(-1), value(cond)  # Q = Fᵀ z
        td_target = implied_reward(backward.detach(), z) + batch["discount"] * next_value  # r_z(s') + γ V(s', z)
        bellman_loss = (q - td_target).square().mean()
        q_min = q.detach().amin(0)
        value_loss = expectile(v, q_min, args.expectile).mean()  # |τ − 1{Q < V}| (Q − V)²

        # Update everything in one step; the policy regresses onto the data's actions by e^{α (Q − V)}.
        weight = exp_weights(args.inverse_temperature * (q_min - v.detach()), 1.0)
        bc_loss = training_losses(policy.process, policy.denoiser, batch["chunk"], cond, rng)  # ‖ε − ε_θ‖²
        policy_loss = weighted_loss(bc_loss, weight).mean()
        step = optimizer_step(optimizer, fb_loss + args.bellman_weight * bellman_loss + value_loss + policy_loss)
        lr_schedule.step()
        polyak_update(represent_target, represent, args.tau)
        policy.weights.ema_update("ema", 1 - args.policy_ema)
        if (iteration + 1) % log_every == 0 or iteration + 1 == args.num_updates:
            row = {"loss/fb": fb_loss, "loss/bellman": bellman_loss, "loss/value": value_loss}
            row |= {"loss/policy": policy_loss, "awr/weight": weight.mean(), "v/data": v.mean()}
            row = {name: float(number.detach()) for name, number in row.items()}
            row |= {"fb/effective_rank": effective_rank(backward.detach())}
            with common.with_ema_weights(policy):
                yield row | {"loss/total": step["loss"], "train/grad_norm": step["grad_norm"]}
    policy.weights.load("ema")
    common.warn_if_collapsed(represent, dataset["next_obs"])


def best_by_q(represent: ForwardBackward, obs: Tensor, z: Tensor, proposals: Tensor) -> Tensor:
    """Return the best of proposals [B, K, *event] by min Q(s, a, z), [B, *event]."""
    n, k = proposals.shape[:2]
    if k == 1:
        return proposals[:, 0]
    obs, z = obs.repeat_interleave(k, 0), z.repeat_interleave(k, 0)
    q = represent.value(obs, proposals.flatten(0, 1), z).amin(0)
    return proposals[torch.arange(n, device=proposals.device), q.view(n, k).argmax(1)]


SIGNAL = "data"
START = "diffusion"
DEFAULT_TASK = "zero-shot"
