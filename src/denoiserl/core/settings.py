"""Settings with checked values: the ranges stand at the fields, and are checked when a record is made.

    @dataclass(frozen=True)
    class Args(Settings):
        lr: Positive = 3e-4
        gamma: Fraction = 0.99
        sampler: Literal["train", "eval"] = "eval"

Fields that must fit each other are checked by ``check_relations``, which a record overrides. A field that is a record
of settings also accepts a dict of the settings that differ from its default. Python and the command line make the same
record, so both refuse the same values before anything runs.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Len, Lt

from denoiserl.core.errors import RunError, unknown_name_message

Count = Annotated[int, Ge(1)]
"""a whole number of at least 1"""
CountOrZero = Annotated[int, Ge(0)]
"""a whole number of at least 0"""
Seed = Annotated[int, Ge(0), Lt(2**32)]
"""a random seed: numpy and Gymnasium take no larger one"""
CountFromTwo = Annotated[int, Ge(2)]
"""a whole number of at least 2"""
Positive = Annotated[float, Gt(0)]
"""a number above 0"""
NonNegative = Annotated[float, Ge(0)]
"""a number of at least 0"""
Fraction = Annotated[float, Ge(0), Le(1)]
"""a number from 0 to 1"""
PositiveFraction = Annotated[float, Gt(0), Le(1)]
"""a number above 0, up to 1"""
FractionBelowOne = Annotated[float, Ge(0), Lt(1)]
"""a number of at least 0 and below 1"""
OpenFraction = Annotated[float, Gt(0), Lt(1)]
"""a number above 0 and below 1"""
Counts = Annotated[tuple[Count, ...], Len(1)]
"""one or more whole numbers of at least 1"""
Weights = Annotated[dict[str, float], "not all 0"]
"""weights by name, not all of them 0"""
Shares = Annotated[tuple[NonNegative, ...], Len(1)]
"""one or more numbers of at least 0"""

SIGNS: dict[type, tuple[str, str, Callable[[Any, Any], bool]]] = {
    Ge: ("ge", "at least", lambda value, end: value >= end),
    Gt: ("gt", "above", lambda value, end: value > end),
    Le: ("le", "at most", lambda value, end: value <= end),
    Lt: ("lt", "below", lambda value, end: value < end),
}


class Settings:
    """The base of settings (frozen dataclasses). A value outside its field's type or range raises RunError."""

    def __post_init__(self) -> None:
        open_records(self)
        check_settings(self)
        self.check_relations()

    def check_relations(self) -> None:
        """Raise RunError if fields do not fit each other. A record with such fields overrides it."""

    def check_denoising_steps(self, num_steps: int) -> None:
        """Raise RunError if the settings do not fit a policy of so many steps. A record may override it."""

    def require_fit(self, fits: bool, problem: str) -> None:
        """Raise RunError with ``problem``, which says what to do, unless the fields fit."""
        if not fits:
            raise RunError(problem)

    def require_order(self, lower: str, upper: str) -> None:
        """Raise RunError if the field ``lower`` is above the field ``upper``; None is not compared."""
        low, high = getattr(self, lower), getattr(self, upper)
        if low is not None and high is not None:
            problem = f"{lower} = {low} is above {upper} = {high}: give at most {high}, or raise {upper}"
            self.require_fit(low <= high, problem)

    def require_below(self, lower: str, upper: str) -> None:
        """Raise RunError unless the field ``lower`` is below the field ``upper``."""
        low, high = getattr(self, lower), getattr(self, upper)
        problem = f"{lower} = {low} is not below {upper} = {high}: give at most {high - 1}, or raise {upper}"
        self.require_fit(low < high, problem)

    def require_decisions(self, needed: int) -> None:
        """Raise RunError if a run takes fewer decisions, iterations · num_envs · rollout_steps, than it ``needed``."""
        size: Any = self
        decisions = size.iterations * size.num_envs * size.rollout_steps
        problem = f"iterations = {size.iterations} takes {decisions} decisions, and the first update needs {needed}"
        self.require_fit(decisions >= needed, f"{problem}: raise iterations, or lower learning_starts or batch_size")

    def require_ordered_pair(self, name: str) -> None:
        """Raise RunError if a field of two numbers has the higher one first; None is accepted."""
        if (pair := getattr(self, name)) is not None:
            self.require_fit(
                pair[0] <= pair[1], f"{name} = {pair} has the higher number first: give the lower one first"
            )


def open_records(settings: Settings) -> None:
    """Replace dicts by records, in place, where a field is a record of settings. Raise RunError for unknown names.

    A setting that a dict does not name is that of the field's default.
    """
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]
        kind, value = hints[field.name], getattr(settings, field.name)
        if not (_is_record(kind) and isinstance(value, Mapping)):
            continue
        known = [f.name for f in dataclasses.fields(kind)]
        if unknown := [str(name) for name in value if name not in known]:
            raise RunError(f"{field.name}.{unknown[0]}: {unknown_name_message(unknown[0], known, 'setting')}")
        base = kind() if field.default is dataclasses.MISSING else field.default
        try:
            object.__setattr__(settings, field.name, dataclasses.replace(base, **value))  # the record is frozen
        except RunError as error:
            raise RunError(f"{field.name}.{error}") from None


def _is_record(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Settings)


def check_settings(settings: Any) -> None:
    """Raise RunError for the first field of a dataclass whose value does not fit its annotation.

    The checks cover ``Annotated`` ranges (annotated-types), ``Literal`` words, whole and finite numbers, records of
    settings, and the parts of tuples and dicts. Fields of other types are not checked.
    """
    hints = typing.get_type_hints(type(settings), include_extras=True)
    for field in dataclasses.fields(settings):
        check_value(hints[field.name], getattr(settings, field.name), field.name)


def check_value(kind: Any, value: Any, name: str) -> None:
    """Raise RunError if a value does not fit an annotation, as ``check_settings`` does."""
    if problem := find_problem(kind, value, name):
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
    if _is_record(kind) and not isinstance(value, kind):
        return f"{name} = {value!r} is not its record of settings: give a dict or a {kind.__name__}"
    if origin is dict:
        if not isinstance(value, Mapping):
            return f"{name} = {value!r} is not a dict: give one, such as {{'name': 1.0}}"
        return next((p for k, v in value.items() if (p := find_problem(parts[1], v, f"{name}.{k}"))), "")
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return f"{name} = {value!r} is not a tuple: give one"
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
        if rule == "not all 0" and value and not any(value.values()):
            return f"{name} = {value} has no weight other than 0: give one"
        if type(rule) in SIGNS:
            field, _, fits = SIGNS[type(rule)]
            if not fits(value, getattr(rule, field)):
                return f"{name} = {value} is out of range: give a number that is {describe_range(kind)}"
    return ""


def describe_range(kind: Any) -> str:
    """Return the range of an annotation, or of its parts, in words: "above 0 and at most 1"; "" if it has none."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType, tuple):
        return next((words for part in parts if (words := describe_range(part))), "")
    if origin is not Annotated:
        return ""
    ends = [(SIGNS[type(r)][1], getattr(r, SIGNS[type(r)][0])) for r in parts[1:] if type(r) in SIGNS]
    return " and ".join(f"{word} {end}" for word, end in ends) or describe_range(parts[0])
