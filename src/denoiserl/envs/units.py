"""Compare a policy's units with those of an environment and of data.

``data.ranges.check_range`` compares data with an environment, and the ends of what a policy can do in the same way. A
policy's fitted range may exceed the bounds by a tenth, as demonstrations do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from denoiserl.data import Normalizer, RunningNormCodec, TanhCodec
from denoiserl.data.ranges import NARROW, check_range, is_tiny_range

FITTED = "what the policy was fitted to"


def inner(codec: Any) -> Any:
    """Return the codec that a task-conditioned codec (``control.zero_shot``) wraps, or the codec itself."""
    return getattr(codec, "inner", codec)


def action_range(codec: Any) -> tuple[Tensor, Tensor] | None:
    """Return the least and the greatest action [d] of a codec, infinite where unbounded; None if it is not known.

    Decisions of ``RunningNormCodec`` have no bounds; ±1 are its ends if it was made for a box.
    """
    if isinstance(codec, TanhCodec):
        middle, half = codec.centre, codec.half
    elif isinstance(codec, RunningNormCodec) and isinstance(codec.scale, Tensor):
        middle, half = torch.as_tensor(codec.centre), codec.scale
    elif isinstance(known := getattr(codec, "action", None), Normalizer):
        free = known.low.isinf() | known.high.isinf()
        middle, half = known.centre, known.scale.masked_fill(known.constant, 0.0).masked_fill(free, torch.inf)
    else:
        return None
    return (middle - half).cpu(), (middle + half).cpu()


def observation_range(codec: Any) -> Normalizer | None:
    """Return the normaliser of a codec's observations; None if it was not fitted to a range."""
    known = getattr(codec, "observation", None)
    if not isinstance(known, Normalizer):
        return None
    known = known.to("cpu")
    raw = known.share is None and bool((known.low == -1).all() and (known.high == 1).all())  # the identity's
    return None if raw else known


def numbers(codec: Any, observations: Any, dim: int) -> Tensor | None:
    """Return the rows [N, dim] that the observations' normaliser takes, one per observation of a history.

    Return None if the observations do not fit.
    """
    if isinstance(observations, dict):
        sizes = getattr(codec, "sizes", {"state": dim})
        parts = [numbers(codec, observations.get(name), size) for name, size in sizes.items()]
        known = [part for part in parts if part is not None]
        return torch.cat(known, -1) if len(known) == len(sizes) else None
    if observations is None or observations.numel() % dim:
        return None
    return observations.reshape(-1, dim).float().cpu()


def range_remarks(codec: Any, observations: Any, name: str, every: bool = False) -> list[str]:
    """Return a list with the warning about observations far outside the fitted range, or an empty list.

    Far: by more than the width of the range. ``every``: only dimensions in which all observations are outside.
    """
    codec = inner(codec)
    known = observation_range(codec)
    rows = None if known is None else numbers(codec, observations, known.dim)
    if known is None or rows is None:
        return []
    width = known.high - known.low
    over = torch.maximum(known.low - rows, rows - known.high) > width
    far = (
        (over.all(0) if every else over.any(0)) & (width > 0) & ~known.constant & ~is_tiny_range(known.low, known.high)
    )
    said = check_range(rows.masked_fill(~far, torch.nan), known.low, known.high, name, FITTED)[1]
    return [said] if said else []


def unit_remarks(codec: Any, owner: Any, spec: Any, word: str = "the policy") -> list[str]:
    """Return warnings about a policy whose actions or observations have other units than the environment.

    Actions: the codec's range against the bounds; a constant dimension is allowed. Observations: the fitted range
    against finite bounds. A part that rests uses little of its range, so that is reported only if all moving dimensions
    do.
    """
    codec, said = inner(codec), []
    known, box = action_range(codec), f"the box of {owner.name}"
    if known is not None and spec.choices is None and np.size(spec.low) == len(known[0]):
        said.append(_compared(known, spec.low, spec.high, f"the actions that {word} can take", f"{box} of actions")[1])
    seen, space = observation_range(codec), single_observation_space(owner)
    if seen is not None:
        low, high = (numbers(codec, _bounds(space, end), seen.dim) for end in ("low", "high"))
        if low is not None and high is not None:
            low, high = low[0], high[0]  # a history repeats them
            ends = f"the observations that {word} was fitted to", f"{box} of observations"
            beyond, warning = _compared((seen.low, seen.high), low, high, *ends)
            moves = (seen.high > seen.low) & (high - low).isfinite() & (seen.high - seen.low).isfinite()
            if beyond or bool((seen.high - seen.low < NARROW * (high - low))[moves].all()):
                said.append(warning)
    return [sentence for sentence in said if sentence]


def _compared(ends: tuple[Tensor, Tensor], low: Any, high: Any, name: str, box: str) -> tuple[bool, str]:
    rows = torch.stack(ends)
    rows = rows.masked_fill(rows.isinf(), torch.nan)  # dimensions without bounds are not compared
    return check_range(rows, low, high, name, box, constant=False, slack=NARROW, ends=True)


def single_observation_space(owner: Any) -> Any:
    """Return the observation space of one environment, where its backend (``Collector.owner``) has it."""
    envs = getattr(owner, "envs", None) or getattr(owner, "world", None)
    one = envs[0] if isinstance(envs, list) else envs
    return getattr(one, "single_observation_space", None) or getattr(one, "observation_space", None)


def _bounds(space: Any, end: str) -> Any:
    """Return the low or the high end of a space as a tree of tensors, None where it has none."""
    if isinstance(spaces := getattr(space, "spaces", None), dict):
        return {name: _bounds(each, end) for name, each in spaces.items()}
    bound = getattr(space, end, None)
    return None if bound is None else torch.as_tensor(np.asarray(bound, np.float32))
