"""Tasks and methods by name: what the words of a command line, and the records of a study, mean.

robot, shapes, sudoku       the experiments of this package; ``base`` changes their settings
my_module:make_task         a function of yours that returns a ``Task``; ``base`` is its keyword arguments
my_file.py:make_task        the same, in a file

dppo, ddpo ...              a recipe of this package
my_method.py                a file of yours with Args and improve
none                        no method: the starting policy itself
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from denoiserl import recipes
from denoiserl.core.errors import RunError, unknown_name_message
from denoiserl.core.imports import import_object, load_module
from denoiserl.core.serialization.args_json import from_json
from denoiserl.tasks.base import Task

NONE = "none"
"""the method that changes nothing"""


TASKS = {
    "gym": "denoiserl.tasks.gym",
    "logged": "denoiserl.tasks.offline",
    "robot": "denoiserl.tasks.env",
    "shapes": "denoiserl.tasks.shapes",
    "sudoku": "denoiserl.tasks.sudoku",
    "zero": "denoiserl.tasks.zero_shot",
}
"""this package's own tasks: a module each, with ``Base`` and ``task(base)``"""


def experiments() -> list[str]:
    """Return the names of this package's own tasks."""
    return list(TASKS)


def where(word: str) -> tuple[str, str]:
    """The module (or file) and the function that make a task."""
    if word in experiments():
        return TASKS[word], "task"
    place, _, function = word.rpartition(":")
    if not place:
        raise RunError(
            unknown_name_message(word, experiments(), "task")
            + " A task of yours is named my_module:make_task or my_file.py:make_task."
        )
    return place, function


def task(word: str, base: Mapping[str, Any] | None = None) -> Task:
    """The task that ``word`` names, with the settings ``base``."""
    place, function = where(word)
    beside = str((Path(place) if place.endswith(".py") else Path.cwd() / place).resolve().parent)
    if word not in experiments() and beside not in sys.path:
        sys.path.append(beside)  # what lies beside a file of a user's is found from it
    make, settings = import_object(f"{place}:{function}"), dict(base or {})
    if word in experiments():
        found = make(from_json(load_module(place).Base, settings, "base"))
    else:
        try:
            found = make(**settings)
        except TypeError as error:
            raise RunError(f"{word} cannot be made with {settings or 'no settings'}: {error}") from error
    if not isinstance(found, Task):
        raise RunError(f"{word} returned a {type(found).__name__}: a task function returns a denoiserl.tasks.base.Task")
    return found


def method(word: str) -> ModuleType:
    """The recipe that ``word`` names."""
    if word in recipes.names():
        return recipes.load(word)
    if not word.endswith(".py") and "." not in word:
        raise RunError(unknown_name_message(word, [*recipes.names(), NONE], "method"))
    found = load_module(word)
    for part in ("Args", "improve"):
        if not hasattr(found, part):
            raise RunError(
                f"{word} has no {part}: a method is a dataclass Args and improve(policy, signal, a, rng, keep)"
            )
    return found


def learns_from(word: str) -> str:
    """The kind of signal of a method: of its docstring, or of its constant SIGNAL."""
    if word in recipes.names():
        return recipes.describe(word).signal
    found = method(word)
    if hasattr(found, "SIGNAL"):
        return found.SIGNAL
    return recipes.read(found.__file__ or word).signal


def settings(word: str, given: Mapping[str, Any]) -> Any:
    """The method's ``Args`` with the settings ``given``; names and kinds are checked."""
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
