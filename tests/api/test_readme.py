"""The programs of the README and of the page of ``improve`` run as they stand, and do what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def test_the_readme_program_improves_a_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(compile(program, "README.md", "exec"), {"__name__": "readme"})
    rewards = [float(line) for line in capsys.readouterr().out.split()]
    assert len(rewards) == 60
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.3
    assert (tmp_path / "better").is_dir()


def test_the_program_of_the_improve_page_runs_and_a_complete_run_yields_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "concepts" / "improve.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(compile(program, "improve.md", "exec"), {"__name__": "page"})
    assert len(capsys.readouterr().out.splitlines()) == 3 and (tmp_path / "runs" / "pendulum-policy").is_dir()
    exec(compile(program, "improve.md", "exec"), {"__name__": "page"})
    assert capsys.readouterr().out == ""
