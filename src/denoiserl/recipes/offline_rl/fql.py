"""FQL: Flow Q-learning, a one-step policy that is distilled from a flow and maximises Q

paper: arXiv 2502.02538
signal: data
family: offline actor-critic
side: B
base: diffusion
task: policy learning, acceleration
stage: from scratch, distillation
output: actions
process: flow
likelihood: none

Two networks learn side by side. The teacher is a flow that only imitates the data. The student decides in one call; it
is trained towards the teacher's decision from the same noise, and towards larger Q:

    teacher: L_flow = E |v(x_t, t; s) − (ε − a)|²,   G(s, z): its ODE from z in K Euler steps
    student: L = α |π(s, z) − sg G(s, z)|² − E[Q(s, π(s, z))] / E|Q|,   z ~ N(0, I)
    y = r + γ^n mean Q̄(s', π(s', z'))        L_Q = ½ (Q(s, a) − y)²

so no gradient ever passes through the teacher's steps. ``policy`` is the student, a flow of one step, and is what acts;
the teacher starts as a copy of it. Small α trusts the critic, large α the data.

As published: K = 10, the mean of two critics with layer norm, and targets of the critics that follow with 0.005. Next
decisions come from the student as it is. Decisions are clipped where critics see them. One decision per state is
served.

Differences:

- Q is normalised by E|Q| with a floor of 1e-3 (optional as published).
- The student is read as a velocity, so that it starts from the teacher's own first step.
- Gradients are clipped, networks smaller, and updates fewer.

Expect, on the ring bandit (``--data ring``; eight places, one of them twice as good, an eighth of the data there), with
α = 0.1 (batch 128, width 32, lr 3e-3, tau 0.05; one seed):

| updates | 300 | 600 |
|---|---|---|
| decisions at the best place | 0.98 | 0.99 |
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch

from denoiserl.control.acting import set_execution_horizon
from denoiserl.control.twin_critics import TwinCritics
from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.settings import Count, Fraction, NonNegative, Positive, PositiveFraction, Settings
from denoiserl.data import TanhCodec
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.losses import normalized_q_loss
from denoiserl.nn import frozen
from denoiserl.policy.policy import Policy
from denoiserl.policy.sampler import RecordSample, make_sampler
from denoiserl.processes import Diffusion, ddim, time_grid
from denoiserl.recipes import check_inputs
from denoiserl.recipes.offline_rl.common import offline_minibatches, to_replay_buffer
from denoiserl.train import Metrics, Run, adamw, check_optimizer_covers, optimizer_step, training_losses
from denoiserl.train.metric_means import MetricMeans


@dataclass(frozen=True)
class Args(Settings):
    iterations: Count = 100
    """iterations of the run"""
    updates_per_iteration: Count = 100
    """updates per iteration"""
    batch_size: Count = 256
    """items per gradient step; decisions"""
    bc_weight: NonNegative = 3.0
    """weight of the imitation loss; the distance to the teacher"""
    flow_steps: Count = 10
    """Euler steps K of the teacher"""
    n_step: Count = 1
    """decisions per return"""
    gamma: Fraction = 0.99
    """discount factor per environment step"""
    tau: PositiveFraction = 0.005
    """Polyak rate of the target networks"""
    lr: Positive = 1e-3
    """learning rate; of policy and critics (3e-4 as published)"""
    max_grad_norm: Positive = 1.0
    """largest norm of the gradient"""
    critic_width: Count = 128
    """width of the critics; 512 as published"""
    layer_norm: bool = True
    """use layer norm in the critics"""


def improve(
    policy: Policy, data: EpisodeDataset, args: Args, rng: Rng | int, run: Run | None = None
) -> Iterator[Metrics]:
    """Improve a policy that decides in one step of a flow from logged data."""
    check_inputs(policy, data, SIGNAL, args, Args)
    rng = as_rng(rng, policy.device)
    run, process = run or Run(), policy.process
    free = isinstance(process, Diffusion) and process.clip is None and policy.eval_steps.dense == (False,)
    if not isinstance(process, Diffusion) or not free or isinstance(policy.codec, TanhCodec):
        raise InvalidInputError(
            "FQL improves policies that decide in one step of a flow: start 'student', Diffusion(linear) without clip, "
            "served by process.steps(time_grid(1), ddim(0.0)); dql takes policies of several steps, ofql mean flows"
        )
    replay = to_replay_buffer(policy, data, args.batch_size, args.n_step, args.gamma)
    set_execution_horizon(policy, policy.event_shape[0])  # a decision is a whole chunk
    size = replay.columns["obs"].shape[1:]
    more: Any = {"width": args.critic_width, "layer_norm": args.layer_norm, "max_grad_norm": args.max_grad_norm}
    critics = TwinCritics(size, policy.event_shape, args.lr, args.tau, rng, policy.device, **more)
    teacher = deepcopy(policy.weights.module)
    optimizer, teacher_optimizer = adamw(policy.parameters(), args.lr), adamw(teacher.parameters(), args.lr)
    check_optimizer_covers([optimizer, teacher_optimizer], policy.weights.module, teacher)
    steps = process.steps(time_grid(args.flow_steps), ddim(0.0))
    teacher_sample = make_sampler(process, teacher, steps, policy.event_shape, record=RecordSample())  # G(s, z)
    next_sample = policy.make_sampler(use_eval_steps=True, record=RecordSample())
    sample = policy.make_sampler(use_eval_steps=True, record=RecordSample(), differentiable_steps=1)  # π(s, z)

    state = {"policy": policy, "optimizer": optimizer, "critics": critics, "teacher": teacher, "rng": rng}
    for _ in run.loop(args.iterations, given=data, **state, teacher_optimizer=teacher_optimizer):
        metrics = MetricMeans()
        for batch in offline_minibatches(replay, args.updates_per_iteration, args.batch_size, args.gamma, rng):
            # Estimate the TD target, and update the critics.
            obs, next_obs, action = batch["obs"], batch["next_obs"], batch["action"]
            with torch.no_grad():  # y = r + γ^n mean Q̄(s', π(s', z'))
                next_action = next_sample(next_obs, rng).sample.clamp(-1, 1)
                td_target = batch["reward"] + batch["discount"] * critics.target(next_obs, next_action).mean(0)
            row = critics.td_update(obs, action, td_target)

            # Update the teacher by flow matching: |v(x_t, t; s) − (ε − a)|².
            bc_loss = training_losses(process, teacher, action, obs, rng, counts=batch["counts"]).mean()
            bc_loss = optimizer_step(teacher_optimizer, bc_loss, args.max_grad_norm)["loss"]

            # Update the student: α |π(s, z) − G(s, z)|² − E[Q] / E|Q|.
            z = rng.normal(*action.shape)
            teacher_action, action = (draw(obs, rng, start=(z, 0)).sample for draw in (teacher_sample, sample))
            distill_loss = (action - teacher_action.clamp(-1, 1)).square().mean()
            with frozen(critics.net):
                q = critics(obs, action.clamp(-1, 1)).mean(0)
                loss = args.bc_weight * distill_loss + normalized_q_loss(q).mean()
                optimizer_step(optimizer, loss, args.max_grad_norm)
            critics.update_target()
            row = {"loss/bc": bc_loss, "loss/distill": distill_loss.detach()} | row
            metrics.add(row | {"q/policy": q.detach().mean()})
        yield metrics.mean()


SIGNAL = "data"
START = "student"
DEFAULT_TASK = "offline"
EXTENDABLE: dict[str, Any] = {}
