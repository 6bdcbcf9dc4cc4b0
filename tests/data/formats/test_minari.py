"""Datasets of Minari: read as Minari reads them, written so that Minari does, and refused by episode and row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.data import ActionChunkCodec
from denoiserl.data.formats import minari
from denoiserl.data.formats.minari.writer import _store
from denoiserl.envs.record import record

h5py = pytest.importorskip("h5py")
gym = pytest.importorskip("gymnasium")
BOX = {"type": "Box", "dtype": "float32", "shape": [2], "low": [-1, -1], "high": [1, 1]}


def made(folder: Path, episodes: list[dict[str, Any]], **metadata: Any) -> Path:
    """A dataset by hand, in Minari's layout."""
    folder.mkdir(parents=True)
    with h5py.File(folder / "main_data.hdf5", "w") as file:
        for i, columns in enumerate(episodes):
            _store(file.create_group(f"episode_{i}"), columns)
    told = {
        "data_format": "hdf5",
        "total_episodes": len(episodes),
        "action_space": json.dumps(BOX),
        "dataset_id": "a/b-v0",
    }
    (folder / "metadata.json").write_text(json.dumps({**told, **metadata}))
    return folder


def episode(length: int, seed: int = 0, **changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    ended = np.zeros(length, bool)
    ended[-1:] = True
    columns = {
        "observations": rng.normal(size=(length + 1, 3)),
        "actions": rng.uniform(-1, 1, (length, 2)),
        "rewards": rng.normal(size=length),
        "terminations": ended,
        "truncations": np.zeros(length, bool),
    }
    return {k: v for k, v in {**columns, **changes}.items() if v is not None}


class Point:
    """A point that is pushed, and the way to its goal as a dict; success ends it."""

    def __init__(self) -> None:
        box = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.observation_space = gym.spaces.Dict({"place": box, "goal": gym.spaces.Dict({"way": box})})
        self.action_space = gym.spaces.Box(-0.5, 0.5, (2,), np.float32)

    def _view(self) -> Any:
        return {"place": self.place.astype(np.float32), "goal": {"way": -self.place.astype(np.float32)}}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.place, self.ticks = np.random.default_rng(seed).uniform(-2.5, 2.5, 2), 0
        return self._view(), {}

    def step(self, action: np.ndarray) -> Any:
        self.place, self.ticks = self.place + action, self.ticks + 1
        near = bool(np.abs(self.place).max() < 0.1)
        return self._view(), float(near), near, self.ticks >= 3 and not near, {"success": near}

    def close(self) -> None:
        pass


def homewards(obs: Any, rng: Any) -> Any:
    return obs["goal"]["way"]


def test_what_is_written_is_read_by_minari_itself(tmp_path: Path) -> None:
    theirs = pytest.importorskip("minari")
    recorded = record(Point, homewards, 7, seed=3, num_envs=4)
    assert 0 < int(recorded.demos.success.sum()) < 7  # type: ignore[union-attr]
    folder = minari.write(tmp_path / "set", recorded, "points/home-v0")
    dataset = theirs.MinariDataset(folder / "data")
    assert dataset.total_episodes == 7 and dataset.total_steps == len(recorded.demos.actions)
    assert dataset.action_space == gym.spaces.Box(-0.5, 0.5, (2,), np.float32)
    for i, them in enumerate(dataset.iterate_episodes()):
        observations, actions = recorded.demos.episode(i)
        won = bool(recorded.demos.success[i])  # type: ignore[index]
        assert np.array_equal(them.actions, actions.numpy())
        assert np.array_equal(them.observations["goal"]["way"][:-1], observations["goal"]["way"].numpy())
        assert dataset.observation_space["place"].contains(them.observations["place"][0])
        # the last observation is the successor of the last action
        gap = them.observations["place"][-1] - them.observations["place"][-2] - them.actions[-1]
        assert np.abs(gap).max() < 1e-6
        assert them.terminations.tolist() == [False] * (len(actions) - 1) + [won]
        assert them.truncations.tolist() == [False] * (len(actions) - 1) + [not won]
        assert float(them.rewards.sum()) == float(won) and bool(them.infos["success"].all()) == won


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    recorded = record(Point, homewards, 5, seed=1)
    back = minari.read_recording(minari.write(tmp_path / "set", recorded))
    for ours, theirs in ((recorded.demos, back.demos), (recorded.successful().demos, back.successful().demos)):
        assert torch.equal(ours.actions, theirs.actions) and torch.equal(ours.ends, theirs.ends)
        assert torch.equal(ours.observations["goal"]["way"], theirs.observations["goal"]["way"])
        assert torch.equal(ours.success, theirs.success) and torch.equal(ours.returns, theirs.returns)
    assert torch.equal(recorded.terminated, back.terminated) and torch.equal(recorded.rewards, back.rewards)
    assert torch.equal(recorded.last["place"], back.last["place"]) and torch.equal(recorded.low, back.low)
    with pytest.raises(RunError, match="exists already"):
        minari.write(tmp_path / "set", recorded)


@pytest.mark.parametrize("layout", ["hdf5", "arrow"])
def test_datasets_of_minaris_own_writer_are_read(tmp_path: Path, layout: str) -> None:
    """Nested observations with a picture, in both layouts: every number as Minari's reader gives it."""
    pytest.importorskip("minari")
    storage = pytest.importorskip("minari.dataset.minari_storage")
    buffers = pytest.importorskip("minari.data_collector")
    if layout == "arrow":
        pytest.importorskip("pyarrow")
    seen = gym.spaces.Dict(
        {
            "arm": gym.spaces.Box(-9, 9, (2, 2), np.float64),
            "eye": gym.spaces.Box(0, 255, (32, 32, 3), np.uint8),
            "more": gym.spaces.Dict({"goal": gym.spaces.Box(-9, 9, (1,), np.float32)}),
        }
    )
    acts, rng = gym.spaces.Box(-1, 1, (2,), np.float32), np.random.default_rng(0)
    store = storage.MinariStorage.new(tmp_path, seen, acts, data_format=layout)
    eyes = [np.kron(rng.integers(0, 255, (2, 2, 3)), np.ones((16, 16, 1))).astype(np.uint8) for _ in range(9)]
    for k, length in enumerate((3, 5)):
        over = [False] * (length - 1) + [True]
        observations = {
            "arm": rng.normal(size=(length + 1, 2, 2)),
            "eye": np.stack(eyes[: length + 1]),
            "more": {"goal": rng.normal(size=(length + 1, 1)).astype(np.float32)},
        }
        won = {"success": [False] * length + [k == 1]}
        actions, rewards = rng.uniform(-1, 1, (length, 2)).astype(np.float32), list(rng.normal(size=length))
        buffer = buffers.EpisodeBuffer(k, None, None, observations, actions, rewards, over, [False] * length, won)
        store.update_episodes([buffer])
    back = minari.read_recording(tmp_path)
    assert back.demos.success.tolist() == [False, True] and back.demos.lengths.tolist() == [3, 5]  # type: ignore[union-attr]
    for i, them in enumerate(store.get_episodes([0, 1])):
        observations, actions = back.demos.episode(i)
        assert np.array_equal(actions.numpy(), them["actions"])
        assert np.allclose(observations["arm"], them["observations"]["arm"][:-1], atol=1e-6)
        assert np.array_equal(observations["eye"], them["observations"]["eye"][:-1])
        assert np.array_equal(back.last["more"]["goal"][i], them["observations"]["more"]["goal"][-1])
        assert np.isclose(float(back.demos.returns[i]), them["rewards"].sum(), atol=1e-5)  # type: ignore[index]
    part = minari.read(tmp_path, obs_keys=["arm"])
    assert set(part.observations) == {"arm"}
    with pytest.raises(InvalidInputError, match=r"no part of the observations of .* 'arn'. Did you mean 'arm'"):
        minari.read(tmp_path, obs_keys=["arn"])


def test_bad_episodes_are_refused_by_number_and_row_and_can_be_left_out(tmp_path: Path) -> None:
    nan = episode(6)["observations"].copy()
    nan[4, 1] = np.nan
    far = episode(6)["actions"].copy()
    far[2, 1] = 40.0
    early = np.array([0, 0, 1, 0, 0, 1], bool)
    bad = {
        "nan": (episode(6, observations=nan), "row 4 of observations of episode 1 of a/b-v0 holds NaN"),
        "infinite": (
            episode(6, rewards=np.full(6, np.inf)),
            "row 0 of rewards of episode 1 of a/b-v0 holds NaN or inf",
        ),
        "units": (episode(6, actions=far), r"row 2 of episode 1 of a/b-v0 acts 40 in dimension 1, outside .*\[-1, 1\]"),
        "ragged": (episode(6, rewards=np.zeros(5)), "episode 1 of a/b-v0 is ragged, 6 actions and 5 of rewards"),
        "short": (episode(6, observations=np.zeros((6, 3))), "ragged, 6 actions and 6 observations .one more is right"),
        "empty": (episode(0), "episode 1 of a/b-v0 is empty"),
        "early": (episode(6, terminations=early), "episode 1 of a/b-v0 terminated in row 2 and goes on to row 5"),
    }
    for name, (broken, said) in bad.items():
        folder = made(tmp_path / name, [episode(4), broken, episode(5)])
        with pytest.raises(InvalidInputError, match=said):
            minari.read(folder)
        assert minari.read(folder, exclude_episodes=(1,)).lengths.tolist() == [4, 5]
    clipped = minari.read(tmp_path / "units", out_of_bounds_actions="clip")
    assert float(clipped.actions.max()) == 1.0
    folder = made(tmp_path / "keys", [episode(4), episode(5, rewards=None)])
    with pytest.raises(InvalidInputError, match="episode 1 of a/b-v0 has no rewards; it has actions, observations"):
        minari.read(folder)
    folder = made(tmp_path / "widths", [episode(4), episode(5, observations=np.zeros((6, 4)))])
    with pytest.raises(InvalidInputError, match="observations or actions of different shapes"):
        minari.read(folder)


def test_bad_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is no Minari dataset: there is no metadata.json"):
        minari.read(tmp_path)
    folder = made(tmp_path / "none", [])
    with pytest.raises(InvalidInputError, match="holds no episode"):
        minari.read(folder)
    folder = made(tmp_path / "cut", [episode(4)], total_episodes=3)
    with pytest.raises(RunError, match=r"holds 1 episodes of the 3 that metadata.json promises"):
        minari.read(folder)
    (folder / "main_data.hdf5").write_bytes(b"")
    with pytest.raises(RunError, match="cannot be read as HDF5"):
        minari.read(folder)
    (folder / "metadata.json").write_text("{")
    with pytest.raises(RunError, match="is no JSON"):
        minari.read(folder)
    folder = made(tmp_path / "choice", [episode(4)], action_space=json.dumps({"type": "Discrete", "n": 3}))
    with pytest.raises(InvalidInputError, match="acts in a Discrete space"):
        minari.read(folder)


def test_constant_dimensions_are_kept_and_normalised_to_zero(tmp_path: Path) -> None:
    observations = np.random.default_rng(0).normal(size=(7, 3))
    observations[:, 1] = 5.0
    demos = minari.read(made(tmp_path / "set", [episode(6, observations=observations)]))
    codec = ActionChunkCodec.fit(demos)
    assert codec.observation.constant.tolist() == [False, True, False]
    assert float(codec.condition(demos.observations)[:, 1].abs().max()) == 0.0


def test_columns_of_one_number_a_tick_are_read_in_either_shape(tmp_path: Path) -> None:
    tall = episode(5, rewards=np.arange(5.0)[:, None], terminations=np.eye(5, dtype=bool)[4][:, None])
    back = minari.read_recording(made(tmp_path / "tall", [episode(4), tall]))
    assert back.rewards is not None and back.rewards[4:].tolist() == [0, 1, 2, 3, 4] and back.terminated is not None
    with pytest.raises(InvalidInputError, match=r"rewards of episode 0 of a/b-v0 are \[5, 2\]"):
        minari.read(made(tmp_path / "wide", [episode(5, rewards=np.ones((5, 2)))]))
    joined = episode(6, truncations=np.array([0, 0, 1, 0, 0, 1], bool))
    with pytest.raises(InvalidInputError, match="episode 0 of a/b-v0 truncated in row 2 and goes on to row 5"):
        minari.read(made(tmp_path / "joined", [joined]))
    with pytest.raises(InvalidInputError, match="has no episode 7 to leave out: its episodes are 0"):
        minari.read(made(tmp_path / "few", [episode(5)]), exclude_episodes=(7,))


def test_success_that_is_not_told_of_every_episode_is_never_dropped_without_a_word(tmp_path: Path) -> None:
    won = {"infos": {"success": np.ones(5)}}
    some = made(tmp_path / "some", [episode(4), {**episode(4), **won}, episode(4)])
    with pytest.warns(UserWarning, match=r"infos of episode 0 of a/b-v0 hold no success \(2 of 3 .*leave out 0,2$"):
        assert minari.read(some).success is None
    assert minari.read(some, exclude_episodes=(0, 2)).success.tolist() == [True]  # type: ignore[union-attr]
    assert minari.read(made(tmp_path / "none", [episode(4)])).success is None


def test_success_in_words_is_read_where_they_are_true_and_false(tmp_path: Path) -> None:
    words = [
        np.array([b"False", b"True"]),
        np.array([b"0", b"false"]),
        np.array(["False", "True"], h5py.string_dtype()),
    ]
    told = [{**episode(1), "infos": {"success": w}} for w in words]
    assert minari.read(made(tmp_path / "set", told)).success.tolist() == [True, False, True]  # type: ignore[union-attr]
    strange = {**episode(1), "infos": {"success": np.array([b"yes", b"True"])}}
    with pytest.warns(UserWarning, match=r"infos of episode 3 of a/b-v0 hold success 'yes', neither .*leave out 3$"):
        assert minari.read(made(tmp_path / "more", [*told, strange])).success is None
    with pytest.warns(UserWarning, match=r"episode 0 .* hold success 'yes'.* as booleans in all$"):
        assert minari.read(made(tmp_path / "all", [strange])).success is None
