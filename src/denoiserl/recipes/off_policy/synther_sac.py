"""SynthER online: SAC with a replay buffer that a diffusion model refills

paper: arXiv 2303.06614
signal: env
family: synthetic experience
side: A, B
base: diffusion, gaussian
task: exploration, policy learning
stage: from scratch, fine-tuning
output: actions
process: diffusion, one-step
likelihood: none

SAC, with many updates per decision. After every ``decisions_per_refill`` decisions a diffusion model (EDM) is trained
from scratch on the transitions in the replay buffer, x = [s, a, r, s', done]. It generates ``num_synthetic`` new ones.
From then on the fraction f = ``synthetic_fraction`` of every batch is drawn from those:

    batch = (1 − f) · real  ∪  f · synthetic

SAC itself, ``recipes.off_policy.sac``, is unchanged. ``synthetic_fraction=0`` is SAC at the same number of updates.

As published: a fraction of a half, retraining from scratch every 10 000 decisions, log-normal levels, Heun's sampler.
Ends of episodes are left raw and thresholded.

Differences:

- The sampler has no churn, which widens samples of so few steps.
- A smaller model learns for fewer updates.
- There are 20 000 synthetic rows instead of a million, and 8 updates per decision instead of 20.
- Rows whose end is uncertain are drawn again.
- Observations are flat: pixels need an encoder first.

Expect, on Pendulum-v1 after 3000 steps, with the settings of the claim ``synther_online``:

| method | return |
|---|---|
| synther_sac | −162 (−132 to −216 in five seeds) |
| SAC with as many updates | −146 |
| SAC with one update per step | −800 |
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from denoiserl.control.squashed_actions import require_squashed_policy
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.settings import Count, FractionBelowOne, Positive
from denoiserl.data import ReplayBuffer
from denoiserl.data.synthetic import MixedReplayBuffer, Model, buffer_to_transitions, train_generator_now
from denoiserl.envs import Collector
from denoiserl.policy.policy import Policy
from denoiserl.recipes import check_inputs
from denoiserl.recipes.off_policy import sac
from denoiserl.train import Metrics, Run


@dataclass(frozen=True)
class Args(sac.Args):
    utd: Positive = 8.0
    """updates per decision"""
    layer_norm: bool = True
    """use layer norm in the critics"""
    synthetic_fraction: FractionBelowOne = 0.5
    """fraction of each batch that is synthetic; 0: SAC"""
    decisions_per_refill: Count = 2500
    """decisions between two refills of synthetic data"""
    num_synthetic: Count = 20_000
    """synthetic transitions per generator"""
    model: Model = Model(num_updates=3000, width=128, depth=3)
    """the diffusion model of transitions"""

    def check_relations(self) -> None:
        """Raise RunError if settings do not fit each other."""
        super().check_relations()
        self.require_fit(
            self.decisions_per_refill >= self.model.batch_size,
            f"decisions_per_refill = {self.decisions_per_refill} gives the first model fewer decisions than its batch, "
            f"model.batch_size = {self.model.batch_size}: give at least as many",
        )


def improve(policy: Policy, env: Collector, args: Args, rng: Rng | int, run: Run | None = None) -> Iterator[Metrics]:
    """Improve a policy with bounded actions in an environment."""
    check_inputs(policy, env, SIGNAL, args, Args)
    rng = as_rng(rng, policy.device)
    run = run or Run()
    require_squashed_policy(policy, "SynthER")
    real = ReplayBuffer(args.buffer_size, policy.device, run.folder and run.folder / "replay")
    mixed = MixedReplayBuffer(real, args.synthetic_fraction)
    edge = torch.ones(policy.event_shape[-1])  # the buffer holds decisions, in [−1, 1]
    for row in sac.improve(policy, env, args, rng, run, replay=mixed):
        if args.synthetic_fraction and mixed.count - mixed.filled >= args.decisions_per_refill:
            rows = buffer_to_transitions(real, -edge, edge, args.gamma)
            generator = train_generator_now(rows, args.model, rng, policy.device)
            synthetic, dropped = generator.sample(args.num_synthetic, rng)
            mixed.refill(synthetic.replay(device=policy.device))
            row |= {"synthetic/count": float(len(synthetic)), "synthetic/dropped_fraction": dropped}
        yield row


SIGNAL = "env"
START = "squashed"
DEFAULT_TASK = "env"
DEFAULT_TASK_ARGS = {"env": "Pendulum-v1", "action_horizon": 1, "policy_width": 64}
