"""Names of functions are verbs or what they return: no lone participle, gerund or everyday word."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import denoiserl

HERE = Path(denoiserl.__file__).parent
BANNED = set(
    "told said asked given made done seen heard known drawn kept found went came over heat guess judge critique sight "
    "box way worth goal slow ahead both one other apart here there now learn news wanted wrote spoken".split()
)
"""words that say nothing of what a function returns"""
ALLOWED = {
    "speed", "seed",  # nouns that end like participles
    "done", "solved",  # flags of episodes
    "stratified", "using", "paused", "uncharged",  # draws in strata; what happens inside a context
}  # fmt: skip


def public(node: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[str]:
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and not item.name.startswith("_"):
            yield prefix + item.name
        elif isinstance(item, ast.ClassDef) and not item.name.startswith("_"):
            yield from public(item, f"{prefix}{item.name}.")


def test_functions_are_verbs_or_nouns() -> None:
    wrong = []
    for path in sorted(HERE.rglob("*.py")):
        for name in public(ast.parse(path.read_text(encoding="utf-8"))):
            last = name.rpartition(".")[2]
            shape = re.fullmatch(r"[a-z]+(ed|ing)", last) or last in BANNED
            if shape and last not in ALLOWED:
                wrong.append(f"{path.relative_to(HERE)}: {name}")
    assert not wrong, f"name these by what they return, or by a verb: {wrong}"


def test_an_options_parameter_is_args_and_a_run_is_run() -> None:
    """In recipes every function that takes settings calls them ``args``."""
    for path in sorted((HERE / "recipes").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                names = {a.arg for a in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]}
                assert not names & {"a", "keep"}, f"{path.name}: {node.name}"
