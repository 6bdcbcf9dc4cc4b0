"""FB: zero-shot rewards from forward-backward representations, with a deterministic actor that maximises Q

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

Training sees no reward. F and B learn the successor measure of the policies π_z that are optimal for tasks z. Any
reward is answered later by z = E[r B] alone. The policy acts by a = tanh μ(s, z) and maximises Q by its gradient:

    F(s, a, z)ᵀ B(s') ρ(ds') = M^{π_z}(s, a, ds'),   Q(s, a, z) = F(s, a, z)ᵀ z
    L_F,B = L_FB + L_ortho,   a' = clip(tanh μ(s', z) + clip(ε, ±c), ±1),   L_π = −Q(s, μ(s, z), z)

Half of the tasks are Gaussian and half are B of states, all of norm √d. Target networks follow slowly; of twin F the
minimum counts. Nothing keeps the policy near the actions of the data; BREEZE adds that, and FB is the baseline of its
claim.

As released for offline data: noise of 0.2 clipped at 0.3, γ = 0.98, ‖B‖ = √d.

Differences:

- One optimiser updates all networks.
- Networks are smaller, d = 32 and not 50.
- The policy's network also returns a std, which is not used.
- A decision may be a chunk of actions, with γ per environment step.

Expect, with the defaults, a score of 76 after 4 000 updates (72 to 81 in five seeds, 50 starts; staying scores 0, the
shortest path 100). BREEZE has 86. By reward it is 100 in the corners, and 36 to 88 for the six goals.
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
from denoiserl.core.settings import (
    Count,
    CountFromTwo,
    CountOrZero,
    Fraction,
    FractionBelowOne,
    NonNegative,
    Positive,
    PositiveFraction,
    Settings,
)
from denoiserl.data import Demonstrations, TanhCodec
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.losses.successor import forward_backward, orthonormal, successor_density
from denoiserl.nn import frozen, polyak_update, target_copy
from denoiserl.nn.forward_backward import ForwardBackward, effective_rank
from denoiserl.policy.policy import Policy
from denoiserl.recipes import check_inputs
from denoiserl.recipes.zero_shot import common
from denoiserl.train import Metrics, Run, adamw, check_optimizer_covers, optimizer_step

__all__ = ["Args", "improve", "policy_for_reward"]


@dataclass(frozen=True)
class Args(Settings):
    num_updates: Count = 4000
    """gradient steps; 1 M as published"""
    batch_size: CountFromTwo = 256
    """items per gradient step; transitions (1024 as published)"""
    lr: Positive = 1e-3
    """learning rate; of all networks (1e-4 as published)"""
    representation_width: Count = 128
    """width of F and B"""
    attention_layers: CountOrZero = 0
    """layers of self-attention in F and B; 0: perceptrons"""
    ortho_weight: NonNegative = 1.0
    """weight of the orthonormality loss"""
    gamma: FractionBelowOne = 0.98
    """discount factor per environment step"""
    tau: PositiveFraction = 0.02
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
    check_inputs(policy, data, SIGNAL, args, Args)
    rng = as_rng(rng, policy.device)
    run, (codec, dataset) = run or Run(), common.prepare_transitions(policy, data, args.batch_size, args.gamma, "FB")
    if not isinstance(codec.inner, TanhCodec):
        raise InvalidInputError(
            "FB maximises Q inside a box: give the policy the codec "
            "TaskConditionedCodec(TanhCodec.from_box(low, high), z)"
        )
    obs_dim, size = dataset["obs"].shape[1], (len(codec.z), args.representation_width, args.attention_layers)
    represent = rng.init(ForwardBackward, obs_dim, policy.event_shape, *size).to(policy.device)  # F and B
    represent_target = target_copy(represent)
    policy.weights.control = BestOfN(SuccessorVerifier(represent, args.gamma), 1)
    optimizer = adamw([*represent.parameters(), *policy.parameters()], args.lr, betas=(0.9, 0.99))
    check_optimizer_covers(optimizer, represent, policy.weights.module)

    log_every = max(1, args.num_updates // 50)
    state = {"policy": policy, "represent_target": represent_target, "optimizer": optimizer, "rng": rng}
    for iteration in run.loop(args.num_updates, given=data, **state):
        # Draw transitions and tasks z.
        index = rng.integers(0, len(dataset["obs"]), args.batch_size)
        batch = {name: column[index] for name, column in dataset.items()}
        obs, next_obs = batch["obs"], batch["next_obs"]
        z = common.sample_task_vectors(represent, obs, rng, args.goal_task_fraction)

        # Estimate the successor measure: L_FB + L_ortho.
        with torch.no_grad():  # a' = clip(tanh μ(s', z) + clip(ε, ±c), ±1)
            next_action = mean_action(policy, torch.cat([next_obs, z], 1))
            next_action = add_clipped_noise(next_action, args.target_noise, args.target_noise_clip, rng)
            target_forward = represent_target.forward_embedding(next_obs, next_action, z)
            target_backward = represent_target.backward_embedding(next_obs)
            target = successor_density(target_forward, target_backward).amin(0)  # M̄ = min F̄(s', a', z)ᵀ B̄(s')
        forward = represent.forward_embedding(obs, batch["action"], z)  # F(s, a, z)
        backward = represent.backward_embedding(next_obs)  # B(s')
        fb_loss = forward_backward(successor_density(forward, backward), target, batch["discount"]).sum(0)
        fb_loss = (fb_loss + args.ortho_weight * orthonormal(backward)).mean()

        # Update F, B and the actor.
        with frozen(represent):
            action = mean_action(policy, torch.cat([obs, z], 1))
            q = represent.value(obs, action, z).amin(0).mean()  # Q(s, μ(s, z), z)
        step = optimizer_step(optimizer, fb_loss - q)
        polyak_update(represent_target, represent, args.tau)
        if (iteration + 1) % log_every == 0 or iteration + 1 == args.num_updates:
            row = {"loss/fb": float(fb_loss.detach()), "q/policy": float(q.detach()), "loss/total": step["loss"]}
            yield row | {"fb/effective_rank": effective_rank(backward.detach()), "train/grad_norm": step["grad_norm"]}
    common.warn_if_collapsed(represent, dataset["next_obs"])


SIGNAL = "data"
START = "squashed"
DEFAULT_TASK = "zero-shot"
