"""Settings with checked values: the ranges stand at the fields, and are checked when a record is made.

    @dataclass(frozen=True)
    class Args(Settings):
        lr: Positive = 3e-4
        gamma: Fraction = 0.99
        sampler: Literal["train", "eval"] = "eval"

Python and the command line make the same record, so both refuse the same values before anything runs.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Len, Lt

from denoiserl.core.errors import RunError, unknown_name_message

Count = Annotated[int, Ge(1)]
"""a whole number of at least 1"""
CountOrZero = Annotated[int, Ge(0)]
"""a whole number of at least 0"""
Positive = Annotated[float, Gt(0)]
"""a number above 0"""
NonNegative = Annotated[float, Ge(0)]
"""a number of at least 0"""
Fraction = Annotated[float, Ge(0), Le(1)]
"""a number from 0 to 1"""
PositiveFraction = Annotated[float, Gt(0), Le(1)]
"""a number above 0, up to 1"""

SIGNS: dict[type, tuple[str, str, Callable[[Any, Any], bool]]] = {
    Ge: ("ge", "at least", lambda value, end: value >= end),
    Gt: ("gt", "above", lambda value, end: value > end),
    Le: ("le", "at most", lambda value, end: value <= end),
    Lt: ("lt", "below", lambda value, end: value < end),
}


class Settings:
    """The base of settings (frozen dataclasses). A value outside its field's type or range raises RunError."""

    def __post_init__(self) -> None:
        check_settings(self)


def check_settings(settings: Any) -> None:
    """Raise RunError for the first field of a dataclass whose value does not fit its annotation.

    The checks cover ``Annotated`` ranges (annotated-types), ``Literal`` words, whole and finite numbers, and the parts
    of tuples. Fields of other types are not checked.
    """
    hints = typing.get_type_hints(type(settings), include_extras=True)
    for field in dataclasses.fields(settings):
        if problem := find_problem(hints[field.name], getattr(settings, field.name), field.name):
            raise RunError(problem)


def find_problem(kind: Any, value: Any, name: str) -> str:
    """Return what is wrong with a value of this type, and what to do; "" if nothing is."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in parts:
            return ""
        found = [find_problem(part, value, name) for part in parts if part is not type(None)]
        return "" if "" in found else found[0]
    if origin is Annotated:
        return find_problem(parts[0], value, name) or _outside(kind, parts[1:], value, name)
    if origin is Literal:
        known = [str(word) for word in parts]
        return "" if value in parts else f"{name}: {unknown_name_message(str(value), known, 'value')}"
    if origin is tuple and isinstance(value, tuple | list):
        each = parts[:1] * len(value) if parts and parts[-1] is Ellipsis else parts
        if len(each) != len(value):
            return f"{name} = {value} has {len(value)} values: give {len(each)}"
        return next((p for k, v in zip(each, value, strict=True) if (p := find_problem(k, v, name))), "")
    if kind is bool:
        return "" if isinstance(value, bool) else f"{name} = {value!r} is not a bool: give True or False"
    if kind is int and (isinstance(value, bool) or not isinstance(value, numbers.Integral)):
        return f"{name} = {value!r} is not a whole number: give one"
    if kind is float and (isinstance(value, bool) or not isinstance(value, numbers.Real)):
        return f"{name} = {value!r} is not a number: give one"
    if kind is float and not math.isfinite(value):
        return f"{name} = {value} is not finite: give a number"
    if kind is str and not isinstance(value, str | Path):
        return f"{name} = {value!r} is not text: give a string"
    return ""


def _outside(kind: Any, rules: tuple[Any, ...], value: Any, name: str) -> str:
    for rule in rules:
        if isinstance(rule, Len) and len(value) < rule.min_length:
            return f"{name} = {value} has {len(value)} values: give at least {rule.min_length}"
        if type(rule) in SIGNS:
            field, _, fits = SIGNS[type(rule)]
            if not fits(value, getattr(rule, field)):
                return f"{name} = {value} is out of range: give a number that is {describe_range(kind)}"
    return ""


def describe_range(kind: Any) -> str:
    """Return the range of an annotation in words, "above 0 and at most 1"; "" if it has none."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return next((words for part in typing.get_args(kind) if (words := describe_range(part))), "")
    rules = typing.get_args(kind)[1:] if typing.get_origin(kind) is Annotated else ()
    return " and ".join(f"{SIGNS[type(r)][1]} {getattr(r, SIGNS[type(r)][0])}" for r in rules if type(r) in SIGNS)
