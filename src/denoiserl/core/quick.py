"""Quick trials: settings at a fiftieth of their work, which show that everything runs, and nothing else."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from denoiserl.core.errors import RunError

T = TypeVar("T")

SCALE = 50
"""the work of a quick trial is a fiftieth"""
AMOUNTS = {
    "iterations": 2,
    "num_updates": 2,
    "pretrain_updates": 2,
    "decoder_updates": 2,
    "student_updates": 2,
    "num_synthetic": 500,
    "num_demos": 3,
    "num_episodes": 8,
    "num_student_episodes": 2,
    "learning_starts": 1,
    "decisions_per_refill": 256,
    "critic_warmup": 0,
    "trials": 4,
    "episodes": 4,
}
"""{setting that is an amount of work: its smallest number in a quick trial}"""
NOTE = "A quick trial, at a fiftieth of the work: its numbers only show that everything runs."


def reduce_amount(name: str, amount: int) -> int:
    """Return a fiftieth of an amount of work, rounded up, and at least its smallest number; never more than before."""
    least = AMOUNTS[name]
    return min(amount, max(least, -(-amount // SCALE) if least else amount // SCALE))


def quick_settings(settings: T) -> T:
    """Return settings with a fiftieth of the work in all amounts, also in the records that they hold.

    If they do not fit each other, there are as many more iterations as it takes.
    """
    reduced: dict[str, int] = {}
    parts: dict[str, Any] = {}
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            parts[field.name] = quick_settings(value)
        elif field.name in AMOUNTS and isinstance(value, int):
            reduced[field.name] = reduce_amount(field.name, value)
    length = next((name for name in ("iterations", "num_updates") if name in reduced), None)
    longest = getattr(settings, length) if length else 0
    while True:
        try:
            return dataclasses.replace(settings, **reduced, **parts)  # type: ignore[type-var]
        except RunError:
            if length is None or reduced[length] >= longest:
                return settings
            reduced[length] += 1


def quick_defaults(kind: type[Any]) -> dict[str, Any]:
    """Return {name: default} of the fields of a record of settings whose default a quick trial changes."""
    try:
        usual = kind()
    except TypeError:  # some fields have no default: the others are reduced one by one
        given: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(kind) if f.name in AMOUNTS}
        return {name: reduce_amount(name, amount) for name, amount in given.items() if isinstance(amount, int)}
    reduced = quick_settings(usual)
    names = [f.name for f in dataclasses.fields(kind)]
    return {n: getattr(reduced, n) for n in names if getattr(reduced, n) != getattr(usual, n)}
