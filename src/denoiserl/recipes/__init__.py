"""Recipes: one published system a file. ``improve`` is the method, ``train`` the experiment.

A recipe's docstring begins with ``NAME: title``; lines ``key: value`` follow, then prose in Markdown. That is its
``Card``: ``denoiserl list`` and the documentation show the same. The source is parsed, not imported, so that asking
costs nothing and needs nothing that the recipe needs.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

from denoiserl.errors import BadRun, nearest

HERE = Path(__file__).parent
KEYS = ("paper", "signal", "family")
SIGNALS = {
    "env": "an environment",
    "reward": "a reward function",
    "pairs": "preferences",
    "data": "demonstrations",
}


@dataclass(frozen=True)
class Card:
    """What a recipe's docstring says. ``module`` is its name on the command line, ``body`` the prose."""

    module: str
    name: str
    title: str
    paper: str
    signal: str
    family: str
    body: str = ""


def names() -> list[str]:
    """The recipes of this package, sorted: every module here whose name does not begin with an underscore."""
    return sorted(p.stem for p in HERE.glob("*.py") if not p.stem.startswith("_"))


def describe(name: str) -> Card:
    """The card of a recipe of this package."""
    if name not in names():
        raise BadRun(nearest(name, names(), "recipe"))
    return read(HERE / f"{name}.py")


def read(path: Path | str) -> Card:
    """The card of the recipe in the file ``path``, or an error that says what its docstring lacks."""
    path = Path(path)
    try:
        lines = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()
    except SyntaxError as error:
        raise BadRun(f"{path}: line {error.lineno} is not Python ({error.msg}).") from None
    head = re.fullmatch(r"([^:]+): (.+)", lines[0]) if lines else None
    if not head:
        raise BadRun(f"{path}: the docstring must begin with 'NAME: one-line title'.")
    fields: dict[str, str] = {}
    rest = lines[1:]
    while rest and (not rest[0].strip() or re.fullmatch(r"[a-z]+: .+", rest[0])):
        key, _, value = rest.pop(0).partition(": ")
        if value:
            fields[key] = value.strip()
    if missing := [key for key in KEYS if key not in fields]:
        raise BadRun(f"{path}: the docstring has no line '{missing[0]}: ...'.")
    if fields["signal"] not in SIGNALS:
        raise BadRun(f"{path}: {nearest(fields['signal'], SIGNALS, 'kind of signal')}")
    body = "\n".join(rest).strip()
    return Card(path.stem, head[1].strip(), head[2].strip(), fields["paper"], fields["signal"], fields["family"], body)
