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
    "box way worth goal slow ahead both one other apart here there now learn news wanted wrote "
    "spoken begun noisy whole "
    "each constant plain alive renewable carry standard words look watch opened judged acted filmed "
    "learned held trained "
    "alone broken sick stuff things aim slip gone got taken grown thrown shaken sent left lost won "
    "built spare lean raw "
    "suits tell tick surprise blank shown alike odd tiny unseen unfit sudden chosen grows needs fits few every inside "
    "spent halves ink dots reach fresh hand decides toward moves rose stages spread across play begin shut once "
    "suited some many most least which where when why how again back away".split()
)
"""words that say nothing of what a function returns"""
ALLOWED = {
    "speed", "seed",  # nouns that end like participles
    "done", "solved",  # flags of episodes
    "using", "paused", "uncharged",  # what happens inside a context
    "experiments/claims/runner.py: why",  # the reason of a verdict, the key of its record
}  # fmt: skip
CLASSES = {
    "Noised", "Steered", "Masked", "Squashed", "Unmasking", "Steering",  # the field's words
    "Stopped", "Interrupted",  # exceptions
    "Finding", "Reading",  # nouns
    "Prompted", "Walled", "Clocked", "Decaying", "Clipped", "Screened", "Simulated",  # of the field
}  # fmt: skip
"""lone participles that are names of the field, or nouns"""
PAIRS = {"transition", "window"}
"""a table of rows and a term of the processes"""


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
            if shape and not {last, f"{path.relative_to(HERE)}: {name}"} & ALLOWED:
                wrong.append(f"{path.relative_to(HERE)}: {name}")
    assert not wrong, f"name these by what they return, or by a verb: {wrong}"


def classes() -> Iterator[tuple[Path, str]]:
    for path in sorted(HERE.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield path.relative_to(HERE), node.name


def test_classes_end_in_their_kind() -> None:
    wrong = [
        f"{path}: {name}"
        for path, name in classes()
        if (re.fullmatch(r"[A-Z][a-z]+(ed|ing)", name) or name.lower() in BANNED - {"box"}) and name not in CLASSES
    ]
    assert not wrong, f"end these in a noun: {wrong}"


def test_classes_differ_by_more_than_case_or_plural() -> None:
    known: dict[str, set[str]] = {}
    for _, name in classes():
        known.setdefault(name.lower().removesuffix("s"), set()).add(name)
    wrong = [sorted(names) for key, names in known.items() if len(names) > 1 and key not in PAIRS]
    assert not wrong, f"rename one of each: {wrong}"


def test_private_names_stay_in_their_package() -> None:
    wrong = []
    for path in sorted(HERE.rglob("*.py")):
        package = path.relative_to(HERE).parts[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("denoiserl."):
                parts = str(node.module).split(".")[1:]
                private = [n for n in [*parts, *(a.name for a in node.names)] if re.match(r"_[^_]", n)]
                wrong += [f"{path.relative_to(HERE)}: {n}" for n in private if parts[0] != package]
    assert not wrong, f"make these public, or move them: {wrong}"


def test_an_options_parameter_is_args_and_a_run_is_run() -> None:
    """In recipes every function that takes settings calls them ``args``."""
    for path in sorted((HERE / "recipes").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                names = {a.arg for a in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]}
                assert not names & {"a", "keep"}, f"{path.name}: {node.name}"
