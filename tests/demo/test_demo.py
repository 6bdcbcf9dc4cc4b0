"""The main job in small: three acts, their files, an interruption in the middle."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path

import pytest

pytest.importorskip("metaworld")
pytest.importorskip("matplotlib")

from denoiserl import demo
from denoiserl.core.errors import RunError
from denoiserl.core.serialization import store
from denoiserl.experiments.runner import run
from denoiserl.recipes.generators import flow_grpo
from denoiserl.recipes.language import tracerl
from denoiserl.recipes.policy_gradient import dppo
from denoiserl.stats import Comparison
from denoiserl.tasks import env as env_task
from denoiserl.tasks import shapes as shapes_task
from denoiserl.tasks import sudoku as sudoku_task

ARGS = demo.Args(
    trials=20,
    episodes=2,
    robot=dataclasses.replace(dppo.DEMO, iterations=1, rollout_steps=2, num_envs=2),
    image=dataclasses.replace(flow_grpo.DEMO, iterations=2, num_prompts=2, group_size=4),
    language=dataclasses.replace(tracerl.DEMO, iterations=2, num_prompts=2, group_size=4),
    robot_task=env_task.Args(
        pretrain_updates=4, num_demos=2, max_episode_steps=10, policy_width=16, pretrain_batch_size=8
    ),
    image_task=shapes_task.Args(pretrain_updates=4, pretrain_batch_size=8),
    language_task=sudoku_task.Args(pretrain_updates=4, pretrain_batch_size=8),
)


def test_the_demo_goes_on_where_it_stopped_and_tells_what_it_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "count_cores", lambda: 0)  # in this process, where the world can be changed
    monkeypatch.setattr(env_task, "render_trials", lambda *x: {"episodes.gif": b"GIF89a" + bytes(20)})
    folder, played = tmp_path / "demo", []
    judge = shapes_task.outcomes

    def fails_once(*x):
        if x[-1] == ARGS.trials:  # the act's judgement, not the recipe's own evaluations
            played.append(x)
            if len(played) == 2:
                raise KeyboardInterrupt
        return judge(*x)

    monkeypatch.setattr(shapes_task, "outcomes", fails_once)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the simulator
        with pytest.raises(SystemExit):
            run(demo, ARGS, folder, progress=False, tensorboard=False)
        with pytest.raises(RunError, match="has not finished"):
            demo.finish(folder)
        before = store.read(folder / "image" / "told" / "before")
        run(demo, ARGS, folder, progress=False, tensorboard=False)
    assert len(played) == 4, "before and control are judged once; after twice: its first time was interrupted"
    assert all((store.read(folder / "image" / "told" / "before")[k] == v).all() for k, v in before.items())
    page = demo.finish(folder).read_text(encoding="utf-8")
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    acts = [Comparison.from_dict(act) for act in summary["acts"]]
    assert [act.name for act in acts] == ["robot", "image", "language"]
    assert all(act.imitation is not None and act.seconds for act in acts)
    assert summary["seconds"] > sum(act.seconds or 0 for act in acts)
    assert "data:image/gif" in page and "data:image/png" in page and "more imitation" in page
    assert "improved by reward" in capsys.readouterr().out


def test_one_act_runs_alone_in_a_process_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = dataclasses.replace(ARGS, act=("language",), quick=True)
    result = run(demo, args, tmp_path / "demo", progress=True, tensorboard=False)
    assert result["rows"] == 1 and list(result["last"])[2] == "language/puzzles solved, 4 cells per step"
    assert "imitate 4/4" in (tmp_path / "demo" / "language.log").read_text()
    page = demo.finish(tmp_path / "demo").read_text(encoding="utf-8")
    assert "A quick trial" in page and ">Robot<" not in page


def test_unknown_acts_and_missing_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="Did you mean 'robot'"):
        run(demo, dataclasses.replace(ARGS, act=("robt",)), tmp_path / "x", progress=False, tensorboard=False)
    with pytest.raises(RunError, match="in a folder"):
        next(demo.train(ARGS))
