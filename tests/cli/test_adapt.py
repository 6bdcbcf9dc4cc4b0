"""``adapt``: a run without rewards gets a reward, and becomes a policy like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from denoiserl import Policy, Rng
from denoiserl.cli import main
from denoiserl.control.zero_shot import policy_for_reward, require_task_conditioned, states
from denoiserl.tasks import zero_shot as zero_shot_task

SMALL = (
    "--num-updates 6 --batch-size 32 --representation-width 16 --eval-every 6 --no-progress --eval-trials 0 "
    "--num-candidates 2 --num-proposals 2"
)
BASE = (
    "--rooms 2 --num-episodes 4 --episode-steps 60 --max-episode-steps 10 --task-dim 4 --policy-width 16 "
    "--action-horizon 2"
)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Path:
    monkeypatch.chdir(tmp_path)
    with pytest.MonkeyPatch.context() as patch:  # six updates make no representation
        patch.setattr("denoiserl.recipes.zero_shot.common.warn_if_collapsed", lambda both, seen: 4.0)
        assert main(["run", "breeze", "--out", "runs/b", *SMALL.split(), *BASE.split()]) == 0
    (tmp_path / "mine.py").write_text("def right(at):\n    return at[:, 0]\ndef flat(at):\n    return 0 * at[:, 0]\n")
    capsys.readouterr()
    return tmp_path


def test_a_run_adapts_to_a_reward_and_goes_where_it_pays(run: Path, capsys: Any) -> None:
    assert main(["adapt", "runs/b", "--reward", "mine.py:right", "--out", "told"]) == 0
    assert "ways.png" in capsys.readouterr().out and (run / "told" / "ways.png").read_bytes().startswith(b"\x89PNG")
    found = Policy.load(run / "told")
    base = zero_shot_task.Args(
        rooms=2, num_episodes=4, episode_steps=60, max_episode_steps=10, task_dim=4, policy_width=16, action_horizon=2
    )
    blank = next(run.glob("runs/b/**/best"))
    seen = states(zero_shot_task.load_dataset(base, 0))
    wanted = policy_for_reward(Policy.load(blank), seen, lambda at: at[:, 0])
    z = require_task_conditioned(found).z  # threads add in another order
    assert torch.allclose(z, require_task_conditioned(wanted).z, atol=1e-5) and float(z.norm()) == pytest.approx(
        2, abs=1e-4
    )
    assert torch.allclose(found.generate(seen[:5], Rng(0)), wanted.generate(seen[:5], Rng(0)), atol=1e-4)


def test_a_reward_without_information_or_that_does_not_exist_is_an_error(run: Path, capsys: Any) -> None:
    for given, said in [
        (["runs/b", "--reward", "mine.py:flat", "--out", "x"], "no information"),
        (["runs/b", "--reward", "mine.py:rigt", "--out", "x"], "right"),
        (["runs/b", "--reward", "mine.py:right", "--out", "mine.py"], "exists already"),
    ]:
        assert main(["adapt", *given]) != 0
        assert said in capsys.readouterr().err
    assert not (run / "x").exists()
