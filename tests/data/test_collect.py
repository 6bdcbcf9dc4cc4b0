"""What is recorded is what happened: executed actions, what was seen before each, who succeeded, for any copies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from denoiserl import Diffusion, GaussianDenoiser, Policy, time_grid
from denoiserl.cli import Misuse
from denoiserl.cli.collect import collect as verb
from denoiserl.control.acting import eval_actor
from denoiserl.core.counters import UsageCounter
from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.core.rng import Rng
from denoiserl.data import Demonstrations
from denoiserl.data.recordings import EpisodeDataset, validate_episode
from denoiserl.envs import evaluate
from denoiserl.envs.record import batch_expert, collect, constant_dimensions, record
from denoiserl.nn import MLP
from denoiserl.processes import cosine, ddim

pytestmark = pytest.mark.filterwarnings("ignore::denoiserl.envs.remarks.Remark")  # a walk may succeed in a tick

gym = pytest.importorskip("gymnasium")


class Walk:
    """x' = x + a, observed with the tick; x above 1 is success and ends it, 6 ticks cut it."""

    metadata: ClassVar = {"render_fps": 20}

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = gym.spaces.Box(-0.5, 0.5, (1,), np.float32)

    def _view(self) -> np.ndarray:
        return np.array([self.x, self.ticks, 7.0], np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.x, self.ticks = float(np.random.default_rng(seed).uniform(-3, 1)), 0
        return self._view(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.x, self.ticks = self.x + float(action[0]), self.ticks + 1
        won = self.x > 1
        return self._view(), -1.0 + 10 * won, won, self.ticks >= 6 and not won, {"success": won}

    def close(self) -> None:
        pass


def noisy(obs: Tensor, rng: Rng) -> Tensor:
    """A chunk of two actions, often outside the box."""
    return 0.4 + 0.3 * rng.normal(len(obs), 2, 1)


def test_every_frame_follows_from_the_one_before_by_the_recorded_action() -> None:
    recorded = record(Walk, noisy, 9, seed=2, num_envs=4)
    demos = recorded.demos
    assert demos.success is not None and 0 < int(demos.success.sum()) < 9
    assert float(demos.actions.abs().max()) == 0.5  # executed, hence clipped
    for i in range(9):
        (seen, done), won = demos.episode(i), bool(demos.success[i])
        after = torch.cat([seen[1:], recorded.last[i : i + 1]])
        assert torch.allclose(after[:, 0], seen[:, 0] + done[:, 0], atol=1e-5)
        assert seen[:, 1].tolist() == list(range(len(done)))
        assert bool(recorded.terminated[i]) is won and (len(done) == 6 or won)  # type: ignore[index]
        assert (float(after[-1, 0]) > 1) is won and bool((seen[:, 0] <= 1).all())
        assert float(demos.returns[i]) == pytest.approx(10 * won - len(done))  # type: ignore[index]
    assert constant_dimensions(demos) == [2]


def test_episodes_are_the_same_for_any_number_of_copies_and_are_those_of_an_evaluation() -> None:
    one, many = (collect(Walk, noisy, 7, seed=5, num_envs=c) for c in (1, 5))
    for name in ("actions", "observations", "ends", "success", "returns"):
        assert torch.equal(getattr(one, name), getattr(many, name))
    single = lambda obs, rng: 0.1 + 0.3 * rng.normal(len(obs), 1)  # noqa: E731
    judged, kept = evaluate(single, Walk, 7, seed=5), collect(Walk, single, 7, seed=5)
    assert torch.equal(judged.returns, kept.returns) and torch.equal(judged.lengths, kept.lengths)
    assert torch.equal(judged.success, kept.success)


def test_some_episodes_are_taken_whole() -> None:
    recorded = record(Walk, noisy, 9, seed=2)
    won = recorded.successful()
    assert bool(won.demos.success.all()) and bool(won.terminated.all())  # type: ignore[union-attr]
    assert won.rewards[won.demos.ends - 1].tolist() == [9.0] * len(won.demos)  # type: ignore[index]
    assert torch.equal(won.last, recorded.last[recorded.demos.success])
    assert float(won.rewards.sum()) == pytest.approx(float(won.demos.returns.sum()))  # type: ignore[union-attr]


def test_frames_are_counted() -> None:
    with UsageCounter().open() as meter:
        demos = collect(Walk, noisy, 3)
    assert meter.counts["env_steps"] == len(demos.actions)


def test_a_limit_cuts_and_says_so() -> None:
    recorded = record(Walk, batch_expert(lambda o: np.zeros(1)), 4, max_episode_steps=3)
    assert recorded.demos.lengths.tolist() == [3] * 4 and not bool(recorded.terminated.any())  # type: ignore[union-attr]


def test_what_cannot_be_recorded_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="at least one episode"):
        collect(Walk, noisy, 0)
    with pytest.raises(InvalidInputError, match="holds NaN"):
        collect(Walk, lambda obs, rng: torch.full((len(obs), 1), torch.nan), 2)
    with pytest.raises(InvalidInputError, match="demonstrations hold actions"):
        collect("CartPole-v1", noisy, 2)
    with pytest.raises(InvalidInputError, match=r"actions of shape \[4\]"):
        validate_episode("x", 0, np.zeros((4, 2)), np.zeros(4))
    lost = record(Walk, batch_expert(lambda o: np.zeros(1)), 1, max_episode_steps=1)
    with pytest.raises(InvalidInputError, match="no episode is left"):
        lost.successful()


def run(capsys: Any, *words: str) -> Any:
    verb([*words, "--json"])
    return json.loads(capsys.readouterr().out)


def test_the_verb_writes_each_format_with_the_same_numbers(tmp_path: Path, capsys: Any) -> None:
    world = tmp_path / "walking.py"
    world.write_text(
        "from denoiserl.core.rng import Rng\n"
        f"import importlib.util\nspec = importlib.util.spec_from_file_location('w', {str(Path(__file__))!r})\n"
        "w = importlib.util.module_from_spec(spec)\nspec.loader.exec_module(w)\nWalk, noisy = w.Walk, w.noisy\n"
    )
    common = ("--env", f"{world}:Walk", "--policy", f"{world}:noisy", "--num-episodes", "6", "--seed", "2")
    told = run(capsys, *common, "--out", str(tmp_path / "own"))
    ours, wanted = Demonstrations.load(tmp_path / "own"), collect(Walk, noisy, 6, seed=2)
    assert torch.equal(ours.actions, wanted.actions) and told["constant"] == [2]
    assert told["played"] == told["kept"] == wanted.statistics()
    told = run(capsys, *common, "--out", str(tmp_path / "won"), "--only-successes")
    assert told["kept"]["success"] == 1.0 and told["played"] == wanted.statistics()
    pytest.importorskip("h5py")
    from denoiserl.data.formats import any as recordings
    from denoiserl.data.formats import lerobot as lerobot_dataset
    from denoiserl.data.formats import minari

    run(capsys, *common, "--out", str(tmp_path / "minari"), "--format", "minari")
    assert torch.equal(minari.read(tmp_path / "minari").actions, wanted.actions)
    run(capsys, *common, "--out", str(tmp_path / "flat.hdf5"), "--format", "hdf5")
    flat = recordings.read(tmp_path / "flat.hdf5")
    assert torch.equal(flat.demos.actions, wanted.actions) and flat.demos.statistics() == wanted.statistics()
    with pytest.raises(Misuse, match="--format hdf5 writes one file"):
        verb([*common, "--out", str(tmp_path / "flat"), "--format", "hdf5"])
    pytest.importorskip("pyarrow")
    run(capsys, *common, "--out", str(tmp_path / "lerobot"), "--format", "lerobot")
    assert torch.equal(lerobot_dataset.read(tmp_path / "lerobot").observations, wanted.observations)
    assert json.loads((tmp_path / "lerobot" / "meta" / "info.json").read_text())["fps"] == 20
    with pytest.raises(Misuse, match="exists already"):
        verb([*common, "--out", str(tmp_path / "own")])
    verb([*common, "--out", str(tmp_path / "more")])
    assert "of them succeed" in capsys.readouterr().out
    with pytest.raises(Misuse, match="has no scripted expert"):
        verb([*common[:2], "--out", str(tmp_path / "none")])


def test_noise_is_a_share_of_the_range_and_what_is_done_is_recorded(tmp_path: Path) -> None:
    """Of a policy that stands still in a range of [-2, 2]: a std of 2 x 0.3, the same for any number of copies."""
    world = tmp_path / "still.py"
    world.write_text("import torch\ndef act(obs, rng):\n    return torch.zeros(len(obs), 1, 1)\n")
    common = ("--env", "Pendulum-v1", "--policy", f"{world}:act", "--num-episodes", "3", "--action-noise", "0.3")
    verb([*common, "--out", str(tmp_path / "a")])
    verb([*common, "--out", str(tmp_path / "b"), "--num-envs", "1"])
    one, other = (Demonstrations.load(tmp_path / k).actions for k in "ab")
    assert torch.equal(one, other) and float(one.std()) == pytest.approx(0.6, rel=0.1)
    with pytest.raises(Misuse, match=r"--action-noise = -1\.0 is out of range"):
        verb([*common[:-1], "-1", "--out", str(tmp_path / "c")])
    with pytest.raises(RunError, match="takes no noise"):
        verb(["--env", "pusht", "--action-noise", "0.3", "--num-episodes", "1", "--out", str(tmp_path / "c")])


def test_an_expert_of_metaworld_is_recorded(tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("metaworld")
    told = run(
        capsys,
        "--env",
        "metaworld:reach-v3",
        "--num-episodes",
        "3",
        "--out",
        str(tmp_path / "reach"),
        "--num-envs",
        "3",
    )
    assert told["kept"]["success"] == 1.0 and told["kept"]["return"] == 1.0
    assert Demonstrations.load(tmp_path / "reach").observations.shape[1] == 39


def test_a_saved_policy_is_recorded_as_it_is_judged(tmp_path: Path, capsys: Any) -> None:
    """The same start states and noise as ``evaluate``: the returns agree episode by episode."""
    torch.manual_seed(0)
    process = Diffusion(cosine, ddim(0.0), clip=1.0)
    policy = Policy.of(
        process,
        GaussianDenoiser(MLP((2, 1), cond=3, width=16, depth=2, zero=True), cosine, "eps"),
        (2, 1),
        process.steps(time_grid(3)),
    )
    policy.save(tmp_path / "policy")
    world = tmp_path / "place.py"
    world.write_text(
        f"import importlib.util\nspec = importlib.util.spec_from_file_location('w', {str(Path(__file__))!r})\n"
        "w = importlib.util.module_from_spec(spec)\nspec.loader.exec_module(w)\nWalk = w.Walk\n"
    )
    words = ("--env", f"{world}:Walk", "--policy", str(tmp_path / "policy"), "--num-episodes", "30", "--seed", "3")
    run(capsys, *words, "--out", str(tmp_path / "demos"))
    judged = evaluate(eval_actor(policy), Walk, 30, seed=3)
    assert torch.equal(Demonstrations.load(tmp_path / "demos").returns, judged.returns)  # type: ignore[arg-type]
    assert len(judged.returns.unique()) > 1
    with pytest.raises(RunError):
        verb([*words[:3], str(tmp_path / "nothing"), "--out", str(tmp_path / "none")])


def test_a_recording_comes_back_whole_and_joins(tmp_path: Path) -> None:
    """Episodes 0 to 5 at once are episodes 0 to 3 and 4 to 5, joined; what is stored is what happened."""
    was = record(Walk, noisy, 6, seed=2)
    parts = [record(Walk, noisy, 4, seed=2), record(Walk, noisy, 2, seed=2, first=4)]
    for found in (EpisodeDataset.concat(parts), EpisodeDataset.load(was.save(tmp_path / "r"))):
        assert torch.equal(found.demos.actions, was.demos.actions) and torch.equal(found.demos.ends, was.demos.ends)
        assert found.rewards is not None and was.rewards is not None and torch.equal(found.rewards, was.rewards)
        assert torch.equal(found.last, was.last) and found.terminated is not None
        assert was.terminated is not None and torch.equal(found.terminated, was.terminated)
    assert torch.equal(Demonstrations.load(tmp_path / "r").actions, was.demos.actions), "demonstrations are part of it"
    was.demos.save(tmp_path / "d")
    assert EpisodeDataset.load(tmp_path / "d").rewards is None, "nobody told"


def test_an_interrupted_recording_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: Any) -> None:
    import denoiserl.cli.collect as module

    monkeypatch.setattr(module, "BLOCK", 2)
    ask = module.CollectOptions("x", tmp_path / "out", "y", 5)
    played: list[int] = []

    def play(first: int, n: int, told: Any, stop: int = 2) -> Any:
        if first >= stop:
            raise KeyboardInterrupt
        played.append(first)
        return record(Walk, noisy, n, seed=2, first=first)

    with pytest.raises(SystemExit):
        module._record_in_blocks(ask, play, lambda done, won: None)
    with pytest.raises(Misuse, match="another command"):
        module._record_in_blocks(module.CollectOptions("x", tmp_path / "out", "y", 7), play, lambda done, won: None)
    found = module._record_in_blocks(ask, lambda f, n, t: play(f, n, t, 99), lambda done, won: None)
    assert played == [0, 2, 4], "what was through is not played again"
    assert torch.equal(found.demos.actions, record(Walk, noisy, 5, seed=2).demos.actions)
    assert not list(tmp_path.iterdir()), "nothing is left beside"
