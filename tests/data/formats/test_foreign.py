"""Files of other programs: refused by the name of their format, and never with the advice to remove them."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.data import Demonstrations
from denoiserl.data.formats import any as recordings
from denoiserl.data.formats import foreign
from denoiserl.data.formats.numbers import check, format_numbers, parse

h5py = pytest.importorskip("h5py")


def hdf5(path: Path, *columns: str) -> None:
    with h5py.File(path, "w") as file:
        for column in columns:
            file[column] = np.zeros((3, 2))


def folder(path: Path, *files: str) -> None:
    for name in files:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("{}")


def files(at: Path) -> dict[str, str]:
    """{path: a word of the refusal}."""
    hdf5(at / "lift.hdf5", "data/demo_0/actions", "data/demo_0/obs/object")
    hdf5(at / "peg.h5", "traj_0/actions", "traj_0/obs")
    hdf5(at / "bare_minari.hdf5", "episode_0/actions")
    (at / "aloha").mkdir()
    hdf5(at / "aloha" / "episode_0.hdf5", "action", "observations/qpos")
    hdf5(at / "one.hdf5", "action", "observations/qpos")
    np.savez(at / "walk.npz", observation=np.zeros(3), action=np.zeros(3), reward=np.zeros(3), discount=np.ones(3))
    folder(at / "pusht.zarr", ".zgroup", "data/action/.zarray", "meta/episode_ends/.zarray")
    folder(at / "pusht_v3", "zarr.json")
    folder(at / "bridge" / "1.0.0", "features.json", "dataset_info.json", "bridge-train.tfrecord-00000-of-00001")
    folder(at / "act", "config.json", "model.safetensors")
    folder(at / "many", "one/metadata.json", "two/metadata.json")
    folder(at / "logs", "a.mcap")
    folder(at / "hf", "state.json", "dataset_info.json", "data-00000.arrow")
    (at / "empty").mkdir()
    (at / "expert.pkl").write_bytes(pickle.dumps([1]))
    for name in ("a.ckpt", "a.pt", "a.csv", "a.parquet", "a.mcap", "a.bag", "a.zarr.zip", "a.npy", "a.mp4", "a.tar.gz"):
        (at / name).write_bytes(b"x")
    return {
        "lift.hdf5": "robomimic", "peg.h5": "ManiSkill", "bare_minari.hdf5": "Minari", "aloha": "ALOHA",
        "one.hdf5": "ALOHA", "walk.npz": "ExORL", "pusht.zarr": "zarr folder", "pusht_v3": "zarr folder",
        "bridge/1.0.0": "RLDS", "bridge": "RLDS", "act": "checkpoint", "many": "one, two", "logs": "MCAP",
        "hf": "RLDS|datasets", "empty": "empty folder", "expert.pkl": "pickle", "a.ckpt": "checkpoint of torch",
        "a.pt": "checkpoint of torch", "a.csv": "table", "a.parquet": "Parquet", "a.mcap": "MCAP", "a.bag": "rosbag",
        "a.zarr.zip": "zarr", "a.npy": "array of numpy", "a.mp4": "video", "a.tar.gz": "archive",
    }  # fmt: skip


def test_data_of_others_are_refused_by_the_name_of_their_format(tmp_path: Path) -> None:
    for name, word in files(tmp_path).items():
        with pytest.raises((RunError, InvalidInputError), match=word) as said:
            recordings.read(tmp_path / name)
        text = str(said.value).replace(str(tmp_path), "")
        assert not any(bad in text for bad in ("delete", "remove", "restore")), text


@pytest.mark.parametrize("column", ["episode_terminals", "episode_ends", "episode_ids"])
def test_flat_files_with_columns_of_episodes_are_not_taken_for_minari(tmp_path: Path, column: str) -> None:
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file[column] = np.zeros(3)
        assert foreign.hdf5(file) is None
        file.create_group("episode_12")
        assert "Minari" in str(foreign.hdf5(file))


def test_policies_of_others_and_data_are_no_policies(tmp_path: Path) -> None:
    for name in files(tmp_path):
        said = foreign.policy(tmp_path / name)
        assert said is None or not any(bad in said for bad in ("delete", "remove", "restore")), said
    assert "LeRobot" in str(foreign.policy(tmp_path / "act")) and "torch" in str(foreign.policy(tmp_path / "a.ckpt"))
    for name, names in (("a.zarr", [".zgroup"]), ("files", ["a.hdf5"])):
        folder(tmp_path / name, *names)
        said = str(foreign.policy(tmp_path / name))
        assert "a policy is a folder" in said and "convert" not in said, said
    for name in ("a.zip", "model.safetensors"):
        (tmp_path / name).write_bytes(b"")
        said = str(foreign.policy(tmp_path / name))
        assert "a policy is a folder" in said and "episodes" not in said, said
    folder(tmp_path / "set", "meta/info.json")
    assert "a data set, not a policy" in str(foreign.policy(tmp_path / "set"))
    folder(tmp_path / "run", "run.json")
    assert foreign.policy(tmp_path / "run") is None


def test_episodes_are_left_out_by_number_in_data_of_ours(tmp_path: Path) -> None:
    demos = Demonstrations(torch.arange(9.0)[:, None], torch.zeros(9, 1), torch.tensor([2, 3, 6, 9]))
    demos.save(tmp_path / "own")
    left = recordings.read(tmp_path / "own", exclude_episodes="0,2-2")
    assert left.demos.observations.flatten().tolist() == [2.0, 6.0, 7.0, 8.0]
    assert len(recordings.read(tmp_path / "own", exclude_episodes=0).demos) == 3
    replace(demos, observations={"state": demos.observations, "goal": torch.zeros(9, 2)}).save(tmp_path / "parts")
    assert recordings.read(tmp_path / "parts", obs_keys="state").demos.observations.shape == (9, 1)
    with pytest.raises(InvalidInputError, match="has no episode 4-5 to leave out: its episodes are 0-3"):
        recordings.read(tmp_path / "own", exclude_episodes=(4, 5))
    with pytest.raises(InvalidInputError, match="no episode beside those left out"):
        recordings.read(tmp_path / "own", exclude_episodes="0-3")


def test_numbers_are_read_as_they_are_spelt() -> None:
    for numbers in ((), (3,), (0, 1, 2), (0, 2, 3, 4, 9, 10)):
        assert parse(format_numbers(numbers)) == set(numbers) == parse(numbers)
    assert format_numbers(range(4)) == "0-3" and parse(" 1, 5 ") == {1, 5}
    for word in ("a", "1-", "-3", "1-b"):
        with pytest.raises(RunError, match="write numbers as 0-2,5"):
            parse(word)
    check("x", (), ())


def test_a_checkpoint_in_a_folder_of_runs_is_told_from_a_run(tmp_path: Path) -> None:
    folder(tmp_path, "config.json", "train_config.json")
    (tmp_path / "config.json").write_text(json.dumps({"type": "act"}))
    with pytest.raises(RunError, match="--start"):
        recordings.read(tmp_path)
