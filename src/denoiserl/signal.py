"""Signals: what says how good a sample is. A reward is any function ``(sample, prompts) -> [B]`` or named parts.

``sample`` is in data units and ``prompts`` has one row a sample. Named parts are a dict of [B] tensors, so that every
part is logged; their total is what is learned from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from denoiserl.credit import screen
from denoiserl.errors import BadSignal, nearest
from denoiserl.meter import spend
from denoiserl.tree import Tree, rows, take, tree_map

Reward = Callable[[Any, Any], Tensor | dict[str, Tensor]]


class Scored(NamedTuple):
    """``total`` [B] (NaN where dropped), ``valid`` [B] bool, ``parts`` {name: [B]}, ``dropped`` how many were bad."""

    total: Tensor
    valid: Tensor
    parts: dict[str, Tensor]
    dropped: int


def score(
    reward: Reward,
    sample: Tree,
    prompts: Tree,
    weights: Mapping[str, float] | None = None,
    on_bad: Literal["raise", "drop"] = "raise",
) -> Scored:
    """Call a reward and check what it says: one finite float32 number a sample.

    The total of named parts is Σ weight · part: over ``weights`` where given, else over all parts with weight 1. NaN
    or infinite rewards name the samples and stop (``raise``), or are marked, counted and dropped (``drop``).
    """
    n = rows(sample)
    with torch.no_grad():
        said = reward(sample, prompts)
    spend("reward calls", n)
    parts = said if isinstance(said, dict) else {"reward": said}
    for name, value in parts.items():
        if not isinstance(value, Tensor) or value.shape != (n,):
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise BadSignal(f"the reward's {name!r} is {shape} for {n} samples: return a tensor of shape ({n},)")
    weights = dict.fromkeys(parts, 1.0) if weights is None else weights
    for name in weights:
        if name not in parts:
            raise BadSignal(nearest(name, parts, "part of the reward"))
    device = next(iter(parts.values())).device
    total = torch.zeros(n, device=device)
    for name, weight in weights.items():
        total = total + weight * parts[name].float()
    checked = screen(total, on_bad)
    return Scored(checked.reward, checked.valid, {k: v.float() for k, v in parts.items()}, checked.count)


def ask(prompts: Tree, index: Tensor, group: int) -> Tree:
    """The prompts ``index`` [P], each repeated ``group`` times in a row: [P · group, ...], so groups are an axis."""
    chosen = take(prompts, index)
    return tree_map(lambda v: v.repeat_interleave(group, 0), chosen)
