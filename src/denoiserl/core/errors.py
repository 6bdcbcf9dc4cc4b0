"""Errors of the library. Every message says what is wrong and what to do about it.

DenoiseRLError
├── NoDensityError      log-probability of a deterministic step
├── OffPolicyError      the likelihood ratio before the first update is not one
├── InvalidInputError   invalid arguments, rewards, advantages or observations
├── RunError            an invalid run folder, checkpoint, name or option
└── MissingExtraError   an optional dependency is not installed
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType
from typing import Any


class DenoiseRLError(Exception):
    """The root of the library's own errors."""


class NoDensityError(DenoiseRLError, ValueError):
    """A deterministic step has no density: exclude it from rescoring, or give it noise."""


class OffPolicyError(DenoiseRLError, ArithmeticError):
    """Log-probs that ``rescore`` computes before the first update differ from the recorded ones."""


class InvalidInputError(DenoiseRLError, ValueError):
    """An invalid argument, reward, advantage or observation."""


class RunError(DenoiseRLError, ValueError):
    """An invalid run folder, checkpoint, name or option."""


class MissingExtraError(DenoiseRLError, ImportError):
    """An optional dependency is not installed."""


def unknown_name_message(name: Any, known: Iterable[str], what: str = "name") -> str:
    """Build the message for an unknown ``name``: suggest the closest valid name and list all of them."""
    known = sorted(known)
    folded = {_fold(each): each for each in known}
    close = difflib.get_close_matches(_fold(str(name)), folded, n=1, cutoff=0.5)
    hint = f" Did you mean {folded[close[0]]!r}?" if close else ""
    return f"There is no {what} {name!r}.{hint} Known: {', '.join(known) or 'none'}."


def _fold(name: str) -> str:
    return name.lower().replace("_", "-")


def require(module: str, extra: str) -> ModuleType:
    """Import an optional ``module``. Raise MissingExtraError with the extra to install if it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(f"This needs {module}: pip install 'denoiserl[{extra}]' ({error}).") from error
