"""Docstrings say what a function does: they begin with a verb, in plain English, and no people are in code."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import denoiserl

SOURCE = Path(denoiserl.__file__).parent
PEOPLE = re.compile(r"\b(nobody|somebody|someone|anybody|everybody|whoever)\b", re.IGNORECASE)
QUESTIONS = ("What", "Where", "Whether", "Who", "Whoever", "That", "How", "When", "Which", "Why")
NOT_VERBS = (
    *QUESTIONS,
    *("A", "An", "The", "One", "All", "Each", "Every", "No", "Both", "Any", "It", "Its", "This", "These", "There"),
    *("Of", "In", "On", "At", "By", "For", "From", "With", "Without", "As", "If", "Is", "Are", "Does", "Has", "Not"),
)


def public_functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef, str]]:
    """Yield where, the definition and the docstring of every public function and method that has one."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
                text = ast.get_docstring(node)
                if text:
                    yield f"{path.relative_to(SOURCE)}:{node.lineno} {node.name}", node, text


def is_property(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    names = [ast.unparse(decorator) for decorator in node.decorator_list]
    return any(name.endswith(("property", ".setter")) for name in names)


def test_docstrings_of_functions_begin_with_a_verb() -> None:
    wrong = []
    for where, node, text in public_functions():
        first = text.split()[0].strip(".,:;")
        if is_property(node):
            if first in QUESTIONS:
                wrong.append(f"{where}: {text.splitlines()[0]}")
        elif first in NOT_VERBS or not re.fullmatch(r"[A-Z][a-z-]+", first) or first.endswith(("ing", "ed")):
            wrong.append(f"{where}: {text.splitlines()[0]}")
    assert not wrong, f"{len(wrong)} begin with no verb, as in 'Return ...':\n" + "\n".join(wrong)


def test_classes_and_modules_are_described_by_what_they_are() -> None:
    wrong = []
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            text = ast.get_docstring(node) if isinstance(node, ast.Module | ast.ClassDef) else None
            if text and text.split()[0] in QUESTIONS:
                wrong.append(f"{path.relative_to(SOURCE)}: {text.splitlines()[0]}")
    assert not wrong, "begin with the noun, as in 'A backend that ...':\n" + "\n".join(wrong)


def test_tables_and_lists_in_docstrings_have_a_line_per_row() -> None:
    """A table or a list whose rows were filled into a paragraph is none."""
    wrong = [
        f"{path.relative_to(SOURCE)}:{n}: {line.strip()}"
        for path in sorted(SOURCE.rglob("*.py"))
        for n, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"\| \|\s*-|[;.] - [a-z`A-Z]|[;.] -$", line)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_people_are_in_code() -> None:
    found = [
        f"{path.relative_to(SOURCE)}:{n}: {line.strip()}"
        for path in sorted(SOURCE.rglob("*.py"))
        for n, line in enumerate(path.read_text().splitlines(), 1)
        if PEOPLE.search(line)
    ]
    assert not found, "say what the code does, as in 'a negative count is refused':\n" + "\n".join(found)


LONGEST = 25
"""words of a sentence; code, formulas and what stands in brackets do not count"""


def docstrings() -> Iterator[tuple[str, str]]:
    """Yield where and text of every docstring, and of every string below a field or a constant."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    yield f"{path.relative_to(SOURCE)}:{node.lineno}", inspect.cleandoc(text)


def sentences(text: str) -> Iterator[str]:
    """Yield the sentences of prose: equations, tables and aligned columns are none; an item of a list is one."""
    for block in re.split(r"\n\s*\n", text):
        lines = [line for line in block.splitlines() if not line.startswith(("    ", "|"))]
        if block.startswith("paper: ") or any(re.search(r"\S {3,}\S|[├└]", line) for line in lines):
            continue
        prose = re.sub(r"``[^`]*``", "CODE", " ".join(lines))
        while (shorter := re.sub(r"\[[^][]*\]|\{[^{}]*\}|\([^()]*\)", "", prose)) != prose:
            prose = shorter
        # Names are listed with what they mean, and fields are explained in phrases.
        ends = r"(?<=[.!?])\s+|(?:^|\s)- |[;:]\s(?=CODE)" if prose[:1].isupper() else r"[.;]\s+"
        yield from re.split(ends, prose)


def test_sentences_are_short() -> None:
    wrong = []
    for where, text in docstrings():
        for sentence in sentences(text):
            count = len(re.findall(r"[A-Za-z][\w'’-]*", sentence))
            if count > LONGEST:
                wrong.append(f"{where}: {count} words: {sentence.strip()}")
    assert not wrong, f"at most {LONGEST} words a sentence, for readers of many languages:\n" + "\n".join(wrong)
