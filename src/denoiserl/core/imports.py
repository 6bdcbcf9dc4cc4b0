"""Import modules and objects by name: a dotted module, or a file that ends in .py."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
import traceback
import types
from pathlib import Path
from types import ModuleType
from typing import Any

from denoiserl.core.errors import DenoiseRLError, RunError, unknown_name_message


def load_module(name: str, what: str = "recipe") -> ModuleType:
    """Return the module with this name, or in this file (a name that ends in .py). ``what`` names it in errors."""
    if not name.endswith(".py"):
        try:
            return importlib.import_module(name)
        except DenoiseRLError:
            raise
        except Exception as error:
            raise _broken(f"The {what} {name} cannot be imported", error, name) from error
    file = Path(name).resolve()
    if not file.exists():
        raise RunError(f"The {what}'s file {file} does not exist: put it back, or check the path.")
    loaded = types.ModuleType(f"recipe_{file.stem}")
    loaded.__file__ = str(file)
    vars(loaded)["__recipe__"] = str(file)  # what run.json calls it
    sys.modules[loaded.__name__] = loaded  # dataclasses look their module up
    try:
        exec(compile(file.read_text(encoding="utf-8"), file, "exec"), vars(loaded))
    except DenoiseRLError:
        raise
    except Exception as error:
        raise _broken(f"The {what}'s file {file} cannot be run", error) from error
    return loaded


def _broken(prefix: str, error: Exception, name: str | None = None) -> RunError:
    """Return the error for a failed import of a file or module: where it fails, and what to do."""
    lacks = (error.name or "") if isinstance(error, ModuleNotFoundError) else ""
    if name is not None and lacks and f"{name}.".startswith(f"{lacks}."):
        file = Path(f"{name.replace('.', '/')}.py")
        remedy = f"give the name of the file, {file}" if file.exists() else "check the name, or install its package"
        return RunError(f"{prefix} ({error}): {remedy}")
    frames = [(f.filename, f.lineno) for f in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        frames.append((error.filename, error.lineno))
    place, line = next(((p, n) for p, n in reversed(frames) if p not in _IMPORTS and p[0] != "<"), ("", 0))
    where = f" in {place}, line {line}" if place else ""
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    remedy = f"install {lacks.partition('.')[0]}, or correct the import" if lacks else "correct it there"
    if "pip install" in message:
        remedy = "install the package that it names"
    return RunError(f"{prefix}: {type(error).__name__}{where}{': ' if message else ''}{message}: {remedy}")


_IMPORTS = (__file__, importlib.__file__)
"""files that only import: the error is never in them"""


def import_object(word: str) -> Any:
    """Return the object that ``my_module:name`` or ``my_file.py:name`` names. Raise RunError if there is none."""
    place, _, name = word.rpartition(":")
    if not (place and name):
        raise RunError(f"{word}: write my_module:name or my_file.py:name.")
    found = load_module(place, "module")
    if not hasattr(found, name):
        raise RunError(
            f"{place}: {unknown_name_message(name, [n for n in vars(found) if not n.startswith('_')], 'function')}"
        )
    return getattr(found, name)
