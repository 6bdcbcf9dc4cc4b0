"""Helpers of forward-backward representations: transitions from episodes, tasks to train on, averaged weights."""

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
from denoiserl.core.rng import Rng, as_rng
from denoiserl.data import Demonstrations
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.nn.forward_backward import ForwardBackward, effective_rank
from denoiserl.policy.policy import Policy


def demos(data: Demonstrations | EpisodeDataset) -> Demonstrations:
    """Return the demonstrations of an episode data set, or ``data`` itself if it is demonstrations."""
    return data.demos if isinstance(data, EpisodeDataset) else data


def make_transitions(data: Demonstrations | EpisodeDataset, chunk: int = 1) -> dict[str, Tensor]:
    """Return decisions of H = ``chunk`` actions from recorded episodes, one per environment step, [N, ...].

    "obs", "action" [N, H, d], "next_obs" (H steps later), "next_action" (the actions that follow) and "has_next_action"
    (whether H do), "terminated" (``next_obs`` truly ends the episode), "frame" (the index of "obs"). Decisions that
    reach beyond an episode's record are left out.
    """
    episodes = demos(data)
    if not isinstance(episodes.observations, Tensor) or episodes.observations.ndim != 2:
        raise InvalidInputError("successor measures need flat observations [N, o]: concatenate the parts first")
    every, n = torch.arange(len(episodes.actions)), len(episodes.actions)
    episode = torch.searchsorted(episodes.ends, every, right=True)
    remaining = episodes.ends[episode] - every
    last = data.last if isinstance(data, EpisodeDataset) else None
    frame = every[remaining >= chunk + (last is None)]
    if len(frame) == 0:
        raise InvalidInputError(
            f"no episode is longer than a decision of {chunk} actions: give longer ones, or decide fewer"
        )
    next_obs = episodes.observations[(frame + chunk).clamp_max(n - 1)]
    terminated = torch.zeros(len(frame), dtype=torch.bool)
    if isinstance(data, EpisodeDataset) and last is not None:
        ends = remaining[frame] == chunk
        next_obs[ends] = last[episode[frame[ends]]].to(next_obs)
        terminated[ends] = False if data.terminated is None else data.terminated[episode[frame[ends]]]
    window = frame[:, None] + torch.arange(chunk)
    rows = {"obs": episodes.observations[frame], "action": episodes.actions[window], "next_obs": next_obs}
    for name, column in rows.items():
        if not bool(column.isfinite().all()):
            raise InvalidInputError(f"{name} holds NaN or infinity: repair or leave out these rows")
    rows["next_action"] = episodes.actions[(window + chunk).clamp_max(n - 1)]
    return rows | {"has_next_action": remaining[frame] >= 2 * chunk, "terminated": terminated, "frame": frame}


def prepare_transitions(
    policy: Policy, data: Demonstrations | EpisodeDataset, batch_size: int, gamma: float, name: str
) -> tuple[TaskConditionedCodec, dict[str, Tensor]]:
    """Return the codec, and all transitions in its units on the policy's device.

    "obs", "next_obs" [N, o], "action", "next_action" [N, H, d] in [−1, 1], "has_next_action", "chunk" (the actions in
    model units), "discount". Raise InvalidInputError for what method ``name`` cannot learn from.
    """
    if len(policy.event_shape) != 2:
        raise InvalidInputError(
            f"{name} decides chunks of actions, [H, d], not {list(policy.event_shape)}: one action is [1, d]"
        )
    horizon = policy.event_shape[0]
    if (execute := resolve_execute_horizon(policy, None)) < horizon:
        raise InvalidInputError(
            f"{name} learns the successors of a whole chunk of {horizon} actions, and this policy executes {execute} "
            f"of them: set policy.weights.execute = None, or give a policy of chunks of {execute}"
        )
    codec, rows = require_task_conditioned(policy, name), make_transitions(data, horizon)
    if not 0 <= gamma < 1:
        raise InvalidInputError(
            f"the discount of a successor measure lies in [0, 1), not {gamma}: with 1 it has no bound"
        )
    if len(rows["obs"]) < batch_size:
        raise InvalidInputError(
            f"there are {len(rows['obs'])} transitions, fewer than a batch of {batch_size}: give more data"
        )
    rows = {k: v.to(policy.device) for k, v in rows.items()}
    chunk = codec.encode(rows["action"])
    return codec, {
        "obs": codec.inner.condition(rows["obs"]),
        "next_obs": codec.inner.condition(rows["next_obs"]),
        "chunk": chunk,
        "action": codec.unit(chunk),
        "next_action": codec.unit(codec.encode(rows["next_action"])),
        "has_next_action": rows["has_next_action"],
        "discount": gamma**horizon * (~rows["terminated"]).float(),
    }


@torch.no_grad()
def sample_task_vectors(represent: ForwardBackward, obs: Tensor, rng: Rng | int, goal_fraction: float) -> Tensor:
    """Return tasks z to train on, [B, d], of norm √d.

    A ``goal_fraction`` of them is B of other states of the batch; the rest is Gaussian.
    """
    rng = as_rng(rng, obs.device)
    n, d = len(obs), represent.size
    goals = represent.backward_embedding(obs[rng.permutation(n)])
    z = torch.where(rng.uniform(n, 1) < goal_fraction, goals, rng.normal(n, d))
    return d**0.5 * normalize(z, dim=1)


def warn_if_collapsed(represent: ForwardBackward, obs: Tensor) -> None:
    """Warn if B has fewer than d/2 effective dimensions on states [N, o], so that many rewards look alike to it."""
    with torch.no_grad():
        rank = effective_rank(represent.backward_embedding(states(obs)))
    if rank < represent.size / 2:
        warnings.warn(
            f"B has collapsed to an effective rank of {rank:.1f} of {represent.size}, so rewards look alike to it: "
            "train longer, raise ortho_weight, or use fewer dimensions",
            stacklevel=2,
        )


@contextmanager
def with_ema_weights(policy: Policy, name: str = "ema") -> Iterator[None]:
    """Let the policy act with the weights of the set ``name`` inside the context."""
    policy.weights.snapshot("own")
    policy.weights.load(name)
    yield
    policy.weights.load("own")
