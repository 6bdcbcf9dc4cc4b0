"""Helpers of off-policy recipes: policies with tanh-squashed actions, exploration, and the update schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError, RunError, unknown_name_message
from denoiserl.core.rng import Rng, as_rng
from denoiserl.data import ReplayBuffer, TanhCodec
from denoiserl.distributions import Gaussian, Squashed
from denoiserl.policy.policy import Policy
from denoiserl.processes import OneStep

BLOCK = 64
"""minibatches gathered at a time"""


def require_squashed_policy(policy: Policy, name: str) -> TanhCodec:
    """Return the codec of a policy with one squashed Gaussian step. Raise InvalidInputError for any other policy."""
    one = isinstance(policy.process, OneStep) and policy.process.law == "gaussian" and len(policy.event_shape) == 2
    if not one or not isinstance(policy.codec, TanhCodec):
        raise InvalidInputError(
            f"{name} improves policies that decide a chunk [H, d] in one Gaussian step inside a box: use OneStep() "
            "with the codec TanhCodec.from_box(low, high). For a denoising policy use dsrl or dppo"
        )
    return policy.codec


def action_distribution(policy: Policy, cond: Tensor, using: str | None = None) -> Squashed:
    """Return the distribution of the decision [B, H, d] in [−1, 1]; conditions in model units; differentiable."""
    denoise = policy.weights.using(using or policy.active_weights)
    x = torch.zeros(len(cond), *policy.event_shape, device=cond.device)
    clock = denoise.embed_time(policy.train_steps.times[:1].float().to(cond.device))
    law = policy.process.reverse(
        denoise(x, clock, denoise.embed_condition(cond)), x, policy.train_steps.on(cond.device)[0]
    )
    assert isinstance(law, Gaussian)
    return Squashed(law)


def mean_action(policy: Policy, cond: Tensor, using: str | None = None) -> Tensor:
    """Return tanh μ, the decision [B, H, d] of a policy without its noise; differentiable."""
    return torch.tanh(action_distribution(policy, cond, using).base.mean)


def add_clipped_noise(action: Tensor, std: float, limit: float, rng: Rng | int) -> Tensor:
    """Return clip(a + clip(std · ε, ± limit), ± 1), decisions in [−1, 1] with Gaussian noise."""
    rng = as_rng(rng, action.device)
    return (action + (std * rng.normal(*action.shape)).clamp(-limit, limit)).clamp(-1, 1)


WARMUP_POLICIES = ("random", "policy")
"""how actions are chosen before learning starts"""


def exploration_actor(
    policy: Policy,
    codec: TanhCodec,
    replay: ReplayBuffer,
    choose: Callable[[Tensor, Rng], Tensor],
    learning_starts: int,
    warmup_policy: str = "random",
) -> Any:
    """Return an actor for a ``Collector`` that takes actions ``choose(cond, rng)`` in [−1, 1].

    The first ``learning_starts`` actions are uniform in the bounds, unless ``warmup_policy`` is "policy".
    """
    if warmup_policy not in WARMUP_POLICIES:
        raise RunError(unknown_name_message(warmup_policy, WARMUP_POLICIES, "warm-up policy"))
    begin = learning_starts if warmup_policy == "random" else 0

    @torch.no_grad()
    def act(obs: Tensor, rng: Rng) -> tuple[Tensor, None]:
        if replay.count < begin:
            unit = 2 * rng.uniform(len(obs), *policy.event_shape) - 1
        else:
            unit = choose(codec.condition(obs.to(policy.device)), rng)
        return codec.to_action_box(unit), None

    return act


def to_unit_box(codec: TanhCodec, action: Tensor) -> Tensor:
    """Return actions as decisions in [−1, 1]."""
    return codec.unit(action.to(codec.half.device)).clamp(-1, 1)


def num_updates_due(count: int, utd: float, batch_size: int, learning_starts: int) -> int:
    """Return how many updates are due after ``count`` decisions: ``utd`` per decision after the first
    ``learning_starts``.

    It is 0 while there are fewer decisions than a minibatch.
    """
    return int(utd * max(0, count - learning_starts)) if count >= batch_size else 0


def due_minibatches(
    replay: ReplayBuffer,
    before: int,
    utd: float,
    batch_size: int,
    learning_starts: int,
    gamma: float,
    n_step: int,
    rng: Rng | int,
) -> Iterator[dict[str, Any]]:
    """Yield the minibatches of the updates that became due since ``before`` decisions."""
    when = utd, batch_size, learning_starts
    more = num_updates_due(replay.count, *when) - num_updates_due(before, *when)
    yield from replay_minibatches(replay, more, batch_size, rng, gamma, n_step)


def replay_minibatches(
    replay: ReplayBuffer,
    updates: int,
    batch_size: int,
    rng: Rng | int,
    gamma: float,
    n_step: int,
    prepare: Callable[[dict[str, Any]], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield ``updates`` minibatches of a buffer, ``BLOCK`` of them drawn in one gather.

    ``prepare(block)`` changes the columns [n, batch_size, ...] of such a gather in place.
    """
    rng = as_rng(rng)
    for left in range(updates, 0, -BLOCK):
        block = replay.sample(batch_size, rng, gamma, n_step, batches=min(BLOCK, left))
        if prepare is not None:
            prepare(block)
        for i in range(min(BLOCK, left)):
            yield {k: v[i] for k, v in block.items()}
