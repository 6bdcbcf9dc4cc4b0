"""Words become environments and demonstrations; options of a recipe's base need no prefix."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from denoiserl.core.errors import MissingExtraError, RunError
from denoiserl.core.rng import Rng
from denoiserl.envs import Collector
from denoiserl.envs.by_name import demonstrations, environment, has_script, record_expert
from denoiserl.tasks import env as env_task
from denoiserl.tasks import policies
from denoiserl.train import Run


def test_a_gymnasium_id_keeps_its_name_and_its_time_limit_may_be_another():
    pytest.importorskip("gymnasium")
    env = Collector(environment("Pendulum-v1", 7), 2, seed=1)
    assert env.name == "Pendulum-v1"
    ep = env.collect(lambda obs, rng: (torch.zeros(len(obs), 1), None), 8, Rng(0))
    assert ep.done[6].all() and not ep.done[:6].any() and not ep.terminated.any()
    env.close()


@pytest.mark.parametrize("word", ["Hoper-v5", "pixels:envpool:Hopper-v5", "no_such_module:make"])
def test_a_word_that_means_nothing_is_refused(word: str):
    pytest.importorskip("gymnasium")
    with pytest.raises(RunError, match=r"metaworld:TASK|MuJoCo|cannot be imported"):
        environment(word)


def test_an_environment_whose_package_fails_for_want_of_another_is_refused_by_a_sentence():
    """Box2D's environments raise an error of Gymnasium's own when they are imported, and no ImportError."""
    pytest.importorskip("gymnasium")
    if importlib.util.find_spec("Box2D") is not None:
        pytest.skip("Box2D is installed")
    with pytest.raises(MissingExtraError, match=r"LunarLander-v3 needs .*pip install"):
        Collector(environment("LunarLander-v3"), 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import numpy\nimport no_such_thing\n", "line 2: No module named 'no_such_thing': install no_such_thing"),
        ("def make(:\n", "SyntaxError .*mine.py, line 1"),
        ("\n\nx = 1 / 0\n", "ZeroDivisionError .*mine.py, line 3"),
    ],
)
def test_a_file_that_does_not_run_is_refused_with_its_line(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "mine.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for word in ("mine.py:make", "mine:make"):
        with pytest.raises(RunError, match=said):
            environment(word)
    with pytest.raises(RunError, match=r"write my_module:name or my_file.py:name"):
        environment(":make")


def test_a_function_of_yours_and_envpool_know_their_own_time_limit():
    for word in ("envpool:Hopper-v5", "my_file.py:make"):
        with pytest.raises(RunError, match="leave max_episode_steps out"):
            environment(word, 10)


def test_pictures_and_numbers_are_of_the_same_episodes():
    """The same seed shows the same scene: the hand in the state beside a picture is the hand of the numbers."""
    pytest.importorskip("metaworld")
    plain = demonstrations("metaworld:reach-v3", 1, 3, max_episode_steps=4)
    seen = demonstrations("pixels:metaworld:reach-v3", 1, 3, max_episode_steps=4)
    assert has_script("pixels:metaworld:reach-v3") and not has_script("Hopper-v5")
    assert torch.equal(seen.observations["state"], plain.observations[:, :4])
    assert torch.equal(seen.actions, plain.actions)
    images = seen.observations["image"]
    assert images.dtype == torch.uint8 and images.shape[1:] == (64, 64, 3)
    assert (images[0] != images[-1]).any(), "the arm has moved"


def test_pusht_is_recorded_with_its_ends():
    pytest.importorskip("gym_pusht")
    found = record_expert("pusht", 1, 5, max_episode_steps=3)
    assert found.terminated is not None and not found.terminated.any(), "three ticks are no solution"
    assert found.rewards is not None and float(found.rewards.sum()) == 0.0
    assert found.last.shape == (1, 18) and len(found.demos.actions) == 3


def test_nobody_demonstrates_where_there_is_no_script():
    with pytest.raises(RunError, match="record demonstrations or name"):
        demonstrations("Hopper-v5", 1)
    base = env_task.Args(env="Pendulum-v1")
    with pytest.raises(RunError, match="--data"):
        env_task.load_demonstrations(base, 0)


@pytest.mark.parametrize("kind", ["gaussian", "flow", "diffusion"])
def test_without_demonstrations_a_policy_begins_knowing_nothing(kind: str):
    pytest.importorskip("gymnasium")
    base = env_task.Args(env="Pendulum-v1", policy_width=16, start="none")
    begun = env_task.task(base).start_policy(0, Run(), kind)
    with pytest.raises(StopIteration) as ended:
        next(begun)
    policy = ended.value.value
    told = env_task.outcomes(policy, base, 0, 2)
    assert "success" not in told and told["return"].shape == (2,) and bool((told["length"] == 200).all())
    assert policy.generate(torch.zeros(1, 3), Rng(0)).shape == (1, 5, 1)


def test_only_a_gaussian_policy_begins_untrained_unasked():
    """PPO learns from nothing; a method that fine-tunes would train noise for an hour, so it asks."""
    pytest.importorskip("gymnasium")
    base = env_task.Args(env="Pendulum-v1", policy_width=16)
    for kind in ("flow", "diffusion"):
        with pytest.raises(RunError, match=r"give demonstrations with --data, .* --start none"):
            next(env_task.task(base).start_policy(0, Run(), kind))
    with pytest.raises(StopIteration):
        next(env_task.task(base).start_policy(0, Run(), "gaussian"))
    assert not env_task.has_demonstrations(env_task.Args(start="none"))


def test_a_saved_policy_is_where_a_run_starts(tmp_path: Path):
    pytest.importorskip("gymnasium")
    env = Collector(environment("Pendulum-v1"), 1)
    env.close()
    saved = policies.diffusion(env_task.Args(policy_width=16), env, 7)
    saved.save(tmp_path / "policy")
    begun = env_task.task(env_task.Args(env="Pendulum-v1", start=str(tmp_path / "policy"))).start_policy(
        0, Run(), "diffusion"
    )
    with pytest.raises(StopIteration) as ended:
        next(begun)
    found = ended.value.value.denoiser.state_dict()
    assert all(torch.equal(v, found[k]) for k, v in saved.denoiser.state_dict().items())


def settings_of(monkeypatch: pytest.MonkeyPatch, *argv: str) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """The experiment, the method's settings and the task's settings that a command starts."""
    from denoiserl.cli import main
    from denoiserl.experiments import runner

    started: list[Any] = []

    def run(program: Any, args: Any, *more: Any, **settings: Any) -> None:
        started.append(args)
        raise SystemExit(0)

    monkeypatch.setattr(runner, "run", run)
    assert main(["run", *argv]) == 0
    (args,) = started
    return args, args.args, args.task_args


def test_options_that_only_the_task_has_need_no_prefix(monkeypatch: pytest.MonkeyPatch):
    given = ["--env", "pusht", "--lr", "0.1", "--task.pretrain-lr=1", "--num-demos=3", "--on-fault", "restart"]
    args, method, task = settings_of(monkeypatch, "dppo", *given, "--seed", "17")
    assert (method["lr"], args.seed) == (0.1, 17)
    assert (task["env"], task["pretrain_lr"], task["num_demos"], task["on_fault"]) == ("pusht", 1.0, 3, "restart")


def test_an_option_that_both_have_is_the_method_s_without_a_prefix(monkeypatch: pytest.MonkeyPatch):
    _, method, task = settings_of(
        monkeypatch,
        "diffusion_policy",
        "--obs-horizon",
        "2",
        "--task.obs-horizon=3",
        "--task.env",
        "pusht",
        "--task.start=x",
    )
    assert (method["obs_horizon"], task["obs_horizon"], task["env"]) == (2, 3, "pusht")


def test_a_lerobot_checkpoint_is_improved_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its chunks, its memory of two observations, its normalisers: two iterations of DPPO on an environment of ours."""
    pytest.importorskip("diffusers")
    from denoiserl.cli import main

    (tmp_path / "drifting.py").write_text(
        "import numpy as np, gymnasium as gym\n"
        "class Drift(gym.Env):\n"
        "    observation_space = gym.spaces.Box(-10, 10, (7,), np.float32)\n"
        "    action_space = gym.spaces.Box(-2, 2, (2,), np.float32)\n"
        "    def view(self):\n"
        "        return np.concatenate([self.place, np.zeros(5)]).astype(np.float32)\n"
        "    def reset(self, *, seed=None, options=None):\n"
        "        super().reset(seed=seed)\n"
        "        self.place, self.ticks = self.np_random.normal(size=2), 0\n"
        "        return self.view(), {}\n"
        "    def step(self, action):\n"
        "        self.place, self.ticks = self.place + 0.1 * action, self.ticks + 1\n"
        "        return self.view(), float(-abs(self.place).sum()), False, self.ticks >= 16, {}\n"
    )
    monkeypatch.chdir(tmp_path)
    checkpoint = Path(__file__).parents[1] / "integrations" / "fixtures" / "lerobot" / "states"
    words = [
        "run",
        "dppo",
        "--env",
        "drifting.py:Drift",
        "--start",
        str(checkpoint),
        "--obs-horizon",
        "2",
        "--sampling-steps",
        "3",
    ]
    words += ["--iterations", "2", "--num-envs", "2", "--rollout-steps", "2"]
    assert main([*words, "--eval-every", "9", "--out", "r"]) in (
        0,
        None,
    )
    env = Collector(env_task.make_env(env_task.Args(env="drifting.py:Drift", start="x", obs_horizon=2)), 1)
    env.on_checkpoint(0)
    assert env.obs_dim == 14 and torch.equal(env.obs[0, :7], env.obs[0, 7:]), "an episode begins with its first twice"
    first = env.obs[0, 7:].clone()
    ep = env.collect(lambda obs, rng: (torch.ones(1, 2), None), 1, Rng(0))
    assert torch.equal(ep.next_obs[0, 0, :7], first) and not torch.equal(ep.next_obs[0, 0, 7:], first)


def test_clones_of_the_experiment_see_one_observation():
    with pytest.raises(RunError, match="policy at start"):
        env_task.Args(obs_horizon=2)
