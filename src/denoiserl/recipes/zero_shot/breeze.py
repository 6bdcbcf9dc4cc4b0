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

The next action in L_FB is the best of ``propose`` that the policy draws, or, in a ``mixed`` share of rows, the one that
follows in the data. Half of the tasks are Gaussian and half are B of states, all of norm √d. ``answer`` makes the
policy for a reward, which executes the best of ``choose`` actions by Q.

As published: γ = 0.98, τ = 0.99, α = 0.05, ω = 1e-3, AdamW with weight decay 0.03 and cosine restarts, twin F whose
minimum counts, an attention variant of F and B. For few updates targets and averages follow faster, and d = 32.
Differences: one optimiser with one learning rate for everything, whose gradients are not clipped; r_z is a constant
(the released code lets gradients of B through it); no dropout; perceptrons by default, and with ``attention=2`` two
layers of it over the embeddings of (s, a) and (s, z), and over 4 tokens for B; times of the diffusion are continuous;
smaller networks; a decision may be a chunk of actions, with γ a tick. α = 0.05 is in units of Q, which grows like √d.

What B has collapsed no policy can be told: ``effective rank`` of B is in every row, and a warning at the end if it is
below d/2. Expectiles of 0.99 overestimate on small data, and a larger ``choose`` exploits the errors of Q.

Expect, with the defaults, a score of 86 after 4 000 updates (80 to 94 in five seeds, 50 starts; 0 who stays, 100 who
walks the shortest way): from 73 to 94 for the six goals, 101 and 96 for the corners, 90 for staying left. FB scores 76,
cloning goal by goal for 4 000 updates 35, and BREEZE without a choice among actions (``choose=1``) 31.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

from denoiserl.control.best_of_n import BestOfN, candidates
from denoiserl.control.zero_shot import SuccessorVerifier, policy_for_reward
from denoiserl.core.rng import Rng
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
from denoiserl.train import Keep, adamw, check_optimizer_covers, optimizer_step, training_losses

__all__ = ["Args", "improve", "policy_for_reward"]


@dataclass(frozen=True)
class Args:
    updates: int = 4000
    """gradient steps (1 M as published)"""
    batch: int = 256
    """transitions a step (512 as published)"""
    lr: float = 1e-3
    """AdamW's learning rate (1e-4 as published)"""
    decay: float = 0.03
    """its weight decay"""
    width: int = 128
    """the width of F, B and V"""
    attention: int = 0
    """layers of self-attention in F and B (0: perceptrons)"""
    ortho: float = 10.0
    """the weight of orthonormality"""
    gamma: float = 0.98
    """discount a tick"""
    tau: float = 0.02
    """how fast the targets of F and B follow (0.01 as published)"""
    ema: float = 0.01
    """how fast the policy's average follows (0.001 as published)"""
    reached: float = 0.5
    """the share of tasks that are B of states"""
    expectile: float = 0.99
    """which expectile of Q is V"""
    regular: float = 1e-3
    """the weight ω of Q's own Bellman error"""
    alpha: float = 0.05
    """the inverse temperature of the policy's weights"""
    propose: int = 1
    """actions that the policy draws for the next state, of which the best counts (1 to 9 as published)"""
    mixed: float = 0.1
    """the share of next actions that are the data's"""
    choose: int = 16
    """actions that a policy draws when it serves, of which the best is executed (64 as published)"""


def improve(
    policy: Policy, data: Demonstrations | EpisodeDataset, a: Any, rng: Rng, keep: Keep | None = None
) -> Iterator[dict]:
    """Train a policy that sees (s, z) for all tasks z, from data without rewards."""
    keep, (codec, known) = keep or Keep(), _successors.known(policy, data, a.batch, a.gamma, "BREEZE")
    seen, d = known["obs"].shape[1], len(codec.z)
    both = rng.init(ForwardBackward, seen, policy.event_shape, d, a.width, a.attention).to(policy.device)
    value = rng.init(Value, seen + d, a.width, layer_norm=True).to(policy.device)
    slow, _ = target_copy(both), policy.weights.snapshot("slow")
    policy.weights.control = BestOfN(SuccessorVerifier(both, a.gamma), a.choose)
    opt = adamw([*both.parameters(), *value.parameters(), *policy.parameters()], a.lr, a.decay, (0.9, 0.99))
    check_optimizer_covers(opt, both, value, policy.weights.module)
    schedule = CosineAnnealingWarmRestarts(opt, 5, 2, 0.1 * a.lr)
    asked, every = replace(policy, active_weights="slow", codec=IdentityCodec()), max(1, a.updates // 50)
    named = {"policy": policy, "value": value, "slow": slow, "opt": opt, "schedule": schedule, "rng": rng}
    for it in keep.loop(a.updates, given=data, **named):
        index = rng.integers(0, len(known["obs"]), a.batch)
        row = {k: v[index] for k, v in known.items()}
        z = _successors.tasks(both, row["obs"], rng, a.reached)
        now, after = torch.cat([row["obs"], z], 1), torch.cat([row["after"], z], 1)
        with torch.no_grad():
            plan = best(both, row["after"], z, codec.unit(candidates(asked, after, a.propose, rng)))
            logged = row["known"] & (rng.uniform(a.batch) < a.mixed)
            action = torch.where(logged[:, None, None], row["next"], plan)
            ahead = value(after)
        loss, q, back = _successors.represented(both, slow, row, action, z, a.ortho)
        y = implied_reward(back.detach(), z) + row["discount"] * ahead
        bellman, least, v = (q - y).square().mean(), q.detach().amin(0), value(now)
        fit_v = expectile(v, least, a.expectile).mean()
        weight = exp_weights(least - v.detach(), 1 / a.alpha)
        regress = weighted_loss(training_losses(policy.process, policy.denoiser, row["chunk"], now, rng), weight).mean()
        told = optimizer_step(opt, loss + a.regular * bellman + fit_v + regress)
        schedule.step()
        polyak_update(slow, both, a.tau)
        policy.weights.ema_update("slow", 1 - a.ema)
        if (it + 1) % every == 0 or it + 1 == a.updates:
            rank = effective_rank(back.detach())
            named_losses = {"FB": loss, "Bellman": bellman, "V loss": fit_v, "policy": regress, "weight": weight.mean()}
            with _successors.averaged(policy):
                numbers = {k: float(x.detach()) for k, x in named_losses.items()}
                yield {**numbers, "value": float(v.detach().mean()), "effective rank": rank, **told}
    policy.weights.load("slow")
    _successors.collapsed(both, known["after"])


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
