"""Every command of the README, the documentation and the examples has options that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import tyro

from denoiserl.cli import VERBS, main

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("examples/*.py"))]
LINE = re.compile(r"^(?:\$| {3}) denoiserl (.*)$", re.MULTILINE)


class Parsed(BaseException):
    """The command line was parsed: the command itself is not run."""


def commands() -> list[str]:
    found = []
    for path in PAGES:
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        found += [re.sub(r"\[.*?\]|#.*", "", line).strip() for line in LINE.findall(text)]
    found += [verb.example.removeprefix("denoiserl ") for verb in VERBS.values()]
    return sorted({line for line in found if not line.endswith("--help")})


@pytest.mark.parametrize("line", commands())
def test_a_documented_command_is_parsed(line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cli = tyro.cli

    def parse_only(*args: Any, **kwargs: Any) -> None:
        cli(*args, **kwargs)
        raise Parsed

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tyro, "cli", parse_only)
    (tmp_path / "my_recipe.py").write_text("from denoiserl.recipes.policy_gradient.dppo import *\n")
    (tmp_path / "my_file.py").write_text("def make_task(size: int = 3): ...\n")
    with pytest.raises(Parsed):
        main(shlex.split(line))


def test_there_are_documented_commands() -> None:
    assert len(commands()) > 30
