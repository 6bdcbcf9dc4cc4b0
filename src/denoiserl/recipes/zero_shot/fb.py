"""FB: zero-shot rewards from forward-backward representations, with an actor that climbs Q

paper: arXiv 2209.14935
signal: data
family: successor measures
side: B
base: gaussian
task: policy learning, state representation
stage: from scratch
output: actions
process: one-step
likelihood: none

No reward is seen. F and B learn the successor measure of the policies π_z that are best for tasks z, so that any reward
is answered later by z = E[r B] alone; the policy decides a = tanh μ(s, z) and climbs Q by its gradient:

    F(s, a, z)ᵀ B(s') ρ(ds') = M^{π_z}(s, a, ds'),   Q(s, a, z) = F(s, a, z)ᵀ z
    L_F,B = L_FB + L_ortho,   a' = clip(tanh μ(s', z) + clip(ε, ±c), ±1),   L_π = −Q(s, μ(s, z), z)

Half of the tasks are Gaussian and half are B of states, all of norm √d; targets follow slowly; twin F, whose minimum
counts. Nothing keeps the policy to actions of the data, which is what BREEZE adds (see there): the baseline of its
claim. As released for offline data: noise of 0.2 clipped at 0.3, γ = 0.98, ‖B‖ = √d. Differences: one optimiser
for everything; smaller networks, d = 32 and not 50; the std that the policy's network also answers is not used; a
decision may be a chunk of actions, with γ a tick.

Expect, with the defaults, a score of 76 after 4 000 updates (72 to 81 in five seeds, 50 starts; 0 who stays, 100 who
walks the shortest way), where BREEZE has 86: 100 in the corners, and 36 to 88 for the six goals.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from denoiserl.control.best_of_n import BestOfN
from denoiserl.control.squashed_actions import add_clipped_noise, mean_action
from denoiserl.control.zero_shot import SuccessorVerifier, policy_for_reward
from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.settings import Count, CountOrZero, Fraction, NonNegative, Settings
from denoiserl.data import Demonstrations, TanhCodec
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.nn import frozen, polyak_update, target_copy
from denoiserl.nn.forward_backward import ForwardBackward, effective_rank
from denoiserl.policy.policy import Policy
from denoiserl.recipes.zero_shot import common as _successors
from denoiserl.train import Metrics, Run, adamw, check_optimizer_covers, optimizer_step

__all__ = ["Args", "improve", "policy_for_reward"]


@dataclass(frozen=True)
class Args(Settings):
    num_updates: Count = 4000
    """gradient steps; 1 M as published"""
    batch_size: Count = 256
    """items per gradient step; transitions (1024 as published)"""
    lr: NonNegative = 1e-3
    """learning rate; of all networks (1e-4 as published)"""
    representation_width: Count = 128
    """width of F and B"""
    attention_layers: CountOrZero = 0
    """layers of self-attention in F and B; 0: perceptrons"""
    ortho_weight: NonNegative = 1.0
    """weight of the orthonormality loss"""
    gamma: Fraction = 0.98
    """discount factor per environment step"""
    tau: Fraction = 0.02
    """Polyak rate of the target networks; of F and B (0.01 as published)"""
    goal_task_fraction: Fraction = 0.5
    """fraction of task vectors that are B of states"""
    target_noise: NonNegative = 0.2
    """std of the noise on the target action, in half widths of the action box"""
    target_noise_clip: NonNegative = 0.3
    """largest noise on the target action"""


def improve(
    policy: Policy, data: Demonstrations | EpisodeDataset, args: Args, rng: Rng | int, run: Run | None = None
) -> Iterator[Metrics]:
    """Train a policy that sees (s, z) for all tasks z, from data without rewards."""
    rng = as_rng(rng, policy.device)
    run, (codec, known) = run or Run(), _successors.prepare_transitions(policy, data, args.batch_size, args.gamma, "FB")
    if not isinstance(codec.inner, TanhCodec):
        raise InvalidInputError(
            "FB climbs Q inside a box: give the policy the codec TaskConditionedCodec(TanhCodec.from_box(low, high), z)"
        )
    both = rng.init(
        ForwardBackward,
        known["obs"].shape[1],
        policy.event_shape,
        len(codec.z),
        args.representation_width,
        args.attention_layers,
    ).to(policy.device)
    slow = target_copy(both)
    policy.weights.control = BestOfN(SuccessorVerifier(both, args.gamma), 1)
    opt = adamw([*both.parameters(), *policy.parameters()], args.lr, betas=(0.9, 0.99))
    check_optimizer_covers(opt, both, policy.weights.module)
    every = max(1, args.num_updates // 50)
    for it in run.loop(args.num_updates, given=data, policy=policy, slow=slow, opt=opt, rng=rng):
        index = rng.integers(0, len(known["obs"]), args.batch_size)
        row = {k: v[index] for k, v in known.items()}
        z = _successors.sample_task_vectors(both, row["obs"], rng, args.goal_task_fraction)
        with torch.no_grad():
            after = mean_action(policy, torch.cat([row["after"], z], 1))
            after = add_clipped_noise(after, args.target_noise, args.target_noise_clip, rng)
        loss, _, back = _successors.fb_loss(both, slow, row, after, z, args.ortho_weight)
        with frozen(both):
            decision = mean_action(policy, torch.cat([row["obs"], z], 1))
            value = both.value(row["obs"], decision, z).amin(0).mean()
        told = optimizer_step(opt, loss - value)
        polyak_update(slow, both, args.tau)
        if (it + 1) % every == 0 or it + 1 == args.num_updates:
            row = {"loss/fb": float(loss.detach()), "q/policy": float(value.detach()), "loss/total": told["loss"]}
            yield row | {"fb/effective_rank": effective_rank(back.detach()), "train/grad_norm": told["grad_norm"]}
    _successors.warn_if_collapsed(both, known["after"])


SIGNAL = "data"
START = "squashed"
DEFAULT_TASK = "zero-shot"
