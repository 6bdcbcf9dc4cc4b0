"""OFQL: One-step Flow Q-learning, a one-step (mean-flow) policy trained by behaviour cloning plus Q maximisation

paper: arXiv 2508.13904
signal: data
family: offline actor-critic
side: B
base: diffusion
task: policy learning, acceleration
stage: from scratch
output: actions
process: flow
likelihood: none

Diffusion Q-learning needs K calls of the network per decision, and a gradient through all of them per update. A mean
flow needs one call: it learns the average velocity u over the whole way from noise to data,

    a = ε − u(ε, 0, 1; s),   ε ~ N(0, I)
    y = r + γ^n min Q̄(s', a'),   a' by the target policy      L_Q = ½ (Q(s, a) − y)²
    L_π = E |u(x_t, r, t; s) − sg[v − (t − r) d/dt u]|² − η E[Q(s, a)] / E|Q(s, a)|,   v = ε − a_data

so nothing is distilled, and the gradient of a value passes through one call. Critics see decisions clipped to the box,
as the environment does; imitation sees them as they are. Half of the pairs (r, t) have r = t, where the first term is
flow matching (``processes.MeanFlow``).

As published: pairs of times from a logit-normal distribution, twin critics and their minimum, and targets that follow
with 0.005. A Q-weighted choice among ``num_candidates`` serves (one is the policy alone). η is between 0.001 and 0.5 by
data set.

Differences:

- A tenth of the pairs is exactly (0, 1), which that distribution hardly ever draws and one step uses.
- The network reads times at low frequencies (``TwoTimeNet``), without which one step falls far behind five.
- The actor maximises one critic, chosen at random, scaled by the other, as in DQL. E|Q| has a floor of 1e-3.
- Gradients are clipped, networks smaller, and updates fewer.

Expect, on the ring bandit (``--data ring``; eight places, one of them twice as good, an eighth of the data there), of
the policy's own decisions (width 32, lr 3e-3, tau 0.05, batch 128; one seed):

| η, updates | 3, 300 | 10, 600 |
|---|---|---|
| decisions at the best place | 0.97 | 0.99 |

Imitation alone, after 4000 updates of width 128, puts this fraction of the decisions within 0.2 of a place:

| one step | five steps | one step where all pairs have r = t |
|---|---|---|
| 0.62 | 0.69 | 0.03 |

On maze:small-noisy one episode in six reaches the goal. OFQL has 4000 updates (n = 5, gamma 0.98, tau 0.02, batch 128,
width 64; five seeds, 300 held-out starts). Speed is measured one state at a time and without candidates:

| method | success | decisions per second |
|---|---|---|
| OFQL | 0.86 (0.81 to 0.93) | 3200 |
| DQL | 0.91 (0.89 to 0.94) | 1400 |
| FQL | 0.34 (0.18 to 0.47) | |
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from denoiserl.control.acting import set_execution_horizon
from denoiserl.control.twin_critics import TwinCritics
from denoiserl.control.value_weighted import make_q_controller
from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.settings import Count, Fraction, NonNegative, Positive, PositiveFraction, Settings
from denoiserl.data import TanhCodec
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.losses import normalized_q_loss
from denoiserl.nn import frozen
from denoiserl.policy.policy import Policy
from denoiserl.policy.sampler import RecordSample
from denoiserl.processes import MeanFlow
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
    q_weight: NonNegative = 1.0
    """weight of the critic's value in the policy loss; η (0.001 to 0.5 as published, by data set)"""
    num_candidates: Count = 16
    """candidates that the served action is chosen from; by their values; 1: the policy alone"""
    choice_temperature: NonNegative = 0.0
    """temperature of the softmax over values that chooses among the candidates; 0 takes the best"""
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
    """width of the critics; 256 as published"""
    layer_norm: bool = True
    """use layer norm in the critics"""


def improve(
    policy: Policy, data: EpisodeDataset, args: Args, rng: Rng | int, run: Run | None = None
) -> Iterator[Metrics]:
    """Improve a mean flow that decides in one step from logged data; it serves the best of its candidates by Q."""
    check_inputs(policy, data, SIGNAL, args, Args)
    rng = as_rng(rng, policy.device)
    run = run or Run()
    if not isinstance(policy.process, MeanFlow) or len(policy.eval_steps) != 1 or isinstance(policy.codec, TanhCodec):
        raise InvalidInputError(
            "OFQL improves mean flows that decide in one step: start 'meanflow', MeanFlow() with a "
            "MeanVelocityDenoiser of a network, served by process.steps(time_grid(1)); dql takes policies of several "
            "steps"
        )
    replay = to_replay_buffer(policy, data, args.batch_size, args.n_step, args.gamma)
    set_execution_horizon(policy, policy.event_shape[0])  # a decision is a whole chunk
    size = replay.columns["obs"].shape[1:]
    more: Any = {"width": args.critic_width, "layer_norm": args.layer_norm, "max_grad_norm": args.max_grad_norm}
    critics = TwinCritics(size, policy.event_shape, args.lr, args.tau, rng, policy.device, **more)
    policy.weights.snapshot("target")
    policy.weights.control = make_q_controller(critics.target_net, args.num_candidates, args.choice_temperature)
    optimizer = adamw(policy.parameters(), args.lr)
    check_optimizer_covers(optimizer, policy.weights.module)
    sample = policy.make_sampler(use_eval_steps=True, record=RecordSample(), differentiable_steps=1)
    target_sample = policy.with_weights("target").make_sampler(use_eval_steps=True, record=RecordSample())

    state = {"policy": policy, "optimizer": optimizer, "critics": critics, "rng": rng}
    for _ in run.loop(args.iterations, given=data, **state):
        metrics = MetricMeans()
        for batch in offline_minibatches(replay, args.updates_per_iteration, args.batch_size, args.gamma, rng):
            # Estimate the TD target, and update the critics.
            obs, next_obs, action = batch["obs"], batch["next_obs"], batch["action"]
            with torch.no_grad():  # y = r + γ^n min Q̄(s', a')
                next_action = target_sample(next_obs, rng).sample.clamp(-1, 1)
                td_target = batch["reward"] + batch["discount"] * critics.target(next_obs, next_action).amin(0)
            row = critics.td_update(obs, action, td_target)

            # Imitate the data: |u − sg[v − (t − r) du/dt]|².
            counts = batch["counts"]
            bc_loss = training_losses(policy.process, policy.denoiser, action, obs, rng, counts=counts).mean()

            # Update the policy: maximise one critic, scaled by the other.
            with frozen(critics.net):
                q = critics(obs, sample(obs, rng).sample.clamp(-1, 1))  # a = ε − u(ε, 0, 1; s)
                q, q_scale = q if float(rng.uniform(1)) < 0.5 else q.flip(0)
                q_loss = normalized_q_loss(q, q_scale.detach()).mean()  # −E[Q] / E|Q|
                optimizer_step(optimizer, bc_loss + args.q_weight * q_loss, args.max_grad_norm)
            critics.update_target()
            policy.weights.ema_update("target", 1 - args.tau)
            metrics.add({"loss/bc": bc_loss.detach()} | row | {"q/policy": q.detach().mean()})
        yield metrics.mean()


SIGNAL = "data"
START = "meanflow"
DEFAULT_TASK = "offline"
EXTENDABLE: dict[str, Any] = {}
