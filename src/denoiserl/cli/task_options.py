"""The task of a command line, and the options of the task: ``--task NAME --task.OPTION VALUE``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from denoiserl import tasks
from denoiserl.cli import Misuse
from denoiserl.core.errors import RunError

TASK_WORDS = f"{', '.join(tasks.TASKS)}, or my_file.py:make_task"
TASK_HELP = f"{TASK_WORDS}; its options are --task.NAME, such as --task.env pusht"


def require_task(word: str) -> None:
    """Raise Misuse if no task has this name."""
    try:
        tasks.find_task(word)
    except RunError as error:
        raise Misuse(str(error)) from None


def split_task_args(argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the options of a task that a command line sets, ``--task.NAME VALUE``, and the other words."""
    found: dict[str, Any] = {}
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if not name.startswith("--task."):
            rest.append(word)
            continue
        value = value if equals else next(words, None)
        if value is None:
            raise Misuse(f"{name}: give a value, {name} VALUE.")
        found[name.removeprefix("--task.").replace("-", "_")] = parse_literal(value)
    return found, rest


def parse_literal(word: str) -> Any:
    """Return the value of a word: JSON if it is JSON, else the word itself."""
    if word in ("None", "True", "False"):
        return {"None": None, "True": True, "False": False}[word]
    try:
        return json.loads(word)
    except ValueError:
        return word


def find_task(recipe: Any, argv: list[str]) -> str:
    """Return the task of ``--task`` in ``argv``, by default the recipe's. Raise Misuse if there is none."""
    following = zip(argv, [*argv[1:], ""], strict=False)
    given = [next_word for word, next_word in following if word == "--task"]
    given += [word.removeprefix("--task=") for word in argv if word.startswith("--task=")]
    usual = getattr(recipe, "DEFAULT_TASK", "")
    if any(word.partition("=")[0] == "--model" for word in argv):  # a model of the user's own
        usual = tasks.OWN_MODEL.get(usual, usual)
    task = given[-1] if given else usual
    if not task:
        raise Misuse(f"Give a task: --task {TASK_WORDS}.")
    require_task(task)
    return task
