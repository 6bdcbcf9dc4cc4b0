"""Tasks: problems to learn, each with a policy to start from and held-out trials. They know no method.

| name | what is learned | signals |
|---|---|---|
| env | acting in an environment: Meta-World, PushT, Gymnasium, yours | env, data |
| offline | acting from logged data alone | data |
| zero-shot | acting for rewards that come after training | data |
| shapes | drawing what a prompt says | reward |
| sudoku | filling in puzzles | reward, data |
| my_file.py:make_task | a function of yours that returns a ``Task`` | yours |
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
}
"""this package's own tasks: a module each, with a dataclass ``Args`` and ``task(args)``"""


def locate(word: str) -> tuple[str, str]:
    """Return the module (or file) and the function that make the task ``word``. Raise RunError for an unknown one."""
    if word in TASKS:
        return TASKS[word], "task"
    place, _, function = word.rpartition(":")
    if not place:
        raise RunError(
            unknown_name_message(word, TASKS, "task")
            + " A task of yours is named my_module:make_task or my_file.py:make_task."
        )
    return place, function


def _maker(word: str) -> Callable[..., Any]:
    place, function = locate(word)
    beside = str((Path(place) if place.endswith(".py") else Path.cwd() / place).resolve().parent)
    if word not in TASKS and beside not in sys.path:
        sys.path.append(beside)  # what lies beside a file of a user's is found from it
    return import_object(f"{place}:{function}")


def args_type(word: str) -> type[Any]:
    """Return the dataclass of a task's own settings: ``Args`` of ours, the parameters of a function of yours."""
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
            raise RunError(f"{word} cannot be made with {settings or 'no settings'}: {error}") from error
    if not isinstance(found, Task):
        raise RunError(f"{word} returned a {type(found).__name__}: a task function returns a denoiserl.tasks.base.Task")
    return found
