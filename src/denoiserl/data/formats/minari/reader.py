"""Read data sets of Minari."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from denoiserl.core.errors import InvalidInputError, RunError, require, unknown_name_message
from denoiserl.core.tree import leaves, tree_map
from denoiserl.data.demos import Demonstrations
from denoiserl.data.ends import check_inner_ends
from denoiserl.data.formats.minari.observations import choose, decode_observations, kept_space
from denoiserl.data.formats.numbers import check, format_numbers
from denoiserl.data.recordings import EpisodeDataset, to_stored_tensor, validate_episode

FILE, METADATA = "main_data.hdf5", "metadata.json"
COLUMNS = ("observations", "actions", "rewards", "terminations", "truncations")
WON = ("success", "is_success")
SPELT = {"true": True, "1": True, "false": False, "0": False, "none": False}
"""success as text, and its value at a step"""
Outside = Literal["error", "clip"]


def read(
    path: str | Path,
    exclude_episodes: Collection[int] = (),
    out_of_bounds_actions: Outside = "error",
    obs_keys: Sequence[str] | None = None,
) -> Demonstrations:
    """Return the demonstrations of a data set: ``read_recording(...).demos``."""
    return read_recording(path, exclude_episodes, out_of_bounds_actions, obs_keys).demos


def read_recording(
    path: str | Path,
    exclude_episodes: Collection[int] = (),
    out_of_bounds_actions: Outside = "error",
    obs_keys: Sequence[str] | None = None,
) -> EpisodeDataset:
    """Return a data set's episodes; ``path`` is its folder, the ``data`` in it, or the HDF5 file.

    ``exclude_episodes``: episodes to leave out. ``out_of_bounds_actions``: actions beyond the action space raise an
    error, or are clipped. ``obs_keys``: of dict observations, the parts to keep (default: all). Success is what
    ``infos`` report at any step; if not every episode reports it, none is read, with a warning. Raise RunError or
    InvalidInputError for bad episodes, with number and row (see ``data.recordings.validate_episode``).
    """
    if out_of_bounds_actions not in ("error", "clip"):
        raise InvalidInputError(
            unknown_name_message(out_of_bounds_actions, ("error", "clip"), "way with actions outside the action space")
        )
    folder, metadata = _opened(Path(path))
    name = str(metadata.get("dataset_id") or folder.name)
    seen, acts = (_space(metadata, f"{what}_space") for what in ("observation", "action"))
    if acts is not None and acts["type"] != "Box":
        raise InvalidInputError(f"{name} acts in a {acts['type']} space: demonstrations hold actions [L, d] of a Box")
    if acts is not None and not {"low", "high"} <= set(acts):
        raise InvalidInputError(f"the action space of {name} has no low and high in {METADATA}: copy the dataset again")
    low, high = (None, None) if acts is None else (np.asarray(acts[k], np.float64).ravel() for k in ("low", "high"))
    arrow = metadata.get("data_format") == "arrow"
    episodes, success, rewards, last, over, known = [], {}, [], [], [], []
    for i, raw in (_arrow if arrow else _hdf5)(folder, metadata, name):
        known.append(i)
        if i in exclude_episodes:
            continue
        columns = {c: raw[c] for c in COLUMNS}
        jpeg = bool(metadata.get("jpeg_encoding", True))
        observations = decode_observations(
            choose(columns["observations"], obs_keys, name), kept_space(seen, obs_keys), jpeg, i, name
        )
        actions = np.asarray(columns["actions"])
        actions = actions.reshape(len(actions), math.prod(actions.shape[1:])) if actions.ndim > 1 else actions
        frames = len(actions)
        for leaf in leaves(observations):
            if len(leaf) != frames + 1:
                raise InvalidInputError(
                    f"episode {i} of {name} is ragged, {frames} actions and {len(leaf)} observations (one more is "
                    f"right): repair it, or leave it out with exclude_episodes=({i},)"
                )
        if out_of_bounds_actions == "clip" and low is not None and actions.ndim == 2:
            actions = np.where(np.isnan(actions), actions, np.clip(actions, low, high))
        gains, ended, cut = (
            column(columns[c], kind, c, f"episode {i} of {name}")
            for c, kind in (("rewards", np.float64), ("terminations", bool), ("truncations", bool))
        )
        now = tree_map(lambda v: v[:-1], observations)
        validate_episode(name, i, now, actions, low, high, rewards=gains, terminations=ended, truncations=cut)
        check_inner_ends(name, i, ended, cut)
        episodes.append((tree_map(lambda v: to_stored_tensor(v[:-1]), observations), to_stored_tensor(actions)))
        last.append(tree_map(lambda v: to_stored_tensor(v[-1]), observations))
        rewards.append(torch.from_numpy(gains.astype(np.float32)))
        success[i] = _success(raw.get("infos"))
        over.append(bool(ended[-1]))
    check(name, exclude_episodes, known)
    if not episodes:
        raise InvalidInputError(f"{name} holds no episode")
    widths = {tuple(tuple(v.shape[1:]) for v in leaves(e)) for e in episodes}
    if len(widths) > 1:
        raise InvalidInputError(
            f"the episodes of {name} have observations or actions of different shapes: {sorted(widths)}"
        )
    mute = {i: said for i, said in success.items() if isinstance(said, str)}
    won = None if mute else [bool(s) for s in success.values()]
    if any(mute.values()) or 0 < len(mute) < len(success):
        i = max(mute, key=lambda i: bool(mute[i]))  # the first that holds something
        less = f", or leave out {format_numbers(mute)}" if len(mute) < len(success) else ""
        warnings.warn(
            f"infos of episode {i} of {name} hold {mute[i] or 'no success'} ({len(mute)} of {len(success)} episodes do "
            f"not report it), so success is read of none: store infos/success as booleans in all{less}",
            stacklevel=3,
        )
    demos = Demonstrations.of(episodes, won, [float(r.sum()) for r in rewards], name)
    d = demos.actions.shape[1]
    box = [torch.as_tensor(v, dtype=torch.float32) for v in (low, high)] if low is not None else _free(d)
    return EpisodeDataset(
        demos, torch.cat(rewards), tree_map(lambda *v: torch.stack(v), *last) if len(last) > 1 else _one(last[0]),
        torch.tensor(over), box[0], box[1],
    )  # fmt: skip


def column(value: Any, kind: Any, what: str, where: str) -> np.ndarray:
    """Return a column of single numbers [L], also if it is stored as [L, 1]. Raise InvalidInputError for other
    shapes."""
    try:
        found = np.asarray(value.tolist() if isinstance(value, np.ndarray) and value.dtype == object else value, kind)
    except (TypeError, ValueError):
        raise InvalidInputError(f"{what} of {where} are not numbers: store one number per step [L]") from None
    if found.ndim > 1 and found.size == len(found):
        found = found.reshape(len(found))
    if found.ndim != 1:
        raise InvalidInputError(f"{what} of {where} are {list(found.shape)}: store one number per step [L]")
    return found


def _one(tree: Any) -> Any:
    return tree_map(lambda v: v[None], tree)


def _free(d: int) -> list[torch.Tensor]:
    return [torch.full((d,), -torch.inf), torch.full((d,), torch.inf)]


def _opened(path: Path) -> tuple[Path, dict[str, Any]]:
    """Return the folder of the data and its metadata."""
    folder = path.parent if path.is_file() else path
    if not (folder / METADATA).is_file() and (folder / "data" / METADATA).is_file():
        folder = folder / "data"
    if not (folder / METADATA).is_file():
        raise RunError(f"{path} is no Minari dataset: there is no {METADATA} (nor data/{METADATA}) in it")
    try:
        metadata = json.loads((folder / METADATA).read_text())
    except ValueError as error:
        raise RunError(f"{folder / METADATA} is no JSON ({error}): copy the dataset again") from None
    if not isinstance(metadata, dict) or not str(metadata.get("total_episodes", 0)).isdigit():
        raise RunError(f"{folder / METADATA} does not say how many episodes there are: copy the dataset again")
    if metadata.get("data_format", "hdf5") not in ("hdf5", "arrow"):
        raise RunError(unknown_name_message(metadata["data_format"], ("hdf5", "arrow"), "layout of Minari"))
    return folder, metadata


def _space(metadata: dict[str, Any], what: str) -> Any:
    given = metadata.get(what)
    return json.loads(given) if isinstance(given, str) else given


def _hdf5(folder: Path, metadata: dict[str, Any], name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number, columns) of every episode."""
    h5py, path = require("h5py", "data"), folder / FILE
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise RunError(f"{path} cannot be read as HDF5 ({error}): copy the dataset again") from None

    def load(node: Any) -> Any:
        return {k: load(v) for k, v in node.items()} if isinstance(node, h5py.Group) else node[()]

    with file:
        known = sorted(
            (k for k in file if k.startswith("episode_") and k[8:].isdigit()),
            key=lambda k: int(k.removeprefix("episode_")),
        )
        promised = int(metadata.get("total_episodes", len(known)))
        if len(known) != promised:
            raise RunError(
                f"{path} holds {len(known)} episodes of the {promised} that {METADATA} promises: copy it again"
            )
        for key in known:
            i = int(key.removeprefix("episode_"))
            _complete(i, file[key], name)
            yield i, load(file[key])


def _arrow(folder: Path, metadata: dict[str, Any], name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number, columns) of every episode; actions and later columns have a row of padding at the end."""
    require("pyarrow", "data")
    dataset = require("pyarrow.dataset", "data")
    for i in range(int(metadata.get("total_episodes", 0))):
        if not (folder / str(i)).is_dir():
            raise RunError(f"{folder} has no episode {i} of the {metadata['total_episodes']} promised: copy it again")
        table = dataset.dataset(
            str(folder / str(i)), format="arrow", ignore_prefixes=["_", ".", METADATA]
        ).to_table().combine_chunks()  # fmt: skip
        _complete(i, table.column_names, name)
        raw = {c: _unpacked(table[c].combine_chunks(), _space(metadata, f"{c[:-1]}_space")) for c in COLUMNS[:2]}
        raw |= {c: np.asarray(table[c]) for c in COLUMNS[2:]}
        raw |= {c: raw[c][:-1] for c in COLUMNS[1:]}
        if "infos" in table.column_names:
            raw["infos"] = _unpacked(table["infos"].combine_chunks(), None)
        yield i, raw


def _fields(array: Any) -> list[tuple[str, Any]]:
    return [(field.name, array.field(k)) for k, field in enumerate(array.type)]


def _unpacked(array: Any, space: Any) -> Any:
    """Return an Arrow column as arrays, in the shape of the space."""
    array = array.chunk(0) if hasattr(array, "chunks") else array
    if array.type.num_fields and not hasattr(array.type, "value_type"):
        subs = (space or {}).get("subspaces", {})
        subs = {str(k): v for k, v in enumerate(subs)} if isinstance(subs, list) else subs
        return {k: _unpacked(v, subs.get(k)) for k, v in _fields(array)}
    value = array.to_numpy(zero_copy_only=False)
    if value.dtype != object or len(value) == 0 or isinstance(value[0], bytes | str):
        return value
    value = np.stack(value)
    return value if space is None else value.reshape(len(value), *space["shape"])


def _complete(i: int, columns: Any, name: str) -> None:
    for column in COLUMNS:
        if column not in columns:
            raise InvalidInputError(
                f"episode {i} of {name} has no {column}; it has {', '.join(sorted(columns)) or 'nothing'}: leaving it "
                "out does not help, the dataset is not whole"
            )


def _success(infos: Any) -> bool | str:
    """Return whether any step succeeded; else the unreadable content of ``infos`` ("": nothing)."""
    said = ""
    for key in WON:
        if not isinstance(infos, dict) or key not in infos:
            continue
        value = np.asarray(infos[key])
        if value.dtype.kind in "biuf":
            return bool(np.nan_to_num(value.astype(np.float64)).any())
        words = {w.decode(errors="replace") if isinstance(w, bytes) else str(w) for w in value.ravel().tolist()}
        if strange := sorted(w for w in words if w.lower() not in SPELT):
            said = said or f"{key} {strange[0][:20]!r}, neither True nor False"
        else:
            return any(SPELT[w.lower()] for w in words)
    return said
