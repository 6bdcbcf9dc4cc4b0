"""The files that people copy run, in short, and what they save comes back with the network that they define."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import denoiserl
from denoiserl import Policy, Rng
from tests.integrations import models

pytestmark = [pytest.mark.filterwarnings(w) for w in models.QUIET]

FOLDER = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples write to ``runs/`` where they are started."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("your_*.py")), ids=lambda p: p.name)
def test_an_example_is_short_and_says_what_to_replace(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) < 80 and text.count("YOURS") >= 3


def test_what_the_examples_name_is_there_after_one_import() -> None:
    """Every dotted ``denoiserl.a.b.c`` in examples is an attribute, and the border imports nothing optional."""
    named = {
        word
        for path in FOLDER.glob("*.py")
        for word in re.findall(r"(?<!from )denoiserl(?:\.\w+){2,}", path.read_text())
    }
    assert {"denoiserl.integrations.diffusers.from_pipeline", "denoiserl.integrations.adapters.lora"} <= named
    code = "import sys, denoiserl\n" + "\n".join(sorted(named)) + "\nprint([m for m in HEAVY if m in sys.modules])"
    code = code.replace("HEAVY", str(["diffusers", "transformers", "peft", "gymnasium"]))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0 and run.stdout.strip() == "[]", run.stderr + run.stdout
    with pytest.raises(AttributeError, match=r"'denoiserl\.integrations' has no attribute 'nothing'"):
        _ = denoiserl.integrations.nothing


def test_your_robot(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gymnasium")
    from examples import your_robot

    before, after = your_robot.main(iterations=2, updates=60, episodes=10)
    assert 0 <= min(before, after) and max(before, after) <= 1
    assert capsys.readouterr().out.count("reward a step") == 2
    policy = Policy.load("runs/your_robot", net=your_robot.Net())
    chunk = policy.generate(torch.zeros(5, 4), Rng(0))
    assert isinstance(chunk, torch.Tensor) and chunk.shape == (5, 4, 2)


def test_your_images(capsys: pytest.CaptureFixture[str]) -> None:
    from examples import your_images

    before, after = your_images.main(iterations=30, updates=150)
    assert after > before
    assert capsys.readouterr().out.count("reward ") == 31
    policy = Policy.load("runs/your_images", net=your_images.Net())
    one, two = (policy.generate(torch.eye(4), Rng(0)) for _ in range(2))
    assert torch.equal(one, two)


def test_your_language_model(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    from examples import your_language_model as example

    before, after = example.main(iterations=3, updates=60)
    assert 0 <= min(before, after) and max(before, after) <= 1
    assert capsys.readouterr().out.count("solved while learning") == 3
    policy = Policy.load("runs/your_language_model", net=example.model())
    prompt = example.canvas([[4, example.PLUS, 3, example.EQUALS]], example.LENGTH, example.MASK)
    answer = policy.generate(prompt, Rng(0))
    assert isinstance(answer, torch.Tensor) and torch.equal(answer[:, :4], prompt[:, :4])
    assert bool((answer[:, 4:] < 10).all())


def test_your_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two arms of the example's task, from the same clone of one seed, in one process."""
    pytest.importorskip("gymnasium")
    from denoiserl.experiments import Arm, Study, run_comparison

    monkeypatch.setenv("DENOISERL_CACHE", str(tmp_path / "cache"))
    arms = {"dppo": Arm("dppo", {"num_envs": 4, "rollout_steps": 4, "batch_size": 64}), "clone": Arm("none")}
    word = f"{FOLDER / 'your_task.py'}:make_task"
    study = Study(word, arms, 130, "env_steps", (0,), {"updates": 40}, trials=20, curve=1)
    found = run_comparison(study, tmp_path / "study", 0, progress=False)
    assert 64 <= found.spent["dppo"]["env_steps"] <= 192 and found.spent["clone"]["env_steps"] == 0
    assert found.values["success"]["dppo"].shape == (1, 20) and found.standings["success"].basis == "trials"
