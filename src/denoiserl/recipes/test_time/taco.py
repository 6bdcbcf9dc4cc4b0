"""TACO: of many plans, execute the one most like the demonstrations; the policy itself is not trained.

paper: arXiv 2512.02834
signal: data
family: test-time choice
side: B
base: diffusion
task: policy learning
stage: test time
output: actions
process: diffusion, flow, one-step
likelihood: none

A cloned policy keeps modes that its good demonstrations hardly support. At evaluation it draws n plans per decision and
executes the one with the largest pseudo-count:

    â = argmax_i N(φ(s, a_i)),   a_i ~ π(· | s),   N = coins / ‖f(φ)‖²

f learns the random signs of every demonstrated decision by squared error, so that ‖f‖² / coins is about one over the
number of decisions like φ (``nn.coin_flip_network``).

As published: φ is what enters the last layer of the policy's own network. A decision is not counted at the demonstrated
plan, but at the nearest of ``num_noise_candidates`` plans of the policy. So features are those of generated plans.
There are 20 coins, and a frozen random prior beside f. The condition is encoded once for all n plans.

Differences:

- φ is read at the finished plan and the last time, not one step before.
- φ is standardised instead of multiplied by ten.
- f is small, for small policies.
- The learning rate warms up and falls on a cosine.

The counts are a smoothed density: they rank plans, and mean little as numbers. Rare parts of the demonstrations, such
as recovering from a mistake, are chosen less often than before. The policy's weights do not change: ``generate``
chooses, ``sample_chain`` does not, and n = 1 is the policy bit for bit.

Expect, for a flow cloned from clumsy demonstrations on fork2d (three seeds, 400 held-out starts, 800 updates, n = 32):

| seed | 1 | 2 | 3 |
|---|---|---|---|
| success of the clone | 0.35 | 0.49 | 0.47 |
| with TACO | 0.53 | 0.73 | 0.72 |
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from denoiserl.control.acting import resolve_execute_horizon, set_execution_horizon
from denoiserl.control.best_of_n import BestOfN, Kind, PseudoCountVerifier, candidates, features
from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.settings import Count, Positive, Settings
from denoiserl.core.tree import tree_map
from denoiserl.data import Demonstrations, windows
from denoiserl.nn.coin_flip_network import CoinFlipNetwork, coin_flip_targets
from denoiserl.policy.policy import Policy
from denoiserl.recipes import check_inputs
from denoiserl.train import Metrics, Run, adamw, check_optimizer_covers, optimizer_step, warmup_cosine
from denoiserl.train.metric_means import MetricMeans


@dataclass(frozen=True)
class Args(Settings):
    num_updates: Count = 2000
    """gradient steps; of the counting network"""
    num_candidates: Count = 32
    """candidates that the served action is chosen from; the most familiar one"""
    num_noise_candidates: Count = 16
    """plans per demonstrated decision, of which the nearest is counted"""
    features: Kind = "activation"
    """what is counted; the input of the last layer of the policy's network, or the condition and the plan themselves"""
    num_coin_flips: Count = 20
    """coin flips per data point"""
    counter_width: Count = 256
    """width of the counting network"""
    feature_scale: Positive = 1.0
    """scale of the features; larger values make the count more local"""
    batch_size: Count = 512
    """items per gradient step; decisions"""
    lr: Positive = 1e-3
    """learning rate; of AdamW, at its peak"""
    only_successes: bool = True
    """count only successful demonstrations, where the data say which ones succeeded"""


def improve(
    policy: Policy, data: Demonstrations, args: Args, rng: Rng | int, run: Run | None = None
) -> Iterator[Metrics]:
    """Learn pseudo-counts of good demonstrations, and let the policy choose by them from now on, in place."""
    check_inputs(policy, data, SIGNAL, args, Args)
    rng = as_rng(rng, policy.device)
    if args.only_successes and data.success is not None:
        data = data.successful()
    if len(data) < 2:
        raise InvalidInputError(
            "counts of one episode only measure the distance of a state from it: give two episodes or more"
        )
    run = run or Run()
    set_execution_horizon(policy)
    phi = demonstrated_features(policy, data, args, rng)  # φ(s, a)
    size = phi.shape[1], args.num_coin_flips, args.counter_width
    counter = rng.init(CoinFlipNetwork, *size, gain=args.feature_scale).to(policy.device)  # f
    counter.standardise(phi)
    signs = coin_flip_targets(len(phi), args.num_coin_flips, int(rng.integers(0, 2**31, 1))).to(policy.device)
    policy.weights.control = BestOfN(PseudoCountVerifier(counter, args.features), args.num_candidates)
    optimizer = adamw(counter.learned.parameters(), args.lr)
    check_optimizer_covers(optimizer, counter.learned)
    lr_schedule = warmup_cosine(optimizer, min(100, args.num_updates), args.num_updates)

    log_every, metrics = max(1, args.num_updates // 50), MetricMeans()
    state = {"coins": counter, "optimizer": optimizer, "lr_schedule": lr_schedule, "rng": rng}
    for iteration in run.loop(args.num_updates, given=data, **state):
        i = rng.integers(0, len(phi), min(args.batch_size, len(phi)))
        metrics.add({"loss/coin_flip": optimizer_step(optimizer, (counter(phi[i]) - signs[i]).square().mean())["loss"]})
        lr_schedule.step()
        if (iteration + 1) % log_every == 0 or iteration + 1 == args.num_updates:
            with torch.no_grad():
                count = float(counter.count(phi).median())  # N = coins / ‖f(φ)‖²
            yield metrics.mean() | {"verifier/count": count}
            metrics = MetricMeans()


@torch.no_grad()
def demonstrated_features(policy: Policy, data: Demonstrations, args: Args, rng: Rng | int) -> Tensor:
    """Return the features [N, F] of every demonstrated decision, at the nearest to it of the policy's plans."""
    rng = as_rng(rng, policy.device)
    past = getattr(policy.codec, "history", 1) - 1
    if past:
        raise InvalidInputError(
            f"this policy sees its last {past + 1} observations, and counts are of one: give a policy of one "
            "observation"
        )
    window = windows(data.ends, policy.event_shape[0], 1, resolve_execute_horizon(policy))
    phi, spread = [], 0.0
    for index in window.all_indices.split(1024):
        obs = tree_map(lambda v: v[:, 0].to(policy.device), window.observations(data.observations, index))
        demonstrated = policy.codec.encode(window.actions(data.actions, index)).to(policy.device)
        plans = candidates(policy, obs, args.num_noise_candidates, rng)
        inside = window.valid(index).to(policy.device)[:, None, :, None]  # padding beyond an episode has no distance
        distance = ((plans - demonstrated[:, None]).square() * inside).flatten(2).sum(-1)
        nearest = plans[torch.arange(len(plans), device=plans.device), distance.argmin(1)]
        spread = max(spread, float((plans - plans[:, :1]).abs().max()))
        phi.append(features(policy, obs, nearest, args.features))
    if args.num_candidates > 1 and args.num_noise_candidates > 1 and spread == 0:
        raise InvalidInputError(
            "the policy draws the same plan whatever the noise, so all candidates are equal: sample it with more "
            "steps or noise, or set num_candidates=1"
        )
    return torch.cat(phi)


SIGNAL = "data"
START = None
DEFAULT_TASK = "env"
