"""Options out of range: refused where they are given, under their names, before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import denoiserl
from denoiserl import recipes
from denoiserl.cli import main
from denoiserl.core.errors import RunError
from denoiserl.experiments import experiment, runner
from denoiserl.tasks.env import Args as EnvArgs
from denoiserl.train import Run
from denoiserl.train.device import DeviceConfig

RUN = [
    "--save-every 0",
    "--env-restart-every 0",
    "--eval-every 0",
    "--eval-trials -1",
    "--threads 0",
    "--budget env_steps=-4",
    "--budget env_steps=nan",
    "--seed -1",
    "--seed 4294967296",
    "--lr -1",
]
OTHERS = [
    ("eval runs/none", "--seed -1"),
    ("eval runs/none", "--trials 0"),
    ("sample runs/none", "--seed 4294967296"),
    ("doctor runs/none", "--seed -1"),
    ("doctor runs/none", "--num-samples 0"),
    ("doctor runs/none", "--group-size 0"),
    ("collect --env pusht --out o", "--seed -1"),
    ("collect --env pusht --out o", "--max-episode-steps 0"),
    ("upsample none.hdf5 --out o.hdf5", "--seed -1"),
    ("compare --task env --methods dppo,ppo --budget 1k --unit env_steps", "--seeds -1"),
    ("demo", "--seed -1"),
    ("demo", "--trials 0"),
]


@pytest.mark.parametrize(("verb", "option"), [("run dppo", option) for option in RUN] + OTHERS)
def test_a_value_out_of_range_is_misuse_of_its_option(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, verb: str, option: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*verb.split(), *option.split()]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and f"{option.replace('=', ' ').rpartition(' ')[0]} = " in line and "give" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("device", ["foo", "cuda:x"])
@pytest.mark.parametrize("verb", ["run dppo", "demo", "eval runs/none", "upsample none.hdf5 --out o.hdf5"])
def test_a_device_that_does_not_exist_is_misuse(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, verb: str, device: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*verb.split(), "--device", device]) == 2
    assert f"There is no device '{device}': use cpu" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_chunk_holds_the_actions_that_are_executed(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main("run dppo --action-horizon 2 --execution-horizon 9".split()) == 2
    line = capsys.readouterr().err
    assert "--execution-horizon = 9" in line and "--action-horizon = 2" in line and not list(tmp_path.iterdir())
    assert EnvArgs(start="runs/policy", execution_horizon=9).execution_horizon == 9  # of a policy with other chunks


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Run(every=0), "every = 0"),
        (lambda: Run(restart=0), "restart = 0"),
        (lambda: Run(budget={"updates": float("nan")}), "budget updates = nan"),
        (lambda: Run(device="foo"), "no device 'foo'"),
        (lambda: DeviceConfig("cuda:x"), "no device 'cuda:x'"),
        (lambda: DeviceConfig(threads=0), "threads = 0"),
        (lambda: experiment.Args("dppo", seed=-1), "seed = -1"),
        (lambda: experiment.Args("dppo", eval_every=0), "eval_every = 0"),
    ],
)
def test_python_says_the_same(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(RunError, match=words):
        make()


@pytest.mark.parametrize(
    "setting", [{"save_every": 0}, {"env_restart_every": 0}, {"threads": 0}, {"budget": {"updates": -1}}]
)
def test_the_runner_refuses_settings_before_the_folder_exists(tmp_path: Path, setting: dict[str, Any]) -> None:
    with pytest.raises(RunError, match=f"{next(iter(setting))}.* is out of range: give a number"):
        runner.run(experiment, experiment.Args("dppo"), tmp_path / "run", **setting)
    assert not (tmp_path / "run").exists()


def test_a_policy_moves_only_to_a_device_that_there_is() -> None:
    process = denoiserl.Diffusion()
    net = denoiserl.GaussianDenoiser(torch.nn.Identity())
    policy = denoiserl.Policy.of(process, net, (2,), process.steps(denoiserl.time_grid(2)))
    with pytest.raises(RunError, match="There is no device 'foo': use cpu"):
        policy.to("foo")
    if not torch.cuda.is_available():
        with pytest.raises(RunError, match="sees no CUDA device: use device cpu"):
            policy.to("cuda")


def test_the_help_of_the_demo_shows_its_own_options_and_takes_those_of_its_acts(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["demo", "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.index("--act ") < shown.index("--device") and shown.count("\n") < 60
    assert "2**32" in shown and "--robot.lr" not in shown and "run dppo --help" in shown
    calls = []
    monkeypatch.setattr(runner, "run", lambda program, args, folder, **_: calls.append((program, args)) or exit(0))
    assert main(["demo", "--robot.iterations", "3", "--image-task.pretrain-updates", "5", "--act", "robot"]) == 0
    ((program, args),) = calls
    assert isinstance(args, program.Args) and isinstance(args.robot, recipes.load("dppo").Args)
    assert (args.robot.iterations, args.image_task.pretrain_updates, args.act) == (3, 5, ("robot",))


def test_dir_lists_only_names_that_can_be_used() -> None:
    for module in (denoiserl, recipes):
        for name in dir(module):
            assert name.isidentifier() and getattr(module, name) is not None
    assert not {"typing", "importlib", "ast", "re", "HERE"} & {*dir(denoiserl), *dir(recipes)}
    assert {"dppo", "policy_gradient", "load", "Recipe"} <= {*dir(recipes)}
