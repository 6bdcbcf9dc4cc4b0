"""Write data sets of Minari."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from denoiserl.core.errors import InvalidInputError, RunError, require
from denoiserl.core.tree import first, tree_map
from denoiserl.data.formats.minari.reader import FILE, METADATA
from denoiserl.data.recordings import EpisodeDataset

VERSION = "0.5.0"
"""the version of Minari whose layout is written"""


def write(path: str | Path, recorded: EpisodeDataset, dataset: str = "denoiserl/recorded-v0") -> Path:
    """Write a data set to the new folder ``path``, atomically; ``dataset`` is its name, NAMESPACE/NAME-vN.

    Minari finds it as ``dataset`` if ``path`` is that place below its root (MINARI_DATASETS_PATH), and by path with
    ``MinariDataset(path / "data")``. Images are stored raw (``jpeg_encoding`` false). Success goes to ``infos`` at
    every step. Raise RunError if the folder exists, InvalidInputError without rewards.
    """
    path, demos = Path(path), recorded.demos
    if path.exists():
        raise RunError(f"{path} exists already: name another folder")
    if recorded.rewards is None or recorded.terminated is None or recorded.last is None:
        raise InvalidInputError(
            "Minari's format needs a reward per step and how episodes ended: record them with envs.record"
        )
    h5py, new = require("h5py", "data"), path.with_name(f".{path.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    (new / "data").mkdir(parents=True)
    box = [v.tolist() for v in (recorded.low, recorded.high)]
    with h5py.File(new / "data" / FILE, "w", track_order=True) as file:
        for i in range(len(demos)):
            observations, actions = demos.episode(i)
            end, length = int(demos.ends[i]), len(actions)
            ended, cut = np.zeros(length, bool), np.zeros(length, bool)
            ended[-1], cut[-1] = bool(recorded.terminated[i]), not bool(recorded.terminated[i])
            group = file.create_group(f"episode_{i}")
            group.attrs["id"], group.attrs["total_steps"] = i, length
            both = tree_map(lambda v, x, i=i: torch.cat([v, x[i : i + 1]]), observations, recorded.last)
            columns = {"observations": both, "actions": actions, "rewards": recorded.rewards[end - length : end]}
            _store(group, {**columns, "terminations": ended, "truncations": cut})
            if demos.success is not None:
                group.create_group("infos")["success"] = np.full(length + 1, bool(demos.success[i]))
    metadata = {
        "total_episodes": len(demos), "total_steps": len(demos.actions), "data_format": "hdf5", "jpeg_encoding": False,
        "observation_space": json.dumps(_described(demos.observations)),
        "action_space": json.dumps(_box(demos.actions, *box)), "dataset_id": dataset, "minari_version": VERSION,
        "dataset_size": round((new / "data" / FILE).stat().st_size / 1e6, 3),
    }  # fmt: skip
    (new / "data" / METADATA).write_text(json.dumps(metadata))
    os.rename(new, path)
    return path


def _store(group: Any, tree: dict[str, Any]) -> None:
    for name, value in tree.items():
        if isinstance(value, dict):
            _store(group.create_group(name), value)
        else:
            group.create_dataset(name, data=np.asarray(value), chunks=True)


def _described(tree: Any) -> Any:
    """Return the space of recorded observations, without bounds."""
    if isinstance(tree, dict):
        return {"type": "Dict", "subspaces": {k: _described(v) for k, v in tree.items()}}
    if first(tree).dtype == torch.uint8:
        return _box(tree, np.zeros(tree.shape[1:], int).tolist(), np.full(tree.shape[1:], 255).tolist())
    wide = np.full(tree.shape[1:], np.inf)
    return _box(tree, (-wide).tolist(), wide.tolist())


def _box(value: torch.Tensor, low: Any, high: Any) -> dict[str, Any]:
    dtype = str(value.dtype).removeprefix("torch.")
    return {"type": "Box", "dtype": dtype, "shape": list(value.shape[1:]), "low": low, "high": high}
