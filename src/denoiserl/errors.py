"""The refusals of the library: every error says what is wrong and what to do about it.

DenoiseError
├── NoDensity        a deterministic step was asked for its probability
├── OffPolicy        the first update's ratio is not one
├── BadSignal        rewards, advantages or observations that cannot be learned from
├── BadRun           a run folder, checkpoint or option that does not fit
└── MissingExtra     an optional dependency is not installed
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class DenoiseError(Exception):
    """The root of the library's own errors."""


class NoDensity(DenoiseError, ValueError):
    """A deterministic step has no density: leave it out of replay, or give it noise."""


class OffPolicy(DenoiseError, ArithmeticError):
    """Log-probs replayed before the first update differ from the recorded ones."""


class BadSignal(DenoiseError, ValueError):
    """A reward, advantage or observation that cannot be learned from."""


class BadRun(DenoiseError, ValueError):
    """A run folder, checkpoint, name or option that does not fit."""


class MissingExtra(DenoiseError, ImportError):
    """An optional dependency is not installed."""


def nearest(name: str, known: Iterable[str], what: str = "name") -> str:
    """The sentence of refusal for an unknown ``name``: it names the nearest known one and lists the rest."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"There is no {what} {name!r}.{hint} Known: {', '.join(known) or 'none'}."


def need(module: str, extra: str) -> ModuleType:
    """Import an optional ``module`` or say which extra brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(f"This needs {module}: pip install 'denoiserl[{extra}]' ({error}).") from error
