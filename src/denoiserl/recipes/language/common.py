"""What recipes of language share: where answers stand, and which policies write them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.tree import Tree, batch_size
from denoiserl.policy.policy import Policy
from denoiserl.processes import Autoregressive, Masked
from denoiserl.processes.tokens import answer


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


def canvases(policy: Policy, asked: Tree) -> Tensor:
    """Return the states that answers to ``asked`` start from, [B, L]; masks alone where the codec fixes nothing."""
    start = policy.codec.initial_state(asked)
    blank = policy.process.mask_token  # type: ignore[attr-defined]
    return (
        start
        if start is not None
        else torch.full((batch_size(asked), *policy.event_shape), blank, device=policy.device)
    )


def generated_mask(policy: Policy, asked: Tree, sample: Any) -> Tensor | None:
    """Return where answers stand, [B, L] bool: the canvas's holes, up to and with the first end of text.

    None for policies that write no tokens.
    """
    process, start = policy.process, policy.codec.initial_state(asked)
    if not isinstance(process, Masked | Autoregressive):
        return None
    hole = torch.ones_like(sample, dtype=torch.bool) if start is None else start == process.mask_token
    return answer(sample, hole, process.end)
