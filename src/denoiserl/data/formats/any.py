"""Read and write episode data sets of any supported format; ``read`` detects the format.

    a folder with metadata.json             Minari                          (data.formats.minari)
    a folder with meta/info.json            LeRobot                         (data.formats.lerobot)
    a folder of ``EpisodeDataset.save``     our own; of ``Demonstrations.save``, demonstrations alone
    one HDF5 or NumPy file                  D4RL's or OGBench's layout      (data.formats.hdf5)

Other formats raise an error by their names (data.formats.foreign). ``write_as`` writes any of the four.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from denoiserl.core.errors import InvalidInputError, RunError, unknown_name_message
from denoiserl.core.serialization import store
from denoiserl.data.formats import foreign, minari
from denoiserl.data.formats import hdf5 as flat
from denoiserl.data.formats import lerobot as lerobot_dataset
from denoiserl.data.formats.hdf5 import ENDINGS, write
from denoiserl.data.formats.minari import Outside
from denoiserl.data.formats.numbers import check, parse
from denoiserl.data.recordings import EpisodeDataset

__all__ = ["ENDINGS", "Kind", "kind", "read", "write", "write_as"]

Kind = Literal["minari", "lerobot", "hdf5", "denoiserl"]


def kind(path: str | Path) -> Kind:
    """Return the format of a path, by its files. Raise RunError, naming what it is, for any other."""
    path = Path(path)
    if not path.exists():
        if store.exists(path):  # a save was stopped between its two renames
            return "denoiserl"
        raise RunError(f"there is no {path}: name a Minari or LeRobot folder, a data set of ours, or an HDF5 file")
    if path.is_dir() or path.name == minari.FILE:
        home = path.parent if path.is_file() else path
        if any((f / minari.METADATA).is_file() for f in (home, home / "data")):
            return "minari"
        if (home / "meta" / "info.json").is_file():
            return "lerobot"
    if path.is_file() and path.suffix.lower() in ENDINGS:
        return "hdf5"
    if path.is_dir() and ((path / store.TREE).is_file() or (path / store.TENSORS).is_file()):
        return "denoiserl"
    known = foreign.file(path) if path.is_file() else foreign.folder(path)
    if known is not None:
        raise RunError(f"{path} is {known}")
    lacks = (
        f"one file is HDF5 or numpy and ends in {', '.join(ENDINGS)}"
        if path.is_file()
        else f"no {minari.METADATA} (Minari), no meta/info.json (LeRobot) and no {store.TREE} (ours) in it"
    )
    raise RunError(f"{path} is no dataset known here: {lacks}. For others, {foreign.WRITE}")


def read(
    path: str | Path,
    out_of_bounds_actions: Outside = "error",
    obs_keys: Sequence[str] | str | None = None,
    exclude_episodes: Collection[int] | str | int = (),
) -> EpisodeDataset:
    """Return the episode data set in ``path``.

    ``out_of_bounds_actions``: actions beyond stored bounds raise an error, or are clipped. ``obs_keys``: the
    observations to keep, if there are several; a single one is a tensor. ``exclude_episodes``: episodes to leave out,
    by number: 3, (0, 1, 5) or "0-1,5". Raise an error for other formats, and for bad episodes with number and row.
    """
    path, found, numbers = Path(path), kind(path), parse(exclude_episodes)
    obs_keys = [obs_keys] if isinstance(obs_keys, str) else obs_keys
    if out_of_bounds_actions not in ("error", "clip"):
        raise InvalidInputError(
            unknown_name_message(out_of_bounds_actions, ("error", "clip"), "way with actions outside the action space")
        )
    if found == "minari":
        return _alone(minari.read_recording(path, numbers, out_of_bounds_actions, obs_keys), obs_keys)
    if found == "lerobot":
        return lerobot_dataset.read_recording(path, numbers, obs_keys)
    if found == "hdf5":
        if obs_keys is not None:
            raise InvalidInputError(f"the observations of {path} have no parts: leave parts out")
        return flat.read(path, numbers, out_of_bounds_actions)
    data, name = EpisodeDataset.load(path), path.name
    check(name, numbers, range(len(data.demos)))
    if numbers:
        data = data.take(torch.tensor([i for i in range(len(data.demos)) if i not in numbers]))
    if obs_keys is not None:
        seen, last = (
            None if v is None else minari.choose(v, obs_keys, name) for v in (data.demos.observations, data.last)
        )
        data = _alone(replace(data, demos=replace(data.demos, observations=seen), last=last), obs_keys)
    if out_of_bounds_actions == "clip":
        data = replace(data, demos=replace(data.demos, actions=data.demos.actions.clamp(data.low, data.high)))
    return data


def _alone(data: EpisodeDataset, obs_keys: Sequence[str] | None) -> EpisodeDataset:
    """Return the data set with its observations as one tensor if ``obs_keys`` names a single part; else unchanged."""
    if obs_keys is None or len(obs_keys) != 1:
        return data
    demos = replace(data.demos, observations=data.demos.observations[obs_keys[0]])
    return replace(data, demos=demos, last=None if data.last is None else data.last[obs_keys[0]])


def write_as(path: str | Path, data: EpisodeDataset, how: Kind, name: str, fps: int = 0) -> None:
    """Save a data set in a format, atomically. ``name``: the task name for Minari and LeRobot."""
    if how == "hdf5":
        write(path, data)
    elif how == "minari":
        word = "".join(c if c.isalnum() else "-" for c in name).strip("-") or "recorded"
        minari.write(path, data, f"denoiserl/{word}-v0")
    elif how == "lerobot":
        lerobot_dataset.write(path, data, fps, name)
    else:
        data.save(path)
