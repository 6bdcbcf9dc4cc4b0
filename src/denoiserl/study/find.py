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
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from denoiserl import recipes
from denoiserl.errors import BadRun, nearest
from denoiserl.task import Task
from denoiserl.train.run import module, named
from denoiserl.train.settings import from_json

NONE = "none"
"""the method that changes nothing"""


def experiments() -> list[str]:
    """The names of this package's own tasks."""
    files = Path(recipes.__file__).parent.glob("_*.py")
    return sorted(f.stem[1:] for f in files if "\ndef task(" in f.read_text(encoding="utf-8"))


def where(word: str) -> tuple[str, str]:
    """The module (or file) and the function that make a task."""
    if word in experiments():
        return f"denoiserl.recipes._{word}", "task"
    place, _, function = word.rpartition(":")
    if not place:
        raise BadRun(
            nearest(word, experiments(), "task")
            + " A task of yours is named my_module:make_task or my_file.py:make_task."
        )
    return place, function


def task(word: str, base: Mapping[str, Any] | None = None) -> Task:
    """The task that ``word`` names, with the settings ``base``."""
    place, function = where(word)
    beside = str((Path(place) if place.endswith(".py") else Path.cwd() / place).resolve().parent)
    if word not in experiments() and beside not in sys.path:
        sys.path.append(beside)  # what lies beside a file of a user's is found from it
    make, settings = named(f"{place}:{function}"), dict(base or {})
    if word in experiments():
        found = make(from_json(module(place).Base, settings, "base"))
    else:
        try:
            found = make(**settings)
        except TypeError as error:
            raise BadRun(f"{word} cannot be made with {settings or 'no settings'}: {error}") from error
    if not isinstance(found, Task):
        raise BadRun(f"{word} returned a {type(found).__name__}: a task function returns a denoiserl.task.Task")
    return found


def method(word: str) -> ModuleType:
    """The recipe that ``word`` names."""
    if word in recipes.names():
        return importlib.import_module(f"denoiserl.recipes.{word}")
    if not word.endswith(".py") and "." not in word:
        raise BadRun(nearest(word, [*recipes.names(), NONE], "method"))
    found = module(word)
    for part in ("Args", "improve"):
        if not hasattr(found, part):
            raise BadRun(
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
            raise BadRun(f"{word}: {nearest(name, fields, 'setting')}")
        default = fields[name].default
        plain = isinstance(default, bool | int | float | str) and value is not None
        fits = isinstance(value, type(default)) or (isinstance(default, float) and type(value) is int)
        if plain and (not fits or (isinstance(value, bool) and not isinstance(default, bool))):
            raise BadRun(f"{word}.{name} is a {type(default).__name__} such as {default}, not {value!r}")
    return from_json(cls, dict(given), word)
