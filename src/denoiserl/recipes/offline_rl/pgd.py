"""PGD: policy-guided diffusion, synthetic windows of logged data that are guided towards the policy's actions

paper: arXiv 2404.06356
signal: data
family: synthetic experience
side: A, B
base: diffusion, gaussian
task: exploration, policy learning
stage: from scratch
output: actions
process: diffusion, one-step
likelihood: none

A diffusion model (EDM with a 1-D U-Net) learns windows of (s, a, r, done). Before each step i of n of a draw but
the last, the actions are moved along the score of the policy that is learning,

    a ← a + c λ_i ĝ,   g = ∇_a Σ_t log π(a_t | s_t),   ĝ = g/‖g‖ (of a window),   λ_i = (1 − i/n) + w sin(π (i + 1)/n)

and the states are left to the model. The windows have actions likely under the policy and dynamics of the data, about
p(τ) Π_t π(a_t | s_t)^λ. Every ``refill_every`` iterations new windows are drawn for the current policy. A learner of
logged data, TD3+BC or IQL, takes the fraction ``synthetic_fraction`` of its batches from them.
``guidance_scale=0`` draws without guidance.

As published: windows of 32 steps, every eighth of them, and the strength's course with w = 0.3. The gradient is
normalised over a window. A deterministic policy is taken for N(π(s), 1). Actions are atanh in the model. 240 of 256
rows are synthetic.

Differences:

- g is taken at the posterior mean of the clean window (``guide_at_estimate``, an option there). The states of the noisy
  one are mostly noise.
- No churn, which widens samples of so few steps.
- A small U-Net, fewer steps and windows.
- Windows of episodes that ended reach the end. Synthetic transitions stop at a step whose end is uncertain.

Expect of the guidance, in twelve steps, on windows of four steps on a line. The player has the mean 0, the policy 0.6
(one seed):

| c | 0 | 0.4 | 1.2 |
|---|---|---|---|
| mean of the actions | 0.01 | 0.11 | 0.30 |
| error of the dynamics | 0.036 | 0.036 | 0.041 |

Expect of TD3+BC after 10 000 updates on locosmall:swingup-medium, with the settings of the claim ``pgd``, a score of 48
(45 to 54 in five seeds). From unguided windows it is 51, and from the recorded rows 52.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from denoiserl.control.squashed_actions import action_distribution, to_unit_box
from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.settings import Count, FractionBelowOne, NonNegative, OpenFraction, Positive
from denoiserl.data import TanhCodec
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.data.synthetic import MixedReplayBuffer
from denoiserl.data.trajectories import Model, StepLayout, slice_windows, train_window_generator, windows_to_transitions
from denoiserl.data.transitions import Transitions, to_transitions
from denoiserl.policy.policy import Policy
from denoiserl.processes.edm_training import Guide
from denoiserl.recipes import check_inputs
from denoiserl.recipes.offline_rl import iql, td3_bc
from denoiserl.recipes.offline_rl.common import to_replay_buffer
from denoiserl.train import Metrics, Run

LEARNERS = {"td3_bc": td3_bc, "iql": iql}


@dataclass(frozen=True)
class Args(td3_bc.Args):
    learner: Literal["td3_bc", "iql"] = "td3_bc"
    """the method that learns from the windows; TD3+BC ("squashed" policies) or IQL ("gaussian" ones)"""
    expectile: OpenFraction = 0.9
    """expectile τ of Q that V is fitted to; with IQL"""
    inverse_temperature: NonNegative = 10.0
    """inverse temperature β of the exponential weights; with IQL"""
    max_weight: Positive = 100.0
    """largest exponential weight; with IQL"""
    guidance_scale: float = 1.0
    """strength of the guidance; 0: none"""
    guidance_wave: NonNegative = 0.3
    """amplitude w of the guidance's rise in the middle of the chain"""
    guide_at_estimate: bool = True
    """take the score at the posterior mean instead of the noisy window"""
    synthetic_fraction: FractionBelowOne = 0.9375
    """fraction of each batch that is synthetic"""
    num_windows: Count = 512
    """windows that are generated at a time"""
    refill_every: Count = 25
    """iterations between two refills of synthetic data"""
    model: Model = Model()
    """the diffusion model of windows"""

    def check_relations(self) -> None:
        """Raise RunError if settings do not fit each other."""
        super().check_relations()
        self.require_fit(self.n_step == 1, f"n_step = {self.n_step} does not fit single actions: give 1")


def improve(
    policy: Policy, data: EpisodeDataset, args: Args, rng: Rng | int, run: Run | None = None
) -> Iterator[Metrics]:
    """Improve a policy of the learner's kind from logged data."""
    check_inputs(policy, data, SIGNAL, args, Args)
    rng = as_rng(rng, policy.device)
    run = run or Run()
    if policy.event_shape[0] != 1:
        raise InvalidInputError(f"PGD guides single actions: use an action_horizon of 1, not {policy.event_shape[0]}")
    windows = make_windows(policy, data, args.model)
    generator = yield from train_window_generator(windows, args.model, rng, run.stage("model"))
    real = to_replay_buffer(policy, data, args.batch_size, args.n_step, args.gamma)
    mixed = MixedReplayBuffer(real, args.synthetic_fraction)

    def refill() -> dict[str, float]:
        guide, course = None, (args.model.sampling_steps, args.guidance_wave, args.guide_at_estimate)
        if args.guidance_scale:
            guide = make_action_guide(generator.track, policy, args.guidance_scale, *course)
        synthetic = generator.sample(args.num_windows, rng, guide)
        rows = to_policy_transitions(policy, synthetic, args.gamma)
        mixed.refill(rows.replay(device=policy.device))
        with torch.no_grad():
            log_likelihood = float(likelihood(policy, rows.obs, rows.action[:, 0]).mean())
        return {"synthetic/count": float(len(rows)), "synthetic/log_likelihood": log_likelihood}

    stage, synthetic_metrics = run.stage("learn"), refill()
    for row in LEARNERS[args.learner].improve(policy, mixed, args, rng, stage):
        loop = stage.current_loop()
        if loop is not None and (loop.iteration + 1) % args.refill_every == 0:
            synthetic_metrics = refill()
        yield row | synthetic_metrics


def make_windows(policy: Policy, data: EpisodeDataset, model: Model) -> dict[str, Tensor]:
    """Return the windows of logged data, with actions in units of the policy's box.

    Raise InvalidInputError for data without flat observations, rewards and ends.
    """
    to_transitions(data)  # raises for rows that cannot be learned from
    if data.rewards is None or data.terminated is None or not isinstance(data.demos.observations, Tensor):
        raise InvalidInputError(
            "PGD learns windows of flat observations, rewards and ends: give data that have all of them"
        )
    codec, demos = policy.codec, data.demos
    is_squashed = isinstance(codec, TanhCodec)
    action = to_unit_box(codec, demos.actions) if is_squashed else codec.encode(demos.actions).clamp(-1, 1)
    assert isinstance(action, Tensor) and isinstance(demos.observations, Tensor)
    parts = {"obs": demos.observations, "action": action.cpu(), "reward": data.rewards[:, None]}
    return slice_windows(parts, demos.ends, data.terminated, model.length, model.stride)


def guidance_weight(k: int, steps: int, wave: float) -> float:
    """Return λ before step k of a draw; 0 before the last."""
    return 0.0 if k >= steps - 1 else (1 - k / steps) + wave * math.sin(math.pi * (k + 1) / steps)


def make_action_guide(
    track: StepLayout,
    policy: Policy,
    c: float,
    steps: int,
    wave: float = 0.3,
    denoised: bool = True,
    normal: bool = True,
) -> Guide:
    """Return a guide that moves a window's actions along the policy's score; ``normal``: by its direction alone."""

    def score(sample: Tensor) -> Tensor:
        with torch.enable_grad():
            x = sample.detach().requires_grad_()
            obs, action = track.decision(x)
            cond = policy.codec.condition(obs.detach().flatten(0, 1))
            (gradient,) = torch.autograd.grad(likelihood(policy, cond, action.flatten(0, 1)).sum(), x)
        return gradient[..., track.acts]

    return direction_guide(score, track.acts, c, steps, wave, denoised, normal)


def direction_guide(
    score: Callable[[Tensor], Tensor],
    acts: slice,
    c: float,
    steps: int,
    wave: float = 0.3,
    denoised: bool = True,
    normal: bool = True,
) -> Guide:
    """Return a guide of ``heun`` that adds c λ ĝ to the numbers ``acts`` of a step, g = ``score(window)``."""

    def guide(x: Tensor, k: int, mean: Callable[[], Tensor]) -> Tensor:
        if not (size := c * guidance_weight(k, steps, wave)):
            return x
        g = score(mean() if denoised else x)
        if normal:
            g = g / g.flatten(1).norm(dim=1).clamp_min(1e-8).view(-1, 1, 1)
        guided = x.clone()
        guided[..., acts] += size * g
        return guided

    return guide


def likelihood(policy: Policy, cond: Tensor, action: Tensor) -> Tensor:
    """Return log π(a | s) [N] of actions [N, d] in [−1, 1] for conditions [N, o] in model units, up to a constant.

    A squashed policy is served by its mean and counts as N(tanh μ(s), 1). Densities are with respect to the action:
    they need no change of variables, and none diverges at the edge.
    """
    law, action = action_distribution(policy, cond).base, action[:, None]
    if isinstance(policy.codec, TanhCodec):
        return -0.5 * (action - torch.tanh(law.mean)).square().flatten(1).sum(1)
    return law.log_prob(action)


def to_policy_transitions(policy: Policy, parts: dict[str, Tensor], gamma: float) -> Transitions:
    """Return the transitions of synthetic windows, in the policy's units."""
    edge = torch.ones(policy.event_shape[-1])
    rows = windows_to_transitions(parts, -edge, edge, gamma)
    condition = policy.codec.condition
    return replace(rows, obs=condition(rows.obs), next_obs=condition(rows.next_obs))


def start(args: Args) -> str:
    """Return the kind of policy that the learner starts from."""
    return LEARNERS[args.learner].START


SIGNAL = "data"
START = start
DEFAULT_TASK = "offline"
DEFAULT_TASK_ARGS = {"data": "locosmall:pendulum-medium"}
