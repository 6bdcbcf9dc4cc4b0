"""The refusals of the library: every error says what is wrong and what to do about it.

DenoiseRLError
├── NoDensityError      a deterministic step was asked for its probability
├── OffPolicyError      the first update's ratio is not one
├── InvalidInputError   rewards, advantages or observations that cannot be learned from
├── RunError            a run folder, checkpoint or option that does not fit
└── MissingExtraError   an optional dependency is not installed
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class DenoiseRLError(Exception):
    """The root of the library's own errors."""


class NoDensityError(DenoiseRLError, ValueError):
    """A deterministic step has no density: leave it out of replay, or give it noise."""


class OffPolicyError(DenoiseRLError, ArithmeticError):
    """Log-probs replayed before the first update differ from the recorded ones."""


class InvalidInputError(DenoiseRLError, ValueError):
    """A reward, advantage or observation that cannot be learned from."""


class RunError(DenoiseRLError, ValueError):
    """A run folder, checkpoint, name or option that does not fit."""


class MissingExtraError(DenoiseRLError, ImportError):
    """An optional dependency is not installed."""


def unknown_name_message(name: str, known: Iterable[str], what: str = "name") -> str:
    """The sentence of refusal for an unknown ``name``: it names the nearest known one and lists the rest."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"There is no {what} {name!r}.{hint} Known: {', '.join(known) or 'none'}."


def require(module: str, extra: str) -> ModuleType:
    """Import an optional ``module`` or say which extra brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(f"This needs {module}: pip install 'denoiserl[{extra}]' ({error}).") from error
