"""Trees of tensors: a tensor, or a dict of trees. The first axis of the leaves is the batch."""

from __future__ import annotations

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
    """Convert numpy arrays and lists of numbers in a tree to tensors; their float64 becomes float32."""
    if isinstance(tree, list) and _numbers(tree):
        try:
            tree = np.array(tree)
        except ValueError:  # lists of different lengths
            return tree
    if isinstance(tree, np.ndarray) and tree.dtype.kind in "biuf":
        return torch.tensor(tree.astype(np.float32) if tree.dtype == np.float64 else tree.copy(), device=device)
    if isinstance(tree, dict):
        return {k: tensors(v, device) for k, v in tree.items()}
    return [tensors(v, device) for v in tree] if isinstance(tree, list) else tree


def _numbers(tree: list[Any]) -> bool:
    """Return whether nested lists hold only numbers."""
    return bool(tree) and all(_numbers(v) if isinstance(v, list) else isinstance(v, int | float) for v in tree)


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
    return all(bool(leaf.sum().isfinite()) or bool(leaf.isfinite().all()) for leaf in floats)


def first(tree: Any) -> Tensor:
    """Return the first leaf. Raise InvalidInputError if it is not a tensor."""
    for leaf in leaves(tree):
        if not hasattr(leaf, "shape"):
            raise InvalidInputError(
                f"a leaf is a {type(leaf).__name__}, not a tensor: encode texts first, with the model's encoder"
            )
        return leaf
    raise InvalidInputError("an empty tree has no rows")


def batch_size(tree: Any) -> int:
    """Return the length of the leading axis."""
    return first(tree).shape[0]


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
