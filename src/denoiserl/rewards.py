"""Reward functions. A reward is any function ``(sample, prompts) -> [B]``, or -> named parts {name: [B]}.

``sample`` is in data units and ``prompts`` has one row per sample (None where there are none). Every named part is
logged; methods learn from their total.
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
from denoiserl.core.tree import Tree, batch_size, first, index_rows, leaves, micro_rows, tensors, tree_map

Reward = Callable[[Any, Any], Tensor | Sequence[Any] | np.ndarray | Mapping[str, Any]]
"""``(sample, prompts) -> [B]``: a tensor, an array or a list of numbers, or named parts of them; None is missing"""


class RewardSignal(NamedTuple):
    """A reward and the prompts [N, ...] to draw from: the signal of methods that learn from a reward function.

    ``prompts`` is a tree with one row per prompt, or the number of samples where a generator has no prompts.
    """

    reward: Reward
    prompts: Tree | int | None = None

    def __repr__(self) -> str:
        name = getattr(self.reward, "__name__", type(self.reward).__name__)
        n = self.prompts if self.prompts is None or isinstance(self.prompts, int) else batch_size(self.prompts)
        return f"RewardSignal({name}, {'no' if n is None else n} prompts)"


def as_reward_signal(signal: Any) -> RewardSignal:
    """Return a pair (reward, prompts) as a ``RewardSignal``. Raise InvalidInputError for anything else."""
    if not isinstance(signal, tuple | list) or len(signal) != 2 or not callable(signal[0]):
        raise InvalidInputError(
            f"this method learns from a reward and prompts, not from a {type(signal).__name__}: give "
            "RewardSignal(reward, prompts) (denoiserl.rewards), with prompts=None where there are none"
        )
    reward: Any = signal[0]
    return RewardSignal(reward, tensors(signal[1]))


class RewardResult(NamedTuple):
    """``total`` [B] (NaN where dropped), ``valid`` [B] bool, ``parts`` {name: [B]}, ``dropped``: number of NaN."""

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
    micro_batch_size: int | None = None,
    decode: Callable[[Tree], Tree] | None = None,
) -> RewardResult:
    """Return the rewards of ``rate`` after a check that all are finite: one float32 number per sample.

    For NaN or infinite totals, raise InvalidInputError with their indices (``error``), or mark and count them
    (``drop``).
    """
    total, parts = rate(reward, sample, prompts, weights, micro_batch_size, decode)
    checked = mask_invalid_rewards(total, invalid_rewards)
    return RewardResult(checked.reward, checked.valid, parts, checked.count)


@torch.no_grad()
def rate(
    reward: Reward,
    sample: Tree,
    prompts: Tree,
    weights: Mapping[str, float] | None = None,
    micro_batch_size: int | None = None,
    decode: Callable[[Tree], Tree] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the total [B] and the parts {name: [B]} of a reward, float32 on the device of ``sample``.

    The total of named parts is Σ weight · part, over ``weights`` if given, else over all parts with weight 1. Totals
    that differ by the rounding of their largest parts are equal, and totals below that rounding are 0. A part of weight
    0 is only logged. ``micro_batch_size``: rows per call (None: all). ``decode`` converts the rows of one call to data
    units, so that decoded samples are never in memory all together. Lists, tuples and arrays become tensors, None
    becomes NaN, and gradients are detached. Raise InvalidInputError for anything that is not one real number per
    sample.
    """
    n, device = batch_size(sample), first(sample).device
    found: list[dict[str, Tensor]] = []
    for part in torch.arange(n, device=device).split(micro_rows(micro_batch_size, n)):
        rows, some = (sample, prompts) if len(part) == n else (index_rows(sample, part), _prompt_rows(prompts, part))
        decoded = rows if decode is None else decode(rows)
        # a copy, because a reward may write into its input
        value = reward(tree_map(Tensor.clone, decoded) if decoded is sample else decoded, some)
        named = value if isinstance(value, Mapping) else {"reward": value}
        found.append({name: _numbers(value, name, len(part), device) for name, value in named.items()})
    count_usage("reward_calls", n)
    if not found[0] or any(part.keys() != found[0].keys() for part in found):
        problem = "no parts" if not found[0] else "different parts for different samples"
        raise InvalidInputError(
            f"the reward has {problem}: return a tensor of shape ({n},), or the same named parts for all"
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
    """Return totals [n] in which differences below the ``rounding`` [n] of their summands are removed.

    In ascending order, each total takes the value of the first one within the rounding. Without cancellation the totals
    are unchanged.
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
    """Return ``value`` as float32 [n] on ``device``. Raise InvalidInputError with the part's name if it cannot be."""
    found = _dense(value) if isinstance(value, Tensor) else _array(value)
    if found is None or found.is_complex() or found.shape != (n,):
        what = f"{type(value).__name__} of non-numbers" if found is None else f"{tuple(found.shape)}"
        what = "None" if value is None else "complex" if found is not None and found.is_complex() else what
        raise InvalidInputError(f"the reward's {name!r} is {what} for {n} samples: return a tensor of shape ({n},)")
    return found.float().to(device)


def _dense(value: Tensor) -> Tensor | None:
    """Return a tensor as dense and without gradient; None for meta and nested tensors."""
    if value.is_meta or value.is_nested:
        return None
    return value.detach() if value.layout is torch.strided else value.detach().to_dense()


def _array(value: Any) -> Tensor | None:
    """Return a list, tuple or array of real numbers as a tensor, NaN where it holds None; return None for all else.

    Strings of digits are not numbers.
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


def prompt_count(prompts: Tree | int | None) -> int:
    """Return the number of prompts; 1 for None or a number of rows, which stand for samples without prompts.

    Raise InvalidInputError for texts and for anything else that is not a tree of tensors [P, ...] of one length.
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
    """Return the prompts ``index`` [P], each ``group`` times in a row: [P · group, ...] on the device of ``index``.

    Numpy arrays and lists of numbers become tensors; float64 becomes the default dtype. Return None for None or a
    number of rows.
    """
    if prompts is None or isinstance(prompts, int):
        return None

    def repeat(leaf: Tensor) -> Tensor:
        some = leaf[index.to(leaf.device)].repeat_interleave(group, 0).to(index.device)
        return some.to(torch.get_default_dtype()) if some.dtype == torch.float64 else some

    return tree_map(repeat, tensors(prompts))


def _prompt_rows(prompts: Tree, part: Tensor) -> Tree:
    """Return the rows ``part`` of prompts, on the prompts' own device."""
    return tree_map(lambda v: v[part.to(v.device)], prompts)
