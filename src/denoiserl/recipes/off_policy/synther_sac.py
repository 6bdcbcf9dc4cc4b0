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

SAC, with many updates a decision. Every ``every`` decisions a diffusion model (EDM) is trained from scratch on the
transitions that the replay buffer holds, x = [s, a, r, s', done], and draws ``rows`` new ones; from then on the share
``share`` of every batch is drawn from those,

    batch = (1 − share) · real  ∪  share · made

and SAC itself, ``recipes.off_policy.sac``, is as it was. ``share=0`` is SAC at the same number of updates.

As published: a share of a half, retraining from scratch every 10 000 decisions, log-normal levels, Heun's sampler, ends
of episodes left raw and thresholded. Differences: no churn, which widens what is made in so few steps; a smaller model
for fewer updates, made rows a few ten thousand instead of a million, 8 updates a decision instead of 20, and rows whose
end is unsure are drawn again. Pixels need an encoder first: observations are flat.

Expect a return of −162 on Pendulum-v1 after 3000 steps with the settings of the claim ``synther_online`` (−132 to −216
in five seeds), where SAC with as many updates has −146; SAC with one update a step has −800.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from denoiserl.control.squashed_actions import require_squashed_policy
from denoiserl.core.errors import RunError
from denoiserl.core.rng import Rng
from denoiserl.data import ReplayBuffer
from denoiserl.data.synthetic import MixedReplayBuffer, Model, buffer_to_transitions, train_generator_now
from denoiserl.envs import Collector
from denoiserl.policy.policy import Policy
from denoiserl.recipes.off_policy import sac
from denoiserl.train import Keep


@dataclass(frozen=True)
class Args(sac.Args):
    utd: float = 8.0
    """updates a decision"""
    layer_norm: bool = True
    """layer norm in the critics"""
    share: float = 0.5
    """of every batch, what is made (0: SAC)"""
    every: int = 2500
    """decisions between two models"""
    rows: int = 20_000
    """transitions that a model makes"""
    model: Model = Model(updates=3000, width=128, depth=3)
    """the diffusion model of transitions"""


def improve(policy: Policy, env: Collector, a: Any, rng: Rng, keep: Keep | None = None) -> Iterator[dict]:
    """Improve a policy that decides inside a box, in an environment."""
    keep = keep or Keep()
    require_squashed_policy(policy, "SynthER")
    if a.every < a.model.batch:
        raise RunError(f"the first model learns from {a.every} decisions, fewer than its batch of {a.model.batch}")
    mixed = MixedReplayBuffer(ReplayBuffer(a.capacity, policy.device, keep.folder and keep.folder / "replay"), a.share)
    edge = torch.ones(policy.event_shape[-1])  # the buffer holds decisions, in [−1, 1]
    for row in sac.improve(policy, env, a, rng, keep, replay=mixed):
        if a.share and mixed.count - mixed.filled >= a.every:
            known = buffer_to_transitions(mixed.real, -edge, edge, a.gamma)
            made, dropped = train_generator_now(known, a.model, rng, policy.device).sample(a.rows, rng)
            mixed.refill(made.replay(device=policy.device))
            row |= {"made": float(len(made)), "dropped": dropped}
        yield row


SIGNAL = "env"
START = "squashed"
DEFAULT_TASK = "env"
DEFAULT_TASK_ARGS = {"env": "Pendulum-v1", "chunk": 1, "width": 64}
