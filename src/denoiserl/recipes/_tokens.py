"""What recipes of language share: where answers stand, and which policies write them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from denoiserl.errors import BadSignal
from denoiserl.policy import Policy
from denoiserl.process import Autoregressive, Masked
from denoiserl.process.masked import answer
from denoiserl.tree import Tree, rows


def require_masked(policy: Policy, method: str) -> Masked:
    """Return the policy's process. Raise BadSignal if it is not masked diffusion."""
    if not isinstance(policy.process, Masked):
        left = isinstance(policy.process, Autoregressive)
        raise BadSignal(
            f"{method} is for masked diffusion, not for {type(policy.process).__name__}: "
            + ("a left-to-right policy" if left else "a policy that denoises numbers")
            + " improves with ddpo, or with flow_grpo"
            + (" at window=0 and beta=0" if left else "")
        )
    return policy.process


def canvases(policy: Policy, asked: Tree) -> Tensor:
    """Return the states that answers to ``asked`` start from, [B, L]; masks alone where the codec fixes nothing."""
    start = policy.codec.start(asked)
    blank = policy.process.mask  # type: ignore[attr-defined]
    return start if start is not None else torch.full((rows(asked), *policy.event), blank, device=policy.device)


def written(policy: Policy, asked: Tree, sample: Any) -> Tensor | None:
    """Return where answers stand, [B, L] bool: the canvas's holes, up to and with the first end of text.

    None for policies that write no tokens.
    """
    process, start = policy.process, policy.codec.start(asked)
    if not isinstance(process, Masked | Autoregressive):
        return None
    hole = torch.ones_like(sample, dtype=torch.bool) if start is None else start == process.mask
    return answer(sample, hole, process.end)
