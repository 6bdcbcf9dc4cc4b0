"""Signals: what says how good a sample is. A reward is any function ``(sample, prompts) -> [B]`` or named parts.

``sample`` is in data units and ``prompts`` has one row a sample (None where there are none). Named parts are a dict of
[B], so that every part is logged; their total is what is learned from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from denoiserl.advantages import mask_invalid_rewards
from denoiserl.advantages.checks import resolution
from denoiserl.core.counters import count_usage
from denoiserl.core.errors import InvalidInputError, unknown_name_message
from denoiserl.core.tree import Tree, batch_size, first, index_rows, leaves, tensors, tree_map

Reward = Callable[[Any, Any], Tensor | Sequence[Any] | np.ndarray | Mapping[str, Any]]
"""``(sample, prompts) -> [B]``: a tensor, an array or a list of numbers, or named parts of them; None is no answer"""


class RewardSignal(NamedTuple):
    """What methods that are scored learn from: a reward, and the prompts [N, ...] that are drawn from.

    ``prompts`` is a tree with one row per prompt, or the number of samples where a generator has no prompts.
    """

    reward: Reward
    prompts: Tree | int | None = None


def as_reward_signal(signal: Any) -> RewardSignal:
    """Return a reward and prompts as a ``RewardSignal``; a pair is accepted. Raise InvalidInputError for anything
    else."""
    if not isinstance(signal, tuple | list) or len(signal) != 2 or not callable(signal[0]):
        raise InvalidInputError(
            f"methods that are scored learn from a reward and prompts, not from a {type(signal).__name__}: give "
            "RewardSignal(reward, prompts) (denoiserl.rewards), with prompts=None where there are none"
        )
    reward: Any = signal[0]
    return RewardSignal(reward, tensors(signal[1]))


class RewardResult(NamedTuple):
    """``total`` [B] (NaN where dropped), ``valid`` [B] bool, ``parts`` {name: [B]}, ``dropped`` how many were bad."""

    total: Tensor
    valid: Tensor
    parts: dict[str, Tensor]
    dropped: int


def evaluate_reward(
    reward: Reward,
    sample: Tree,
    prompts: Tree,
    weights: Mapping[str, float] | None = None,
    invalid_rewards: Literal["error", "drop"] = "error",
    micro: int | None = None,
    decode: Callable[[Tree], Tree] | None = None,
) -> RewardResult:
    """Return what ``rate`` says, checked: one finite float32 number a sample.

    NaN or infinite totals name the samples and stop (``raise``), or are marked, counted and dropped (``drop``).
    """
    total, parts = rate(reward, sample, prompts, weights, micro, decode)
    checked = mask_invalid_rewards(total, invalid_rewards)
    return RewardResult(checked.reward, checked.valid, parts, checked.count)


@torch.no_grad()
def rate(
    reward: Reward,
    sample: Tree,
    prompts: Tree,
    weights: Mapping[str, float] | None = None,
    micro: int | None = None,
    decode: Callable[[Tree], Tree] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the total [B] and the parts {name: [B]} of a reward, float32 on the device of ``sample``.

    The total of named parts is Σ weight · part: over ``weights`` where there are some, else over all parts with weight
    1. Totals that differ by the rounding of their largest parts are equal, and those that cancel up to it are 0. A part
    of weight 0 is logged only. ``micro``: rows of one call (None:
    all). ``decode`` turns the rows of a call into data units first, so that decoded samples never lie in memory all
    together. Lists, tuples and arrays become tensors, None becomes NaN, gradients are cut. Anything that is not one
    real number a sample raises InvalidInputError.
    """
    n, device = batch_size(sample), first(sample).device
    found: list[dict[str, Tensor]] = []
    for part in torch.arange(n, device=device).split(micro_rows(micro, n)):
        some, asked = (sample, prompts) if len(part) == n else (index_rows(sample, part), _asked(prompts, part))
        seen = some if decode is None else decode(some)
        said = reward(tree_map(Tensor.clone, seen) if seen is sample else seen, asked)  # it may write into what it sees
        named = said if isinstance(said, Mapping) else {"reward": said}
        found.append({name: _numbers(value, name, len(part), device) for name, value in named.items()})
    count_usage("reward_calls", n)
    if not found[0] or any(part.keys() != found[0].keys() for part in found):
        told = "no parts" if not found[0] else "other parts for other samples"
        raise InvalidInputError(
            f"the reward has {told}: return a tensor of shape ({n},), or the same named parts for all"
        )
    parts = {name: torch.cat([part[name] for part in found]) for name in found[0]}
    weights = weights or dict.fromkeys(parts, 1.0)
    for name, weight in weights.items():
        if name not in parts:
            raise InvalidInputError(unknown_name_message(name, parts, "part of the reward"))
        if not isinstance(weight, int | float) or not math.isfinite(weight):
            raise InvalidInputError(f"the weight of the reward's {name!r} is {weight!r}: give a finite number")
    total, largest = torch.zeros(n, device=device), torch.zeros(n, device=device)
    for name, weight in weights.items():
        if weight:
            part = weight * parts[name]
            total, largest = total + part, torch.maximum(largest, part.abs())
    return _tied(total, resolution(largest)), parts


def _tied(total: Tensor, rounding: Tensor) -> Tensor:
    """Return totals [n] that tie where they differ by less than the ``rounding`` [n] of what they are sums of.

    From below, each total takes the value of the first that is so near; where nothing cancels they stay as they are.
    """
    total = torch.where(total.abs() < rounding, 0.0, total)
    if not bool((rounding > resolution(total.abs())).any()):
        return total
    order = total.argsort()
    values, steps = total[order].tolist(), rounding[order].tolist()
    first, step = values[0], steps[0]
    for i, value in enumerate(values):
        if abs(value - first) < max(step, steps[i]):
            values[i] = first
        else:
            first, step = value, steps[i]
    return total.scatter(0, order, torch.tensor(values, dtype=total.dtype, device=total.device))


def _numbers(value: Any, name: Any, n: int, device: torch.device) -> Tensor:
    """Return ``value`` as float32 [n] on ``device``. Raise InvalidInputError that names the part if it is anything
    else."""
    found = _dense(value) if isinstance(value, Tensor) else _array(value)
    if found is None or found.is_complex() or found.shape != (n,):
        what = f"{type(value).__name__} of what is no number" if found is None else f"{tuple(found.shape)}"
        what = "None" if value is None else "complex" if found is not None and found.is_complex() else what
        raise InvalidInputError(f"the reward's {name!r} is {what} for {n} samples: return a tensor of shape ({n},)")
    return found.float().to(device)


def _dense(value: Tensor) -> Tensor | None:
    """Return a tensor without its gradient, and sparse ones whole; None if it holds no numbers, or lists of them."""
    if value.is_meta or value.is_nested:
        return None
    return value.detach() if value.layout is torch.strided else value.detach().to_dense()


def _array(value: Any) -> Tensor | None:
    """Return a list, tuple or array of real numbers as a tensor, NaN where it holds None; None if it is anything else.

    Strings that look like numbers are no numbers.
    """
    try:
        if isinstance(value, list | tuple):
            value = [v.tolist() if isinstance(v, Tensor) else v for v in value]
        if isinstance(value, np.ma.MaskedArray):
            value = value.tolist()  # None where masked
        array = np.asarray(value)
        if array.dtype == object:
            array = np.array([math.nan if v is None else v for v in array.flat]).reshape(array.shape)
        return torch.from_numpy(array.astype(np.float64)) if array.dtype.kind in "biuf" else None
    except (TypeError, ValueError):  # ragged lists, objects without a number
        return None


def micro_rows(micro: int | None, n: int) -> int:
    """Return the rows of one call, n by default. Raise InvalidInputError if there are none."""
    if micro is not None and micro < 1:
        raise InvalidInputError(f"micro_batch_size is a number of rows of one call, at least 1, not {micro}.")
    return max(n, 1) if micro is None else micro


def prompt_count(prompts: Tree | int | None) -> int:
    """Return how many prompts there are to ask: 1 for None or a number of rows, which ask for nothing.

    Raise InvalidInputError for texts and whatever else is no tree of tensors [P, ...] of one length.
    """
    if prompts is None or isinstance(prompts, int):
        return 1
    found = list(leaves(tensors(prompts)))
    for leaf in found:
        if not isinstance(leaf, Tensor):
            what = "texts" if isinstance(leaf, str) else f"of type {type(leaf).__name__}"
            raise InvalidInputError(
                f"The prompts are {what}: give a tree of tensors [P, ...]. Encode texts once, with the model's own "
                "encoder or tokenizer (denoiserl.integrations.diffusers.prompts(pipeline, texts))."
            )
    lengths = {len(leaf) if leaf.ndim else 0 for leaf in found}
    if len(lengths) != 1 or 0 in lengths:
        raise InvalidInputError(
            f"Prompts are a tree of tensors [P, ...] of one length, at least 1, not {sorted(lengths)}."
        )
    return lengths.pop()


def repeat_prompts(prompts: Tree | int | None, index: Tensor, group: int) -> Tree:
    """Return the prompts ``index`` [P], each repeated ``group`` times in a row: [P · group, ...] on its device.

    So groups are an axis. Arrays of numpy and lists of numbers become tensors, float64 the default dtype. None or a
    number of rows asks for nothing: None.
    """
    if prompts is None or isinstance(prompts, int):
        return None

    def asked(leaf: Tensor) -> Tensor:
        some = leaf[index.to(leaf.device)].repeat_interleave(group, 0).to(index.device)
        return some.to(torch.get_default_dtype()) if some.dtype == torch.float64 else some

    return tree_map(asked, tensors(prompts))


def _asked(prompts: Tree, part: Tensor) -> Tree:
    """Return the rows ``part`` of prompts, wherever they are."""
    return tree_map(lambda v: v[part.to(v.device)], prompts)
