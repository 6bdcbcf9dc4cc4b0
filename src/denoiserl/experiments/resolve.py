"""Methods by name, as the command line and the records of studies give them.

dppo, ddpo ...              a recipe of this package
my_method.py                a user's file with Args, SIGNAL and improve
none                        no method: the starting policy itself
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from denoiserl import recipes
from denoiserl.core.errors import RunError, unknown_name_message
from denoiserl.core.imports import load_module
from denoiserl.core.serialization.args_json import from_json
from denoiserl.core.settings import Settings
from denoiserl.tasks.base import Task

NONE = "none"
"""the method that changes nothing"""


def method(word: str) -> ModuleType:
    """Return the module of the recipe that ``word`` names. Raise RunError if there is none."""
    if word in recipes.names():
        return recipes.load(word)
    if not word.endswith(".py") and "." not in word:
        raise RunError(unknown_name_message(word, [*recipes.names(), NONE], "method"))
    found = load_module(word)
    for part in ("Args", "improve"):
        if not hasattr(found, part):
            raise RunError(
                f"{word} has no {part}: a method has a dataclass Args and improve(policy, signal, args, rng, run)"
            )
    return found


def learns_from(word: str) -> str:
    """Return the kind of signal that a method learns from."""
    return recipes.describe(word).signal if word in recipes.names() else signal_of(method(word))


def signal_of(recipe: Any) -> str:
    """Return the kind of signal of a recipe's module: its constant ``SIGNAL``, or the one in its docstring."""
    found = getattr(recipe, "SIGNAL", None) or recipes.read(recipe.__file__).signal
    if found not in recipes.SIGNALS:
        raise RunError(f"{recipe.__name__}: {unknown_name_message(found, recipes.SIGNALS, 'kind of signal')}")
    return found


def start_kind(recipe: Any, args: Any) -> str | None:
    """Return the kind of policy that a recipe starts from with these settings (None: any)."""
    start = getattr(recipe, "START", None)
    if start is None or isinstance(start, str):
        return start
    return start(args)


def check_fits_task(recipe: Any, args: Any, task: Task, name: str, kind: str | None = None) -> None:
    """Raise RunError if a method cannot run on a task.

    The task must offer its signal and its kind of starting policy (``kind``: another one), of as many steps as the
    settings need.
    """
    task.require_signal(signal_of(recipe), name)
    if kind is None and (kind := start_kind(recipe, args)) is not None and kind not in task.start_kinds:
        raise RunError(
            f"{name} starts from a policy of kind {kind!r}, task {task.name!r} has {', '.join(task.start_kinds)}: "
            f"choose another method or task, or give the task starts={{{kind!r}: ...}}"
        )
    if task.num_denoising_steps is not None and isinstance(args, Settings):
        args.check_denoising_steps(task.num_denoising_steps)


def settings(word: str, given: Mapping[str, Any]) -> Any:
    """Return the method's ``Args`` with the settings ``given``. Raise RunError for unknown names or wrong types."""
    cls = method(word).Args
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for name, value in given.items():
        if name not in fields:
            raise RunError(f"{word}: {unknown_name_message(name, fields, 'setting')}")
        default = fields[name].default
        plain = isinstance(default, bool | int | float | str) and value is not None
        fits = isinstance(value, type(default)) or (isinstance(default, float) and type(value) is int)
        if plain and (not fits or (isinstance(value, bool) and not isinstance(default, bool))):
            raise RunError(f"{word}.{name} is a {type(default).__name__} such as {default}, not {value!r}")
    return from_json(cls, dict(given), word)
