"""What recipes of language share: answers drawn in parts of rows, and where in them something is learned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from denoiserl.chain import Chain, join
from denoiserl.errors import BadSignal
from denoiserl.policy import Policy
from denoiserl.process import Masked
from denoiserl.process.masked import answer
from denoiserl.rng import Rng
from denoiserl.tree import Tree, rows, take


def masked(policy: Policy, method: str) -> Masked:
    """Return the policy's process. Raise BadSignal if it is not masked diffusion."""
    if not isinstance(policy.process, Masked):
        raise BadSignal(
            f"{method} is for masked diffusion, not for {type(policy.process).__name__}: a left-to-right policy "
            "improves with ddpo, or with flow_grpo at window=0 and beta=0"
        )
    return policy.process


def parts(index: Tensor, micro: int | None) -> Iterator[Tensor]:
    """Return ``index`` in pieces of ``micro`` rows, or whole."""
    if micro is not None and micro < 1:
        raise BadSignal(f"micro_batch_size is a number of rows of one call, at least 1, not {micro}")
    yield from index.split(micro or max(len(index), 1))


def write(policy: Policy, asked: Tree, rng: Rng, micro: int | None) -> Chain:
    """Return chains of answers to ``asked``, drawn ``micro`` rows at a time. The noise belongs to the rows."""
    many = rows(asked)
    noise = Rng.rows(rng.integers(0, 2**62, many), rng.device)
    drawn = [
        policy.sample(asked if len(i) == many else take(asked, i), noise.take(i))
        for i in parts(torch.arange(many, device=rng.device), micro)
    ]
    return join(drawn)


def canvases(policy: Policy, asked: Tree) -> Tensor:
    """Return the states that answers to ``asked`` start from, [B, L]; masks alone where the codec fixes nothing."""
    start = policy.codec.start(asked)
    blank = policy.process.mask  # type: ignore[attr-defined]
    return start if start is not None else torch.full((rows(asked), *policy.event), blank, device=policy.device)


def written(policy: Policy, asked: Tree, sample: Any) -> Tensor:
    """Return where answers stand, [B, L] bool: the canvas's holes, up to and with the first end of text."""
    process = policy.process
    assert isinstance(process, Masked)
    return answer(sample, canvases(policy, asked) == process.mask, process.end)
