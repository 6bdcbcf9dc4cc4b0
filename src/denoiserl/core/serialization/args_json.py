"""Convert a recipe's ``Args`` to JSON and back, so that a run folder records its settings and can be run again."""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from denoiserl.core.errors import RunError, unknown_name_message

KIND = "kind"


def to_json(value: Any, at: str = "args") -> Any:
    """Convert a value of ``Args`` (dataclass, scalar, list, dict, Path, Enum ...) to JSON; inner ones get a kind."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        named = {f.name: to_json(getattr(value, f.name), f"{at}.{f.name}") for f in dataclasses.fields(value) if f.init}
        return named if "." not in at else {KIND: type(value).__name__, **named}
    if isinstance(value, enum.Enum):
        return value.name
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [to_json(v, f"{at}.{i}") for i, v in enumerate(value)]
    if isinstance(value, dict) and all(isinstance(k, str) for k in value):
        return {k: to_json(v, f"{at}.{k}") for k, v in value.items()}
    raise RunError(f"{at} is a {type(value).__name__}: args are values (numbers, strings, paths, dataclasses of them).")


def from_json(cls: Any, value: Any, at: str = "args") -> Any:
    """Invert ``to_json`` for the type ``cls``; absent fields get their defaults. Raise RunError for unknown fields."""
    origin, parts = typing.get_origin(cls), typing.get_args(cls)
    if origin is typing.Annotated:
        return from_json(parts[0], value, at)
    if origin in (typing.Union, types.UnionType):
        return from_json(_member(parts, value), value, at)
    if dataclasses.is_dataclass(cls):
        hints = typing.get_type_hints(cls, include_extras=True)
        fields = {f.name for f in dataclasses.fields(cls) if f.init}
        given = {k: v for k, v in value.items() if k != KIND or KIND in fields}
        for name in given.keys() - fields:
            raise RunError(f"{at}: {unknown_name_message(name, fields, 'field')} Was it written by another version?")
        return typing.cast(Any, cls)(**{k: from_json(hints[k], v, f"{at}.{k}") for k, v in given.items()})
    if origin in (list, tuple) or cls is tuple:
        each = parts if origin is tuple and parts and parts[-1] is not Ellipsis else (parts or (Any,))[:1] * len(value)
        return (list if origin is list else tuple)(from_json(c, v, at) for c, v in zip(each, value, strict=True))
    if origin is dict:
        return {k: from_json(parts[1], v, at) for k, v in value.items()}
    if isinstance(cls, type) and issubclass(cls, enum.Enum):
        return cls[value]
    if isinstance(cls, type) and issubclass(cls, Path):
        return cls(value)
    return float(value) if cls is float and isinstance(value, int) else value


def flat(args: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """Return nested options as one level: ``{"model": {"lr": 1}}`` becomes ``{"model.lr": 1}``.

    Names of classes are left out. A key that ends in a dot is already a prefix.
    """
    found: dict[str, Any] = {}
    for key, value in args.items():
        if isinstance(value, dict) and (value or key.endswith(".")):
            found |= flat(value, f"{at}{key}".rstrip(".") + ".")
        elif not (at and key == KIND):
            found[at + key] = value
    return found


def diff_settings(old: Any, new: Any, at: str = "") -> list[str]:
    """Return where two JSON values differ, one sentence per field: ``args.lr: 0.001 there, 0.01 here``."""
    if isinstance(old, dict) and isinstance(new, dict):
        found: list[str] = []
        for key in dict.fromkeys([*old, *new]):
            found += diff_settings(old.get(key), new.get(key), f"{at}.{key}".strip("."))
        return found
    return [] if old == new and type(old) is type(new) else [f"{at}: {old!r} there, {new!r} here"]


def _member(parts: tuple[Any, ...], value: Any) -> Any:
    """Return the member of a union that fits ``value``."""
    bare = [typing.get_args(p)[0] if typing.get_origin(p) is typing.Annotated else p for p in parts]
    if value is None:
        return type(None)
    if isinstance(value, dict):
        for cls in bare:
            if getattr(cls, "__name__", None) == value.get(KIND):
                return cls
    for cls in bare:
        if isinstance(cls, type) and type(value) is cls:
            return cls
    if isinstance(value, str):
        for cls in bare:
            if isinstance(cls, type) and issubclass(cls, Path):
                return cls
    for cls in bare:
        if isinstance(value, list) and typing.get_origin(cls) in (list, tuple):
            return cls
    return Any
