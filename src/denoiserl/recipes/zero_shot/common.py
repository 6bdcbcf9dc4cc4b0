"""What recipes of forward-backward representations share: decisions out of data, tasks to train on, the loss."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.functional import normalize

from denoiserl.control.acting import resolve_execute_horizon
from denoiserl.control.zero_shot import TaskConditionedCodec, require_task_conditioned, states
from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng
from denoiserl.data import Demonstrations
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.losses.successor import forward_backward, orthonormal, successor_density
from denoiserl.nn.forward_backward import ForwardBackward, effective_rank
from denoiserl.policy.policy import Policy


def demos(data: Demonstrations | EpisodeDataset) -> Demonstrations:
    """The episodes of either."""
    return data.demos if isinstance(data, EpisodeDataset) else data


def make_transitions(data: Demonstrations | EpisodeDataset, chunk: int = 1) -> dict[str, Tensor]:
    """Decisions of H = ``chunk`` actions out of recorded episodes, one that begins at every tick, [N, ...].

    "obs", "action" [N, H, d], "after" (H ticks later), "next" (the actions that followed) and "known" (whether H did),
    "over" (``after`` truly ends the episode), "at" (its frame). Decisions that an episode does not see the end of are
    left out.
    """
    told = demos(data)
    if not isinstance(told.observations, Tensor) or told.observations.ndim != 2:
        raise InvalidInputError("successor measures are of flat observations [N, o]: concatenate the parts first")
    frame, n = torch.arange(len(told.actions)), len(told.actions)
    episode = torch.searchsorted(told.ends, frame, right=True)
    room = told.ends[episode] - frame
    last = data.last if isinstance(data, EpisodeDataset) else None
    at = frame[room >= chunk + (last is None)]
    if len(at) == 0:
        raise InvalidInputError(
            f"no episode is longer than a decision of {chunk} actions: give longer ones, or decide fewer"
        )
    after, over = told.observations[(at + chunk).clamp_max(n - 1)], torch.zeros(len(at), dtype=torch.bool)
    if isinstance(data, EpisodeDataset) and last is not None:
        ends = room[at] == chunk
        after[ends] = last[episode[at[ends]]].to(after)
        over[ends] = False if data.terminated is None else data.terminated[episode[at[ends]]]
    window = at[:, None] + torch.arange(chunk)
    made = {"obs": told.observations[at], "action": told.actions[window], "after": after, "over": over, "at": at}
    for name in ("obs", "action", "after"):
        if not bool(made[name].isfinite().all()):
            raise InvalidInputError(f"{name} holds NaN or infinity: repair or leave out these rows")
    return {**made, "next": told.actions[(window + chunk).clamp_max(n - 1)], "known": room[at] >= 2 * chunk}


def prepare_transitions(
    policy: Policy, data: Demonstrations | EpisodeDataset, batch: int, gamma: float, who: str
) -> tuple[TaskConditionedCodec, dict[str, Tensor]]:
    """The codec, and all transitions in its units on the policy's device: "obs", "after" [N, o], "action", "next"
    [N, H, d] in [−1, 1], "chunk" (the actions in model units), "discount"."""
    if len(policy.event_shape) != 2:
        raise InvalidInputError(
            f"{who} decides chunks of actions, [H, d], not {list(policy.event_shape)}: one action is [1, d]"
        )
    if (execute := resolve_execute_horizon(policy, None)) < policy.event_shape[0]:
        raise InvalidInputError(
            f"{who} learns what a whole chunk of {policy.event_shape[0]} actions leads to, and this policy "
            "carries that it "
            f"executes {execute} of them: take policy.weights.execute away, or give a policy of chunks of {execute}"
        )
    codec, row = require_task_conditioned(policy, who), make_transitions(data, policy.event_shape[0])
    if not 0 <= gamma < 1:
        raise InvalidInputError(
            f"the discount of a successor measure lies in [0, 1), not {gamma}: with 1 it has no bound"
        )
    if len(row["obs"]) < batch:
        raise InvalidInputError(
            f"there are {len(row['obs'])} transitions, fewer than a batch of {batch}: give more data"
        )
    row = {k: v.to(policy.device) for k, v in row.items()}
    chunk, after = codec.encode(row["action"]), codec.encode(row["next"])
    return codec, {
        "obs": codec.inner.condition(row["obs"]),
        "after": codec.inner.condition(row["after"]),
        "chunk": chunk,
        "action": codec.unit(chunk),
        "next": codec.unit(after),
        "known": row["known"],
        "discount": gamma ** policy.event_shape[0] * (~row["over"]).float(),
    }


@torch.no_grad()
def sample_task_vectors(represent: ForwardBackward, obs: Tensor, rng: Rng, share: float) -> Tensor:
    """Tasks to train on, [B, d], of norm √d: a ``share`` of them B of other states of the batch, the rest Gaussian."""
    n, d = len(obs), represent.size
    reached = represent.backward_embedding(obs[rng.permutation(n)])
    z = torch.where(rng.uniform(n, 1) < share, reached, rng.normal(n, d))
    return d**0.5 * normalize(z, dim=1)


def fb_loss(
    represent: ForwardBackward, slow: ForwardBackward, row: dict[str, Tensor], action: Tensor, z: Tensor, ortho: float
) -> tuple[Tensor, Tensor, Tensor]:
    """L_FB + ortho · L_ortho, and for further losses F(s, a, z)ᵀ z [count, B] and B(s') [B, d]. ``action``: what is
    done in s', [B, H, d]."""
    with torch.no_grad():
        target = successor_density(
            slow.forward_embedding(row["after"], action, z), slow.backward_embedding(row["after"])
        ).amin(0)
    ahead, back = represent.forward_embedding(row["obs"], row["action"], z), represent.backward_embedding(row["after"])
    loss = forward_backward(successor_density(ahead, back), target, row["discount"]).sum(0) + ortho * orthonormal(back)
    return loss.mean(), (ahead * z).sum(-1), back


def warn_if_collapsed(represent: ForwardBackward, seen: Tensor) -> None:
    """Warn where B has fewer than d/2 effective dimensions on states [N, o]: it cannot tell many rewards apart."""
    with torch.no_grad():
        rank = effective_rank(represent.backward_embedding(states(seen)))
    if rank < represent.size / 2:
        said = f"B has collapsed to an effective rank of {rank:.1f} of {represent.size}: rewards look alike to it; "
        warnings.warn(said + "train longer, weight ortho more, or take fewer dimensions", stacklevel=2)


@contextmanager
def with_ema_weights(policy: Policy, name: str = "slow") -> Iterator[None]:
    """Inside, the policy acts with the weights of the set ``name``; afterwards it has its own again."""
    policy.weights.snapshot("own")
    policy.weights.load(name)
    yield
    policy.weights.load("own")
