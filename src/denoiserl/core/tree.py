"""Trees of tensors: a tensor, or a dict of trees. The first axis of the leaves is the batch."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError

Tree = Any
"""A tensor, or a dict of trees. ``Any`` to the type checker: a union would have to be narrowed at every use."""


def tree_map(f: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Apply ``f`` to every leaf (of parallel trees); ``None`` stays ``None``; tuples and lists are nodes."""
    if tree is None:
        return None
    if isinstance(tree, dict):
        return {k: tree_map(f, v, *(r[k] for r in rest)) for k, v in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)(tree_map(f, *leaves) for leaves in zip(tree, *rest, strict=True))
    return f(tree, *rest)


def tensors(tree: Any, device: torch.device | str = "cpu") -> Any:
    """Convert arrays (of numpy, or with ``__array__``) and lists of numbers in a tree to tensors.

    Their float64 becomes float32; raise InvalidInputError if a number is beyond its range. Texts are unchanged.
    """
    if isinstance(tree, dict):
        return {k: tensors(v, device) for k, v in tree.items()}
    if isinstance(tree, list) and not holds_numbers(tree):
        return [tensors(v, device) for v in tree]
    if isinstance(tree, Tensor | np.generic) or not (isinstance(tree, list) or hasattr(tree, "__array__")):
        return tree
    made = to_tensor(tree)
    return tree if made is None else to_float32(made).to(device)


def holds_numbers(tree: list[Any] | tuple[Any, ...]) -> bool:
    """Return whether nested lists hold only numbers."""
    return bool(tree) and all(
        holds_numbers(v) if isinstance(v, list | tuple) else isinstance(v, numbers.Number | np.bool_) for v in tree
    )


def to_tensor(value: Any) -> Tensor | None:
    """Return an array, or lists of numbers, as a tensor of its own memory; None if there is none of these numbers.

    The byte order becomes the machine's, and longdouble becomes float64; so do objects that are all real numbers.
    Raise InvalidInputError for an int beyond float64.
    """
    try:
        array = np.array(value)
    except (TypeError, ValueError, RuntimeError):  # lists of different lengths, tensors of another device
        return None
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        return None
    kind, size, dtype = array.dtype.kind, array.dtype.itemsize, array.dtype.newbyteorder("=")
    if kind == "O" and array.size and all(isinstance(v, numbers.Real) for v in array.flat):
        kind, dtype = "f", np.dtype(np.float64)  # ints beyond int64, for example
    elif (kind == "f" and size > 8) or (kind == "c" and size > 16):
        dtype = np.dtype(np.float64 if kind == "f" else np.complex128)
    if kind not in "biufc":
        return None
    try:
        with np.errstate(over="ignore"):
            return torch.from_numpy(array.astype(dtype, copy=False))
    except OverflowError as error:
        raise InvalidInputError(BEYOND) from error


BEYOND = "a number is beyond ±3.4e38, the range of float32: change its unit, or replace it"


def to_float32(value: Tensor) -> Tensor:
    """Return float64 as float32, and other dtypes as they are. Raise InvalidInputError if a finite number overflows."""
    if value.dtype != torch.float64:
        return value
    small = value.float()
    if not all_finite(small) and bool((small.isinf() & value.isfinite()).any()):
        raise InvalidInputError(BEYOND)
    return small


def require_tensor(cond: Any, shape: str) -> Tensor:
    """Return a condition. Raise InvalidInputError unless it is one tensor. ``shape``: the expected one, as text."""
    if isinstance(cond, Tensor):
        return cond
    found, remedy = f"a {type(cond).__name__}", "give rows of equal lengths, numpy.stack(rows)"
    if cond is None:
        found, remedy = "None", "give a batch of them"
    elif isinstance(cond, str | bytes):
        remedy = "give numbers"
    elif isinstance(cond, dict):
        found = f"a dict with {', '.join(map(repr, cond)) or 'nothing'}"
        remedy = "give the array of one part, or join all (gymnasium.wrappers.FlattenObservation)"
    raise InvalidInputError(f"this policy needs conditions (observations) as one array {shape}, not {found}: {remedy}")


def leaves(tree: Any) -> Iterator[Tensor]:
    """Yield every tensor of a tree, in order."""
    if isinstance(tree, dict):
        for v in tree.values():
            yield from leaves(v)
    elif isinstance(tree, tuple | list):
        for v in tree:
            yield from leaves(v)
    elif tree is not None:
        yield tree


def describe_shapes(tree: Any, axes: int = 0) -> str:
    """Return the shapes of the leaves without their leading ``axes``: "[2]", or "{image [3, 8, 8], state [2]}"."""
    if isinstance(tree, dict):
        return "{" + ", ".join(f"{k} {describe_shapes(v, axes)}" for k, v in tree.items()) + "}"
    return "none" if tree is None else str(list(tree.shape[axes:]))


def all_finite(tree: Any) -> bool:
    """Return whether no leaf holds NaN or infinity.

    A finite sum shows it in one pass without allocation; only where the sum is not finite, every number is checked.
    """
    floats = (leaf for leaf in leaves(tree) if leaf.is_floating_point())
    return all(math.isfinite(leaf.sum().item()) or bool(leaf.isfinite().all()) for leaf in floats)


def first(tree: Any) -> Tensor:
    """Return the first leaf. Raise InvalidInputError if it is not a tensor."""
    for leaf in leaves(tree):
        if not hasattr(leaf, "shape"):
            raise InvalidInputError(
                f"a condition holds a {type(leaf).__name__}, not an array of numbers: give rows of equal lengths; "
                "encode texts first, with the model's encoder"
            )
        return leaf
    raise InvalidInputError("an empty condition has no rows: give a tensor [B, ...], or None and the number rows=B")


def batch_size(tree: Any) -> int:
    """Return the length of the leading axis."""
    if not (shape := first(tree).shape):
        raise InvalidInputError("a single number has no rows: give a tensor [B, ...]")
    return shape[0]


def index_rows(tree: Any, index: Any) -> Any:
    """Index every leaf along the leading axis (or axes)."""
    return tree_map(lambda v: v[index], tree)


def cat(trees: list[Any], dim: int = 0) -> Any:
    """Concatenate parallel trees."""
    if len(trees) == 1:
        return trees[0]
    return tree_map(lambda *v: torch.cat(v, dim), trees[0], *trees[1:])


def expand_right(coefficient: Tensor, like: Tensor) -> Tensor:
    """Append singleton axes so that a batch-shaped coefficient multiplies ``like``."""
    return coefficient.reshape(coefficient.shape + (1,) * (like.ndim - coefficient.ndim))


def micro_rows(micro_batch_size: int | None, n: int) -> int:
    """Return the number of rows per call, n by default. Raise InvalidInputError if it is below 1."""
    if micro_batch_size is not None and micro_batch_size < 1:
        raise InvalidInputError(f"micro_batch_size is the number of rows per call, at least 1, not {micro_batch_size}.")
    return max(n, 1) if micro_batch_size is None else micro_batch_size
