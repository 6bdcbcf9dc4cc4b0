"""What ``eval`` and ``collect`` say beside their numbers: on success, starts, crashes, and histories."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("gymnasium")

from denoiserl.cli import collect, evaluate, main
from denoiserl.core.errors import RunError
from denoiserl.core.rng import Rng
from denoiserl.data.demos import Demonstrations
from denoiserl.envs import Collector
from denoiserl.envs.by_name import environment
from denoiserl.envs.frame_stack import ObservationHistory, newest_frame, with_policy_history
from denoiserl.stats import Interval, bootstrap, hierarchical_bootstrap, paired_interval, t_interval
from denoiserl.tasks import env as env_task
from denoiserl.tasks import policies

WORLDS = """
import gymnasium, numpy as np

class World(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-10, 10, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    kind = ""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=0 if self.kind == "deaf" else seed)
        self.k, self.o = 0, self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.o, {}

    def step(self, action):
        self.k += 1
        if self.kind == "falls" and self.o[0] > 0.3 and self.k == 2:
            raise RuntimeError("the wheel came off")
        won = self.k == 3 and self.o[0] < 0
        return self.o, 0.5 * won, False, self.k >= 5, {"success": bool(won)}

class Deaf(World):
    kind = "deaf"

class Falls(World):
    kind = "falls"

class Late(World):
    def step(self, action):
        *rest, info = super().step(action)
        return *rest, {"is_success": False} if self.k >= 5 else {}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "worlds_of_mine.py").write_text(WORLDS)
    made = Collector(environment("worlds_of_mine.py:World"), 1)
    policies.gaussian(env_task.Args(action_horizon=1, policy_width=8), made, 0).save(tmp_path / "policy")
    return tmp_path


def judged(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    evaluate.evaluate([*words, "--trials", "30", "--no-media"])
    return capsys.readouterr().out


def test_eval_keeps_what_is_said_of_a_policy_in_other_units(here: Path, capsys: pytest.CaptureFixture[str]):
    rows = torch.linspace(-1, 1, 40)[:, None]
    data = Demonstrations(rows.expand(-1, 2), 50 * (rows + 1), torch.tensor([20, 40]))
    policies.gaussian(env_task.Args(action_horizon=1, policy_width=8), data, 0).save(here / "percent")
    said = judged(capsys, "percent", "--env", "worlds_of_mine.py:World", "--out", "out")
    told = "the actions that the policy can take lie outside the box of World of actions: dimension 0 runs from 0"
    assert said.count(told) == 1 and (here / "out/eval.json").read_text().count(told) == 1
    assert "can take" not in judged(capsys, "policy", "--env", "worlds_of_mine.py:World", "--out", "fits")


def test_eval_says_what_success_means_and_when_it_came(here: Path, capsys: pytest.CaptureFixture[str]):
    said = judged(capsys, "policy", "--env", "worlds_of_mine.py:World", "--out", "out")
    rows = {line.split("  ")[0]: line for line in said.splitlines()}
    won = int(
        json.loads((here / "out/eval.json").read_text())["metrics"]["success"]["policies"]["policy"]["mean"] * 30 + 0.5
    )
    assert 0 < won < 30 and "at any step" in rows["success"]
    assert "end in success" in rows["success_at_end"] and " 0.0%" in rows["success_at_end"]
    assert "3.000" in rows["steps_to_success"] and rows["steps_to_success"].split()[-1] == str(won)
    assert "The same in every trial" in said and "length is 5" in said


def test_eval_says_that_starts_are_alike_and_that_episodes_crashed(here: Path, capsys: pytest.CaptureFixture[str]):
    said = judged(capsys, "policy", "--env", "worlds_of_mine.py:Deaf", "--out", "alike")
    note_lines = json.loads((here / "alike/eval.json").read_text())["notes"]["policy"]
    assert "1 distinct start of 30" in said and note_lines[0].startswith("1 distinct start of 30")
    said = judged(capsys, "policy", "--env", "worlds_of_mine.py:Falls", "--out", "crashes")
    record = json.loads((here / "crashes/eval.json").read_text())
    assert "of 30 episodes of" in said and "crashed and count as failures" in said and "the wheel came off" in said
    assert record["metrics"]["success"]["policies"]["policy"]["n"] == 30, "crashed episodes stay in the denominator"
    lines = [json.loads(line) for line in (here / "crashes/trials.jsonl").read_text().splitlines()]
    assert all(line["value"] == 3.0 for line in lines if line["metric"] == "steps_to_success")


def test_several_policies_are_compared_where_all_have_a_number(here: Path, capsys: pytest.CaptureFixture[str]):
    (here / "other").mkdir()
    made = Collector(environment("worlds_of_mine.py:World"), 1)
    policies.gaussian(env_task.Args(action_horizon=1, policy_width=8), made, 1).save(here / "other/second")
    said = " ".join(
        judged(capsys, "policy", "other/second", "--env", "worlds_of_mine.py:Falls", "--out", "two").split()
    )
    assert "trials where all have it (lower is better)" in said
    assert said.count("crashed and count as failures") == 1, "what is said of both is said once"


def test_collect_says_the_same_and_takes_functions_of_observations_alone(
    here: Path, capsys: pytest.CaptureFixture[str]
):
    (here / "mine.py").write_text("import numpy as np\ndef act(obs):\n    return np.zeros((len(obs), 1))\n")
    words = ["--policy", "mine.py:act", "--num-episodes", "70", "--json"]
    collect.collect(["--env", "worlds_of_mine.py:Deaf", "--out", "deaf", *words])
    told = json.loads(capsys.readouterr().out)
    assert [line[:23] for line in told["notes"]] == ["1 distinct start of 70:"], "of all blocks together"
    collect.collect(["--env", "worlds_of_mine.py:Falls", "--out", "falls", *words])
    told = json.loads(capsys.readouterr().out)
    assert told["played"]["episodes"] == 70 and all("crashed and count as failures" in line for line in told["notes"])


def test_a_policy_with_a_history_is_shown_its_last_observations(here: Path):
    make = environment("worlds_of_mine.py:World")
    sees = SimpleNamespace(codec=SimpleNamespace(history=3, sizes={"a": 1, "b": 1}))
    one = SimpleNamespace(codec=SimpleNamespace())
    assert with_policy_history(make, one) is make
    assert Collector(with_policy_history(make, sees), 2).spec.obs == (6,)
    stacked = with_policy_history(make, sees)
    assert with_policy_history(stacked, sees) is stacked, "an environment that shows them already stays as it is"
    env = ObservationHistory(make, 3)
    seen = [torch.from_numpy(env.reset(seed=0)[0])] + [torch.from_numpy(env.step([0.0])[0]) for _ in range(3)]
    assert torch.equal(newest_frame(torch.stack(seen), 3), torch.stack(seen)[:, -2:])
    parts = {"image": torch.arange(24).view(2, 3, 4), "state": torch.arange(6).view(2, 3)}
    assert newest_frame(parts, 3)["state"].tolist() == [2, 5] and torch.equal(
        newest_frame(parts, 3)["image"], parts["image"][:, -1]
    )


def test_collect_keeps_single_frames_of_a_policy_with_a_history(here: Path, monkeypatch: pytest.MonkeyPatch):
    policy = SimpleNamespace(codec=SimpleNamespace(history=2, sizes={"state": 2}))
    seen: list[tuple[int, ...]] = []

    def act(obs: torch.Tensor, rng: Rng) -> torch.Tensor:
        seen.append(tuple(obs.shape))
        return torch.zeros(len(obs), 1)

    monkeypatch.setattr(collect, "_make_actor", lambda a, env: (act, with_policy_history(env, policy), 2))
    collect.collect(["--env", "worlds_of_mine.py:World", "--policy", "policy", "--out", "kept", "--num-episodes", "3"])
    kept = Demonstrations.load(here / "kept")
    assert seen[0] == (3, 4) and kept.observations.shape == (15, 2)


def test_intervals_without_width_say_that_the_scores_are_equal():
    """Twenty equal scores prove nothing of others: no interval is printed as if they did."""
    same = torch.full((20,), 0.37)
    for found in (
        t_interval(same),
        bootstrap(same, Rng(0)),
        paired_interval(same, same),
        hierarchical_bootstrap(same.view(4, 5), Rng(0)),
    ):
        assert found.low == found.high and str(found).endswith(", all equal)") and "all equal" in f"{found:.1%}"
    assert "all equal" not in str(t_interval([1.0, 2.0])) and "all equal" not in str(Interval(0.5, 0.5, 0.5, 1))


def test_a_task_has_the_metric_success_where_it_is_told_only_when_episodes_end(here: Path):
    assert env_task.task(env_task.Args(env="worlds_of_mine.py:Late")).metric == "success"
    assert env_task.task(env_task.Args(env="Pendulum-v1")).metric == "return"


@pytest.mark.parametrize(("whose", "told"), [("own", 7), ("its simulator's", 10), ("neither's", None)])
def test_frames_a_second_are_the_environments_or_its_simulators(whose: str, told: int | None):
    """PushT and Meta-World wrap a simulator that knows them, so the documented command needs no --fps."""
    sim = SimpleNamespace(metadata={"render_fps": 10} if told else {})
    env = SimpleNamespace(sim=sim, close=lambda: None, metadata={"render_fps": 7} if whose == "own" else None)
    a = collect.CollectOptions(env="pusht", out=Path("demos"))
    if told is None:
        with pytest.raises(collect.Misuse, match="give --fps"):
            collect._fps(lambda: env, a)
    else:
        assert collect._fps(lambda: env, a) == told


def test_an_evaluation_takes_no_other_files_away(here: Path):
    """Only what an earlier evaluation wrote is replaced; another folder is refused before anything is played."""
    words = ["policy", "--env", "worlds_of_mine.py:World", "--trials", "2", "--no-media"]
    (here / "thesis").mkdir()
    (here / "thesis" / "chapter.tex").write_text("the only copy")
    for folder in ("thesis", "."):
        with pytest.raises(RunError, match="holds other files"):
            evaluate.evaluate([*words, "--out", folder])
    with pytest.raises(RunError, match="is a file"):
        evaluate.evaluate([*words, "--out", "worlds_of_mine.py"])
    assert (here / "thesis" / "chapter.tex").read_text() == "the only copy" and (here / "worlds_of_mine.py").is_file()
    for _ in range(2):
        evaluate.evaluate([*words, "--out", "kept"])
    assert sorted(p.name for p in (here / "kept").iterdir()) == ["eval.json", "plot.png", "trials.jsonl"]


def test_wrong_words_are_refused_by_a_sentence(here: Path, capsys: pytest.CaptureFixture[str]):
    """Paths that cannot be, environments that cannot be made, and policies of other environments."""
    (here / "more.py").write_text("def broken(): raise RuntimeError('no simulator')")
    sound = ["policy", "--env", "worlds_of_mine.py:World", "--trials", "2", "--no-media"]
    collect = ["collect", "--policy", "policy", "--num-episodes", "2"]
    for words, said in (
        (["eval", *sound, "--out", "more.py/x"], "more.py is a file"),
        (["eval", ".", *sound[1:]], "not a folder that denoiserl wrote"),
        (["eval", "policy", "--env", "more.py:broken"], "cannot be made (raised RuntimeError: no simulator)"),
        (["eval", "policy", "--env", "CartPole-v1"], "the policy does not take the observations of CartPole-v1"),
        ([*collect, "--env", "CartPole-v1", "--out", "a"], "policy does not take the observations of CartPole-v1"),
        ([*collect, "--env", sound[2], "--out", "more.py/x"], "give another path"),
        (["sample", "policy"], "name the folder of its run"),
        (["adapt", "policy", "--reward", "more.py:broken", "--out", "a"], "name the folder of its run"),
    ):
        assert main(words) in (1, 2)
        assert said in " ".join(capsys.readouterr().err.split()), words


def test_a_recording_that_failed_at_once_does_not_keep_its_name(here: Path, capsys: pytest.CaptureFixture[str]):
    (here / "more.py").write_text("import numpy as np\ndef act(obs): return np.zeros((len(obs), 3))")
    words = ["collect", "--env", "worlds_of_mine.py:World", "--num-episodes", "2", "--out", "kept"]
    assert main([*words, "--policy", "more.py:act"]) == 1
    assert main([*words, "--policy", "policy"]) == 0 and (here / "kept").is_dir()
