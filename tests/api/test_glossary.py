"""The glossary agrees with the code: its names can be imported, and its metrics are those that the source yields."""

from __future__ import annotations

import ast
import pydoc
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
SOURCES = ("recipes", "control", "experiments", "train")


def metrics() -> tuple[set[str], set[str]]:
    """Return the metric keys that the source has as literals, and the groups of those with a computed name."""
    keys, groups = set(), set()
    for path in (p for name in SOURCES for p in (ROOT / "src" / "denoiserl" / name).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr) and isinstance(first := node.values[0], ast.Constant):
                groups |= set(re.findall(r"^([a-z]+/)$", str(first.value)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                keys |= set(re.findall(r"^[a-z]+/[a-z0-9_]+$", node.value))
    return keys, groups


def test_every_name_in_the_glossary_can_be_imported():
    lines = re.findall(r"In code: (.*?)\. Others", PAGE, re.DOTALL)
    names = [name for line in lines for name in re.findall(r"`(.+?)`", line)]
    entries = re.findall(r"^\*\*(.+?)\*\*", PAGE, re.MULTILINE)
    assert len(names) >= len(entries) >= 40 and len(set(entries)) >= len(entries) - 1, "transition has two meanings"
    assert not [name for name in names if pydoc.locate(name) is None]


def test_the_table_of_metrics_has_the_groups_of_the_source_and_no_other_metric():
    keys, computed = metrics()
    assert len(keys) > 40
    rows = {row[1]: row[2] for row in re.finditer(r"^\| `([a-z]+/)` \| (.+) \|$", PAGE, re.MULTILINE)}
    assert set(rows) == {key.partition("/")[0] + "/" for key in keys} | computed
    examples = {key for text in rows.values() for key in re.findall(r"`([a-z]+/[a-z0-9_]+)`", text)}
    assert not {key for key in examples - keys if key.partition("/")[0] + "/" not in computed}


def test_every_metric_has_a_row_of_its_own_with_its_meaning():
    keys, computed = metrics()
    rows = re.findall(r"^\| `([a-z]+/[a-z0-9_]+)` \| (.+) \|$", PAGE, re.MULTILINE)
    meanings = dict(rows)
    assert len(meanings) == len(rows), "a metric has one row"
    assert not keys - set(meanings), "metrics that the glossary does not explain"
    assert not {key for key in set(meanings) - keys if key.partition("/")[0] + "/" not in computed}
    assert all(meaning.strip() for meaning in meanings.values())
