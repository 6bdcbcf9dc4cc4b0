"""Files of Minari and LeRobot that are almost right: refused by what is wrong with them, never misread."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from denoiserl.core.errors import DenoiseRLError
from denoiserl.data.demos import Demonstrations
from denoiserl.data.formats import any as recordings
from denoiserl.data.formats import lerobot as lerobot_dataset
from denoiserl.data.formats import minari
from denoiserl.data.recordings import EpisodeDataset

h5py = pytest.importorskip("h5py")
pytest.importorskip("pyarrow")
SEEN = {"hand": torch.randn(12, 3), "goal": torch.randn(12, 2)}
DEMOS = Demonstrations(SEEN, torch.zeros(12, 2), torch.tensor([4, 8, 12]))
BOX = (torch.full((2,), -1.0), torch.ones(2))
DATA = EpisodeDataset(
    DEMOS, torch.ones(12), {k: v[:3] for k, v in SEEN.items()}, torch.zeros(3, dtype=torch.bool), *BOX
)


def told(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A Minari data set with other metadata."""
    path = minari.write(folder / "set", DATA) / "data" / minari.METADATA
    metadata = json.loads(path.read_text())
    path.write_text(json.dumps(change(metadata) or metadata))
    return folder / "set"


def spaces(metadata: dict[str, Any], what: str, value: Any) -> None:
    metadata[what] = json.dumps(value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: [m], "how many episodes"),
        (lambda m: m.update(total_episodes="many"), "how many episodes"),
        (lambda m: spaces(m, "action_space", {"type": "Box", "shape": [2], "dtype": "float32"}), "no low and high"),
        (
            lambda m: spaces(m, "observation_space", {"type": "Dict", "subspaces": {"goal": {"type": "Discrete"}}}),
            "observes a Discrete, labels and no quantities",
        ),
    ],
)
def test_metadata_of_minari_that_say_less_are_refused(tmp_path: Path, change: Any, said: str) -> None:
    with pytest.raises(DenoiseRLError, match=said):
        recordings.read(told(tmp_path, change))


def test_parts_of_a_tuple_may_be_chosen_and_strange_groups_are_no_episodes(tmp_path: Path) -> None:
    folder = told(tmp_path, lambda m: spaces(m, "observation_space", {"type": "Tuple", "subspaces": [None, None]}))
    with h5py.File(folder / "data" / minari.FILE, "r+") as file:
        for key in list(file):
            file[key]["observations"].move("hand", "_index_0")
            file[key]["observations"].move("goal", "_index_1")
            file[key].create_group("infos")["success"] = [b"yes"] * 5
        file.create_group("episode_notes")
    with pytest.warns(UserWarning, match="infos of episode 0 .* hold success 'yes', neither True nor False"):
        found = recordings.read(folder, obs_keys=["_index_1"]).demos
    assert torch.equal(found.observations, SEEN["goal"]) and found.success is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda i: [i], "does not describe a dataset"),
        (lambda i: i.update(total_frames=None), "does not say total_frames"),
        (lambda i: i["features"]["action"].pop("shape"), "dtype and shape of action"),
        (lambda i: i["features"]["action"].update(shape=[3]), "rows of action of episode 0"),
        (lambda i: i["features"]["observation.goal"].update(dtype="string"), "words, not numbers"),
    ],
)
def test_metadata_of_lerobot_that_say_less_are_refused(tmp_path: Path, change: Any, said: str) -> None:
    lerobot_dataset.write(tmp_path / "set", DATA, 10)
    path = tmp_path / "set" / "meta" / "info.json"
    info = json.loads(path.read_text())
    changed = change(info)
    path.write_text(json.dumps(changed if changed is not None and said == "does not describe a dataset" else info))
    with pytest.raises(DenoiseRLError, match=said):
        recordings.read(tmp_path / "set")
