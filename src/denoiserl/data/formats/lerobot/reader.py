"""Read data sets of LeRobot."""

from __future__ import annotations

import io
import json
import math
import warnings
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from denoiserl.core.errors import InvalidInputError, RunError, require, unknown_name_message
from denoiserl.core.tree import tree_map
from denoiserl.data.demos import Demonstrations
from denoiserl.data.ends import check_inner_ends
from denoiserl.data.formats.minari import column
from denoiserl.data.formats.numbers import check, format_numbers
from denoiserl.data.recordings import EpisodeDataset, to_stored_tensor, validate_episode

PREFIX, ACTION = "observation.", "action"
VERSIONS = ("v2.0", "v2.1", "v3.0")
BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")
KINDS = {"next.reward": np.float32, **{f"next.{c}": bool for c in ("success", "done", "terminated", "truncated")}}
USED = {ACTION, *BOOKKEEPING, *KINDS}
TASK = ("task", "instruction", "language", "prompt")
"""words in the names of columns with task descriptions"""


def read(
    folder: str | Path, exclude_episodes: Collection[int] = (), obs_keys: Sequence[str] | None = None
) -> Demonstrations:
    """Return the demonstrations of a data set: ``read_recording(...).demos``."""
    return read_recording(folder, exclude_episodes, obs_keys).demos


def read_recording(
    folder: str | Path, exclude_episodes: Collection[int] = (), obs_keys: Sequence[str] | None = None
) -> EpisodeDataset:
    """Return a data set's episodes, except those of ``exclude_episodes``.

    ``exclude_episodes``: episodes to leave out, by their number in the rows. ``obs_keys``: the observations to keep
    (default: all; an error if cameras are videos). A single one is a tensor [N, ...], several are a dict by name. A key
    may also be a feature that is not an observation.

    ``next.reward``, ``next.success`` and how episodes ended are read if they are there. The format stores neither the
    last observations nor the action bounds. Raise RunError or InvalidInputError for missing and bad episodes, with
    number and row (see ``data.recordings.validate_episode``).
    """
    folder, exclude_episodes = Path(folder), frozenset(exclude_episodes)
    info = _info(folder)
    features, name = info["features"], folder.name
    obs_keys = _parts(features, obs_keys, name)
    more, tasks = [c for c in KINDS if c in features], _tasks_named(features, obs_keys)
    table = _table(folder, [*obs_keys, ACTION, *more], tasks)
    owner = np.asarray(table["episode_index"])
    if len(owner) == 0:
        raise InvalidInputError(f"{name} holds no row")
    begin = np.flatnonzero(np.diff(owner, prepend=owner[0] - 1))
    found = owner[begin].tolist()
    if len(set(found)) < len(found):
        i = next(i for i in found if found.count(i) > 1)
        raise InvalidInputError(
            f"the rows of episode {i} of {name} are not one after another: sort the rows by their index"
        )
    counts = dict(zip(found, np.diff(begin, append=len(owner)).tolist(), strict=True))
    missing = _promised(folder, info, counts, exclude_episodes)
    episodes, success, rewards, over = [], [], [], []
    for i, low, high in zip(found, begin.tolist(), [*begin[1:].tolist(), len(owner)], strict=True):
        if i in exclude_episodes:
            continue
        rows = table.slice(low, high - low)
        frames = np.asarray(rows["frame_index"])
        if (frames != np.arange(len(frames))).any():
            row = int(np.argmax(frames != np.arange(len(frames))))
            raise InvalidInputError(
                f"row {row} of episode {i} of {name} is frame {frames[row]}: frames are missing or doubled"
            )
        observations = {
            part: _column(rows[part], features[part], f"{part} of episode {i} of {name}") for part in obs_keys
        }
        actions = _column(rows[ACTION], features[ACTION], f"{ACTION} of episode {i} of {name}")
        flags = {c: column(rows[c].to_numpy(), k, c, f"episode {i} of {name}") for c, k in KINDS.items() if c in more}
        validate_episode(name, i, observations, actions, **flags)
        never = np.zeros(len(frames), bool)
        done, ended, cut = (flags.get(f"next.{c}", never) for c in ("done", "terminated", "truncated"))
        check_inner_ends(name, i, ended | done & ~cut, cut, refuse=False)
        way = (
            ended if "next.terminated" in flags else done & ~cut
        )  # done alone is in every last row, and does not distinguish ends
        known = "next.terminated" in flags or cut[-1] or ("next.truncated" in flags and done[-1])
        over.append(bool(way[-1]) if known else None)
        seen = tree_map(to_stored_tensor, observations)
        episodes.append((seen[obs_keys[0]] if len(obs_keys) == 1 else seen, to_stored_tensor(actions)))
        rewards += [to_stored_tensor(flags["next.reward"])] if "next.reward" in flags else []
        success += [bool(flags["next.success"].any())] if "next.success" in flags else []
    for i in missing:
        raise InvalidInputError(f"episode {i} of {name} is empty: leave it out with exclude_episodes=({i},)")
    if not episodes:
        raise InvalidInputError(f"{name} holds no episode")
    kept = ~np.isin(owner, list(exclude_episodes))
    _left_over(name, features, obs_keys, {c: table[c].to_numpy()[kept] for c in tasks if c in table.column_names})
    returns = [float(r.sum()) for r in rewards] if rewards else None
    demos = Demonstrations.of(episodes, success or None, returns, name)
    made = EpisodeDataset.of(demos, torch.cat(rewards) if rewards else None)
    return made if None in over else replace(made, terminated=torch.tensor(over))


def _promised(
    folder: Path, info: dict[str, Any], found: dict[int, int], exclude_episodes: Collection[int]
) -> list[int]:
    """Return promised episodes without a row, if all rows are there; ``found``: {number: rows}.

    Raise RunError if rows of episodes to keep are missing: the download is partial.
    """
    rows, promised, total = sum(found.values()), int(info["total_frames"]), int(info["total_episodes"])
    known = list(found) if len(found) == total else sorted({*range(total), *found})
    check(folder.name, exclude_episodes, known)
    missing = [i for i in known if i not in found and i not in exclude_episodes]
    if rows == promised:
        return missing
    lengths = _lengths(folder)
    short = [i for i, n in found.items() if i not in exclude_episodes and lengths.get(i, n) != n]
    said = f"{folder} holds {rows} rows of the {promised} that meta/info.json promises"
    if not missing and not short and len(known) > len(found):
        return []
    if not missing and not short:
        raise RunError(f"{said}: copy it again")
    what = [f"not there are episodes {format_numbers(missing)}"] if missing else []
    what += [f"not whole are episodes {format_numbers(short)}"] if short else []
    out = format_numbers([*missing, *short])
    raise RunError(
        f"{said}; {' and '.join(what)}. If only a part was downloaded, leave them out (exclude_episodes='{out}', or "
        f"--exclude-episodes {out}); else copy it again"
    )


def _lengths(folder: Path) -> dict[int, int]:
    """Return the rows that ``meta`` promises for every episode, if it does."""
    old = folder / "meta" / "episodes.jsonl"
    if old.is_file():
        try:
            told = [json.loads(line) for line in old.read_text().splitlines() if line.strip()]
        except ValueError as error:
            raise RunError(f"{old} is no JSON ({error}): copy the dataset again") from None
    else:
        parquet = require("pyarrow.parquet", "data")
        paths = sorted((folder / "meta" / "episodes").glob("*/*.parquet"))
        told = [row for p in paths for row in parquet.read_table(p, columns=["episode_index", "length"]).to_pylist()]
    return {int(row["episode_index"]): int(row["length"]) for row in told}


def _tasks_named(features: dict[str, Any], obs_keys: Sequence[str]) -> list[str]:
    """Return the columns, beside ``obs_keys``, with task descriptions or task numbers."""
    textual = {k for k, f in features.items() if str(f["dtype"]).startswith(("string", "language", "int", "uint"))}
    named = [k for k in features if k in textual and k not in obs_keys and any(word in k.lower() for word in TASK)]
    return list(dict.fromkeys(["task_index", *named]))


def _left_over(name: str, features: dict[str, Any], obs_keys: Sequence[str], tasks: dict[str, np.ndarray]) -> None:
    """Warn of several tasks, whose descriptions are not used, and of features that are not read."""
    counts = {k: len(set(map(str, v)) if v.dtype == object else np.unique(v)) for k, v in tasks.items()}
    if several := {k: n for k, n in counts.items() if n > 1}:
        where = ", ".join("meta/tasks" if k == "task_index" else k for k in several)
        warnings.warn(
            f"{name} holds {max(several.values())} tasks, and their descriptions ({where}) are not read: a policy "
            "cannot distinguish them. Leave the episodes of others out, or add the task to the observations",
            stacklevel=3,
        )
    known = {*USED, *obs_keys, *several}
    if left := ", ".join(k for k, f in features.items() if k not in known and not _observed_there(k, f)):
        said = "the policy does not get them. Name numbers that it should get among the obs_keys= (--obs-keys)"
        warnings.warn(f"{name} also holds {left}, not read here: {said}", stacklevel=3)


def _observed_there(name: str, feature: dict[str, Any]) -> bool:
    """Return whether a feature is an observation: to LeRobot, a camera of any name is."""
    return name.startswith(PREFIX) or (feature["dtype"] in ("image", "video") and not name.startswith("next."))


def _info(folder: Path) -> dict[str, Any]:
    path = folder / "meta" / "info.json"
    try:
        info = json.loads(path.read_text())
    except FileNotFoundError:
        raise RunError(f"{folder} is no LeRobot dataset: there is no meta/info.json in it") from None
    except ValueError as error:
        raise RunError(f"{path} is no JSON ({error}): copy the dataset again") from None
    if not isinstance(info, dict) or not isinstance(info.get("features", {}), dict):
        raise RunError(f"{path} does not describe a dataset and its features: copy the dataset again")
    if info.get("codebase_version") not in VERSIONS:
        raise RunError(
            unknown_name_message(str(info.get("codebase_version")), VERSIONS, "version of LeRobot datasets read here")
        )
    for needed in ("features", "total_episodes", "total_frames"):
        if info.get(needed) is None:
            raise RunError(f"{path} does not say {needed}: copy the dataset again")
    for feature, told in dict(info["features"]).items():
        if not {"dtype", "shape"} <= set(told):
            raise RunError(f"{path} does not say the dtype and shape of {feature}: copy the dataset again")
    if ACTION not in info["features"]:
        raise InvalidInputError(
            f"{folder.name} has no {ACTION!r}; its features are {', '.join(sorted(info['features']))}"
        )
    return info


def _parts(features: dict[str, Any], obs_keys: Sequence[str] | None, name: str) -> list[str]:
    known = [k for k, feature in features.items() if _observed_there(k, feature)]
    for part in obs_keys or ():
        if part not in features or part in USED:
            raise InvalidInputError(unknown_name_message(part, features.keys() - USED, f"observation in {name}"))
    films = [k for k in obs_keys or known if features[k]["dtype"] == "video"]
    if films:
        left = [k for k in obs_keys or known if k not in films]
        how = f"without images, use obs_keys={left} (--obs-keys {','.join(left)})" if left else "there is no other part"
        raise InvalidInputError(
            f"{', '.join(films)} of {name} {'lie' if len(films) > 1 else 'lies'} in videos, which are not read here: "
            f"convert them to pictures with LeRobot, or, {how}"
        )
    if not (obs_keys or known):
        raise InvalidInputError(f"{name} has no observation: its features are {', '.join(sorted(features))}")
    return list(obs_keys or known)


def _table(folder: Path, columns: list[str], perhaps: list[str]) -> Any:
    """Return all rows in order of their index; the columns ``perhaps`` if they exist."""
    parquet, pa = require("pyarrow.parquet", "data"), require("pyarrow", "data")
    paths = sorted((folder / "data").glob("*/*.parquet"))
    if not paths:
        raise RunError(f"{folder} has no rows: there is no data/chunk-*/*.parquet in it")
    wanted, tables = list(dict.fromkeys([*columns, "episode_index", "frame_index", "index"])), []
    for path in paths:
        try:
            file = parquet.ParquetFile(path)
            for column in wanted:
                if column not in file.schema_arrow.names:
                    raise InvalidInputError(f"{path} has no column {column!r}, which meta/info.json promises")
            more = [c for c in perhaps if c in file.schema_arrow.names]
            tables.append(file.read(columns=[*wanted, *more]))
        except (pa.ArrowInvalid, OSError) as error:
            raise RunError(f"{path} cannot be read as Parquet ({error}): copy the dataset again") from None
    table = pa.concat_tables(tables, promote_options="permissive")
    return table.take(np.argsort(np.asarray(table["index"]), kind="stable"))


def _column(column: Any, feature: dict[str, Any], what: str) -> np.ndarray:
    """Return a column as [L, ...]; images [L, H, W, C]."""
    if feature["dtype"] == "image":
        return _pictures(column.to_pylist(), what)
    if feature["dtype"] in ("string", "language"):
        raise InvalidInputError(f"{what} are words, not numbers: choose the parts to keep with obs_keys= (--obs-keys)")
    values = column.to_numpy()
    if values.dtype == object:
        lengths = {np.shape(v) for v in values}
        if len(lengths) > 1:
            odd = next(i for i, v in enumerate(values) if np.shape(v) != np.shape(values[0]))
            raise InvalidInputError(f"row {odd} of {what} has another shape than the first: {sorted(lengths)}")
        values = np.array(column.to_pylist(), dtype=np.float64 if "float" in feature["dtype"] else feature["dtype"])
    if values.size != len(values) * math.prod(feature["shape"]):
        raise InvalidInputError(
            f"rows of {what} are {list(values.shape[1:])}, and meta/info.json says {feature['shape']}"
        )
    return values.reshape(len(values), *feature["shape"])


def _pictures(cells: list[Any], what: str) -> np.ndarray:
    """Return stored images as [L, H, W, C]. Raise InvalidInputError, with the row, for a cell without one."""
    image, found = require("PIL.Image", "demo"), []
    for row, cell in enumerate(cells):
        cell = cell if isinstance(cell, dict) else {"bytes": cell}
        try:
            found.append(np.asarray(image.open(io.BytesIO(cell["bytes"]))))
        except (KeyError, OSError, SyntaxError, TypeError, ValueError):
            said = "no readable picture" if cell.get("bytes") else f"no picture (its path: {cell.get('path')})"
            how = "store pictures in the rows with LeRobot, or leave them out with obs_keys= (--obs-keys)"
            raise InvalidInputError(f"row {row} of {what} holds {said}: {how}") from None
        if found[row].shape != found[0].shape:
            raise InvalidInputError(
                f"pictures of {what} are {found[0].shape}, and {found[row].shape} in row {row}: use one size"
            )
    return np.stack(found)
