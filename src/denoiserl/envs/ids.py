"""Gymnasium ids: make the environments that they name, or raise an error that says what is missing.

An id of another package has its module in front, ``gymnasium_robotics:FetchReach-v4``; the module is imported first.
"""

from __future__ import annotations

import importlib
from typing import Any

from denoiserl.core.errors import MissingExtraError, RunError, require

REGISTERED = {"gym_pusht/": "gym_pusht"}
"""packages that register their ids with Gymnasium when they are imported"""
META = "Meta-World/"


def find_spec(word: str) -> Any:
    """Return Gymnasium's spec of the environment id ``word``.

    Raise RunError if there is none, MissingExtraError if its package is not installed.
    """
    gym = require("gymnasium", "demo")
    if word.startswith(META):
        raise RunError(
            f"{word}: Meta-World's own ids draw their tasks when they are made and ignore the seed of reset, so "
            "episodes cannot be repeated: use metaworld:TASK, such as metaworld:reach-v3"
        )
    for prefix, module in REGISTERED.items():
        if word.startswith(prefix):
            require(module, "robotics")
    module, colon, name = word.rpartition(":")
    if colon:
        _imported(word, module)
    try:
        return gym.spec(name)
    except gym.error.Error as error:
        said = f"{word} is not registered with Gymnasium: {str(error).rstrip('.')}"
        more = "" if colon else "; an id of another package is named with its module, gymnasium_robotics:FetchReach-v4"
        raise RunError(f"{said}. Tasks of Meta-World are named metaworld:TASK, PushT is pusht{more}") from None


def make(word: str, **more: Any) -> Any:
    """Make the environment with the id ``word``. ``more``: keyword arguments of ``gymnasium.make``."""
    find_spec(word)
    gym = require("gymnasium", "demo")
    try:
        return gym.make(word, **more)
    except (ImportError, gym.error.DependencyNotInstalled) as error:
        raise MissingExtraError(f"{word} needs a package that is not installed: {_command(str(error))}") from error
    except gym.error.Error as error:
        raise RunError(f"{word} cannot be made: {error}") from error


def _imported(word: str, module: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError as error:
        package = (error.name or module).partition(".")[0].replace("_", "-")
        raise MissingExtraError(f"{word} needs {module} ({error}): pip install {package}") from error


def _command(said: str) -> str:
    """Return an import error with the pip command that repairs it, unless it names one itself."""
    if "pip install" in said:
        return said
    missing = said.partition("No module named ")[2].strip("'\" ").partition(".")[0]
    return f"{said}: pip install {missing.replace('_', '-')}" if missing else said
