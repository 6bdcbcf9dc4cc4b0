"""Write data sets of LeRobot, version 3.0."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError, RunError, require
from denoiserl.data.demos import Demonstrations
from denoiserl.data.formats.lerobot.reader import ACTION, PREFIX
from denoiserl.data.recordings import EpisodeDataset

STATE = "observation.state"
PLACE = "chunk-000/file-000.parquet"
QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}


def write(
    folder: str | Path, recorded: EpisodeDataset | Demonstrations, fps: int, task: str = "", robot: str = "unknown"
) -> Path:
    """Write a data set of version 3.0 to the new ``folder``, atomically.

    Flat observations become ``observation.state``; parts of a dict keep their names, after ``observation.``.
    ``next.reward``, ``next.done`` and ``next.success`` (in an episode's last frame) are written if they are known.
    ``fps``: frames per second; ``task``: the task description. Raise RunError if the folder exists, InvalidInputError
    for images, which LeRobot stores as videos.
    """
    folder = Path(folder)
    demos, rewards = (recorded, None) if isinstance(recorded, Demonstrations) else (recorded.demos, recorded.rewards)
    if folder.exists():
        raise RunError(f"{folder} exists already: name another folder")
    if fps < 1:
        raise InvalidInputError(f"fps is at least 1, not {fps}")
    pa, parquet = require("pyarrow", "data"), require("pyarrow.parquet", "data")
    owner, frame = _counters(demos)
    last = np.zeros(len(owner), bool)
    last[demos.ends.numpy() - 1] = True
    columns: dict[str, np.ndarray] = {**_observed(demos.observations), ACTION: demos.actions.numpy()}
    if rewards is not None:
        columns["next.reward"] = rewards.numpy().astype(np.float32)
    columns["next.done"] = last
    if demos.success is not None:
        columns["next.success"] = last & demos.success.numpy()[owner]
    columns |= {
        "timestamp": (frame / fps).astype(np.float32), "frame_index": frame, "episode_index": owner,
        "index": np.arange(len(owner)), "task_index": np.zeros(len(owner), np.int64),
    }  # fmt: skip
    features = {
        k: {"dtype": str(v.dtype), "shape": list(v.shape[1:]) or [1], "names": None} for k, v in columns.items()
    }
    new = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    for place in ("meta/episodes/chunk-000", "data/chunk-000"):
        (new / place).mkdir(parents=True)
    parquet.write_table(pa.table({k: _arrow(pa, v) for k, v in columns.items()}), new / "data" / PLACE)
    begin = (demos.ends - demos.lengths).tolist()
    rows = []
    for i, (low, high) in enumerate(zip(begin, demos.ends.tolist(), strict=True)):
        own = {k: _statistics(v[low:high]) for k, v in columns.items()}
        place = {f"{part}/{what}_index": 0 for part in ("data", "meta/episodes") for what in ("chunk", "file")}
        stats = {f"stats/{k}/{s}": v for k, values in own.items() for s, v in values.items()}
        reach = {"length": high - low, "dataset_from_index": low, "dataset_to_index": high}
        rows.append({"episode_index": i, "tasks": [task], **reach, **place, **stats})
    parquet.write_table(pa.Table.from_pylist(rows), new / "meta" / "episodes" / PLACE)
    parquet.write_table(_tasks(pa, task), new / "meta" / "tasks.parquet")
    stats = {k: _statistics(v) for k, v in columns.items()}
    (new / "meta" / "stats.json").write_text(json.dumps(stats, indent=4))
    info = {
        "codebase_version": "v3.0", "robot_type": robot, "total_episodes": len(demos), "total_frames": len(owner),
        "total_tasks": 1, "chunks_size": 1000, "data_files_size_in_mb": 100, "video_files_size_in_mb": 200, "fps": fps,
        "splits": {"train": f"0:{len(demos)}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet", "video_path": None,
        "features": features,
    }  # fmt: skip
    (new / "meta" / "info.json").write_text(json.dumps(info, indent=4))
    os.rename(new, folder)
    return folder


def _counters(demos: Demonstrations) -> tuple[np.ndarray, np.ndarray]:
    """Return the episode of every frame, and its number in it."""
    lengths = demos.lengths.numpy()
    return np.repeat(np.arange(len(lengths)), lengths), np.concatenate([np.arange(n) for n in lengths])


def _observed(observations: Any, path: str = "") -> dict[str, np.ndarray]:
    if isinstance(observations, dict):
        parts = [_observed(v, f"{path}.{k}" if path else k) for k, v in observations.items()]
        return {k: v for part in parts for k, v in part.items()}
    name = STATE if not path else path if path.startswith(PREFIX) else PREFIX + path
    value: Tensor = observations
    if value.dtype == torch.uint8:
        raise InvalidInputError(f"{name} holds images, which are not written here: keep the other parts")
    return {name: value.numpy().astype(np.float32)}


def _arrow(pa: Any, value: np.ndarray) -> Any:
    """Return [N] as numbers, [N, d] as lists of a fixed size, more axes nested; single numbers are not in lists."""
    if value.ndim == 2 and value.shape[1] == 1:
        value = value[:, 0]
    array = pa.array(np.ascontiguousarray(value).reshape(-1))
    for size in reversed(value.shape[1:]):
        array = pa.FixedSizeListArray.from_arrays(array, size)
    return array


def _tasks(pa: Any, task: str) -> Any:
    """Return the table of tasks, with the metadata by which pandas marks an index column."""
    table = pa.table({"task_index": pa.array([0]), "__index_level_0__": pa.array([task])})
    kinds = {"task_index": "int64", "__index_level_0__": "unicode"}
    entries = [
        {
            "name": None if k.startswith("__") else k, "field_name": k, "pandas_type": kind,
            "numpy_type": "int64" if kind == "int64" else "object", "metadata": None,
        }
        for k, kind in kinds.items()
    ]  # fmt: skip
    pandas = {
        "index_columns": ["__index_level_0__"],
        "columns": entries,
        "column_indexes": [],
        "pandas_version": "2.0.0",
    }
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def _statistics(value: np.ndarray) -> dict[str, Any]:
    """Return min, max, mean, std, count and quantiles of every number of a feature."""
    rows = value.astype(np.float64).reshape(len(value), -1)
    shape = list(value.shape[1:]) or [1]
    found = {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0)}
    found |= {name: np.quantile(rows, q, axis=0) for name, q in QUANTILES.items()}
    return {**{k: v.reshape(shape).tolist() for k, v in found.items()}, "count": [len(rows)]}
