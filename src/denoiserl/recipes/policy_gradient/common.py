"""Helpers of recipes that learn from whole chunks by their denoising loss: acting, and what was executed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from denoiserl.control.acting import observe, set_execution_horizon
from denoiserl.core.errors import InvalidInputError, unknown_name_message
from denoiserl.core.rng import Rng
from denoiserl.core.tree import Tree, tree_map
from denoiserl.data.rollout import Rollout
from denoiserl.policy.chain import Chain
from denoiserl.policy.policy import Policy
from denoiserl.policy.sampler import RecordSample

SAMPLERS = ("eval", "train")
"""the denoising steps that act: those of evaluation, or those of training"""


def chunk_actor(policy: Policy, sampler: str) -> Any:
    """Return an actor for a ``Collector`` on the steps ``sampler``; it keeps each chain's sample and condition."""
    if sampler not in SAMPLERS:
        raise InvalidInputError(unknown_name_message(sampler, SAMPLERS, "kind of steps"))
    execute, use_eval_steps = set_execution_horizon(policy), sampler == "eval"

    def act(obs: Tree, rng: Rng) -> tuple[Tensor, Chain]:
        obs = observe(policy, obs)
        chain = policy.sample_chain(obs, rng, record=RecordSample(), use_eval_steps=use_eval_steps)
        return policy.codec.decode(chain.sample)[:, :execute], chain

    return act


def recorded_chunks(rollout: Rollout) -> tuple[Tensor, Tree, Tensor]:
    """Return the chunks of a rollout [T·B, H, d], their conditions, and which of their numbers were executed."""
    assert rollout.chain is not None
    parts = rollout.chain.sample, rollout.chain.cond
    chunk, cond = (tree_map(lambda v: v.flatten(0, 1), part) for part in parts)
    executed = rollout.executed_mask.to(chunk.device).flatten(0, 1)
    mask = torch.zeros(chunk.shape, dtype=torch.bool, device=chunk.device)
    mask[:, : executed.shape[-1]] = executed[..., None]
    return chunk, cond, mask
