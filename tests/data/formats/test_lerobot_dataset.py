"""Datasets of LeRobot: the fixture was written by LeRobot 0.4.4 itself, which also reads what is written here.

``scripts/lerobot_dataset.py`` proves both with the package; the layout of version 2.1 is made by hand from a 3.0 one.
"""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.data import Demonstrations
from denoiserl.data.formats import lerobot
from denoiserl.data.recordings import EpisodeDataset

pa = pytest.importorskip("pyarrow")
pytest.importorskip("pyarrow.compute")
parquet = pytest.importorskip("pyarrow.parquet")
FIXTURE = Path(__file__).parent / "fixtures" / "lerobot_dataset"
ROWS = Path("data/chunk-000/file-000.parquet")
COUNTED = [0, 1, 2, 10, 11, 12, 13]


def recorded() -> EpisodeDataset:
    g = torch.Generator().manual_seed(0)
    episodes = [
        ({"state": torch.randn(n, 3, generator=g), "goal": {"at": torch.randn(n, 2, 2, generator=g)}}, torch.rand(n, 1))
        for n in (4, 6, 5)
    ]
    wide = torch.full((1,), torch.inf)
    return EpisodeDataset(
        Demonstrations.of(episodes, [True, False, True], [4.0, 6.0, 5.0]), torch.ones(15), None, None, -wide, wide
    )


def changed(to: Path, change: Any) -> Path:
    """The fixture with other rows."""
    shutil.copytree(FIXTURE, to)
    parquet.write_table(change(parquet.read_table(to / ROWS)), to / ROWS)
    return to


def put(table: Any, name: str, values: list[Any]) -> Any:
    at = table.column_names.index(name)
    return table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))


def test_a_dataset_that_lerobot_wrote_is_read_number_by_number() -> None:
    pytest.importorskip("PIL")
    back = lerobot.read_recording(FIXTURE)
    demos = back.demos
    assert demos.lengths.tolist() == [3, 4] and demos.success.tolist() == [False, True]  # type: ignore[union-attr]
    assert demos.returns.tolist() == [1.5, 2.0]  # type: ignore[union-attr]
    assert demos.observations["observation.state"].tolist() == [[n] * 3 for n in COUNTED]
    assert demos.observations["observation.goal"].tolist() == [[[n, n + 1], [n + 2, n + 3]] for n in COUNTED]
    assert demos.observations["observation.eye"].shape == (7, 8, 6, 3)
    assert demos.observations["observation.eye"][:, 7, 5, 2].tolist() == COUNTED
    assert (-demos.actions[:, 0]).tolist() == COUNTED
    alone = lerobot.read(FIXTURE, exclude_episodes=(0,), obs_keys=["observation.state"])
    assert alone.observations.tolist() == [[n] * 3 for n in COUNTED[3:]]


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    ours = recorded()
    back = lerobot.read_recording(lerobot.write(tmp_path / "set", ours, 10, "push")).demos
    assert torch.equal(back.observations["observation.state"], ours.demos.observations["state"])
    assert torch.equal(back.observations["observation.goal.at"], ours.demos.observations["goal"]["at"])
    assert torch.equal(back.actions, ours.demos.actions) and torch.equal(back.ends, ours.demos.ends)
    assert torch.equal(back.success, ours.demos.success) and torch.equal(back.returns, ours.demos.returns)
    with pytest.raises(RunError, match="exists already"):
        lerobot.write(tmp_path / "set", ours, 10)


def test_statistics_are_those_of_the_rows(tmp_path: Path) -> None:
    folder = lerobot.write(tmp_path / "set", recorded(), 10)
    theirs, ours = (json.loads((at / "meta" / "stats.json").read_text()) for at in (FIXTURE, folder))
    assert set(ours["action"]) == set(theirs["action"])
    again = lerobot.write(tmp_path / "again", lerobot.read(FIXTURE, obs_keys=["observation.state"]), 10)
    stats = json.loads((again / "meta" / "stats.json").read_text())["observation.state"]
    for name in ("min", "max", "mean", "std", "count"):
        assert stats[name] == pytest.approx(theirs["observation.state"][name], rel=1e-6)


def test_the_older_layout_with_a_file_an_episode_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "old"
    shutil.copytree(FIXTURE, folder)
    info = json.loads((folder / "meta" / "info.json").read_text())
    (folder / "meta" / "info.json").write_text(json.dumps({**info, "codebase_version": "v2.1"}))
    rows = parquet.read_table(folder / ROWS)
    for i, (begin, n) in enumerate(((0, 3), (3, 4))):
        parquet.write_table(rows.slice(begin, n), folder / "data" / "chunk-000" / f"episode_{i:06d}.parquet")
    (folder / ROWS).unlink()
    (folder / "meta" / "stats.json").unlink()
    shutil.rmtree(folder / "meta" / "episodes")
    assert (-lerobot.read(folder, obs_keys=["observation.state"]).actions[:, 0]).tolist() == COUNTED


def test_bad_rows_are_refused_by_episode_and_row(tmp_path: Path) -> None:
    nan = changed(tmp_path / "nan", lambda t: put(t, "action", [0.0, 0.0, 0.0, 0.0, 0.0, float("nan"), 0.0]))
    with pytest.raises(
        InvalidInputError, match=r"row 2 of actions of episode 1 of nan holds NaN .*exclude_episodes=\(1,\)"
    ):
        lerobot.read(nan)
    assert len(lerobot.read(nan, exclude_episodes=(1,))) == 1
    holes = changed(tmp_path / "holes", lambda t: put(t, "frame_index", [0, 1, 2, 0, 1, 3, 4]))
    with pytest.raises(InvalidInputError, match=r"row 2 of episode 1 of holes is frame 3: frames are missing"):
        lerobot.read(holes)
    none = changed(tmp_path / "none", lambda t: put(t, "episode_index", [0] * 7))
    with pytest.raises(InvalidInputError, match=r"row 3 of episode 0 of none is frame 0"):
        lerobot.read(none)
    with pytest.raises(InvalidInputError, match=r"episode 1 of none is empty"):
        lerobot.read(none, exclude_episodes=(0,))
    keys = changed(tmp_path / "keys", lambda t: t.drop_columns(["next.reward"]))
    with pytest.raises(InvalidInputError, match=r"has no column 'next.reward', which meta/info.json promises"):
        lerobot.read(keys)


def test_bad_datasets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no LeRobot dataset: there is no meta/info.json"):
        lerobot.read(tmp_path)
    with pytest.raises(
        InvalidInputError, match=r"no observation in .* 'observation.stat'. Did you mean 'observation.state'"
    ):
        lerobot.read(FIXTURE, obs_keys=["observation.stat"])
    cut = changed(tmp_path / "cut", lambda t: t.slice(0, 5))
    with pytest.raises(RunError, match=r"holds 5 rows of the 7 that meta/info.json promises"):
        lerobot.read(cut)
    (cut / ROWS).write_bytes(b"")
    with pytest.raises(RunError, match=r"cannot be read as Parquet"):
        lerobot.read(cut)
    (cut / ROWS).unlink()
    with pytest.raises(RunError, match=r"has no rows"):
        lerobot.read(cut)
    info = json.loads((cut / "meta" / "info.json").read_text())
    info["features"]["observation.film"] = {"dtype": "video", "shape": [8, 6, 3]}
    (cut / "meta" / "info.json").write_text(json.dumps(info))
    with pytest.raises(InvalidInputError, match=r"observation.film of cut lies in videos"):
        lerobot.read(cut, obs_keys=["observation.film"])
    (cut / "meta" / "info.json").write_text(json.dumps({**info, "codebase_version": "v1.6"}))
    with pytest.raises(RunError, match=r"no version of LeRobot datasets read here 'v1.6'"):
        lerobot.read(cut)


def numbered(folder: Path) -> tuple[Demonstrations, Path]:
    """Eight episodes whose rows say which they are."""
    lengths = [3, 4, 5, 6, 7, 4, 3, 2]
    seen = torch.tensor([[e, k] for e, n in enumerate(lengths) for k in range(n)], dtype=torch.float32)
    demos = Demonstrations(seen, seen[:, :1], torch.tensor(lengths).cumsum(0), torch.tensor([True, False] * 4))
    return demos, lerobot.write(folder, demos, 10)


def rewrite(folder: Path, change: Any) -> None:
    parquet.write_table(change(parquet.read_table(folder / ROWS)), folder / ROWS)


def test_a_part_of_a_dataset_is_read_where_the_rest_is_left_out(tmp_path: Path) -> None:
    """As a download of some episodes leaves it: what is promised and not there is named, with the way to go on."""
    _, folder = numbered(tmp_path / "part")
    rewrite(folder, lambda t: t.filter(pa.compute.is_in(t["episode_index"], pa.array([3, 5]))))
    said = r"10 rows of the 34 .* not there are episodes 0-2,4,6-7.*--exclude-episodes 0-2,4,6-7"
    with pytest.raises(RunError, match=said):
        lerobot.read(folder)
    back = lerobot.read(folder, exclude_episodes=(0, 1, 2, 4, 6, 7))
    assert back.observations[:, 0].unique().tolist() == [3, 5] and back.lengths.tolist() == [6, 4]
    rewrite(folder, lambda t: t.slice(0, 8))
    with pytest.raises(RunError, match=r"8 rows of the 34 .* not whole are episodes 5"):
        lerobot.read(folder, exclude_episodes=(0, 1, 2, 4, 6, 7))
    assert len(lerobot.read(folder, exclude_episodes=(0, 1, 2, 4, 5, 6, 7))) == 1
    with pytest.raises(InvalidInputError, match="has no episode 9 to leave out: its episodes are 0-7"):
        lerobot.read(folder, exclude_episodes=(9,))


def test_episodes_keep_the_numbers_that_their_rows_give_them(tmp_path: Path) -> None:
    ours, folder = numbered(tmp_path / "late")
    rewrite(folder, lambda t: put(t, "episode_index", [v + 10 for v in t["episode_index"].to_pylist()]))
    assert torch.equal(lerobot.read(folder).observations, ours.observations)
    assert lerobot.read(folder, exclude_episodes=(10, 17)).observations[:, 0].unique().tolist() == [1, 2, 3, 4, 5, 6]


def test_cameras_in_videos_are_never_left_out_without_a_choice(tmp_path: Path) -> None:
    _, folder = numbered(tmp_path / "seen")
    info = json.loads((folder / "meta" / "info.json").read_text())
    for name in ("observation.images.top", "observation.images.wrist"):
        info["features"][name] = {"dtype": "video", "shape": [8, 6, 3]}
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    said = r"observation.images.top, observation.images.wrist of seen lie in videos.*--obs-keys observation.state"
    with pytest.raises(InvalidInputError, match=said):
        lerobot.read(folder)
    assert lerobot.read(folder, obs_keys=["observation.state"]).observations.shape == (34, 2)


def test_several_tasks_are_told(tmp_path: Path) -> None:
    _, folder = numbered(tmp_path / "tasks")
    rewrite(folder, lambda t: put(t, "task_index", [v % 3 for v in t["episode_index"].to_pylist()]))
    with pytest.warns(UserWarning, match="tasks holds 3 tasks, and their descriptions"):
        lerobot.read(folder)
    assert len(lerobot.read(folder, exclude_episodes=(1, 2, 4, 5, 7))) == 3, "one task is no choice"


def test_an_end_inside_an_episode_is_told(tmp_path: Path) -> None:
    _, folder = numbered(tmp_path / "ends")
    rewrite(folder, lambda t: put(t, "next.done", [i == 4 or d for i, d in enumerate(t["next.done"].to_pylist())]))
    with pytest.warns(UserWarning, match="episode 1 of ends terminated in row 1 and goes on to row 3"):
        lerobot.read(folder)


def with_feature(folder: Path, name: str, dtype: str, values: list[Any] | None, shape: tuple[int, ...] = (1,)) -> Path:
    """Eight episodes with one more feature; without ``values``, it lies outside the rows."""
    numbered(folder)
    info = json.loads((folder / "meta" / "info.json").read_text())
    info["features"][name] = {"dtype": dtype, "shape": list(shape), "names": None}
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    if values is not None:
        rewrite(folder, lambda t: t.append_column(name, pa.array(values)))
    return folder


def picture(value: int = 0, size: int = 8) -> dict[str, Any]:
    image, held = pytest.importorskip("PIL.Image"), io.BytesIO()
    image.new("RGB", (size, size), (value, 0, 0)).save(held, "PNG")
    return {"bytes": held.getvalue(), "path": None}


def test_a_camera_of_another_name_is_not_lost(tmp_path: Path) -> None:
    film = with_feature(tmp_path / "film", "camera.wrist", "video", None, (8, 8, 3))
    with pytest.raises(InvalidInputError, match=r"camera.wrist of film lies in videos.*--obs-keys observation.state"):
        lerobot.read(film)
    assert lerobot.read(film, obs_keys=["observation.state"]).observations.shape == (34, 2)
    rows = with_feature(tmp_path / "rows", "image", "image", [picture(k) for k in range(34)], (8, 8, 3))
    assert lerobot.read(rows).observations["image"][:, 0, 0, 0].tolist() == list(range(34))
    assert lerobot.read(rows, obs_keys=["image"]).observations.shape == (34, 8, 8, 3)
    later = with_feature(tmp_path / "later", "next.image", "image", [picture()] * 34, (8, 8, 3))
    with pytest.warns(UserWarning, match="later also holds next.image, not read here"):
        assert isinstance(lerobot.read(later).observations, torch.Tensor), "what follows is no observation"


@pytest.mark.parametrize("name", ["environment_state", "action.gripper", "subtask_index", "language_instruction"])
def test_features_left_over_are_told_by_name(tmp_path: Path, name: str) -> None:
    kinds = {"subtask_index": ("int64", [1] * 34), "language_instruction": ("string", ["go"] * 34)}
    folder = with_feature(tmp_path / "more", name, *kinds.get(name, ("float32", [float(k) for k in range(34)])))
    with pytest.warns(UserWarning, match=rf"more also holds {name}, not read here.*--obs-keys"):
        assert lerobot.read(folder).observations.shape == (34, 2)


def test_a_feature_left_over_may_be_chosen(tmp_path: Path) -> None:
    folder = with_feature(tmp_path / "more", "environment_state", "float32", [float(k) for k in range(34)])
    seen = lerobot.read(folder, obs_keys=["observation.state", "environment_state"]).observations
    assert seen["environment_state"][:, 0].tolist() == list(range(34))
    with pytest.raises(InvalidInputError, match=r"no observation in more 'next.done'"):
        lerobot.read(folder, obs_keys=["next.done"])


@pytest.mark.parametrize(
    ("name", "dtype", "words"),
    [
        ("language_instruction", "string", ["open", "close", "go"]),
        ("annotation.human.action.task_description", "int64", [0, 4, 7]),
        ("subtask_index", "int64", [0, 1, 2]),
    ],
)
def test_several_tasks_are_told_whatever_column_tells_them(tmp_path: Path, name: str, dtype: str, words: list) -> None:
    owner = parquet.read_table(numbered(tmp_path / "plain")[1] / ROWS)["episode_index"].to_pylist()
    folder = with_feature(tmp_path / "tasks", name, dtype, [words[i % 3] for i in owner])
    with pytest.warns(
        UserWarning, match=rf"tasks holds 3 tasks, and their descriptions \({name}\) are not read"
    ) as said:
        lerobot.read(folder)
    assert len(said) == 1, "a column is told of once"
    with pytest.warns(UserWarning, match=f"also holds {name}"):
        lerobot.read(folder, exclude_episodes=(1, 2, 4, 5, 7))


@pytest.mark.parametrize("word", ["terminated", "truncated"])
def test_ends_of_other_names_inside_an_episode_are_told(tmp_path: Path, word: str) -> None:
    folder = with_feature(tmp_path / "ends", f"next.{word}", "bool", [k == 4 for k in range(34)])
    with pytest.warns(UserWarning, match=f"episode 1 of ends {word} in row 1 and goes on to row 3"):
        lerobot.read(folder)


def test_true_ends_and_time_limits_are_followed(tmp_path: Path) -> None:
    ours, plain = numbered(tmp_path / "plain")
    assert lerobot.read_recording(plain).terminated is None, "every episode is done in its last row"
    last = torch.zeros(34, dtype=torch.bool)
    last[ours.ends - 1] = True
    some = last & (torch.arange(34) < 18)
    ended = [True] * 4 + [False] * 4
    folder = with_feature(tmp_path / "ended", "next.terminated", "bool", some.tolist())
    assert lerobot.read_recording(folder).terminated.tolist() == ended  # type: ignore[union-attr]
    assert lerobot.read_recording(folder, exclude_episodes=(0, 7)).terminated.tolist() == ended[1:-1]  # type: ignore[union-attr]
    folder = with_feature(tmp_path / "limits", "next.truncated", "bool", (last & ~some).tolist())
    assert lerobot.read_recording(folder).terminated.tolist() == ended  # type: ignore[union-attr]
    rewrite(folder, lambda t: put(t, "next.done", [False] * 34))
    assert lerobot.read_recording(folder).terminated is None, "nothing tells how the first ended"
    rewrite(folder, lambda t: put(t, "next.truncated", last.tolist()))
    assert lerobot.read_recording(folder).terminated.tolist() == [False] * 8  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ({"bytes": None, "path": "images/x.png"}, r"no picture \(its path: images/x.png\)"),
        ({"bytes": b"no png", "path": None}, "no readable picture"),
        (None, "no picture"),
    ],
)
def test_cells_without_a_picture_are_refused_by_row(tmp_path: Path, cell: Any, said: str) -> None:
    cells = [picture(), picture(), picture(), picture(), cell, *[picture()] * 29]
    folder = with_feature(tmp_path / "eyes", "observation.eye", "image", cells, (8, 8, 3))
    with pytest.raises(
        InvalidInputError, match=rf"row 1 of observation.eye of episode 1 of eyes holds {said}.*--obs-keys"
    ):
        lerobot.read(folder)
    assert lerobot.read(folder, obs_keys=["observation.state"]).observations.shape == (34, 2)


def test_pictures_of_two_sizes_are_refused_by_row(tmp_path: Path) -> None:
    cells = [picture(), picture(size=4), *[picture()] * 32]
    folder = with_feature(tmp_path / "eyes", "observation.eye", "image", cells, (8, 8, 3))
    with pytest.raises(
        InvalidInputError, match=r"observation.eye of episode 0 of eyes are .8, 8, 3., and .4, 4, 3. in row 1"
    ):
        lerobot.read(folder)
