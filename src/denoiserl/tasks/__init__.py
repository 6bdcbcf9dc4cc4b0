"""Tasks: a starting policy, a learning signal and held-out trials. Tasks do not depend on methods.

| name | problem | signals |
|---|---|---|
| env | act in an environment: Meta-World, PushT, Gymnasium, a custom one | env, data |
| offline | act, from logged data alone | data |
| zero-shot | act, for rewards that are specified after training | data |
| shapes | generate the image that a prompt describes | reward |
| sudoku | solve puzzles | reward, data |
| generator | a user's image generator, reward and prompts | reward |
| language | a user's masked language model, verifier and prompts | reward |
| my_file.py:make_task | a function that returns a ``Task`` | any |
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from denoiserl.core.errors import RunError, unknown_name_message
from denoiserl.core.imports import import_object, load_module
from denoiserl.core.serialization.args_json import from_json

if TYPE_CHECKING:
    from denoiserl.tasks.base import Task

TASKS = {
    "env": "denoiserl.tasks.env",
    "offline": "denoiserl.tasks.offline",
    "zero-shot": "denoiserl.tasks.zero_shot",
    "shapes": "denoiserl.tasks.shapes",
    "sudoku": "denoiserl.tasks.sudoku",
    "generator": "denoiserl.tasks.generator",
    "language": "denoiserl.tasks.language",
}
"""built-in tasks: a module each, with a dataclass ``Args`` and ``task(args)``"""


OWN_MODEL = {"shapes": "generator", "sudoku": "language"}
"""the task of a user's own model, for recipes whose default task is one of ours"""


def find_task(word: str) -> tuple[str, str]:
    """Return the module (or file) and the function that make the task ``word``. Raise RunError for an unknown one."""
    if word in TASKS:
        return TASKS[word], "task"
    place, _, function = word.rpartition(":")
    if not place:
        raise RunError(
            unknown_name_message(word, TASKS, "task")
            + " A custom task is named my_module:make_task or my_file.py:make_task."
        )
    return place, function


def _maker(word: str) -> Callable[..., Any]:
    place, function = find_task(word)
    beside = str((Path(place) if place.endswith(".py") else Path.cwd() / place).resolve().parent)
    if word not in TASKS and beside not in sys.path:
        sys.path.append(beside)  # so that a user's file can import its neighbours
    return import_object(f"{place}:{function}")


def args_type(word: str) -> type[Any]:
    """Return the dataclass of a task's settings: ``Args``, or the parameters of a custom task's function."""
    if word in TASKS:
        return load_module(TASKS[word]).Args
    maker = _maker(word)
    fields: list[Any] = []
    for name, parameter in inspect.signature(maker, eval_str=True).parameters.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        kind = Any if parameter.annotation is parameter.empty else parameter.annotation
        default = parameter.default
        how: dict[str, Any] = {} if default is parameter.empty else {"default": default}
        if isinstance(default, dict | list | set):
            how = {"default_factory": lambda v=default: v}
        fields.append((name, kind, dataclasses.field(**how)))
    return dataclasses.make_dataclass("Args", fields, frozen=True, kw_only=True)


def make(word: str, args: Mapping[str, Any] | None = None) -> Task:
    """Return the task ``word`` with the settings ``args``. Raise RunError for names and settings that do not exist."""
    from denoiserl.tasks.base import Task

    maker, settings = _maker(word), dict(args or {})
    if word in TASKS:
        found = maker(from_json(args_type(word), settings, f"task {word}"))
    else:
        hints = {f.name: f.type for f in dataclasses.fields(args_type(word))}
        try:
            found = maker(**{k: from_json(hints.get(k, Any), v, f"task {word}") for k, v in settings.items()})
        except TypeError as error:
            raise RunError(f"{word} does not accept {settings or 'no settings'}: {error}") from error
    if not isinstance(found, Task):
        raise RunError(f"{word} returned a {type(found).__name__}: a task function returns a denoiserl.tasks.base.Task")
    return found
