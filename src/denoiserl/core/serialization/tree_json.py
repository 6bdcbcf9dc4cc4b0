"""A tree as JSON that names its tensors: every JSON object has one member, whose name is its type."""

from __future__ import annotations

import math
from typing import Any

import numpy
import torch
from torch import Tensor

from denoiserl.core.errors import RunError


def encode(tree: Any) -> tuple[Any, dict[str, Tensor]]:
    """Return the JSON of a tree, and its tensors by name. Raise RunError with the position of any other value."""
    tensors: dict[str, Tensor] = {}
    return _encode(tree, (), tensors, {}), tensors


def _encode(node: Any, at: tuple[str, ...], tensors: dict[str, Tensor], seen: dict[Any, tuple[str, Tensor]]) -> Any:
    if isinstance(node, numpy.generic):
        node = node.item()
    if isinstance(node, Tensor):
        return _encode_tensor(node, at, tensors, seen)
    if node is None or type(node) in (bool, int, str):
        return node
    if type(node) is float:
        return node if math.isfinite(node) else {"float": repr(node)}
    if isinstance(node, dict):
        items = [(_key(k, at), _encode(v, (*at, str(k)), tensors, seen)) for k, v in node.items()]
        return {"dict": dict(items)} if all(isinstance(k, str) for k in node) else {"items": [[k, v] for k, v in items]}
    if type(node) in (list, tuple, torch.Size):
        found = [_encode(v, (*at, str(i)), tensors, seen) for i, v in enumerate(node)]
        return found if isinstance(node, list) else {"tuple": found}
    kind = type(node).__name__
    cure = "torch.from_numpy turns it into a tensor" if isinstance(node, numpy.ndarray) else "turn it into one of them"
    raise RunError(
        f"{_place(at)} is a {kind}; dict, list, tuple, None, bool, int, float, str and tensors are stored: {cure}."
    )


def _key(key: Any, at: tuple[str, ...]) -> Any:
    if isinstance(key, numpy.generic):
        key = key.item()
    if type(key) in (str, int, bool) or key is None or (type(key) is float and math.isfinite(key)):
        return key
    raise RunError(f"{_place(at)} has the key {key!r}: keys are str, int, bool, None or finite floats.")


def _encode_tensor(
    value: Tensor, at: tuple[str, ...], tensors: dict[str, Tensor], seen: dict[Any, tuple[str, Tensor]]
) -> Any:
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        raise RunError(f"{_place(at)} is a sparse, quantised or meta tensor: make it dense before it is stored.")
    value = value.detach()
    tag = "complex" if value.is_complex() else "tensor"
    value = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value.resolve_neg()
    same = (value.data_ptr(), value.dtype, value.shape, value.stride(), value.device)
    if same not in seen:
        name = ".".join(at) or "tensor"
        while name in tensors or name == "__metadata__":
            name += "_"
        # A clone wherever memory is shared: safetensors refuses two views of one buffer.
        tensors[name] = value.cpu().clone(memory_format=torch.contiguous_format)
        seen[same] = name, value  # held, so that its address is not used again
    return {tag: seen[same][0]}


def decode(node: Any, tensors: dict[str, Tensor] | None) -> Any:
    """Return the tree of a JSON of ``encode``; without ``tensors`` each is replaced by its name."""
    if isinstance(node, list):
        return [decode(v, tensors) for v in node]
    if not isinstance(node, dict):
        return node
    ((tag, value),) = node.items()
    if tag == "dict":
        return {k: decode(v, tensors) for k, v in value.items()}
    if tag == "items":
        return {k: decode(v, tensors) for k, v in value}
    if tag == "tuple":
        return tuple(decode(v, tensors) for v in value)
    if tag == "float":
        return float(value)
    if tensors is None:
        return value
    return tensors[value] if tag == "tensor" else torch.view_as_complex(tensors[value])


def _place(at: tuple[str, ...]) -> str:
    return f"The entry {'.'.join(at)!r}" if at else "The tree"
