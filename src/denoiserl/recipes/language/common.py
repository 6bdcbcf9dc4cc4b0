"""Helpers of the recipes for language models: the process they need, canvases, and the choice of prompts."""

from __future__ import annotations

import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.tree import Tree, batch_size
from denoiserl.policy.policy import Policy
from denoiserl.processes import Autoregressive, Masked


def require_masked(policy: Policy, method: str) -> Masked:
    """Return the policy's process. Raise InvalidInputError if it is not masked diffusion."""
    if not isinstance(policy.process, Masked):
        left = isinstance(policy.process, Autoregressive)
        raise InvalidInputError(
            f"{method} is for masked diffusion, not for {type(policy.process).__name__}: "
            + ("a left-to-right policy" if left else "a policy that denoises numbers")
            + " improves with ddpo, or with flow_grpo"
            + (" at sde_window=0 and kl_coef=0" if left else "")
        )
    return policy.process


def canvases(policy: Policy, prompts: Tree) -> Tensor:
    """Return the states that answers to ``prompts`` start from, [B, L]; masks alone if the codec fixes nothing."""
    start = policy.codec.initial_state(prompts)
    if start is not None:
        return start
    mask_token = policy.process.mask_token  # type: ignore[attr-defined]
    return torch.full((batch_size(prompts), *policy.event_shape), mask_token, device=policy.device)


def prompts_in_range(rewards: Tensor, valid: Tensor, accuracy: tuple[float, float] | None) -> Tensor:
    """Return which prompts have a mean reward in the range ``accuracy``, [P, 1] bool; None: all."""
    if accuracy is None:
        return torch.ones_like(valid[:, :1])
    found = rewards[valid]
    if bool(((found < 0) | (found > 1)).any()):
        raise InvalidInputError(
            f"rewards reach from {found.min():g} to {found.max():g}: return 0 to 1, or leave prompt_accuracy_range out"
        )
    mean = rewards.nanmean(-1, keepdim=True)
    return (mean >= accuracy[0]) & (mean <= accuracy[1])
