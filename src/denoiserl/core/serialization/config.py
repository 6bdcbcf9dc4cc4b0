"""Convert records and modules to plain trees and back, so that a policy is saved without pickle.

A frozen dataclass becomes its class's name and its fields; a module its class's name and its ``config`` (the keyword
arguments of its constructor). Names resolve to classes of this package only; the caller passes any other network.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

from torch import Tensor, nn

from denoiserl.core.errors import RunError

HOME = "denoiserl."


def to_config(thing: Any) -> Any:
    """Convert ``thing`` to a tree of numbers, strings, tensors, dicts and lists; ``from_config`` is the inverse."""
    if thing is None or isinstance(thing, bool | int | float | str | Tensor):
        return thing
    if isinstance(thing, tuple | list):
        return [to_config(v) for v in thing] if isinstance(thing, list) else {"tuple": [to_config(v) for v in thing]}
    if isinstance(thing, dict):
        return {"dict": {k: to_config(v) for k, v in thing.items()}}
    name = f"{type(thing).__module__}.{type(thing).__qualname__}"
    if dataclasses.is_dataclass(thing):
        fields = {f.name: to_config(getattr(thing, f.name)) for f in dataclasses.fields(thing) if f.init}
        return {"record": name, "fields": fields}
    if isinstance(thing, nn.Module) and name.startswith(HOME) and hasattr(thing, "config"):
        return {"module": name, "config": {k: to_config(v) for k, v in thing.config.items()}}  # type: ignore[union-attr]
    if isinstance(thing, nn.Module):
        return {"foreign": name}
    raise RunError(
        f"a {name} cannot be saved: use numbers, strings, tensors, frozen dataclasses or modules with .config"
    )


def foreign_network(tree: Any) -> str | None:
    """Return the name of the first network of another package in a tree of ``to_config``; None if there is none."""
    if isinstance(tree, dict) and isinstance(tree.get("foreign"), str):
        return tree["foreign"]
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
    return next((name for name in map(foreign_network, parts) if name is not None), None)


def _resolve(name: str) -> type:
    if not name.startswith(HOME):
        raise RunError(f"{name} is not a class of denoiserl: only classes of this package are loaded by name")
    module, _, cls = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), cls)
    except (ImportError, AttributeError) as error:
        raise RunError(f"{name} is not in this version of denoiserl ({error}): use the one that saved it") from error


def from_config(tree: Any, net: nn.Module | None = None) -> Any:
    """Build the object of a tree that ``to_config`` made. ``net`` replaces a network of another package.

    Raise RunError for a foreign network without ``net``, and for classes or fields that this version does not have.
    """
    if not isinstance(tree, dict):
        return [from_config(v, net) for v in tree] if isinstance(tree, list) else tree
    if "tuple" in tree:
        return tuple(from_config(v, net) for v in tree["tuple"])
    if "dict" in tree:
        return {k: from_config(v, net) for k, v in tree["dict"].items()}
    if "foreign" in tree:
        if net is None:
            raise RunError(f"this policy's network is a {tree['foreign']}: make it and pass it, load(path, net=...)")
        return net
    if "record" in tree:
        cls, given = _resolve(tree["record"]), tree["fields"]
        if not dataclasses.is_dataclass(cls):
            raise RunError(f"{tree['record']} is not a record")
    else:
        cls, given = _resolve(tree["module"]), tree["config"]
        if not issubclass(cls, nn.Module):
            raise RunError(f"{tree['module']} is not a module")
    try:
        return cls(**{k: from_config(v, net) for k, v in given.items()})
    except TypeError as error:
        raise RunError(
            f"{cls.__name__} has other fields in this version of denoiserl ({error}): use the one that saved it"
        ) from error
