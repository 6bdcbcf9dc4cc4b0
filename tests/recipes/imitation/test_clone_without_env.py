"""A clone without a simulator: what is held out, what the loss is, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from denoiserl.cli import main
from denoiserl.core.errors import RunError
from denoiserl.data import Demonstrations
from denoiserl.tasks import clone, env
from denoiserl.train import Run


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Twenty episodes in which the action is the sign of the first observation."""
    g, episodes = torch.Generator().manual_seed(0), []
    for _ in range(20):
        obs = torch.randn(12, 3, generator=g)
        episodes.append((obs, obs[:, :1].sign().expand(12, 2) + 0.1 * torch.randn(12, 2, generator=g)))
    Demonstrations.of(episodes, name="signs").save(tmp_path / "signs")
    return str(tmp_path / "signs")


def settings(data: str, **more) -> env.Args:
    return env.Args(env="none", data=data, policy_width=32, action_horizon=2, **more)


def test_held_out_episodes_are_never_trained_on_and_the_same_for_all_seeds(data: str) -> None:
    task = env.task(settings(data, held_out_fraction=0.2))
    train, held_out = clone.split_episodes(settings(data, held_out_fraction=0.2))
    assert (len(train), len(held_out)) == (16, 4) and task.signals == ("data",) and task.better == "lower"
    rows = {tuple(row) for row in train.observations.tolist()}
    assert not rows & {tuple(row) for row in held_out.observations.tolist()}
    assert torch.equal(task.data(0).actions, task.data(7).actions)


def test_the_loss_is_that_of_the_untrained_network_and_falls_with_training(data: str) -> None:
    """With v targets of unit variance an untrained network errs by about 1; each trial has its own noise."""
    base = settings(data)
    policy = clone.start(base, 0, Run())
    before = clone.outcomes(policy, base, 3, 600)["validation_loss"]
    assert 0.5 < float(before.mean()) < 2.0 and float(before.std()) > 0.05
    assert torch.allclose(before[:100], clone.outcomes(policy, base, 3, 100)["validation_loss"], atol=1e-5)
    assert not torch.allclose(before[:100], clone.outcomes(policy, base, 4, 100)["validation_loss"])


def test_a_clone_is_kept_by_its_validation_loss(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["run", "diffusion_policy", "--data", data, "--env", "none", "--policy-width", "32", "--num-updates", "300"]
    assert main([*words, "--action-horizon", "2", "--no-progress"]) == 0
    out = capsys.readouterr().out
    assert "It got better: denoising loss on held-out episodes (2)" in out and "denoiserl sample" not in out
    record = json.loads(Path("runs/diffusion_policy-signs-0/verdict/eval.json").read_text())
    means = {k: v["mean"] for k, v in record["metrics"]["validation_loss"]["policies"].items()}
    assert means["after"] < 0.8 * means["before"]


def test_what_has_nothing_to_learn_from_or_acts_is_refused(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RunError, match="--env none has nothing to learn from: give demonstrations with --data"):
        env.task(env.Args(env="none"))
    monkeypatch.chdir(tmp_path)
    assert main(["run", "dppo", "--data", data, "--env", "none"]) == 1
    assert "dppo learns from env, task 'signs' offers data" in capsys.readouterr().err
