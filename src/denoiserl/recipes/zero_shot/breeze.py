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

No reward is seen. F and B learn the successor measure of the policies π_z that are best for tasks z, so that any reward
is answered later by z = E[r B] alone; the policy is a diffusion model that regresses onto good actions of the data:

    F(s, a, z)ᵀ B(s') ρ(ds') = M^{π_z}(s, a, ds'),   Q(s, a, z) = F(s, a, z)ᵀ z
    L_F,B = L_FB + 10 L_ortho + ω (Q − [r_z(s') + γ V(s', z)])²,   r_z(s') = B(s')ᵀ E[B Bᵀ]⁻¹ z
    L_V = |τ − 1{Q < V}| (Q − V)²,   L_π = min(e^{α (Q − V)}, 100) · ‖ε − ε_θ‖²

The next action in L_FB is the best of ``num_proposals`` that the policy draws, or, in a ``data_action_fraction`` share
of rows, the one that follows in the data. Half of the tasks are Gaussian and half are B of states, all of norm √d.
``policy_for_reward`` makes the policy for a reward, which executes the best of ``num_candidates`` actions by Q.

As published: γ = 0.98, τ = 0.99, α = 0.05, ω = 1e-3, AdamW with weight decay 0.03 and cosine restarts, twin F whose
minimum counts, an attention variant of F and B. For few updates targets and averages follow faster, and d = 32.
Differences: one optimiser with one learning rate for everything, whose gradients are not clipped; r_z is a constant
(the released code lets gradients of B through it); no dropout; perceptrons by default, and with ``attention_layers=2``
two layers of it over the embeddings of (s, a) and (s, z), and over 4 tokens for B; times of the diffusion are
continuous; smaller networks; a decision may be a chunk of actions, with γ a tick. α = 0.05 is in units of Q, which
grows like √d.

What B has collapsed no policy can be told: ``effective rank`` of B is in every row, and a warning at the end if it is
below d/2. Expectiles of 0.99 overestimate on small data, and a larger ``num_candidates`` exploits the errors of Q.

Expect, with the defaults, a score of 86 after 4 000 updates (80 to 94 in five seeds, 50 starts; 0 who stays, 100 who
walks the shortest way): from 73 to 94 for the six goals, 101 and 96 for the corners, 90 for staying left. FB scores 76,
cloning goal by goal for 4 000 updates 35, and BREEZE without a choice among actions (``num_candidates=1``) 31.
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
from denoiserl.core.settings import Count, CountOrZero, Fraction, NonNegative, Settings
from denoiserl.data import Demonstrations
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.losses import exp_weights, weighted_loss
from denoiserl.losses.successor import implied_reward
from denoiserl.losses.value import expectile
from denoiserl.nn import Value, polyak_update, target_copy
from denoiserl.nn.forward_backward import ForwardBackward, effective_rank
from denoiserl.policy.codec import IdentityCodec
from denoiserl.policy.policy import Policy
from denoiserl.recipes.zero_shot import common as _successors
from denoiserl.train import Metrics, Run, adamw, check_optimizer_covers, optimizer_step, training_losses

__all__ = ["Args", "improve", "policy_for_reward"]


@dataclass(frozen=True)
class Args(Settings):
    num_updates: Count = 4000
    """gradient steps; 1 M as published"""
    batch_size: Count = 256
    """items per gradient step; transitions (512 as published)"""
    lr: NonNegative = 1e-3
    """learning rate; of AdamW (1e-4 as published)"""
    weight_decay: NonNegative = 0.03
    """weight decay of AdamW"""
    representation_width: Count = 128
    """width of F and B; and of V"""
    attention_layers: CountOrZero = 0
    """layers of self-attention in F and B; 0: perceptrons"""
    ortho_weight: NonNegative = 10.0
    """weight of the orthonormality loss"""
    gamma: Fraction = 0.98
    """discount factor per environment step"""
    tau: Fraction = 0.02
    """Polyak rate of the target networks; of F and B (0.01 as published)"""
    policy_ema: Fraction = 0.01
    """rate at which the average of the policy follows; 0.001 as published"""
    goal_task_fraction: Fraction = 0.5
    """fraction of task vectors that are B of states"""
    expectile: Fraction = 0.99
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
    rng = as_rng(rng, policy.device)
    run, (codec, known) = (
        run or Run(),
        _successors.prepare_transitions(policy, data, args.batch_size, args.gamma, "BREEZE"),
    )
    seen, d = known["obs"].shape[1], len(codec.z)
    both = rng.init(ForwardBackward, seen, policy.event_shape, d, args.representation_width, args.attention_layers).to(
        policy.device
    )
    value = rng.init(Value, seen + d, args.representation_width, layer_norm=True).to(policy.device)
    slow, _ = target_copy(both), policy.weights.snapshot("slow")
    policy.weights.control = BestOfN(SuccessorVerifier(both, args.gamma), args.num_candidates)
    opt = adamw(
        [*both.parameters(), *value.parameters(), *policy.parameters()], args.lr, args.weight_decay, (0.9, 0.99)
    )
    check_optimizer_covers(opt, both, value, policy.weights.module)
    schedule = CosineAnnealingWarmRestarts(opt, 5, 2, 0.1 * args.lr)
    asked, every = replace(policy, active_weights="slow", codec=IdentityCodec()), max(1, args.num_updates // 50)
    named = {"policy": policy, "value": value, "slow": slow, "opt": opt, "schedule": schedule, "rng": rng}
    for it in run.loop(args.num_updates, given=data, **named):
        index = rng.integers(0, len(known["obs"]), args.batch_size)
        row = {k: v[index] for k, v in known.items()}
        z = _successors.sample_task_vectors(both, row["obs"], rng, args.goal_task_fraction)
        now, after = torch.cat([row["obs"], z], 1), torch.cat([row["after"], z], 1)
        with torch.no_grad():
            plan = best(both, row["after"], z, codec.unit(candidates(asked, after, args.num_proposals, rng)))
            logged = row["known"] & (rng.uniform(args.batch_size) < args.data_action_fraction)
            action = torch.where(logged[:, None, None], row["next"], plan)
            ahead = value(after)
        loss, q, back = _successors.fb_loss(both, slow, row, action, z, args.ortho_weight)
        y = implied_reward(back.detach(), z) + row["discount"] * ahead
        bellman, least, v = (q - y).square().mean(), q.detach().amin(0), value(now)
        fit_v = expectile(v, least, args.expectile).mean()
        weight = exp_weights(least - v.detach(), 1 / args.inverse_temperature)
        regress = weighted_loss(training_losses(policy.process, policy.denoiser, row["chunk"], now, rng), weight).mean()
        told = optimizer_step(opt, loss + args.bellman_weight * bellman + fit_v + regress)
        schedule.step()
        polyak_update(slow, both, args.tau)
        policy.weights.ema_update("slow", 1 - args.policy_ema)
        if (it + 1) % every == 0 or it + 1 == args.num_updates:
            rank = effective_rank(back.detach())
            row = {"loss/fb": loss, "loss/bellman": bellman, "loss/value": fit_v, "loss/policy": regress}
            row |= {"awr/weight": weight.mean(), "v/data": v.mean()}
            row = {name: float(number.detach()) for name, number in row.items()}
            row |= {"fb/effective_rank": rank, "loss/total": told["loss"], "train/grad_norm": told["grad_norm"]}
            with _successors.with_ema_weights(policy):
                yield row
    policy.weights.load("slow")
    _successors.warn_if_collapsed(both, known["after"])


def best(represent: ForwardBackward, cond: Tensor, z: Tensor, plan: Tensor) -> Tensor:
    """The best by Q of proposals [B, K, *event]: [B, *event]."""
    n, many = plan.shape[:2]
    if many == 1:
        return plan[:, 0]
    wide = [v.repeat_interleave(many, 0) for v in (cond, z)]
    q = represent.value(wide[0], plan.flatten(0, 1), wide[1]).amin(0)
    return plan[torch.arange(n, device=plan.device), q.view(n, many).argmax(1)]


SIGNAL = "data"
START = "diffusion"
DEFAULT_TASK = "zero-shot"
