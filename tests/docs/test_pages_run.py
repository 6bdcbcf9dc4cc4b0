"""Pages are walked as a reader would walk them: block by block, in one folder, with quick trials.

Every line ``$ ...`` of a console block runs. Python blocks run in one namespace per page. A block with a title becomes
the file of that name. A block below ``<!-- not run: reason -->`` is left out.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from denoiserl.cli import main

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
ROOT = Path(__file__).resolve().parents[2]
PAGES = ("docs/generator.md", "docs/language.md")
BLOCK = re.compile(
    r"(<!-- not run: (?P<reason>[^>]+) -->\n+)?"
    r"^```(?P<kind>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
QUICK = ("run", "compare", "demo")


@dataclass(frozen=True)
class Block:
    """A block of a page: its language, the name of its file, its text, and why it is not run."""

    kind: str
    title: str | None
    text: str
    reason: str | None


def blocks(page: str) -> list[Block]:
    found = BLOCK.finditer((ROOT / page).read_text(encoding="utf-8"))
    return [Block(b["kind"], b["title"], b["text"], b["reason"]) for b in found]


def run_line(line: str) -> None:
    """Run a line of a console block; ``denoiserl run`` and the like are quick trials."""
    words = shlex.split(line, comments=True)
    if words[0] == "pip":
        return  # installed already: the test of the wheel installs from nothing
    if words[0] == "python":
        done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return
    assert words[0] == "denoiserl", line
    quick = words[1] in QUICK and "--help" not in words
    few = ["--quick", "--no-progress", "--eval-trials", "4"] if quick else []
    few += ["--iterations", "2"] if quick and "--iterations" in words else []
    assert main([*words[1:], *few]) == 0, line


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", PAGES)
def test_a_page_can_be_followed_line_by_line(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    space: dict[str, Any] = {}
    ran = 0
    for block in blocks(page):
        if block.reason is not None:
            continue
        if block.title is not None:
            Path(block.title).write_text(block.text, encoding="utf-8")
        elif block.kind == "console":
            for line in block.text.replace("\\\n", " ").splitlines():
                if line.startswith("$ "):
                    run_line(line[2:])
                    ran += 1
        elif block.kind == "python":
            exec(compile(block.text, page, "exec"), space)
            ran += 1
    assert ran >= 3
