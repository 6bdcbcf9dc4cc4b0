"""Helpers of offline recipes: logged data as a replay buffer in the policy's units, and its minibatches."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from denoiserl.control.data_checks import check_data_fits
from denoiserl.control.squashed_actions import replay_minibatches, to_unit_box
from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng, as_rng
from denoiserl.data import Demonstrations, ReplayBuffer, TanhCodec
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.data.transitions import has_reward_contrast, to_transitions
from denoiserl.policy.policy import Policy


def to_replay_buffer(policy: Policy, data: Any, batch_size: int, n_step: int, gamma: float) -> Any:
    """Return the transitions of logged data in a replay buffer, in the policy's units.

    ``obs`` and ``next_obs`` are conditions, ``action`` [H, d] lies in [−1, 1], returns are of ``n_step`` decisions.
    Draw with ``offline_minibatches``. A buffer (``data.synthetic.MixedReplayBuffer``) is returned as it is. Warn if all
    rewards are equal. Raise InvalidInputError for policies of another size, and for data that ``to_transitions``
    refuses.
    """
    if not isinstance(data, EpisodeDataset | Demonstrations):
        return data
    demos = data.demos if isinstance(data, EpisodeDataset) else data
    if policy.event_shape[1:] != demos.actions.shape[1:]:
        raise InvalidInputError(
            f"the policy decides {list(policy.event_shape[1:])} numbers per step, the data have "
            f"{list(demos.actions.shape[1:])}: give a policy that was made for them"
        )
    check_data_fits(policy, demos)
    codec, move = policy.codec, lambda v: v.to(policy.device)
    rows = to_transitions(data, policy.event_shape[0], n_step, gamma, seen=lambda v: codec.condition(move(v)))
    if not has_reward_contrast(data):
        warnings.warn(
            f"all rewards of {rows.name or 'the data'} are equal and no end differs from others: critics learn "
            "nothing from them, and only imitation is left",
            stacklevel=2,
        )
    encode = lambda v: codec.encode(v).clamp(-1, 1)  # noqa: E731
    if isinstance(codec, TanhCodec):
        encode = partial(to_unit_box, codec)
    return rows.replay(batch_size, policy.device, lambda v: encode(move(v)))


def offline_minibatches(
    replay: ReplayBuffer, updates: int, batch_size: int, gamma: float, rng: Rng | int
) -> Iterator[dict[str, Any]]:
    """Return an iterator over ``updates`` minibatches of ``batch_size`` rows that ``to_replay_buffer`` made.

    Actions of a chunk that were not executed carry no information. Uniform draws from the box replace them, so that
    critics learn to ignore them, and "counts" [B, H, d] (None: all count) keeps them out of losses.
    """

    rng = as_rng(rng)

    def replace_unexecuted(block: dict[str, Any]) -> None:
        block["counts"] = [None] * len(block["reward"])
        if "real" in block:
            block["counts"] = block.pop("real")[..., None].expand(block["action"].shape)
            uniform = 2 * rng.uniform(*block["action"].shape).to(block["action"]) - 1
            block["action"] = torch.where(block["counts"], block["action"], uniform)

    return replay_minibatches(replay, updates, batch_size, rng, gamma, 1, replace_unexecuted)
