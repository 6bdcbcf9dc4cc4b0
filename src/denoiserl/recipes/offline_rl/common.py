"""Rows of a recording in a replay buffer, in the policy's units, for methods that learn from logged data."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch

from denoiserl.control.data_checks import check_data_fits
from denoiserl.control.squashed_actions import replay_minibatches, to_unit_box
from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng
from denoiserl.data import Demonstrations, ReplayBuffer, TanhCodec
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.data.transitions import has_reward_contrast, to_transitions
from denoiserl.policy.policy import Policy


def to_replay_buffer(policy: Policy, data: Any, batch: int, n: int, gamma: float) -> Any:
    """Return the rows of a recording in a replay buffer, in the policy's units: ``obs`` and ``next_obs`` are
    conditions, ``action`` [H, d] lies in [−1, 1]. ``n``: decisions of a return. Draw with ``offline_minibatches``.

    A buffer that is in the policy's units already (``data.synthetic.MixedReplayBuffer``) is returned as it is. Warn of
    rewards that cannot tell policies apart. Raise InvalidInputError for policies of another size, and for what
    ``to_transitions`` refuses.
    """
    if not isinstance(data, EpisodeDataset | Demonstrations):
        return data
    known = data.demos if isinstance(data, EpisodeDataset) else data
    if policy.event_shape[1:] != known.actions.shape[1:]:
        raise InvalidInputError(
            f"the policy decides {list(policy.event_shape[1:])} numbers a tick, the data "
            f"{list(known.actions.shape[1:])}"
        )
    check_data_fits(policy, known)
    own, move = policy.codec, lambda v: v.to(policy.device)
    rows = to_transitions(data, policy.event_shape[0], n, gamma, seen=lambda v: own.condition(move(v)))
    if not has_reward_contrast(data):
        warnings.warn(
            f"all rewards of {rows.name or 'the data'} are equal and nothing ends well or badly: critics learn "
            "nothing from them, and what is left is imitation",
            stacklevel=2,
        )
    encode = (lambda v: to_unit_box(own, v)) if isinstance(own, TanhCodec) else (lambda v: own.encode(v).clamp(-1, 1))
    return rows.replay(batch, policy.device, lambda v: encode(move(v)))


def offline_minibatches(
    replay: ReplayBuffer, updates: int, batch: int, gamma: float, rng: Rng
) -> Iterator[dict[str, Any]]:
    """Return an iterator over ``updates`` minibatches of ``batch`` rows that ``to_replay_buffer`` made.

    Actions of a chunk that never ran say nothing: they are replaced by uniform draws from the box, so that critics
    learn not to heed them, and "counts" [B, H, d] (None: all do) keeps them out of losses.
    """

    def replace_unexecuted(block: dict[str, Any]) -> None:
        block["counts"] = [None] * len(block["reward"])
        if "real" in block:
            block["counts"] = block.pop("real")[..., None].expand(block["action"].shape)
            other = 2 * rng.uniform(*block["action"].shape).to(block["action"]) - 1
            block["action"] = torch.where(block["counts"], block["action"], other)

    return replay_minibatches(replay, updates, batch, rng, gamma, 1, replace_unexecuted)
